"""Distillation: procedural inversion, the bank, the loss, and the run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common import natural_inversion
from stages.common.architectures import bn_layers, build
from stages.common.distilled import Distilled, ReadoutMetric
from stages.common.inversion import InversionLoss
from stages.common.kept import Kept
from stages.common.natural_inversion import Labelled, invert, n_batches
from stages.common.networks import Foreign
from stages.common.params import InversionWeights, NaturalInversion
from stages.common.pool import Teacher, TeacherInfo, load_pool
from stages.common.seeds import generator
from stages.common.teachers import teacher_losses
from stages.interface.params import load
from stages.meta_train import bank, distill, preparation
from stages.meta_train.bank import Mixtures, PrincipalComponents, batch_of, fill
from stages.meta_train.distill import DistillRun, learning_rate
from stages.meta_train.distillation_loss import Terms, class_numbers, distillation_terms
from stages.meta_train.methods import Setting
from stages.meta_train.params import Distill, DistillationBudget
from stages.meta_train.readout_metric import readout_metric, views
from stages.meta_train.remarks import remarks_on
from stages.meta_train.turns import Turns, turned, turns_loss
from tests.conftest import ROOT, random_state, teacher_info

PARAMS = load(ROOT / "params.yaml")
WANTED = torch.arange(30) % 3  # labels
INVERSION = NaturalInversion(
    lr=0.1,
    max_roll=1,
    precision="float32",
    weights=InversionWeights(tv=1e-4, l2=0.0, bn_statistics=0.3),
)


def setting(pool: list[Teacher], folder: Path, n_iterations: int = 6, n_images: int = 9) -> Setting:
    return Setting(
        architecture="conv4",
        view=pool[0].info.view,
        scenario=PARAMS.scenarios.ss,
        budget=DistillationBudget(
            n_iterations=n_iterations,
            n_snapshots=1,
            procedural_images=40,
            inverted_images=n_images,
            inversion_steps=3,
        ),
        n_way=3,
        n_shot=1,
        n_query=2,
        seed=0,
        device="cpu",
        kept=Kept(folder),
    )


def run(
    pool: list[Teacher],
    folder: Path,
    method: str = "distill",
    n: int = 6,
    n_images: int = 9,
    inversion: NaturalInversion = INVERSION,
    saved: Callable[[], None] = lambda: None,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> DistillRun:
    shared = PARAMS.meta_train.distillation.model_copy(
        update={
            "batch_size": 16,
            "n_components": 8,
            "precision": "float32",
            "inversion": inversion,
        }
    )
    folder.mkdir(exist_ok=True)
    own = getattr(PARAMS.meta_train, method)
    own = own.model_copy(update={"weights": own.weights.model_copy(update=weights)})
    given = replace(setting(pool, folder, n, n_images), kept=Kept(folder, saved))
    return DistillRun(pool, shared, own, given)


# --- inversion that starts from procedural images ---------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Teacher:
    """A teacher that knows which channel of a noisy image is brightest."""
    info, stream = teacher_info(0), generator(0, "trained")
    net = build("conv4", 3, 16, generator=stream).train()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        y = torch.randint(3, (48,), generator=stream)
        x = 0.5 * torch.randn(48, 3, 16, 16, generator=stream)
        x += 1.5 * F.one_hot(y, 3)[:, :, None, None]
        optimizer.zero_grad()
        F.cross_entropy(net(x).logits, y).backward()
        optimizer.step()
    return Teacher(info, net.eval().requires_grad_(False))


class TinyViT(nn.Module):
    """A vision transformer: patches, attention, LayerNorm, and images of 16 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.places = nn.Parameter(torch.zeros(16, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.norm(self.block(tokens)).mean(1))


def transformer(number: int) -> Teacher:
    """From elsewhere, untrained, the same every time."""
    info = teacher_info(number, architecture="vit")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Foreign(TinyViT(), info.n_outputs, info.image_size)
    return Teacher(info, net.eval().requires_grad_(False))


@pytest.mark.parametrize("start", ["procedural", "noise"])
@pytest.mark.parametrize("term", ["cross_entropy", "bn_statistics"])
def test_inversion_lowers_its_loss_with_valid_pixels(
    trained: Teacher, start: str, term: str
) -> None:
    weights = INVERSION.weights.model_copy(
        update={"bn_statistics": 1.0 if term == "bn_statistics" else 0.001}
    )
    params = INVERSION.model_copy(update={"weights": weights})
    ((state, loss),) = teacher_losses([trained], weights, "float32", lambda n: lambda f: f)
    calls: list[int] = []

    def make(n_steps: int) -> Labelled:
        given = (trained.info, state, loss, WANTED, start, params, n_steps)
        return invert(*given, generator(0, "invert"), "cpu", done=calls.append)

    before, after = make(1), make(40)
    assert calls == [1, *range(1, 41)]
    assert after.images.dtype == torch.uint8
    assert after.labels.bincount().tolist() == [10, 10, 10]

    def judged(made: Labelled) -> float:
        x = trained.info.normalisation.apply(made.images)
        return float(getattr(loss(state, x, made.labels), term))

    assert judged(after) < 0.6 * judged(before)


def test_a_transformer_is_inverted_without_the_term_that_it_has_not() -> None:
    teacher = transformer(0)
    ((state, loss),) = teacher_losses(
        [teacher], INVERSION.weights, "float32", lambda n: lambda f: f
    )
    given = (teacher.info, state, loss, WANTED, "procedural", INVERSION)
    before, after = (invert(*given, n, generator(0, "invert"), "cpu") for n in (1, 60))

    def judged(made: Labelled) -> InversionLoss:
        return loss(state, teacher.info.normalisation.apply(made.images), made.labels)

    assert judged(after).cross_entropy < 0.85 * judged(before).cross_entropy
    assert judged(after).bn_statistics == 0


def test_large_images_are_inverted_fewer_at_a_time() -> None:
    assert [n_batches(400, side) for side in (32, 84, 168, 224)] == [2, 2, 8, 15]
    assert n_batches(1, 10_000) == 1


def test_an_interrupted_inversion_goes_on_with_the_unfinished_batch(
    trained: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natural_inversion, "BATCH", 12)
    monkeypatch.setattr(natural_inversion, "FULL", 16)
    ((state, loss),) = teacher_losses(
        [trained], INVERSION.weights, "float32", lambda n: lambda f: f
    )
    calls: list[int] = []

    def made(parts: Kept, stop: int = 0) -> dict[str, Tensor]:
        def count(done: int) -> None:
            calls.append(done)
            if done == stop:
                raise KeyboardInterrupt

        given = (trained.info, state, loss, WANTED, "procedural", INVERSION, 4)
        return invert(*given, generator(0, "invert"), "cpu", parts, count)._asdict()

    whole = Kept(tmp_path / "a").in_parts("images", made)
    assert calls == [*range(1, 13)]  # three batches of four steps
    kept = Kept(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        kept.in_parts("images", lambda parts: made(parts, stop=10))
    calls.clear()
    again = kept.in_parts("images", made)
    assert calls == [9, 10, 11, 12]
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["images.safetensors"]


def test_images_that_start_from_procedural_ones_stay_smoother(trained: Teacher) -> None:
    ((state, loss),) = teacher_losses(
        [trained], INVERSION.weights, "float32", lambda n: lambda f: f
    )

    def roughness(start: str) -> float:
        stream = generator(0, "invert")
        made = invert(trained.info, state, loss, WANTED, start, INVERSION, 10, stream, "cpu")
        pixels = made.images.float()
        return float((pixels[:, 1:] - pixels[:, :-1]).abs().mean())

    assert roughness("procedural") < 0.7 * roughness("noise")


# --- the bank ---------------------------------------------------------------------------------


def test_mixtures_are_the_plain_images_their_mixups_and_their_cutmixes() -> None:
    given = torch.randint(256, (10, 16, 16, 3), generator=generator(0, "images")).byte()
    mixtures = Mixtures(given, generator(0, "mix"))
    assert len(mixtures) == 30
    plain, mixup, cutmix = (mixtures[torch.arange(10 * i, 10 * i + 10)] for i in range(3))
    assert torch.equal(plain, given)
    for image in mixup:  # a + (1 - share) (b - a) of two given ones, in one direction
        fits = []
        for i in range(10):
            for j in range(10):
                d = (given[j].float() - given[i]).flatten()
                r = (image.float() - given[i]).flatten()
                share = (r @ d) / d.square().sum().clamp(min=1)
                fits.append(float((r - share * d).abs().max()) <= 0.7)
        assert any(fits)
    for image in cutmix:  # every pixel is some image's pixel at its place, of two images at most
        same = (given == image).all(3)
        assert same.any(0).all()
        assert same.flatten(1).any(1).sum() <= 2
    assert torch.equal(mixtures[torch.tensor([25, 3])], torch.stack([cutmix[5], plain[3]]))


def test_the_bank_holds_what_the_teachers_say(tiny_pool: Path) -> None:
    pool = load_pool(tiny_pool)
    plain = torch.randint(256, (12, 16, 16, 3), generator=generator(0, "pixels")).byte()
    inverted = [
        Labelled(image[None], torch.tensor([label]))
        for image, label in zip(plain[9:], (2, 0, 1), strict=True)
    ]
    stream = generator(0, "pca")
    bank = fill(pool, plain[:9], inverted, 16, 4, "float32", stream, "cpu")
    assert torch.equal(bank.images, Mixtures(plain, generator(0, "pca"))[torch.arange(36)])
    x = pool[0].info.view.of(bank.images)
    with torch.no_grad():
        whole = [torch.cat([t.net(seen).logits for t in pool], 1) for seen in (x, x.flip(3))]
    logits = (whole[0] + whole[1]) / 2  # of an image and its mirror image
    assert torch.allclose(bank.logits.float(), logits, rtol=2e-3, atol=2e-3)
    assert bank.labels.tolist() == [-1] * 9 + [2, 3, 7] + [-1] * 24
    # Unit features, of the mirror image too, all teachers side by side, in their components.
    with torch.no_grad():
        units = [[F.normalize(t.net(seen).features) for seen in (x, x.flip(3))] for t in pool]
    features = torch.cat([F.normalize(a + b) for a, b in units], 1)
    expected = PrincipalComponents.of(features, 4)(features)
    assert bank.features.shape == expected.shape == (36, 4)
    signs = (bank.features.float() * expected).sum(0).sign()
    assert torch.allclose(bank.features.float(), expected * signs, rtol=5e-3, atol=5e-3)


def test_the_bank_is_made_at_the_largest_size_and_kept_at_the_learners(tiny_pool: Path) -> None:
    (teacher,) = load_pool(tiny_pool)[:1]
    pool = [Teacher(replace(teacher.info, image_size=size), teacher.net) for size in (16, 24)]
    stream = generator(0, "images")
    procedural = torch.randint(256, (5, 24, 24, 3), generator=stream).byte()
    inverted = [
        Labelled(torch.randint(256, (n, size, size, 3), generator=stream).byte(), torch.arange(n))
        for n, size in ((2, 16), (3, 24))
    ]
    bank = fill(pool, procedural, inverted, 24, 4, "float32", generator(0, "pca"), "cpu")
    assert torch.equal(bank.images[:5], procedural)
    assert torch.equal(bank.images[7:10], inverted[1].images)
    assert bank.labels.tolist() == [-1] * 5 + [0, 1, 3, 4, 5] + [-1] * 20
    small = fill(pool, procedural, inverted, 16, 4, "float32", generator(0, "pca"), "cpu")
    assert small.images.shape == (30, 16, 16, 3)
    assert torch.equal(small.logits, bank.logits)


def test_what_hardly_varies_is_no_component() -> None:
    """Else an image that wakes a dead feature would be thirteen orders too large."""
    sample = torch.randn(500, 6, generator=generator(0, "sample"))
    sample[:, 2] = 0.0
    sample[:, 4] = sample[:, 1]
    components = PrincipalComponents.of(sample, 6)
    assert components.matrix.shape == (6, 4)
    assert components(torch.full((1, 6), 3.0)).abs().max() < 20


def test_components_are_half_whitened_and_of_unit_mean_square() -> None:
    stream = generator(0, "sample")
    sample = torch.randn(500, 12, generator=stream) @ torch.randn(12, 12, generator=stream)
    found = PrincipalComponents.of(sample, 5)(sample)
    standard = (sample - sample.mean(0)) / sample.std(0)
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(sample))
    values, vectors = values.flip(0)[:5], vectors.flip(1)[:, :5]
    exact = standard @ vectors * values**-0.25
    exact = exact / exact.square().mean().sqrt()
    # Components are fixed up to their sign.
    signs = (found * exact).sum(0).sign()
    assert torch.allclose(found * signs, exact, atol=1e-3)
    assert found.square().mean().item() == pytest.approx(1.0, abs=1e-3)
    assert PrincipalComponents.of(sample[:3], 5)(sample).shape == (500, 2)


# --- the loss ---------------------------------------------------------------------------------


def terms(double: None, logits: torch.Tensor, labels: list[int]) -> list[float]:
    """By loops: heads of 2 and 3 outputs; outputs 0 and 2 are one class, output 4 is none."""
    t = torch.tensor([[1.0, -1.0, 0.5, 0.0, 2.0], [0.0, 0.3, -0.2, 0.9, 0.1]])
    kls = []
    for i in range(2):
        for a, b in ((0, 2), (2, 5)):
            p = (t[i, a:b] / 4).softmax(0)
            q = (logits[i, a:b] / 4).softmax(0)
            kls.append(sum(float(x * (x / y).log()) for x, y in zip(p, q, strict=True)))
    words = {0: [0, 2], 1: [1], 2: [0, 2], 3: [3]}
    ces = []
    for i, label in enumerate(labels):
        if label >= 0:
            p = logits[i, :4].softmax(0)
            ces.append(-float(p[words[label]].sum().log()))
    cosines = []
    for i in range(2):
        a, b = (torch.cat([z[:2] - z[:2].mean(), z[2:] - z[2:].mean()]) for z in (t[i], logits[i]))
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    return [16 * sum(kls) / len(kls), 1 - sum(cosines) / 2, sum(ces) / max(len(ces), 1)]


CLASS_OF = torch.tensor([0, 1, 0, 2, -1])
TEACHERS = [[1.0, -1.0, 0.5, 0.0, 2.0], [0.0, 0.3, -0.2, 0.9, 0.1]]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1], [-1, -1]])
def test_the_loss_is_the_formula(double: None, labels: list[int]) -> None:
    logits = torch.randn(2, 5, generator=generator(0, "logits")).requires_grad_()
    projected = torch.randn(2, 4, generator=generator(0, "projected")).requires_grad_()
    wanted = torch.randn(2, 4, generator=generator(0, "wanted"))

    def loss(logits: torch.Tensor, projected: torch.Tensor) -> Terms:
        teachers = torch.tensor(TEACHERS)
        return distillation_terms(
            logits, projected, teachers, wanted, torch.tensor(labels), (2, 3), CLASS_OF, 4.0
        )

    found = loss(logits, projected)
    kl, ratios, ce = terms(double, logits.detach(), labels)
    assert found.kl.item() == pytest.approx(kl)
    assert found.ratios.item() == pytest.approx(ratios)
    assert found.features.item() == pytest.approx((projected - wanted).square().mean().item())
    assert found.labels.item() == pytest.approx(ce)
    assert torch.autograd.gradcheck(loss, (logits, projected))


