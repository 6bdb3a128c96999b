from stages.meta_train.command import app

app(prog_name="python -m stages.meta_train")
