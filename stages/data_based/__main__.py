from stages.data_based.command import app

app(prog_name="python -m stages.data_based")
