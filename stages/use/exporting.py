"""A learner as one file: safetensors with all that its use needs, and ONNX checked against it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.files import METADATA_KEY, load_json, metadata_of, open_tensors, written_whole
from stages.common.learner import (
    Learner,
    LearnerInfo,
    Theta,
    iteration_of,
    load_learner,
    save_learner,
    snapshots,
)
from stages.common.pool import check_finite
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.interface.provenance import provenance_of, runs_behind

CHECKED_IMAGES = 8
TOLERANCE = 1e-4  # of a feature, between PyTorch and ONNX
UNKNOWN = {"commit": "unknown"}  # the provenance of a learner that has none beside it


def chosen_snapshot(folder: Path, iteration: int | None) -> Path:
    """The snapshot of a learner's folder after `iteration`; None: the last.

    Raises BadInput if there is none, naming those there are.
    """
    paths = snapshots(folder)
    if iteration is None:
        return paths[-1]
    found = [path for path in paths if iteration_of(path) == iteration]
    if not found:
        there = ", ".join(str(iteration_of(path)) for path in paths)
        raise BadInput(f"{folder}: no snapshot after {iteration} iterations; there are: {there}")
    return found[0]


def selected_iteration(cell: Path, folder: Path) -> int:
    """The snapshot that meta-validation chose for nearest class mean, which `adapt` uses.

    Raises BadInput if `cell` is no learner's cell, or of another run than the learner in `folder`.
    """
    content = load_json(cell)
    try:
        chosen = int(content["rows"]["nearest_class_mean"]["snapshot"])
        runs = list(content["provenance"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{cell}: not the file of a learner's cell") from None
    if runs_behind(folder.absolute())[-1] not in runs:
        raise BadInput(f"{cell}: its snapshot was chosen among those of another run than {folder}")
    return chosen


def check_replaceable(out: Path) -> None:
    """Raise BadInput if `out` is there and no earlier export: it may be somebody's only copy.

    For an ONNX file, which takes the onnx package to tell, also where that is not installed.
    """
    if not out.exists():
        return
    if not (_is_our_onnx if out.suffix == ".onnx" else _is_export)(out):
        raise BadInput(f"{out}: is there and no file of `purer export`; allowed: a new name")


def _is_export(out: Path) -> bool:
    try:
        with open_tensors(out) as file:
            return bool(metadata_of(file, out).get("provenance"))  # a snapshot's is empty
    except BadInput:
        return False


def _is_our_onnx(out: Path) -> bool:
    _check_installed()
    import onnx

    try:
        model = onnx.load(out, load_external_data=False)
    except Exception:  # whatever a file that is none makes its reader raise
        return False
    return any(entry.key == METADATA_KEY for entry in model.metadata_props)


def provenance_beside(snapshot: Path) -> dict[str, Any]:
    """Of the learner in whose folder the snapshot is: never empty, or no export would know its own.

    A folder that was moved without the file beside it has an unknown one.
    """
    beside = provenance_of(snapshot.absolute().parents[1])  # "." has no name
    return load_json(beside) if beside.exists() else UNKNOWN


def export_safetensors(snapshot: Path, out: Path) -> LearnerInfo:
    """Copy the snapshot to `out`, with the provenance that stands beside its folder.

    Raises BadInput for one that diverged.
    """
    _, theta, info = load_learner(snapshot)
    check_finite(theta, snapshot)
    info = replace(info, provenance=provenance_beside(snapshot))
    save_learner(out, theta, info)
    return info


class _Embedding(nn.Module):
    """Pixels in [0, 1] to unit features: preprocessing and network in one graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, learner: Learner, theta: Theta, info: LearnerInfo) -> None:
        super().__init__()
        self._net = learner.network(theta)
        self.register_buffer("mean", torch.tensor(info.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._net((pixels - self.mean) / self.std).features
        return nn.functional.normalize(features, dim=1)


def _check_installed() -> None:
    """Raise BadInput unless all that ONNX needs is there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"ONNX needs {error.name}: pip install -e '.[onnx]' in the clone") from None


def export_onnx(file: Path, out: Path) -> float:
    """The learner of `file` as ONNX; the largest difference to PyTorch on random images.

    Input `pixels` (n, 3, s, s) in [0, 1], output `features` (n, d) of unit length. What the learner
    is and where it comes from is in the file's metadata, as in the safetensors file's.

    Raises BadInput for a learner whose features depend on the batch, where onnx, onnxscript and
    onnxruntime are not installed, and if the two differ by more than the tolerance.
    """
    _check_installed()
    import onnx
    import onnxruntime

    learner, theta, info = load_learner(file)
    if not learner.keeps_statistics:
        raise BadInput(
            f"{file}: a learner of method {info.method} normalises with a batch's statistics, so"
            " it is no function of one image; allowed as ONNX: distilled learners"
        )
    embedding = _Embedding(learner, theta, info).eval()
    shape = (CHECKED_IMAGES, 3, info.image_size, info.image_size)
    x = torch.rand(shape, generator=generator(0, "onnx"))
    with written_whole(out) as temporary:
        torch.onnx.export(
            embedding,
            (x,),
            temporary,
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        model = onnx.load(temporary)
        said = asdict(replace(info, provenance=provenance_beside(file)))
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(said, sort_keys=True)})
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        worst = 0.0
        for n in (1, CHECKED_IMAGES):
            (features,) = session.run(None, {"pixels": x[:n].numpy()})
            with torch.inference_mode():
                expected = embedding(x[:n])
            worst = max(worst, float((torch.from_numpy(features) - expected).abs().max()))
        if not worst <= TOLERANCE:
            raise BadInput(f"{out}: differs from PyTorch by {worst:.2g}: allowed: {TOLERANCE:g}")
    return worst
