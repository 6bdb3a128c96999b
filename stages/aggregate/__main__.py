from stages.aggregate.command import app

app(prog_name="python -m stages.aggregate")
