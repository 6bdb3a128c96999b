"""Pseudo data for a pool without a data set: fresh synthetic images of the pool's own classes.

They are inverted from procedural images, of which no learner has seen any, and stand in for the
images that nobody has. They choose a snapshot; how well a learner does on real images of new
classes they do not say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.common.compiling import compiler
from stages.common.dataset import ClassImages, Split
from stages.common.natural_inversion import invert, n_batches
from stages.common.pool import Teacher
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.params import NO_DATASET
from stages.interface.progress import Reporter
from stages.meta_test.params import Pseudo


def pseudo_classes(
    pool: Sequence[Teacher], split: Split, params: Pseudo, device: str
) -> ClassImages:
    """Classes of all teachers, of each the first `classes_per_teacher`, with images of their own.

    A split has its own images; the classes are the same. Teachers' images keep their size.
    """
    steps = params.inversion_steps
    counts = [min(len(t.info.class_ids), params.classes_per_teacher) for t in pool]
    batches = [n_batches(n * params.images_per_class) for n in counts]
    losses = teacher_losses(
        pool,
        params.inversion.weights,
        params.inversion.precision,
        lambda n: compiler("auto", n * steps * sum(batches) // len(pool), device),
    )
    names, images = [], []
    with Reporter(f"pseudo meta-{split}", len(pool)) as report:
        for i, (teacher, n, (state, loss)) in enumerate(zip(pool, counts, losses, strict=True)):
            made = invert(
                teacher.info,
                state,
                loss,
                torch.arange(n).repeat(params.images_per_class),
                "procedural",
                params.inversion,
                steps,
                generator(0, "meta_test", "pseudo", split, i),
                device,
            )
            for label, name in enumerate(teacher.info.class_names[:n]):
                names.append(f"teacher {i}: {name}")
                images.append(made.images[made.labels == label])
            report(i + 1)
    first = pool[0].info
    return ClassImages(
        NO_DATASET, list(range(len(names))), names, images, first.image_size, first.normalisation
    )
