"""A learner on images of one's own: `load_learner(path).adapt(images, labels).predict(others)`."""

from stages.use.few_shot import Classifier, FewShotLearner, load_learner

__all__ = ["Classifier", "FewShotLearner", "load_learner"]