def test_the_loss_of_turns_is_the_formula(double: None) -> None:
    logits = torch.randn(3, 8, generator=generator(0, "turns")).requires_grad_()  # two classes
    classes, turns = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    rows = [logits[i].softmax(0)[j].log() for i, j in ((0, 3), (1, 4), (2, 6))]
    found = turns_loss(logits, classes, turns)
    assert found.item() == pytest.approx(-sum(row.item() for row in rows) / 3)
    assert torch.autograd.gradcheck(lambda z: turns_loss(z, classes, turns), logits)
    assert turns_loss(logits[:0], classes[:0], turns[:0]).item() == 0


def test_images_are_turned_by_right_angles() -> None:
    x = torch.arange(4 * 9.0).view(4, 1, 3, 3)
    by_hand = [
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[11, 14, 17], [10, 13, 16], [9, 12, 15]],
        [[26, 25, 24], [23, 22, 21], [20, 19, 18]],
        [[33, 30, 27], [34, 31, 28], [35, 32, 29]],
    ]
    assert turned(x, torch.arange(4))[:, 0].tolist() == by_hand


def test_images_of_classes_that_have_enough_are_turned_by_any_angle() -> None:
    classes = torch.tensor([-1] * 4 + [2] * 5 + [0] * 4 + [7] * 6 + [-1])
    asked_of = Turns(classes, n_features=3)
    assert asked_of(torch.zeros(5, 3)).shape == (5, 4 * 2)  # of classes 2 and 7
    drawn = [asked_of.draw(10, generator(t, "turns")) for t in range(30)]
    images, own, turns = (torch.cat(part) for part in zip(*drawn, strict=True))
    assert set(images.tolist()) == {4, 5, 6, 7, 8, *range(13, 19)}
    assert torch.equal(own, (images >= 13).long())
    assert set(zip(own.tolist(), turns.tolist(), strict=True)) == {
        (c, k) for c in range(2) for k in range(4)
    }


