"""params.yaml, read whole and checked whole, given out by declared key.

Every stage declares the keys it reads as templates, for example `budgets.{budget}.pretrain`;
`read` gives it those and nothing else, and a test asserts that the pipeline's `params:` are the
same list. So a stage cannot depend on a parameter that DVC does not know of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.params import LearnerSection, Scenario, Section
from stages.data_based.params import DATA_BASED, DataBased, DataBasedBudget
from stages.interface.errors import BadInput, did_you_mean
from stages.interface.provenance import SELECTION, flat
from stages.meta_test.params import POOL_ROWS, SUITS, MetaTest, MetaTestBudget
from stages.meta_train.methods import METHODS
from stages.meta_train.params import DistillationBudget, MetaTrain, MetaTrainBudget
from stages.pretrain.params import Pretrain, PretrainBudget, n_teachers
from stages.pseudo.params import Pseudo
from stages.split.catalogue import CATALOGUE
from stages.split.params import Datasets

NO_DATASET = "none"  # as `dataset`: a pool brought from elsewhere, and no images at all


class Scenarios(Section):
    ss: Scenario
    sh: Scenario
    mh: Scenario


class Budget(Section):
    pretrain: PretrainBudget
    meta_train: MetaTrainBudget
    distillation: DistillationBudget
    data_based: DataBasedBudget
    meta_test: MetaTestBudget


class Params(Section):
    """The whole of params.yaml."""

    scenario: Literal["ss", "sh", "mh"]
    dataset: str
    own_pool: str = Field(min_length=1)
    n_way: int = Field(ge=2)
    n_shot: PositiveInt
    n_query: PositiveInt
    method: str
    adaptation: str
    budget: str
    seed: NonNegativeInt
    device: str = Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    scenarios: Scenarios
    datasets: Datasets
    pretrain: Pretrain
    learner: LearnerSection
    meta_train: MetaTrain
    data_based: DataBased
    pseudo: Pseudo
    meta_test: MetaTest
    budgets: dict[str, Budget]


def load(path: Path = Path("params.yaml")) -> Params:
    """All parameters, validated.

    Raises BadInput naming every wrong key, its value and what is allowed.
    """
    try:
        document = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise BadInput(f"{path} is not in this folder; run from the project's root") from None
    except (YAMLError, ValueError) as error:  # e.g. of a day that no month has
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    try:
        params = Params.model_validate(document)
    except ValidationError as error:
        lines = [_describe(details) for details in error.errors()]
        raise BadInput("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines))) from None
    _check_names(params, path)
    _check_together(params, path)
    return params


def _check_names(given: Params, path: Path) -> None:
    """Refuse names that no table knows, so that a new row of a table needs no change here."""
    tables: dict[str, Iterable[str]] = {
        "dataset": (*CATALOGUE, NO_DATASET),
        "method": (*METHODS, "pool", *DATA_BASED),
        "adaptation": ("auto", *SUITS, *POOL_ROWS),
        "budget": given.budgets,
    }
    wrong = [
        f"{path}: {key} = {value!r}: allowed: {', '.join(names)}{did_you_mean(value, names)}"
        for key, names in tables.items()
        if (value := getattr(given, key)) not in names
    ]
    if wrong:
        raise BadInput("\n".join(wrong))


def _check_together(given: Params, path: Path) -> None:
    """Refuse values that are each allowed but not together."""
    check_dataset(given, given.dataset, path)
    _check_adaptation(given, path)
    _check_mixing(given, path)
    _check_continued(given, path)
    _check_pool_size(given, path)
    for name, budget in given.budgets.items():
        length = budget.meta_train
        if length.curriculum_start > length.n_iterations:
            raise BadInput(
                f"{path}: budgets.{name}.meta_train.curriculum_start ="
                f" {length.curriculum_start}: allowed: up to n_iterations = {length.n_iterations}"
            )


def check_dataset(given: Params, dataset: str, path: Path = Path("params.yaml")) -> None:
    """Refuse episodes and splits that `dataset` is too small for."""
    if dataset == NO_DATASET:
        most, wanted = given.pseudo.images_per_class, given.n_shot + given.n_query
        if wanted > most:
            raise BadInput(
                f"{path}: n_shot = {given.n_shot}, n_query = {given.n_query}: a pseudo episode"
                f" needs {wanted} images of a class; allowed: n_shot + n_query up to"
                f" pseudo.images_per_class = {most}"
            )
        return
    spec = CATALOGUE[dataset]
    smallest = min(len(names) for names in spec.splits().values())
    if given.n_way > smallest:
        raise BadInput(
            f"{path}: n_way = {given.n_way}: {dataset} has only {smallest} classes in"
            f" its smallest split; allowed: 2 to {smallest}"
        )
    n_images = spec.images_per_class
    if n_images is None:
        n_images = lookup(given, f"datasets.{dataset}").images_per_class
    if given.n_shot + given.n_query > n_images:
        raise BadInput(
            f"{path}: n_shot = {given.n_shot}, n_query = {given.n_query}: an episode needs"
            f" {given.n_shot + given.n_query} images of a class, {dataset} has {n_images};"
            f" allowed: n_shot + n_query up to {n_images}"
        )
    if not 0 < int(given.pretrain.train_fraction * n_images) < n_images:
        raise BadInput(
            f"{path}: pretrain.train_fraction = {given.pretrain.train_fraction}: of {n_images}"
            " images of a class at least one must train and one must remain"
        )


def _check_adaptation(given: Params, path: Path) -> None:
    """Refuse an adaptation that the method's learner has no row of."""
    rows: list[str] = [*POOL_ROWS]
    if given.method != "pool":
        sections = given.data_based if given.method in DATA_BASED else given.meta_train
        own = getattr(sections, given.method)
        meta_learner = getattr(own, "meta_learner", "none")
        rows = [name for name, suited in SUITS.items() if meta_learner in suited]
    if given.adaptation not in ("auto", *rows):
        raise BadInput(
            f"{path}: adaptation = {given.adaptation!r}: method {given.method} has no such row;"
            f" allowed: auto, {', '.join(rows)}"
        )


