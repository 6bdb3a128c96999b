"""What methods, rows and data sets are called in print, and the order in which they stand.

A name that no table here knows is printed as it is: a new method needs no change to be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stages.interface.params import NO_DATASET, sections
from stages.interface.provenance import IMAGE_PRIOR, NO_DATA

PURER = ("eci", "icfil")  # the paper's full method, with which every row is compared

# In the order of print; methods not named here follow, then those that see real data.
METHODS = {
    "pool": "Pool",
    "random": "Random",
    "average": "Average",
    "ota": "OTA",
    "dro": "DRO",
    "ei": "EI",
    "eci": "ECI",
    "eci_distilled": "ECI from the distilled Conv4-32",
    "eci_lambda2": "ECI (λ = 2)",
    "eci_lambda05": "ECI (λ = 0.5)",
    "eci_pool2": "ECI (2 teachers)",
    "eci_pool6": "ECI (6 teachers)",
    "protonet": "Prototypical network on EI's episodes",
    "anil": "ANIL on EI's episodes",
    "distill": "Distilled Conv4-32",
    "distill_64": "Distilled Conv4-64",
    "distill_procedural": "Distilled Conv4-32, procedural images only",
    "distill_inverted": "Distilled Conv4-32, inverted images only",
    "distill_noise": "Distilled Conv4-32, inversion from noise",
    "distill_no_prior": "Distilled Conv4-32, inverted images from noise only",
    "distill_no_outputs": "Distilled Conv4-32, without outputs",
    "distill_no_features": "Distilled Conv4-32, without features",
    "distill_no_labels": "Distilled Conv4-32, without labels and metric",
    "distill_no_metric": "Distilled Conv4-32, without metric",
}
# What these names and the paper's tables take for granted; a row of another value says so.
STATED = {
    "pretrain.pool_size": "auto",  # 13 teachers of 5 classes
    "meta_train.eci.curriculum_weight": 10.0,
    "meta_train.eci_lambda2.curriculum_weight": 2.0,
    "meta_train.eci_lambda05.curriculum_weight": 0.5,
    "meta_train.eci_pool2.n_teachers": 2,
    "meta_train.eci_pool6.n_teachers": 6,
    **{
        f"meta_train.{method}.architecture": "conv4_64" if method == "distill_64" else "conv4"
        for method in METHODS
        if method.startswith("distill")
    },
}
DATA_BASED = {
    "maml_dagger": "MAML†",
    "real_maml": "MAML",
    "real_protonet": "Prototypical network",
}
ADAPTATIONS = {
    "single_teacher": "one teacher (mean over them), nearest class mean",
    "pool_features": "all teachers' features, nearest class mean",
    "pool_log_probabilities": "all teachers' log-probabilities, nearest class mean",
    "pool_readout": "all teachers' features and log-ratios, mirrored too, nearest class mean",
    "single_teacher_probe": "one teacher (mean over them), linear probe",
    "pool_probe": "all teachers' features, linear probe",
    "one_step": "one step",
    "tuned_steps": "tuned steps",
    "icfil": "ICFIL",
    "nearest_class_mean": "nearest class mean",
    "linear_probe": "linear probe",
}
DATASETS = {
    "cifar_fs": "CIFAR-FS",
    "mini_imagenet": "MiniImageNet",
    NO_DATASET: "pseudo episodes of the pool's own classes",
}
SCENARIOS = {
    "ss": "one data set, one architecture",
    "sh": "one data set, different architectures",
    "mh": "different data sets and architectures",
}


def method_name(method: str) -> str:
    return {**METHODS, **DATA_BASED}.get(method, method)


def is_distilled(method: str) -> bool:
    """Whether its learner is one network distilled from the pool."""
    return sections(method)[0]["family"] == "distillation"


def row_name(method: str, adaptation: str) -> str:
    """E.g. 'ECI + ICFIL (PURER)', 'Pool: all teachers' features, nearest class mean'."""
    link = ": " if method == "pool" else " + "
    name = method_name(method) + link + ADAPTATIONS.get(adaptation, adaptation)
    return f"{name} (PURER)" if (method, adaptation) == PURER else name


def marked(name: str, method: str, data_used: Iterable[str]) -> str:
    """`name`, and whether what it stands for saw data, as in 'MAML (data-based)'.

    `data_used`: in words, of each of its runs; of a row without any its method tells.
    """
    used = set(data_used)
    if method in DATA_BASED or any(is_data_based(words) for words in used):
        return f"{name} (data-based)"
    return f"{name} (image prior)" if IMAGE_PRIOR in used else name


def is_data_based(data_used: str) -> bool:
    return not data_used.startswith(NO_DATA)


def data_name(datasets: Sequence[str], n_way: int) -> str:
    """E.g. 'CIFAR-FS and MiniImageNet, 5-way'."""
    return f"{' and '.join(DATASETS.get(name, name) for name in datasets)}, {n_way}-way"


def row_order(method: str, adaptation: str = "") -> tuple[bool, int, str, int, str]:
    """Sorts rows into the order of print."""
    known = {**METHODS, **DATA_BASED}
    return (
        method in DATA_BASED,
        place(known, method),
        method,
        place(ADAPTATIONS, adaptation),
        adaptation,
    )


def place(order: Iterable[str], name: str) -> int:
    """Position of `name` in `order`; behind all if it is not there."""
    names = list(order)
    return names.index(name) if name in names else len(names)