def test_without_images_to_turn_nothing_is_asked() -> None:
    for classes in (torch.full((9,), -1), torch.arange(9)):  # none, and one of each class
        none = Turns(classes, n_features=3)
        assert [len(part) for part in none.draw(8, generator(0, "turns"))] == [0, 0, 0]
        assert not [*none.parameters()]
        assert none(torch.zeros(0, 3)).shape == (0, 0)


def test_the_linear_map_of_turns_is_learned_and_let_go(tiny_pool: Path, tmp_path: Path) -> None:
    pool = load_pool(tiny_pool)
    made = run(pool, tmp_path / "a", "distill_64", n_images=15)
    plain = run(pool, tmp_path / "b", "distill_64", n_images=15, weights={"turns": 0.0})
    pairs = zip(made._student.parameters(), plain._student.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)  # the start is the same
    assert not [*plain._turns.parameters()]
    head = made._turns.head
    assert head is not None
    assert head.out_features == 4 * 8  # classes of the tiny pool
    made.step(0)
    assert head.weight.grad is not None
    assert head.weight.grad.any()
    net = Distilled("conv4_64", made.distilled, 3, 16)
    net.load_state_dict(made.snapshot())  # and nothing else


def test_classes_of_images_are_turned_as_the_bank_names_them(
    tiny_pool: Path, tmp_path: Path
) -> None:
    """Class "b" is taught by two teachers; images of a class have one number."""
    pool = named(load_pool(tiny_pool)[:2], "a", "b", "c", "d", "e", "b")
    made = run(pool, tmp_path / "work", "distill_64", n_images=15)
    asked = made._turns.draw(400, generator(0, "turns"))
    first_of = {0: "a", 1: "b", 2: "c", 4: "d", 5: "e", 6: "b"}  # output 3 is spare
    names = [first_of[int(label)] for label in made._bank.labels[asked.images]]
    assert {(name, int(c)) for name, c in zip(names, asked.classes, strict=True)} == {
        ("a", 0),
        ("b", 1),
        ("c", 2),
        ("d", 3),
        ("e", 4),
    }