def _check_mixing(given: Params, path: Path) -> None:
    """Refuse what mixes the parameters of teachers unlike each other or the learner."""
    scenario: Scenario = getattr(given.scenarios, given.scenario)
    teachers, learner = set(scenario.names), given.learner.architecture
    if given.dataset == NO_DATASET:
        return  # what the teachers of somebody's pool are is known when it is read
    size, theirs = given.learner.image_size, CATALOGUE[given.dataset].image_size
    resized = isinstance(size, int) and size != theirs
    mixed = METHODS[given.method].mixes if given.method in METHODS else ()
    if teachers == {learner} and given.scenario != "mh" and not resized:
        if mixed and learner not in mixed:
            raise BadInput(
                f"{path}: method = {given.method!r} cannot mix the parameters of a {learner}"
                f" (scenarios.{given.scenario}.architectures); allowed: {', '.join(mixed)}"
            )
        return
    what = f"the learner is a {learner}, the teachers are {', '.join(sorted(teachers))}"
    if given.scenario == "mh":
        what += " for images of two sizes"
    elif resized:
        what += f" for images of {theirs} pixels, not of learner.image_size = {size}"
    if mixed:
        raise BadInput(
            f"{path}: method = {given.method!r} mixes the teachers' parameters, but in scenario"
            f" {given.scenario} {what} (scenarios.{given.scenario}.architectures); allowed:"
            f" {', '.join(name for name, row in METHODS.items() if not row.mixes)}"
        )
    if scenario.start == "average" and _starts_of_scenario(given.method):
        raise BadInput(
            f"{path}: scenarios.{given.scenario}.start = 'average': {what}"
            f" (scenarios.{given.scenario}.architectures); allowed for these: random"
        )


def _starts_of_scenario(method: str) -> bool:
    """Whether its learner starts as `scenarios.*.start` says."""
    row = METHODS.get(method)
    return row is not None and row.family == "episode_inversion" and not row.continues


