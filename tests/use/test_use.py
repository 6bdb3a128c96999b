"""Using a learner: export, adapt, embed; the same from Python."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from stages.cli import app
from stages.common.architectures import batch_moments
from stages.common.files import load_json, load_tensors, save_json
from stages.common.learner import Learner, initial_theta, save_learner
from stages.common.procedural import procedural_images
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_test.nearest_class_mean import nearest
from stages.use import few_shot
from stages.use.few_shot import load_learner
from stages.use.images import pixels
from tests.common.test_distilled import info, network

COLOURS = {"red": (200, 30, 40), "green": (20, 180, 60), "blue": (30, 40, 210)}


def purer(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def learner(tmp_path: Path) -> Path:
    """A folder of meta_train with two snapshots of a distilled learner."""
    folder = tmp_path / "learner"
    for iteration in (3, 7):
        path = folder / "snapshots" / f"iteration-{iteration:06d}.safetensors"
        save_learner(path, network().state_dict(), replace(info(), iteration=iteration))
    save_json(tmp_path / "learner.provenance.json", {"commit": "abc", "stage": "meta_train"})
    return folder


@pytest.fixture
def file(learner: Path, tmp_path: Path) -> Path:
    out = tmp_path / "learner.safetensors"
    assert purer("export", learner, "--out", out).exit_code == 0
    return out


def picture(name: str, seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise about a colour."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def support(tmp_path: Path) -> Path:
    folder = tmp_path / "support"
    for name in COLOURS:
        (folder / name).mkdir(parents=True)
        for i, ending in enumerate(("png", "jpg", "webp", "bmp", "gif")):
            picture(name, i).save(folder / name / f"{i}.{ending}")
    return folder


@pytest.fixture
def others(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    for i, name in enumerate(COLOURS):
        for j in range(3):
            picture(name, 100 + 3 * i + j, (20 + 9 * j, 35)).save(folder / f"{name}-{j}.png")
    return folder


# --- export -----------------------------------------------------------------------------------


def test_the_exported_file_has_all_that_its_use_needs(learner: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    result = purer("export", learner, "--out", out)
    assert result.exit_code == 0, result.output
    assert "after 7 iterations; the last snapshot: --cell takes the selected" in result.output
    _, metadata = load_tensors(out)
    assert metadata["provenance"] == {"commit": "abc", "stage": "meta_train"}
    assert metadata["class_names"] == [["a", "b", "c"], ["d"]]
    assert replace(load_learner(out).info, provenance={}) == info()
    chosen = purer("export", learner, "--out", out, "--iteration", 3).output
    assert "after 3 iterations\n" in chosen


def test_a_learner_without_provenance_is_exported_as_such(learner: Path, tmp_path: Path) -> None:
    (tmp_path / "learner.provenance.json").unlink()
    out = tmp_path / "out.safetensors"
    for _ in range(2):  # the second over the first
        said = purer("export", learner, "--out", out).output
        assert "no provenance stands beside" in said
    assert load_learner(out).info.provenance == {"commit": "unknown"}


def test_the_snapshot_that_was_selected_is_exported(tmp_path: Path, learner: Path) -> None:
    cell, out = tmp_path / "cell.json", tmp_path / "out.safetensors"
    rows = {"nearest_class_mean": {"snapshot": 3}, "one_step": {"snapshot": 7}}
    beside = learner.with_name("learner.provenance.json")
    own, start = load_json(beside), {"commit": "before"}
    save_json(beside, own | {"start": start})  # of a learner that started from another
    save_json(cell, {"rows": rows, "provenance": [{}, start, own]})
    assert "after 3 iterations" in purer("export", learner, "--out", out, "--cell", cell).output
    both = purer("export", learner, "--out", out, "--cell", cell, "--iteration", 3)
    assert (both.exit_code, "allowed: one of them" in both.output) == (2, True)
    save_json(cell, {"rows": rows, "provenance": [{"commit": "other", "stage": "meta_train"}]})
    other = purer("export", learner, "--out", out, "--cell", cell).output.replace("\n", " ")
    assert "chosen among those of another run" in other
    for odd in (
        {"rows": {"pool_features": {}}, "provenance": []},
        {"rows": {"nearest_class_mean": {"snapshot": "x"}}, "provenance": []},
        {"rows": rows, "provenance": 3},
    ):
        save_json(cell, odd)
        none = purer("export", learner, "--out", out, "--cell", cell)
        assert none.exit_code == 2
        assert "not the file of a learner's cell" in none.output.replace("\n", " ")


def test_a_copy_of_a_snapshot_is_none(learner: Path, tmp_path: Path) -> None:
    source = learner / "snapshots/iteration-000003.safetensors"
    shutil.copy(source, source.with_stem("iteration-best"))
    for iteration in ("--iteration", 3), ("--iteration", 7), ():
        result = purer("export", learner, "--out", tmp_path / "out.safetensors", *iteration)
        assert f"after {iteration[1] if iteration else 7} iterations" in result.output


def test_a_learner_that_diverged_is_not_used(learner: Path, support: Path, others: Path) -> None:
    """Every image would be of the first class, with probabilities that are none."""
    state, last = network().state_dict(), learner / "snapshots/iteration-000007.safetensors"
    state["projection.bias"][1] = float("nan")
    save_learner(last, state, info())
    for arguments in (
        ("export", learner, "--out", support.parent / "out.safetensors"),
        ("adapt", support, "--learner", last, "--predict", others),
        ("embed", others, "--learner", last, "--out", support.parent / "out.csv"),
    ):
        result = purer(*arguments)
        assert result.exit_code == 2, result.output
        found = result.output.replace("\n", " ")
        assert "projection.bias holds numbers that are not finite" in found
    assert not list(support.parent.glob("out.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "not a learner; meta_train makes one"),
        (("learner", "--iteration", 5), "no snapshot after 5 iterations; there are: 3, 7"),
    ],
)
def test_what_is_not_there_is_not_exported(
    arguments: tuple[object, ...], message: str, learner: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    result = purer("export", learner.parent / str(arguments[0]), *arguments[1:], "--out", out)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert not out.exists()


@pytest.mark.parametrize("option", ["--out", "--onnx"])
@pytest.mark.parametrize("name", ["thesis", "thesis.safetensors", "thesis.onnx"])
def test_a_folder_is_never_exported_over(
    option: str, name: str, learner: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / name, tmp_path / "out.safetensors"
    folder.mkdir()
    (folder / "chapter.tex").write_text("dear")
    result = purer(
        "export", learner, *(("--out", out) if option == "--onnx" else ()), option, folder
    )
    assert result.exit_code == 2
    assert (folder / "chapter.tex").read_text() == "dear"
    assert not out.exists()


def test_a_checkpoint_of_others_is_never_exported_over(learner: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    save_file({"weight": torch.zeros(1)}, out)
    before = out.read_bytes()
    result = purer("export", learner, "--out", out)
    assert (result.exit_code, "no file of `purer export`" in result.output.replace("\n", " ")) == (
        2,
        True,
    )
    assert out.read_bytes() == before


def test_the_present_folder_may_be_the_learner_but_not_the_file(
    learner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(learner)
    out = tmp_path / "out.safetensors"
    assert purer("export", ".", "--out", out).exit_code == 0
    assert load_tensors(out)[1]["provenance"]["commit"] == "abc"
    result = purer("export", ".", "--out", ".")
    assert (result.exit_code, "allowed endings: .safetensors" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "/dev/null/out.safetensors"), "/dev/null: "),
        (("--out", "/proc/out.safetensors"), "/proc/"),
        (("--cell", "."), ".: no such file"),
    ],
)
def test_what_the_system_refuses_is_one_message(
    options: tuple[str, str], message: str, learner: Path, tmp_path: Path
) -> None:
    out = () if "--out" in options else ("--out", tmp_path / "out.safetensors")
    onnx = tmp_path / "x.onnx"
    result = purer("export", learner, *options, *out, "--onnx", onnx)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert not onnx.exists()  # nor any other part of an export that failed
    assert "Traceback" not in result.output


def learner_without_statistics(folder: Path) -> Path:
    path = folder / "snapshots" / "iteration-000001.safetensors"
    own = replace(info(), distilled=None, method="eci", meta_learner="maml")
    save_learner(path, initial_theta("conv4", 4, 16, generator(0, "theta")), own)
    return path


def test_what_cannot_become_onnx_is_refused_before_anything_is_written(
    learner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = learner_without_statistics(tmp_path / "plain").parents[1]
    given = ("--out", tmp_path / "x.safetensors", "--onnx", tmp_path / "x.onnx")
    if find_spec("onnx") and find_spec("onnxscript") and find_spec("onnxruntime"):
        result = purer("export", plain, *given)
        assert result.exit_code == 2
        assert "no function of one image" in result.output.replace("\n", " ")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    result = purer("export", learner, *given)
    assert (result.exit_code, "pip install -e '.[onnx]'" in result.output) == (2, True)
    assert not list(tmp_path.glob("x.*"))


def test_onnx_gives_the_features_of_pytorch(learner: Path, file: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra purer[onnx] is optional")
    out = tmp_path / "learner.onnx"
    result = purer("export", learner, "--out", file, "--onnx", out)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    images = procedural_images(5, 16, generator(0, "x"))
    x = images.permute(0, 3, 1, 2).float() / 255
    (features,) = session.run(None, {"pixels": x.numpy()})
    expected = load_learner(file).embed(list(images))
    assert torch.allclose(torch.from_numpy(features), expected, atol=1e-4)
    onnx = pytest.importorskip("onnx")
    said = {entry.key: entry.value for entry in onnx.load(out).metadata_props}["purer"]
    assert json.loads(said)["provenance"] == {"commit": "abc", "stage": "meta_train"}
    assert purer("export", learner, "--out", file, "--onnx", out).exit_code == 0  # its own
    model = onnx.load(out)
    del model.metadata_props[:]
    for content in (model.SerializeToString(), b"dear"):
        out.write_bytes(content)
        result = purer("export", learner, "--out", file, "--onnx", out)
        assert (result.exit_code, "no file of `purer export`" in result.output) == (2, True)
        assert out.read_bytes() == content


# --- from Python ------------------------------------------------------------------------------


def test_it_is_the_nearest_class_mean_of_the_learner(file: Path) -> None:
    """The same prediction as meta_test's, and probabilities in the same order."""
    images = procedural_images(4 * 3 + 20, 16, generator(0, "x"))
    labels = torch.arange(4).repeat_interleave(3)
    learner = load_learner(file)
    classifier = learner.adapt(images[:12], labels.tolist())
    net = network()
    with torch.inference_mode():
        z = net(info().view.of(images)).features
    expected = nearest(z[:12], z[12:], 4, "cosine")
    assert classifier.predict(images[12:]) == expected.tolist()
    shares = classifier.probabilities(images[12:])
    assert torch.allclose(shares.sum(1), torch.ones(20))
    assert torch.equal(shares.argmax(1), expected)
    assert torch.allclose(learner.embed(images), F.normalize(z), atol=1e-5)


