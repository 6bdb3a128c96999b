"""OTA: the pool fused layer by layer after optimal transport (Singh & Jaggi, NeurIPS 2020).

The baseline as Wang et al. (UAI 2022) and PURER use it (METHODS 2). A network computes the same
function under any order of a layer's units, so before averaging, layer l of every other teacher is
reordered to match the reference teacher's, its inputs being in the reference's order already:

    p_l = argmin_p sum_i ||W_ref[i] - W[p(i), p_{l-1}]||^2        (rows: a unit's incoming weights)

This is exact optimal transport: between uniform masses on equally many points some permutation is
an optimal plan (Birkhoff). Weights enter the cost, biases and BatchNorm only follow. The head's
outputs are classes, which do not correspond across teachers: they stay in their order.

Shapes: c filters a layer, k outputs, s x s positions that the last layer's features have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.common.architectures import Conv4, channels_last
from stages.common.learner import Theta
from stages.common.pool import Teacher
from stages.interface.errors import BadInput


def fuse(pool: Sequence[Teacher], reference: int) -> Theta:
    """Mean of the teachers' parameters, each teacher's units in the order of teacher `reference`.

    Teachers of one form. Raises BadInput if they are no Conv4s: a ResNet's shortcuts tie the units
    of all blocks of a stage to one order, which these layer-by-layer assignments cannot give.
    """
    for teacher in pool:
        if not isinstance(teacher.net, Conv4):
            raise BadInput(
                f"ota: {teacher.info.file} is a {teacher.info.architecture}; allowed: conv4,"
                " conv4_64 (units of layers that shortcuts join cannot be aligned layer by layer)"
            )
    thetas = [{n: p.detach() for n, p in teacher.net.named_parameters()} for teacher in pool]
    target = thetas[reference]
    aligned = [theta if theta is target else align(theta, target) for theta in thetas]
    return {
        name: channels_last(torch.stack([theta[name] for theta in aligned]).mean(0))
        for name in target
    }


def align(theta: Theta, target: Theta) -> Theta:
    """The same function as the Conv4 parameters `theta`, its units in the order of `target`'s."""
    aligned = dict(theta)
    order = torch.arange(3)  # of the layer's inputs: colours correspond already
    n_layers = sum(name.startswith("convs.") and name.endswith(".weight") for name in theta)
    for layer in range(n_layers):
        weight = theta[f"convs.{layer}.weight"][:, order]  # (c, c_in, 3, 3)
        order = assignment(target[f"convs.{layer}.weight"].flatten(1), weight.flatten(1))
        aligned[f"convs.{layer}.weight"] = weight[order]
        for name in (f"convs.{layer}.bias", f"norms.{layer}.weight", f"norms.{layer}.bias"):
            aligned[name] = theta[name][order]
    head = theta["head.weight"].unflatten(1, (len(order), -1))  # (k, c, s * s): channel-major
    aligned["head.weight"] = head[:, order].flatten(1)
    return aligned


def assignment(target: Tensor, rows: Tensor) -> Tensor:
    """The permutation p (c,) that minimises sum_i ||target[i] - rows[p(i)]||^2; both (c, d).

    The norms sum to the same for every p, so it maximises sum_i target[i] . rows[p(i)].
    """
    similarity = target.double() @ rows.double().T
    return torch.from_numpy(linear_sum_assignment(similarity.cpu().numpy(), maximize=True)[1])
