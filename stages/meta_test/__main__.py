from stages.meta_test.command import app

app(prog_name="python -m stages.meta_test")