def test_labels_may_be_a_tensor_or_an_array(file: Path) -> None:
    images = procedural_images(12, 16, generator(0, "x"))
    labels = torch.tensor([3, 1, 2]).repeat_interleave(4)
    learner = load_learner(file)
    expected = learner.adapt(images, [3] * 4 + [1] * 4 + [2] * 4)
    assert expected.classes == [3, 1, 2]
    for form in (labels, labels.numpy(), list(labels), list(labels.numpy())):
        classifier = learner.adapt(images, form)
        assert classifier.classes == expected.classes
        assert torch.equal(classifier.means, expected.means)
        assert classifier.predict(images) == expected.predict(images)


def test_a_device_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(BadInput, match="device = 'cuda:99': this machine has"):
        load_learner(file, "cuda:99")
    assert load_learner(file, "auto").adapt(torch.zeros(2, 16, 16, 3).byte(), "ab").classes


def test_an_image_is_judged_alone(file: Path) -> None:
    images = procedural_images(20, 16, generator(0, "x"))
    classifier = load_learner(file).adapt(images[:8], ["a", "b"] * 4)
    together = classifier.probabilities(images[8:])
    alone = torch.cat([classifier.probabilities([image]) for image in images[8:]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_arrays_tensors_pictures_and_paths_are_one(file: Path, tmp_path: Path) -> None:
    array = np.asarray(picture("red", 1))
    path = tmp_path / "x.png"
    Image.fromarray(array).save(path)
    forms = [
        array,
        array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        Image.fromarray(array),
        path,
        str(path),
    ]
    expected = pixels(array, 16)
    for form in forms:
        assert torch.equal(pixels(form, 16), expected)
    assert expected.shape == (16, 16, 3)
    grey = pixels(array[..., 0], 16)
    assert torch.equal(grey[..., 0], grey[..., 2])


def test_a_turned_photograph_is_turned_back_from_a_path_or_not(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 5))  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    for form in (tmp_path / "x.png", Image.open(tmp_path / "x.png")):
        assert pixels(form, 20)[-1].float().mean() == 255


RAMP = np.linspace(0, 1, 16).reshape(4, 4)  # from black to white


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ((RAMP * 255).round().astype(np.uint8), "png"),
        ((RAMP * 65535).round().astype(np.uint16), "png"),
        ((RAMP * 65535).round().astype(np.uint16), "tif"),
        ((RAMP * 65535).round().astype(np.int32), "tif"),
        ((RAMP * 4095).round().astype(np.uint16), "tif"),  # of a camera of 12 bits
        ((RAMP * 1e6).round().astype(np.int32) - 77, "tif"),  # of no known scale: its own
        (RAMP.astype(np.float32), "tif"),
        (RAMP.astype(np.float32), "pfm"),
        ((RAMP * 9000 - 500).astype(np.float32), "tif"),
    ],
)
def test_grey_of_any_depth_is_grey_of_eight_bits(
    values: np.ndarray, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray(values).save(path)
    expected = np.repeat((RAMP * 255).round()[..., None], 3, 2)
    for form in (path, Image.open(path)):
        assert np.abs(pixels(form, 4).numpy() - expected).max() <= 1


def test_a_dark_pgm_stays_dark(tmp_path: Path) -> None:
    """Its header says what white is."""
    rows = "\n".join(" ".join(str(round(60 * v)) for v in row) for row in RAMP)
    (tmp_path / "x.pgm").write_text(f"P2\n4 4\n1023\n{rows}\n")
    assert np.abs(pixels(tmp_path / "x.pgm", 4)[..., 0].numpy() - RAMP * 60 / 1023 * 255).max() <= 1


def test_a_scan_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    """Pillow turns such in 8 bits, and 16 it neither writes nor reads turned."""
    files = {
        tmp_path / "8.tif": (RAMP * 255).round().astype(np.uint8),
        tmp_path / "16.tif": ((1 - RAMP) * 65535).round().astype(np.uint16),
    }
    for path, values in files.items():
        Image.fromarray(values).save(path, tiffinfo={262: 0})
        with Image.open(path) as file:
            assert file.tag_v2[262] == 0
        assert np.abs(pixels(path, 4)[..., 0].numpy() - RAMP * 255).max() <= 1


def test_a_photograph_whose_note_is_broken_is_read_as_it_lies(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 5))  # white above
    for i, dpi in enumerate((None, (72, 72))):
        path = tmp_path / f"{i}.jpg"
        image.save(path, exif=b"Exif\0\0no TIFF header", **({"dpi": dpi} if dpi else {}))
        assert pixels(path, 20)[0].float().mean() > 250
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match="not a readable image"):
        pixels(path, 20)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[..., 0] = 200  # red,
    array[4:, :, 3] = 255  # but only the lower half of it to be seen
    path = tmp_path / "x.png"
    Image.fromarray(array).save(path)
    expected = torch.full((8, 8, 3), 255, dtype=torch.uint8)
    expected[4:] = torch.tensor([200, 0, 0], dtype=torch.uint8)
    floats = array.transpose(2, 0, 1).astype(np.float32) / 255
    for form in (path, Image.open(path), array, floats):
        assert torch.equal(pixels(form, 8), expected)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "x.gif", transparency=1)
    assert pixels(tmp_path / "x.gif", 4).min() == 255


