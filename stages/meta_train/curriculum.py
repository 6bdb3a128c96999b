"""The Gradient Switch of ECI (PURER, equation 5; METHODS 1.3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GradientSwitch:
    """Says when the learner has learned the current synthetic images well.

    From iteration `start` on: when the mean training accuracy of the episode batch has not
    exceeded its best for `patience` consecutive iterations, the feedback is positive for one
    update of the images; best and counter begin anew.
    """

    start: int
    patience: int
    best: float = 0.0
    stale: int = 0  # iterations since the best accuracy

    def observe(self, iteration: int, accuracy: float) -> bool:
        """Feedback after `iteration` (from 0), with that iteration's accuracy in [0, 1]."""
        if iteration < self.start:
            return False
        if accuracy > self.best:
            self.best, self.stale = accuracy, 0
            return False
        self.stale += 1
        if self.stale < self.patience:
            return False
        self.best, self.stale = 0.0, 0
        return True
