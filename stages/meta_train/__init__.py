"""meta_train: pool -> snapshots of the learner, synthetic images, history; no data."""
