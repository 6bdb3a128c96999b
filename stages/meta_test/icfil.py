"""ICFIL: inversion calibration following the inner loop (PURER, section 4.3, algorithm 2).

    1. theta' = adapt(theta, S)                              as without ICFIL
    2. pseudo images of theta' by a few Adam steps on L_inv  (equation 2)
    3. one Adam step of the backbone on L_calibration        (equation 7)
    4. backbone frozen, a fresh linear head on all of S
    5. predict the query images with the calibrated backbone and the new head

No released program contains it, and the text leaves choices open; each is a parameter, chosen on
meta-validation (docs/FINDINGS.md, "ICFIL").

Shapes: s support, q query, m pseudo images; d features; e episodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from stages.common.architectures import batch_moments, channels_last
from stages.common.dataset import Normalisation
from stages.common.episodes import Episode
from stages.common.inversion import inversion_loss
from stages.common.learner import Learner, Theta, adapt
from stages.meta_test.one_step import outputs
from stages.meta_test.params import Icfil, OneStep


class CalibratedFeatures(NamedTuple):
    support: Tensor  # (s, d)
    query: Tensor  # (q, d)


def calibrated_features(
    learner: Learner,
    theta: Theta,
    episode: Episode,
    normalisation: Normalisation,
    one_step: OneStep,
    params: Icfil,
    batch_norm: str,
    generator: torch.Generator,
    part: str = "",
) -> CalibratedFeatures:
    """Steps 1 to 3 on one episode; features of the frozen, calibrated backbone.

    `normalisation`: the episode's. `part`: as in `adapt`.
    """
    x, y = episode.support_x, episode.support_y
    adapted = adapt(learner, theta, x, y, one_step.inner_lr, one_step.inner_steps, part)
    n_way = int(y[-1]) + 1
    pseudo_y = torch.arange(n_way, device=y.device).repeat_interleave(params.pseudo_per_class)
    pseudo_x = synthesize(learner, adapted, x, pseudo_y, normalisation, params, generator)
    calibrated = calibrate(learner, adapted, x, y, pseudo_x, pseudo_y, params)
    with torch.no_grad():
        support, query = outputs(learner, calibrated, episode, batch_norm)
    return CalibratedFeatures(support.features, query.features)


def synthesize(
    learner: Learner,
    theta: Theta,
    support_x: Tensor,
    pseudo_y: Tensor,
    normalisation: Normalisation,
    params: Icfil,
    generator: torch.Generator,
) -> Tensor:
    """Step 2: images (m, 3, h, w) of the adapted network for the labels `pseudo_y` (m,).

    `normalisation`: of the network's images; they are inverted in its `for_inversion`.
    PURER's network has no statistics of its own; `bn_reference` says whose R_feature compares with,
    also of a distilled learner, which has.
    """
    with torch.no_grad():
        reference = (
            batch_moments(learner.forward(theta, support_x).bn_inputs)
            if params.bn_reference == "support"
            else []
        )
    inverted_as = normalisation.for_inversion
    shape = (len(pseudo_y), *support_x.shape[1:])
    noise = torch.randn(shape, generator=generator).to(support_x.device)
    pseudo = channels_last(noise).requires_grad_()
    optimizer = torch.optim.Adam([pseudo], params.inversion_lr)
    size = (params.inversion_steps, 2)
    rolls = torch.randint(-params.max_roll, params.max_roll + 1, size, generator=generator)
    for roll in rolls.tolist():
        optimizer.zero_grad()
        rolled = channels_last(torch.roll(pseudo, roll, (2, 3)))
        output = learner.forward(theta, inverted_as.convert(rolled, normalisation))
        loss = inversion_loss(output, rolled, pseudo_y, reference, params.weights)
        loss.total.backward()
        optimizer.step()
    return inverted_as.convert(pseudo.detach(), normalisation)


def contrastive_loss(
    anchors: Tensor, anchor_y: Tensor, others: Tensor, others_y: Tensor, temperature: float
) -> Tensor:
    """Equation 7, supervised contrastive loss between two sets (Khosla et al., 2020).

    For anchor features (s, d) and others (m, d), with z the unit features and P(i) the others of
    anchor i's label:

        mean_i  -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / tau) / sum_a exp(z_i z_a / tau) )
    """
    similarity = F.normalize(anchors, dim=1) @ F.normalize(others, dim=1).T / temperature
    log_share = similarity.log_softmax(1)
    positive = (anchor_y[:, None] == others_y[None, :]).to(log_share.dtype)
    return -((positive * log_share).sum(1) / positive.sum(1)).mean()


def calibrate(
    learner: Learner,
    theta: Theta,
    support_x: Tensor,
    support_y: Tensor,
    pseudo_x: Tensor,
    pseudo_y: Tensor,
    params: Icfil,
) -> Theta:
    """Step 3: one Adam step of the backbone; anchors are the support images (METHODS 1.4)."""

    def loss(moving: Theta) -> Tensor:
        whole = theta | moving
        anchors = learner.forward(whole, support_x).features
        others = learner.forward(whole, pseudo_x).features
        return contrastive_loss(anchors, support_y, others, pseudo_y, params.temperature)

    parameters = {name: p for name, p in theta.items() if name in learner.parameters}
    gradient = grad(loss)(parameters)
    # Adam's first step from rest: moments m = g and v = g^2 after bias correction.
    return theta | {
        name: p - params.calibration_lr * gradient[name] / (gradient[name].abs() + 1e-8)
        for name, p in parameters.items()
    }


def head_predictions(
    support: Tensor, support_y: Tensor, query: Tensor, steps: int, lr: float
) -> Tensor:
    """Steps 4 and 5 for all episodes at once: a fresh linear head each, trained by Adam.

    support (e, s, d), support_y (s,), query (e, q, d); labels (e, q). Heads start at zero, so no
    draw decides. Adam works per element, so training the heads together is training each alone.
    """
    n_episodes, _, n_features = support.shape
    n_way = int(support_y[-1]) + 1
    weight = support.new_zeros(n_episodes, n_features, n_way).requires_grad_()
    bias = support.new_zeros(n_episodes, 1, n_way).requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr)
    labels = support_y.expand(n_episodes, -1)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = support @ weight + bias  # (e, s, n_way)
        # The mean over an episode's images, summed over episodes.
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss / len(support_y)).backward()
        optimizer.step()
    with torch.no_grad():
        return (query @ weight + bias).argmax(-1)
