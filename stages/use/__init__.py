"""A learner on images of one's own: `purer export`, `adapt`, `embed`; `few_shot.load_learner`."""
