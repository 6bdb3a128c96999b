"""What a person sees of a stage: parameters, messages, progress, provenance, interruption.

Nothing here changes a result, so the pipeline does not depend on it (DESIGN 2); but device.py says
with how many bits cuDNN convolves, so whoever edits that makes results again (`dvc repro --force`).
"""
