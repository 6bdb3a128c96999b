"""purer: data-free meta-learning as a pipeline; one package per stage, in pipeline order."""