def _check_continued(given: Params, path: Path) -> None:
    """Refuse a learner unlike the one that the method starts from."""
    name = METHODS[given.method].continues if given.method in METHODS else ""
    if not name:
        return
    start, learner = getattr(given.meta_train, name).architecture, given.learner.architecture
    if start != learner:
        raise BadInput(
            f"{path}: learner.architecture = {learner!r}: method {given.method} starts from that of"
            f" {name}, a {start} (meta_train.{name}.architecture); allowed: {start}"
        )


def _check_pool_size(given: Params, path: Path) -> None:
    """Refuse a pool of fewer teachers than the method learns from."""
    if given.dataset == NO_DATASET or given.method not in METHODS:
        return
    asked = getattr(getattr(given.meta_train, given.method), "n_teachers", "all")
    fewest = METHODS[given.method].fewest_teachers if asked == "all" else int(asked)
    n_classes = len(CATALOGUE[given.dataset].splits()["train"])
    auto = n_teachers("auto", [n_classes], given.n_way)  # of a pair (mh) perhaps more
    size = given.pretrain.pool_size
    enough = auto if size == "auto" else size
    if enough < fewest and not (size == "auto" and given.scenario == "mh"):
        said = f"auto ({auto})" if size == "auto" else size
        raise BadInput(
            f"{path}: pretrain.pool_size = {said}: method {given.method} needs {fewest} teachers;"
            f" allowed: {'auto, ' if auto >= fewest else ''}from {fewest}"
        )


def read(keys: Iterable[str], **cell: str) -> dict[str, Any]:
    """The values of the declared `keys`, by template, with `{name}`s filled in from `cell`."""
    params = load()
    return {template: lookup(params, template.format(**cell)) for template in keys}


def by_key(given: Mapping[str, Any], **cell: str) -> dict[str, Any]:
    """What `read` gave for these keys of this `cell`, by dotted key, but the selection.

    For provenance: seeds whose parameters differ are told apart by it, whatever was committed.
    """
    found: dict[str, Any] = {}
    for template, value in given.items():
        section = value.model_dump(mode="json") if isinstance(value, Section) else value
        found |= flat(section, template.format(**cell))
    return {key: value for key, value in found.items() if key not in SELECTION}


def sections(method: str) -> list[dict[str, str]]:
    """What templates call `method` and its sections, and those of the one that it continues."""
    row = METHODS.get(method)
    if row is None:
        return [{"method": method, "family": "", "length": ""}]
    own = {"method": method, "family": row.family, "length": row.length}
    return [own, *(sections(row.continues) if row.continues else ())]


def lookup(params: Params, key: str) -> Any:
    """The value at a dotted key, e.g. `budgets.quick.pretrain`.

    Raises BadInput if a part of the key does not exist, naming what does.
    """
    value: Any = params
    for part in key.split("."):
        fields = value if isinstance(value, dict) else dict(value)
        if part not in fields:
            raise BadInput(f"{key}: no {part!r}; allowed: {', '.join(fields)}")
        value = fields[part]
    return value


def _describe(details: ErrorDetails) -> str:
    """One line for one pydantic error: key = value: what is allowed."""
    location = details["loc"]
    # Branches of a union append a tag of their own: keep what can stand in the file.
    key = ".".join(str(part) for part in location if not _is_union_tag(part))
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        allowed = _fields_at(location[:-1])
        near = did_you_mean(str(location[-1]), allowed)
        return f"{key}: unknown key{near}; allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "literal_error":
        expected = str(details.get("ctx", {}).get("expected", ""))
        names = [name.strip(" '") for name in expected.replace(" or ", ", ").split(",")]
        near = did_you_mean(str(value), names)
        return f"{key} = {value!r}: allowed: {', '.join(names)}{near}"
    return f"{key} = {value!r}: {details['msg'][0].lower()}{details['msg'][1:]}"


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (
        part.startswith(("literal[", "constrained-")) or part in ("int", "float", "str")
    )


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location`."""
    section: Any = Params
    for part in location:
        if get_origin(section) is dict:
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