@pytest.mark.parametrize(
    "mode",
    ["L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F"],
)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_every_mode_of_pillow_is_read(mode: str, grey: int) -> None:
    image = Image.new("L", (4, 4), grey)
    image.putpixel((0, 0), 255)
    if mode == "RGBa":
        image = image.convert("RGBA")
    seen = pixels(image.convert(mode), 4)
    assert (seen[1:].float() - grey).abs().max() <= 1
    assert seen[0, 0].min() >= 254


def test_two_of_colours_are_black_and_white() -> None:
    image = Image.new("1", (4, 4), 0)
    image.putpixel((0, 0), 1)
    assert pixels(image, 4)[..., 0].unique().tolist() == [0, 255]
    assert pixels(image, 4)[0, 0].min() == 255


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1)])
def test_arrays_of_one_channel_are_grey(shape: tuple[int, ...]) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    expected = pixels(grey, 8)
    assert np.array_equal(expected.numpy(), np.repeat(grey[..., None], 3, 2))
    assert torch.equal(pixels(grey.reshape(shape), 8), expected)
    assert torch.equal(pixels(torch.from_numpy(grey.reshape(shape)), 8), expected)


def test_true_is_white() -> None:
    mask = RAMP > 0.5
    expected = pixels(mask.astype(np.uint8) * 255, 4)
    for form in (mask, torch.from_numpy(mask), torch.from_numpy(mask).bfloat16()):
        assert torch.equal(pixels(form, 4), expected)
    assert expected.max() == 255


