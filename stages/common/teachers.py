"""The pool as functions: every teacher's inversion loss, one compiled function a form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from stages.common.architectures import Output, at, bn_layers, channels_last
from stages.common.inversion import InversionLoss, inversion_loss
from stages.common.networks import Foreign
from stages.common.params import InversionWeights, Precision
from stages.common.pool import Teacher, TeacherInfo

State = dict[str, Tensor]
TeacherLoss = Callable[[State, Tensor, Tensor], InversionLoss]
Form = tuple[str, int, int, str, str]  # architecture, outputs, image size, arguments, what is seen


def form(teacher: Teacher) -> Form:
    """Teachers of one form differ in their weights only."""
    info = teacher.info
    converted = info.inverted_as != info.normalisation
    seen = str(info.normalisation) if converted else "as it is"
    return (info.architecture, info.n_outputs, info.image_size, str(info.arguments), seen)


def teacher_losses(
    pool: Sequence[Teacher],
    weights: InversionWeights,
    precision: Precision,
    compiler: Callable[[int], Callable[[Any], Any]],
) -> list[tuple[State, TeacherLoss]]:
    """State and L_inv of every teacher; teachers of one form share a function of the state.

    Images are normalised as `TeacherInfo.inverted_as` says.
    `compiler(n)` compiles a function that serves n of the teachers.
    """
    forms = [form(teacher) for teacher in pool]
    losses: dict[Form, TeacherLoss] = {}
    for teacher, own in zip(pool, forms, strict=True):
        if own not in losses:
            loss = teacher_loss(teacher.net, weights, precision, shown_to(teacher.info))
            # A network from elsewhere is read by hooks, at which compilation would stop.
            foreign = isinstance(teacher.net, Foreign)
            losses[own] = loss if foreign else compiler(forms.count(own))(loss)
    return [(_state(teacher), losses[own]) for teacher, own in zip(pool, forms, strict=True)]


def teacher_loss(
    net: nn.Module,
    weights: InversionWeights,
    precision: Precision,
    shown: Callable[[Tensor], Tensor] = lambda x: x,
) -> TeacherLoss:
    """L_inv as a function of (a state, x, y), for every network that differs in its state only.

    `shown`: from x to what the network is shown, if its images are inverted in another scale.
    A network without BatchNorm has no BN-statistics term. `precision` is the forward pass's; what
    the loss makes of its outputs is exact, above all the moments of the BatchNorm inputs.
    """
    names = [name for name, _ in bn_layers(net)]

    def loss(state: State, x: Tensor, y: Tensor) -> InversionLoss:
        reference = [(state[f"{n}.running_mean"], state[f"{n}.running_var"]) for n in names]
        with at(precision, x.device.type):
            output: Output = functional_call(net, state, (shown(x),))
        exact = Output(
            output.logits.to(x.dtype), output.features, [z.to(x.dtype) for z in output.bn_inputs]
        )
        return inversion_loss(exact, x, y, reference, weights)

    return loss


def shown_to(info: TeacherInfo) -> Callable[[Tensor], Tensor]:
    """From an inverted image to what the teacher is shown."""
    if info.inverted_as == info.normalisation:
        return lambda x: x
    return functools.partial(info.inverted_as.convert, other=info.normalisation)


def _state(teacher: Teacher) -> State:
    """Parameters and buffers by name."""
    net = teacher.net
    named = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    if isinstance(net, Foreign) and not net.channels_last:
        return {name: t.detach() for name, t in named.items()}
    return {name: channels_last(t.detach()) for name, t in named.items()}
