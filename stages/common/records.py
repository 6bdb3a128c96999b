"""Dataclasses that stand in a file as JSON, with every value of the kind that they declare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from stages.interface.errors import BadInput

# Of a dataclass, as its `__pydantic_config__`.
EXACT = ConfigDict(strict=True, extra="forbid")

Triple = tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # one a channel
Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Deviations = tuple[Deviation, Deviation, Deviation]

Record = TypeVar("Record")


def record(kind: type[Record], content: Any, path: Path, what: str) -> Record:
    """`content`, JSON's lists and objects as they were read from `path`, as a dataclass `kind`.

    Raises BadInput for a value that is missing, unknown, or not what the dataclass declares.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        shown = "" if wrong["type"] == "missing" else f" ({str(wrong['input'])[:60]!r})"
        text = f"{where}: {wrong['msg']}{shown}" if where else wrong["msg"]
        raise BadInput(f"{path}: not {what}: {text}") from None
