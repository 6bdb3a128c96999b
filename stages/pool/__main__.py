from stages.pool.command import app

app(prog_name="python -m stages.pool")
