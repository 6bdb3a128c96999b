from stages.pretrain.command import app

app(prog_name="python -m stages.pretrain")