def test_classes_that_two_teachers_share_are_one(tmp_path: Path) -> None:
    def teacher(info: TeacherInfo) -> Teacher:
        return Teacher(info, build("conv4", 3, 16))

    pool = [
        teacher(teacher_info(0, class_names=("a", "b", "c"))),
        teacher(teacher_info(1, n_classes=2, class_names=("b", "d"))),
        teacher(teacher_info(2, class_names=("a", "x", "y"), dataset="other")),
    ]
    # "b" of the first two is one class, "a" of another data set another; a spare output is none.
    assert class_numbers(pool).tolist() == [0, 1, 2, 1, 3, -1, 4, 5, 6]


def test_a_teacher_of_many_classes_lends_a_draw_of_them(tmp_path: Path) -> None:
    """A thousand classes, nine images: nine classes, not the first nine."""
    names = tuple(f"class{i}" for i in range(1000))
    info = teacher_info(0, class_names=names, class_ids=tuple(range(1000)), n_outputs=1000)
    net = build("conv4", 1000, 16, generator=generator(0, "many"))
    made = run([Teacher(info, net.eval().requires_grad_(False))], tmp_path / "work")
    labels = made._inverted[0].labels
    assert len(set(labels.tolist())) == 9
    assert labels.max() > 100
    assert torch.isfinite(torch.tensor(list(made.step(0).values()))).all()
    # One image of a class says nothing of what varies within classes.
    assert not made.snapshot()["damped"].any()