def test_one_image_alone_is_a_list_of_it(file: Path, tmp_path: Path) -> None:
    image = picture("red", 1)
    image.save(tmp_path / "x.png")
    array = np.asarray(image)
    learner = load_learner(file)
    images = [picture(name, i) for name in COLOURS for i in range(3)]
    classifier = learner.adapt(images, [name for name in COLOURS for _ in range(3)])
    expected = classifier.probabilities([image])
    forms = (image, tmp_path / "x.png", str(tmp_path / "x.png"), array, torch.tensor(array))
    assert torch.equal(classifier.probabilities(iter([image])), expected)
    for form in (*forms, array[None], (image,)):
        assert torch.equal(classifier.probabilities(form), expected)
        assert classifier.predict(form) == ["red"]
    with pytest.raises(BadInput, match="images of type int"):
        classifier.predict(7)
    with pytest.raises(BadInput, match="9 images and 2 labels"):
        learner.adapt(images, ["a", "b"])


def test_images_are_read_and_judged_in_parts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = procedural_images(11, 16, generator(0, "x"))
    learner, read = load_learner(file), []
    whole = learner.embed(images)
    monkeypatch.setattr(few_shot, "BATCH", 4)
    plain = few_shot.stack
    monkeypatch.setattr(few_shot, "stack", lambda part, n: read.append(len(part)) or plain(part, n))
    assert torch.allclose(learner.embed(images), whole, atol=1e-6)
    assert learner.adapt(images, [0, 1] * 5 + [0]).predict(images[:5])
    assert read == [4, 4, 3, 4, 4, 3, 4, 1]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 4, 2)), r"shape \(5, 4, 2\)"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((1, 4, 4, 3)), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\): allowed: one pixel or more"),
        (np.full((4, 4), "a"), "an image of <U1: allowed: numbers"),
        (torch.zeros(3, 0, 4), r"shape \(3, 0, 4\)"),
        (Image.new("RGB", (0, 4)), "an image: not a readable image: it has 0 x 4 pixels"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "numbers that are not finite"),
        (np.full((4, 4, 3), 3.0), "floats from 3 to 3: allowed: 0 to 1"),
        (np.full((4, 4, 3), np.nan), "floats from nan"),
        (np.full((4, 4, 3), 300), "numbers from 300 to 300"),
        ("no/such/file.png", "no such file"),
        (7, "an image of type int"),
    ],
)
def test_what_is_no_image_is_refused(image: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        pixels(image, 16)


def test_labels_that_do_not_fit_are_refused(file: Path) -> None:
    images = procedural_images(4, 16, generator(0, "x"))
    learner = load_learner(file)
    with pytest.raises(BadInput, match="4 images and 3 labels"):
        learner.adapt(images, [0, 1, 1])
    with pytest.raises(BadInput, match=r"one class only \('x'\)"):
        learner.adapt(images, ["x"] * 4)
    with pytest.raises(BadInput, match=r"a label \[1, 0\]: allowed: one name or number"):
        learner.adapt(images, torch.eye(2).long().repeat(2, 1))
    with pytest.raises(BadInput, match="no image given"):
        learner.adapt([], [])


def test_a_learner_without_statistics_uses_those_of_the_support(tmp_path: Path) -> None:
    learner = load_learner(learner_without_statistics(tmp_path))
    images = procedural_images(20, 16, generator(0, "x"))
    classifier = learner.adapt(images[:8], ["a", "b"] * 4)
    together = classifier.probabilities(images[8:])
    alone = torch.cat([classifier.probabilities([image]) for image in images[8:]])
    assert torch.allclose(together, alone, atol=1e-5)
    with pytest.raises(BadInput, match="normalises with a batch's statistics"):
        learner.embed(images)


def test_a_prototypical_network_compares_as_it_was_trained(tmp_path: Path) -> None:
    """Euclidean distances of features of any length, as meta_test's; Snell et al., equation 2."""
    path = tmp_path / "iteration-000001.safetensors"
    own = replace(info(), distilled=None, method="protonet", meta_learner="protonet")
    theta = initial_theta("conv4", 4, 16, generator(0, "theta"))
    save_learner(path, theta, own)
    images = procedural_images(20, 16, generator(0, "x"))
    labels = torch.arange(4).repeat_interleave(3)
    classifier = load_learner(path).adapt(images[:12], labels.tolist())
    net = Learner("conv4", 4, 16, "cpu")
    support = net.forward(theta, own.view.of(images[:12]))
    moments = batch_moments(support.bn_inputs)
    query = net.forward(theta, own.view.of(images[12:]), moments).features
    expected = nearest(support.features, query, 4, "euclidean")
    assert classifier.predict(images[12:]) == expected.tolist()
    assert expected.tolist() != nearest(support.features, query, 4, "cosine").tolist()
    means = torch.stack([support.features[labels == c].mean(0) for c in range(4)])
    distances = (query[:, None] - means).square().sum(2)
    assert torch.allclose(classifier.probabilities(images[12:]), (-distances).softmax(1), atol=1e-4)


def test_the_support_is_read_once_and_is_its_own_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = load_learner(learner_without_statistics(tmp_path))
    images = procedural_images(6, 16, generator(0, "x"))
    read, stack = [], few_shot.stack
    monkeypatch.setattr(few_shot, "stack", lambda x, size: read.append(len(x)) or stack(x, size))
    classifier = learner.adapt(images, list("abcabc"))
    assert read == [6]
    # As later images are seen: normalised with the support's statistics.
    z = learner._features(list(images), classifier._moments)
    means = F.normalize((z[:3] + z[3:]) / 2, dim=1)
    assert torch.allclose(classifier.means, means, atol=1e-5)


# --- the commands -----------------------------------------------------------------------------


def test_files_that_are_no_pictures_do_not_matter(file: Path, support: Path, others: Path) -> None:
    for stray in ("notes.pdf", "film.mpg", "table.h5", "page.eps", "x.txt", ".hidden.png"):
        (others / stray).write_text("not an image")
        (support / "red" / stray).write_text("not an image")
    result = purer("adapt", support, "--learner", file, "--predict", others)
    assert result.exit_code == 0, result.output
    assert "3 classes from 15 images" in result.output
    said = "not read, for they are no images to Pillow: 10 files (.eps, .h5, .mpg, .pdf, .txt)"
    assert said in result.output
    result = purer("embed", others, "--learner", file, "--out", others.parent / "features.csv")
    assert "to Pillow: 5 files" in result.output


def test_what_lies_elsewhere_is_said_not_to_be_read(
    file: Path, support: Path, others: Path
) -> None:
    (support / "red" / "more.png").mkdir()  # a folder, whatever its name
    (support / "red" / "0.png").rename(support / "red" / "more.png" / "0.png")
    (support / "blue" / "0.png").rename(support / "loose.png")
    (others / "old").mkdir()
    result = purer("adapt", support, "--learner", file, "--predict", others)
    assert result.exit_code == 0, result.output
    assert "3 classes from 13 images" in result.output
    assert "not read, for they lie within folders of images: 2 (more.png, old)" in result.output
    assert "not read, for they lie beside the classes: 1 (loose.png)" in result.output


def test_names_of_any_kind_are_written_as_they_are(
    file: Path, support: Path, others: Path, tmp_path: Path
) -> None:
    (support / "red").rename(support / "red [old] :dog:")
    for i, name in enumerate((b"K\xe4se", b"K\xf6se")):  # of an archive in Latin-1
        (others / f"red-{i}.png").rename(others / os.fsdecode(name + b".png"))
        (support / ("green", "blue")[i]).rename(support / os.fsdecode(name))
    (others / os.fsdecode(b"1. \xdcbung")).touch()
    out = tmp_path / "out.csv"
    result = purer("adapt", support, "--learner", file, "--predict", others, "--out", out)
    assert result.exit_code == 0, result.output
    assert "[old] :dog:" in result.output
    assert r"1 files (. \xdcbung)" in result.output
    table = pd.read_csv(out)
    assert {r"K\xe4se.png", r"K\xf6se.png"} < set(table["image"])
    assert {r"K\xe4se", r"K\xf6se", "red [old] :dog:"} < set(table.columns)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_adapt_says_which_class_images_are_of(
    ending: str, file: Path, support: Path, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out.{ending}"
    result = purer("adapt", support, "--learner", file, "--predict", others, "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 classes from 15 images" in result.output
    table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert list(table.columns) == ["image", "predicted", "blue", "green", "red"]
    assert list(table["image"]) == sorted(p.name for p in others.iterdir())
    right = table["image"].str.partition("-")[0] == table["predicted"]
    assert right.mean() > 0.85  # colours are easy even for a random network
    assert np.allclose(table[["blue", "green", "red"]].sum(axis=1), 1)


def test_adapt_takes_single_files_too(file: Path, support: Path, others: Path) -> None:
    chosen = [
        part for name in ("red-0", "blue-1") for part in ("--predict", others / f"{name}.png")
    ]
    as_a_shell_does = ("--predict", *chosen[1::2])
    for given in (chosen, as_a_shell_does):
        result = purer("adapt", support, "--learner", file, *given)
        assert result.exit_code == 0, result.output
        assert "red-0.png" in result.output
        assert "blue-1.png" in result.output
        assert "green-0.png" not in result.output


def test_embed_writes_a_row_an_image(file: Path, others: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    result = purer("embed", others, "--learner", file, "--out", out)
    assert result.exit_code == 0, result.output
    with out.open() as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 1 + 9
    values = np.array([row[1:] for row in rows[1:]], np.float32)
    paths = [others / row[0] for row in rows[1:]]
    assert paths == sorted(others.iterdir())
    assert np.allclose(values, load_learner(file).embed(paths).numpy(), atol=1e-6)
    again = purer("embed", others, "--learner", file, "--out", out.with_suffix(".parquet"))
    assert again.exit_code == 0, again.output
    table = pd.read_parquet(out.with_suffix(".parquet"))
    assert list(table.columns) == rows[0]
    assert np.array_equal(table.iloc[:, 1:].to_numpy(np.float32), values)
    assert rows[0][:2] == ["image", "feature_0"]
    assert len(rows[1]) == 1 + 42


def test_a_classifier_of_ones_own_can_be_trained_on_embeddings(file: Path, others: Path) -> None:
    z = load_learner(file).embed(sorted(others.iterdir()))
    layer = torch.nn.Linear(z.shape[1], 3)
    layer(z).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad[0], z.sum(0), atol=1e-5)


def test_a_device_by_any_of_its_names(file: Path) -> None:
    load_learner(file, torch.device("cpu"))
    with pytest.raises(BadInput, match=r"device = 'gpu': .* allowed: auto, cpu"):
        load_learner(file, "gpu")


def _bomb() -> bytes:
    """A small file that says it is a picture of 90,000 x 90,000 pixels."""
    stream = io.BytesIO()
    Image.new("1", (1, 1)).save(stream, "BMP")
    content = bytearray(stream.getvalue())
    content[18:26] = struct.pack("<ii", 90_000, 90_000)
    return bytes(content)


def _break(what: str, support: Path, others: Path, file: Path) -> list[object]:
    """Arguments of `adapt` with one thing wrong."""
    predict, out = others, support.parent / "out.csv"
    if what == "unreadable":
        (others / "broken.png").write_bytes(b"not an image")
    elif what == "truncated":
        whole = (others / "red-0.png").read_bytes()
        (others / "red-0.png").write_bytes(whole[: len(whole) // 2])
    elif what == "empty class":
        (support / "yellow").mkdir()
        (support / "yellow" / "phone.heic").touch()
    elif what == "one class":
        support = support.parent / "one"
        (support / "red").mkdir(parents=True)
    elif what == "class name":
        (support / "red").rename(support / "predicted")
    elif what == "too large":
        (others / "broken.png").write_bytes(_bomb())
    elif what == "no folder":
        support = support.parent / "nowhere"
    elif what == "nothing to predict":
        predict = others.parent / "nothing"
        predict.mkdir()
    elif what == "ending":
        out = out.with_suffix(".xlsx")
    elif what == "learner":
        file.write_bytes(b"not a learner")
    elif what == "learner's folder":
        file = file.parent / "learner"
    return [support, "--learner", file, "--predict", predict, "--out", out]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("unreadable", "broken.png: not a readable image"),
        ("truncated", "red-0.png: not a readable image"),
        ("class name", "predicted: a class may not be called image or predicted"),
        ("too large", "broken.png: not a readable image"),
        (
            "empty class",
            "yellow: no image in this folder (files ending in .png, .jpg, ...);"
            " not read: phone.heic",
        ),
        ("one class", "needs two or more; found: red"),
        ("no folder", "nowhere: no such folder"),
        ("nothing to predict", "nothing: no image in this folder"),
        ("ending", "allowed endings: .csv, .parquet"),
        ("learner", "not a whole safetensors file"),
        ("learner's folder", "learner: is a folder: allowed: a safetensors file"),
    ],
)
def test_bad_input_is_one_message_and_no_file(
    what: str, message: str, file: Path, support: Path, others: Path
) -> None:
    arguments = _break(what, support, others, file)
    result = purer("adapt", *arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert result.output.count("error:") == 1
    assert not list(support.parent.glob("out.*"))
