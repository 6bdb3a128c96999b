"""Sections of params.yaml that several stages use."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat

Architecture = Literal["conv4", "conv4_64", "resnet10", "resnet18"]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InversionWeights(Section):
    """Weights of the inversion loss's terms (METHODS 1.1)."""

    tv: NonNegativeFloat
    l2: NonNegativeFloat
    bn_statistics: NonNegativeFloat