def test_the_learning_rate_makes_one_cycle() -> None:
    rates = [learning_rate(t, 100, 0.3) for t in range(100)]
    assert rates[0] == pytest.approx(0.3 / 15)
    assert max(rates) == rates[14] == pytest.approx(0.3)
    assert all(a > b for a, b in itertools.pairwise(rates[15:]))
    assert rates[-1] < 0.001
    assert learning_rate(0, 1, 0.3) == 0.3


# --- the run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("term", Terms._fields)
def test_it_learns_what_the_teachers_say(term: str, tiny_pool: Path, tmp_path: Path) -> None:
    only = dict.fromkeys(distill.LOSS_TERMS, 0.0) | {term: 1.0}
    made = run(load_pool(tiny_pool), tmp_path / "work", "distill_inverted", n=120, weights=only)
    values = [made.step(t)[term] for t in range(120)]
    assert sum(values[-20:]) < 0.6 * sum(values[:20])


def test_it_learns_how_images_of_which_class_are_turned(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "TURNED", 1)  # sixteen of a step; they have 32 answers
    only = dict.fromkeys(distill.LOSS_TERMS, 0.0) | {"turns": 1.0}
    pool = load_pool(tiny_pool)
    made = run(pool, tmp_path / "work", "distill_64", n=200, n_images=15, weights=only)
    values = [made.step(t)["turns"] for t in range(200)]
    assert sum(values[-20:]) < 0.8 * sum(values[:20])


def test_resuming_gives_the_bytes_of_an_uninterrupted_run(tiny_pool: Path, tmp_path: Path) -> None:
    pool = load_pool(tiny_pool)
    whole = run(pool, tmp_path / "a", "distill_64", n_images=15)
    first = run(pool, tmp_path / "b", "distill_64", n_images=15)
    expected = [whole.step(t) for t in range(6)]
    records = [first.step(t) for t in range(3)]
    # Killed while it made the images: those of two teachers are there, the rest is made anew.
    (tmp_path / "b" / "bank.safetensors").unlink()
    (tmp_path / "b" / "inverted-02.safetensors").unlink()
    second = run(pool, tmp_path / "b", "distill_64", n_images=15)
    second.load_state({name: t.clone() for name, t in first.state().items()})
    records += [second.step(t) for t in range(3, 6)]
    assert records == expected
    for name, tensor in whole.snapshot().items():
        assert torch.equal(tensor, second.snapshot()[name]), name


