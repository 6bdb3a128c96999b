"""Sections of params.yaml that several stages use."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InversionWeights(Section):
    """Weights of the inversion loss's terms (METHODS 1.1)."""

    tv: NonNegativeFloat
    l2: NonNegativeFloat
    bn_statistics: NonNegativeFloat
