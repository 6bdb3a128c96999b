from stages.pseudo.command import app

app(prog_name="python -m stages.pseudo")
