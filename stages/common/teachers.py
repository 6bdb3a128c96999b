"""The pool as functions: every teacher's inversion loss, one compiled function a form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from stages.common.architectures import Output, at, bn_layers, channels_last
from stages.common.inversion import InversionLoss, inversion_loss
from stages.common.networks import Foreign
from stages.common.params import InversionWeights, Precision
from stages.common.pool import Teacher

State = dict[str, Tensor]
TeacherLoss = Callable[[State, Tensor, Tensor], InversionLoss]
Form = tuple[str, int, int, str]  # architecture, outputs, image size, arguments


def form(teacher: Teacher) -> Form:
    """Teachers of one form differ in their weights only."""
    info = teacher.info
    return (info.architecture, info.n_outputs, info.image_size, str(info.arguments))


def teacher_losses(
    pool: Sequence[Teacher],
    weights: InversionWeights,
    precision: Precision,
    compiler: Callable[[int], Callable[[Any], Any]],
) -> list[tuple[State, TeacherLoss]]:
    """State and L_inv of every teacher; teachers of one form share a function of the state.

    `compiler(n)` compiles a function that serves n of the teachers.
    """
    forms = [form(teacher) for teacher in pool]
    losses: dict[Form, TeacherLoss] = {}
    for teacher, own in zip(pool, forms, strict=True):
        if own not in losses:
            loss = teacher_loss(teacher.net, weights, precision)
            # A network from elsewhere is read by hooks, at which compilation would stop.
            foreign = isinstance(teacher.net, Foreign)
            losses[own] = loss if foreign else compiler(forms.count(own))(loss)
    return [(_state(teacher), losses[own]) for teacher, own in zip(pool, forms, strict=True)]


def teacher_loss(net: nn.Module, weights: InversionWeights, precision: Precision) -> TeacherLoss:
    """L_inv as a function of (a state, x, y), for every network that differs in its state only.

    A network without BatchNorm has no BN-statistics term. `precision` is the forward pass's; what
    the loss makes of its outputs is exact, above all the moments of the BatchNorm inputs.
    """
    names = [name for name, _ in bn_layers(net)]

    def loss(state: State, x: Tensor, y: Tensor) -> InversionLoss:
        reference = [(state[f"{n}.running_mean"], state[f"{n}.running_var"]) for n in names]
        with at(precision, x.device.type):
            output: Output = functional_call(net, state, (x,))
        exact = Output(
            output.logits.to(x.dtype), output.features, [z.to(x.dtype) for z in output.bn_inputs]
        )
        return inversion_loss(exact, x, y, reference, weights)

    return loss


def _state(teacher: Teacher) -> State:
    """Parameters and buffers by name."""
    named = {**dict(teacher.net.named_parameters()), **dict(teacher.net.named_buffers())}
    return {name: channels_last(t.detach()) for name, t in named.items()}