def test_an_interrupted_bank_goes_on_where_it_was(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, seen = load_pool(tiny_pool), bank._seen
    n_seen, left = 0, 10**9

    def counted(*args: Any) -> tuple[Tensor, Tensor]:
        nonlocal n_seen, left
        if left == 0:
            raise KeyboardInterrupt
        n_seen, left = n_seen + 1, left - 1
        return seen(*args)

    monkeypatch.setattr(bank, "_seen", counted)
    monkeypatch.setattr(bank, "BATCH", 4)
    monkeypatch.setattr(bank, "PART", 2)
    whole, n_whole, n_seen = run(pool, tmp_path / "a")._bank, n_seen, 0
    left = n_whole - 2  # the components, some parts, and half of one
    with pytest.raises(KeyboardInterrupt):
        run(pool, tmp_path / "b")
    assert not (tmp_path / "b" / "bank.safetensors").exists()
    n_seen, left = 0, 10**9
    kept: list[int] = []  # how many files there are when minutes are to be counted
    again = run(
        pool,
        tmp_path / "b",
        saved=lambda: kept.append(len([*(tmp_path / "b").rglob("*.safetensors")])),
    )._bank
    assert n_seen == 3  # that half once more
    assert kept == [kept[0], kept[0] + 1, kept[0] + 2]  # after two parts and the whole
    for name, tensor in whole._asdict().items():
        assert torch.equal(getattr(again, name), tensor), name
    assert not (tmp_path / "b" / "bank").exists()


def test_of_a_teacher_with_many_classes_images_of_the_first_are_kept(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(load_pool(tiny_pool), tmp_path / "work")
    whole = made.synthetic()
    monkeypatch.setattr(distill, "SHOWN_CLASSES", 2)
    for (images, labels), (some, own) in zip(whole, made.synthetic(), strict=True):
        assert set(own.tolist()) == {0, 1}
        assert torch.equal(some, images[labels < 2])
    assert any(2 in labels for _, labels in whole)
    # More classes than images: a draw of them has some.
    made._inverted = [Labelled(x, labels + 5) for x, labels in made._inverted]
    assert all(len(labels) for _, labels in made.synthetic())


def named(pool: list[Teacher], *names: str) -> list[Teacher]:
    """Three classes of these names for each teacher; the first has a spare output."""
    found = []
    for i, teacher in enumerate(pool):
        own = tuple(names[3 * i : 3 * i + 3])
        info = replace(teacher.info, class_names=own, class_ids=(0, 1, 2), n_outputs=4 - bool(i))
        net = build("conv4", info.n_outputs, 16, generator=generator(i, "named"))
        found.append(Teacher(info, net.eval().requires_grad_(False)))
    return found


def test_a_snapshot_has_the_metric_of_its_own_network(tiny_pool: Path, tmp_path: Path) -> None:
    # Class "b" is taught by two teachers, and is one class to the metric.
    pool = named(load_pool(tiny_pool)[:2], "a", "b", "c", "d", "e", "b")
    made = run(pool, tmp_path / "work", n_images=15)
    made.step(0)
    before = {name: t.clone() for name, t in made._student.state_dict().items()}
    kept = made.snapshot()
    shown = made.synthetic()
    x = torch.cat([images for images, _ in shown])
    words = [["a", "b", "c"], ["d", "e", "b"]]
    labels = ["abcde".index(words[i][int(n)]) for i, (_, own) in enumerate(shown) for n in own]
    plain = Distilled("conv4", replace(made.distilled, n_directions=0), 3, 16).eval()
    plain.load_state_dict({k: v for k, v in kept.items() if k not in ReadoutMetric._fields})
    _, *others = views(torch.cat([part.images for part in made._first(15)]))
    seen = [x, *map(made._setting.view.of, others)]
    expected = readout_metric(
        torch.stack([plain(view).features for view in seen]).detach(),
        torch.tensor(labels),
        PARAMS.meta_train.distillation.readout_metric,
        made.distilled.n_directions,
    )
    for name, tensor in expected._asdict().items():
        assert tensor.any()
        assert torch.allclose(kept[name] @ kept[name].T, tensor @ tensor.T, atol=1e-5)
    # Training goes on as if nothing had been kept.
    assert made._student.training
    for name, tensor in made._student.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_metric_does_not_depend_on_how_many_images_the_network_sees_together(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(load_pool(tiny_pool), tmp_path / "x")
    sizes = []
    monkeypatch.setattr(distill, "batch_of", lambda size: sizes.append(size) or 2)
    few = one.snapshot()
    monkeypatch.undo()
    for name, tensor in one.snapshot().items():
        assert torch.allclose(tensor, few[name], atol=1e-5), name
    assert sizes == [load_pool(tiny_pool)[0].info.image_size]


def test_fewer_large_images_are_seen_together() -> None:
    assert [batch_of(size) for size in (16, 32, 64, 224, 1000)] == [500, 500, 125, 10, 1]


@pytest.mark.parametrize("method", ["distill_procedural", "distill_no_labels", "distill_no_metric"])
def test_without_classes_there_is_no_metric(tiny_pool: Path, tmp_path: Path, method: str) -> None:
    kept = run(load_pool(tiny_pool), tmp_path / "work", method).snapshot()
    assert not kept.keys() & set(ReadoutMetric._fields)


def test_what_teachers_cannot_give_is_said(tiny_pool: Path) -> None:
    pool, methods = load_pool(tiny_pool), PARAMS.meta_train  # the third teacher has two classes

    def said(own: object, n_images: int) -> list[str]:
        budget = PARAMS.budgets["quick"].distillation
        return remarks_on(pool, own, budget.model_copy(update={"inverted_images": n_images}))

    assert said(methods.distill, 13) == []  # 5, 4 and 4 of three classes
    few = "fewer than 5 inverted images of each class, too few for the metric: "
    assert said(methods.distill, 12) == [f"{few}teacher-00, teacher-01"]
    both = few.replace("the metric", "the metric and turned copies")
    assert said(methods.distill_64, 12) == [f"{both}teacher-00, teacher-01"]
    assert said(methods.distill_no_metric, 12) == said(methods.ei, 12) == []
    # A class that two teachers know has the images of both.
    names = {key: getattr(pool[0].info, key) for key in ("dataset", "class_ids", "class_names")}
    pool[1] = replace(pool[1], info=replace(pool[1].info, **names))
    assert said(methods.distill, 12) == []
    pool = load_pool(tiny_pool)
    pool = [replace(pool[0], net=torch.nn.Linear(2, 2)), *pool[1:]]
    assert said(methods.distill_procedural, 12) == said(methods.dro, 12) == []
    assert (
        said(methods.eci, 12)
        == said(methods.ei, 12)
        == ["no BatchNorm, so inverted without its statistics: teacher-00"]
    )


def test_a_metric_and_turns_need_inverted_images() -> None:
    own = PARAMS.meta_train.distill.model_dump()
    with pytest.raises(ValueError, match="metric = true: allowed with inverted images"):
        Distill(**own | {"inversion": "none"})
    with pytest.raises(ValueError, match=r"weights\.turns > 0: allowed with inverted images"):
        Distill(
            **own
            | {"inversion": "none", "metric": False, "weights": own["weights"] | {"turns": 0.3}}
        )


def test_what_learned_nothing_is_not_read(tiny_pool: Path, tmp_path: Path) -> None:
    made = run(load_pool(tiny_pool), tmp_path / "work", "distill_no_features")
    assert made.distilled.readout == ("features", "log_ratios")


def test_the_inversion_has_its_precision(tiny_pool: Path, tmp_path: Path) -> None:
    whole = run(load_pool(tiny_pool), tmp_path / "a")
    params = INVERSION.model_copy(update={"precision": "bfloat16"})
    half = run(load_pool(tiny_pool), tmp_path / "b", inversion=params)
    pairs = zip(whole.synthetic(), half.synthetic(), strict=True)
    assert all(not torch.equal(a, b) and torch.allclose(a, b, atol=0.5) for (a, _), (b, _) in pairs)


@pytest.mark.parametrize(
    ("method", "n_images", "inverted"),
    [
        ("distill", 3 * (40 + 27), True),
        ("distill_procedural", 3 * 40, False),
        ("distill_inverted", 3 * 27, True),
        ("distill_noise", 3 * (40 + 27), True),
        ("distill_no_prior", 3 * 27, True),
    ],
)
def test_an_ablation_lacks_its_ingredient(
    tiny_pool: Path, tmp_path: Path, method: str, n_images: int, inverted: bool
) -> None:
    made = run(load_pool(tiny_pool), tmp_path / "work", method)
    assert len(made._bank.images) == n_images
    assert bool(made.synthetic()) == inverted
    assert bool((made._bank.labels >= 0).any()) == inverted
    assert torch.isfinite(torch.tensor(list(made.step(0).values()))).all()


def test_inversion_starts_where_the_method_says(tiny_pool: Path, tmp_path: Path) -> None:
    """Noise has neighbours as unlike as any two pixels; a picture has not."""
    roughness = {}
    for method in ("distill", "distill_inverted", "distill_noise", "distill_no_prior"):
        made = run(load_pool(tiny_pool), tmp_path / method, method)
        images = torch.cat([images for images, _ in made.synthetic()])
        roughness[method] = float(images.diff(dim=3).square().mean() / images.var())
    from_pictures = max(roughness["distill"], roughness["distill_inverted"])
    from_noise = min(roughness["distill_noise"], roughness["distill_no_prior"])
    assert from_pictures < 0.5 < 1.5 < from_noise, roughness


def test_teachers_of_any_form_are_distilled_together(tmp_path: Path) -> None:
    """SH and MH: other architectures, sizes and normalisations; a transformer."""
    infos = [
        teacher_info(0),
        teacher_info(1, architecture="resnet10", image_size=24, mean=(0.4, 0.4, 0.4)),
    ]
    pool = []
    for info in infos:
        net = build(info.architecture, info.n_outputs, info.image_size)
        net.load_state_dict(random_state(info))
        pool.append(Teacher(info, net.eval().requires_grad_(False)))
    pool.append(transformer(2))
    assert not bn_layers(pool[2].net)
    made = run(pool, tmp_path / "work", n_images=15)
    assert made._bank.images.shape[1:] == (16, 16, 3)
    assert torch.isfinite(torch.tensor(list(made.step(0).values()))).all()
    shapes = [tuple(images.shape[1:]) for images, _ in made.synthetic()]
    assert shapes == [(3, 16, 16), (3, 24, 24), (3, 16, 16)]
    kept = made.snapshot()
    assert all(kept[name].any() and kept[name].isfinite().all() for name in ReadoutMetric._fields)


def test_another_seed_gives_another_student(tiny_pool: Path, tmp_path: Path) -> None:
    pool = load_pool(tiny_pool)
    one = run(pool, tmp_path / "a")
    shared = one._shared
    (tmp_path / "b").mkdir()
    other = DistillRun(
        pool, shared, PARAMS.meta_train.distill, replace(setting(pool, tmp_path / "b"), seed=1)
    )
    assert not torch.equal(one._bank.images, other._bank.images)
    a, b = one.snapshot(), other.snapshot()
    assert not torch.equal(a["body.convs.0.weight"], b["body.convs.0.weight"])


def test_all_terms_are_zero_where_the_student_is_the_teacher() -> None:
    logits = torch.randn(6, 5, generator=generator(0, "logits"))
    z = F.normalize(logits)
    none = torch.full((6,), -1)
    found = distillation_terms(logits, z, logits, z, none, (2, 3), CLASS_OF, 4.0)
    assert [float(term) for term in found] == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_the_student_sees_images_moved_and_the_teachers_do_not(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(load_pool(tiny_pool), tmp_path / "work", "distill_64", n_images=15)
    x = torch.randn(8, 3, 16, 16, generator=generator(0, "x"))
    seen = {tuple(made._moved(x, t).flatten().tolist()) for t in range(6)}
    assert len(seen) > 1
    reach = range(-2, 3)
    moves = [
        torch.roll(image, (dy, dx), (2, 3))
        for image in (x, x.flip(3))
        for dy in reach
        for dx in reach
    ]
    for image in made._moved(x, 3).unbind():
        assert any(torch.equal(image, whole[i]) for whole in moves for i in range(8))
    # A step moves the images, and compares with what the bank knows of them as they are.
    given: list[Tensor] = []
    terms = made._terms
    monkeypatch.setattr(made, "_terms", lambda *all: given.extend(all) or terms(*all))
    made.step(3)
    stream = generator(0, "meta_train", "distill", "batch", 3)
    drawn = torch.randint(len(made._bank.images), (16,), generator=stream)
    asked = made._turns.draw(4, generator(0, "meta_train", "distill", "turns", 3))
    shown = made._bank.images[torch.cat([drawn, asked.images])]
    plain = load_pool(tiny_pool)[0].info.view.of(shown)
    moved = made._moved(plain, 3)
    assert torch.equal(given[0][:16], moved[:16])
    assert not torch.equal(moved[:16], plain[:16])
    known = [tensor[drawn] for tensor in made._bank[1:]]
    assert all(torch.equal(a, b) for a, b in zip(given[1:4], known, strict=True))
    # Then come the turned ones, moved as well before they are turned.
    assert len(given[0]) == 16 + 4
    assert torch.equal(given[0][16:], turned(moved[16:], asked.turns))
    assert torch.equal(given[4], asked.classes)
    assert torch.equal(given[5], asked.turns)


def test_a_step_of_distillation_is_that_of_its_parameters(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"kl": 1.0, "ratios": 2.0, "features": 0.5, "labels": 0.25, "turns": 3.0}
    made = run(load_pool(tiny_pool), tmp_path / "work", n=20, n_images=15, weights=weights)
    group, shared = made._optimizer.param_groups[0], made._shared
    assert group["weight_decay"] == shared.weight_decay
    asked: list[float] = []

    def terms(*given: Any) -> Terms:
        asked.append(given[-1])
        return distillation_terms(*given)

    monkeypatch.setattr(distill, "distillation_terms", terms)
    for t in (0, 5, 19):
        record = made.step(t)
        assert group["lr"] == learning_rate(t, 20, shared.lr)
        assert record["loss"] == pytest.approx(sum(w * record[name] for name, w in weights.items()))
    assert asked == [shared.temperature] * 3


def test_half_of_the_images_are_mirrored_and_all_are_rolled(
    tiny_pool: Path, tmp_path: Path
) -> None:
    made = run(load_pool(tiny_pool), tmp_path / "work")
    ramps = torch.arange(64 * 256.0).view(64, 1, 16, 16).expand(-1, 3, -1, -1)
    moved = [made._moved(ramps, t) for t in range(8)]
    falling = [(image[0, 0].diff() == -1).sum() > 8 for images in moved for image in images]
    assert 0.3 < sum(map(float, falling)) / len(falling) < 0.7
    rows = {int((images[0, 0] == ramps[0, 0].max()).nonzero()[0, 0]) for images in moved}
    assert len(rows) > 1


def test_an_inverted_image_is_shown_moved_and_stays_an_image() -> None:
    info, seen = teacher_info(0), []
    begun = torch.arange(256.0).view(1, 1, 16, 16).repeat(2, 3, 1, 1).div(64).sub(2)

    def loss(state: Any, shown: Tensor, y: Tensor) -> Any:
        seen.append(shown.detach().clone())
        return SimpleNamespace(total=100 * shown.sum())

    stream, labels = generator(0, "s"), torch.zeros(2, dtype=torch.long)
    for _ in range(40):
        x = begun.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], 0.5)
        natural_inversion._step(x, labels, info, {}, loss, optimizer, 2, stream)
        low, high = info.normalisation.pixel_range(x)
        assert ((x >= low) & (x <= high)).all()
    reach = range(-2, 3)
    moves = {
        (dy, dx, flip): begun.roll((dy, dx), (2, 3)).flip([3] if flip else [])
        for dy, dx, flip in itertools.product(reach, reach, (False, True))
    }
    found = [{key for key, moved in moves.items() if torch.equal(moved, x)} for x in seen]
    assert all(found)
    down, right, flips = (set(part) for part in zip(*set.union(*found), strict=True))
    assert down == right == set(reach)
    assert flips == {False, True}


def test_cutmix_takes_any_area() -> None:
    mixtures = Mixtures(torch.zeros(20_000, 1, 1, 3).byte(), generator(0, "m"))
    area = (2 * mixtures._half_side).square()
    found = [area.quantile(share).item() for share in (0.25, 0.5, 0.75)]
    assert found == pytest.approx([0.25, 0.5, 0.75], abs=0.02)


def test_procedural_images_are_as_large_as_the_largest_teachers(
    tiny_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = load_pool(tiny_pool)
    large = build("conv4", 3, 32).eval().requires_grad_(False)
    pool = [first, Teacher(replace(second.info, image_size=32), large)]
    sizes, plain = [], preparation.procedural_images

    def made(n: int, size: int, stream: torch.Generator) -> Tensor:
        sizes.append(size)
        return plain(n, size, stream)

    monkeypatch.setattr(preparation, "procedural_images", made)
    run(pool, tmp_path / "work")
    assert sizes == [32]


def test_the_bank_says_how_many_images_its_teachers_have_seen(tiny_pool: Path) -> None:
    plain = torch.randint(256, (9, 16, 16, 3), generator=generator(0, "pixels")).byte()
    told: list[int] = []
    stream = generator(0, "pca")
    fill(load_pool(tiny_pool), plain, [], 16, 4, "float32", stream, "cpu", done=told.append)
    assert told == sorted(told)
    assert told[-1] == bank.n_seen(len(plain)) == 27 + 27
