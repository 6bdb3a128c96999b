from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages.common.pool import Teacher
from stages.meta_train.picture import IMAGE, MARGIN, save_picture
from tests.conftest import teacher_info


def test_a_panel_a_form_of_teacher_with_a_name_that_can_be_read(tmp_path: Path) -> None:
    """Two conv4 teachers share a panel; titles are as high as print, and stand in the file too."""
    infos = [teacher_info(0), teacher_info(1), teacher_info(2, architecture="resnet10")]
    pool = [Teacher(info, torch.nn.Identity()) for info in infos]
    labels = torch.arange(3).repeat_interleave(6)
    grey = torch.zeros(18, 3, 16, 16)  # the middle of the pixels' range
    path = tmp_path / "synthetic.png"
    save_picture(path, [(grey, labels)] * 3, pool)
    with Image.open(path) as image:
        assert image.info["panels"] == "conv4, tiny; resnet10, tiny"
        pixels = np.asarray(image)
    width = 6 * IMAGE
    assert pixels.shape == (MARGIN + 6 * IMAGE, 2 * width + MARGIN, 3)
    assert (pixels[MARGIN:, :width] == 128).all()
    assert (pixels[MARGIN : MARGIN + 3 * IMAGE, width + MARGIN :] == 128).all()
    for left in (0, width + MARGIN):
        dark = (pixels[:MARGIN, left : left + width] < 128).all(2).any(1)
        assert dark.sum() > 18


def test_a_panel_is_as_wide_as_its_name(tmp_path: Path) -> None:
    name = "torchvision/mobilenet_v3_small"
    pool = [Teacher(teacher_info(0, architecture=name), torch.nn.Identity())]
    save_picture(
        tmp_path / "one.png", [(torch.zeros(3, 3, 16, 16), torch.arange(3))], pool
    )  # an image a class
    with Image.open(tmp_path / "one.png") as image:
        right = np.asarray(image)[:MARGIN, -20:]
        assert image.width > 5 * IMAGE
    assert (right < 128).any()  # the name's end is there
