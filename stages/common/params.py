"""Sections of params.yaml that several stages use."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

Architecture = Literal["conv4", "conv4_64", "resnet10", "resnet18"]
Precision = Literal["float32", "bfloat16"]  # of a forward pass

MetaLearner = Literal["maml", "anil", "protonet"]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Scenario(Section):
    """What a pool is made of, and what follows for learning from it (METHODS 1.2, 1.5)."""

    architectures: str  # one name, or several joined by "+": one is drawn for each teacher
    start: Literal["average", "random"]
    teachers_per_step: Literal["all"] | PositiveInt

    @field_validator("architectures")
    @classmethod
    def _known(cls, value: str) -> str:
        allowed = get_args(Architecture)
        for name in value.split("+"):
            if name not in allowed:
                raise ValueError(
                    f"no architecture {name!r}; allowed: {', '.join(allowed)}, joined by '+'"
                )
        return value

    @property
    def names(self) -> list[str]:
        return self.architectures.split("+")


class LearnerSection(Section):
    """The network that is meta-trained, whatever the method."""

    architecture: Architecture
    # The side of its images: the smallest or largest of the teachers', or so many pixels.
    image_size: Literal["smallest", "largest"] | Annotated[int, Field(ge=16)]


class InversionWeights(Section):
    """Weights of the inversion loss's terms (METHODS 1.1)."""

    tv: NonNegativeFloat
    l2: NonNegativeFloat
    bn_statistics: NonNegativeFloat


class NaturalInversion(Section):
    """Inversion in few steps, from a procedural image or from noise (METHODS 5)."""

    lr: PositiveFloat
    max_roll: NonNegativeInt
    precision: Precision
    weights: InversionWeights
