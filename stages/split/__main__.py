from stages.split.command import app

app(prog_name="python -m stages.split")
