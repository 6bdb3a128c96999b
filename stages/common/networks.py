"""Any classifier as a teacher: what an architecture's name stands for, here or elsewhere.

    conv4, resnet18, ...      the project's own (stages/common/architectures.py)
    torchvision/NAME          any of torchvision.models
    timm/NAME                 any of timm, where timm is installed
    python/MODULE:FUNCTION    a function of your own that returns an nn.Module

The last runs code. Where the name comes from a pool's manifest, which somebody else may have
written, the module must be named in the environment variable PURER_TRUST (`check_trusted`).

A network from elsewhere is wrapped: its features are what its head is given (its last linear layer
of as many outputs; without any, such a convolution, as in SqueezeNet, whose input is averaged over
the image), and the inputs of its BatchNorm2d layers are caught on the way. It may have none (ViT,
ConvNeXt); then the BN-statistics term of model inversion does not exist. One that cannot read
images channels-last, as where features are flattened by `view`, is given them as it wants them.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stages.common.architectures import ARCHITECTURES, Output, bn_layers, build, channels_last
from stages.interface.errors import BadInput, did_you_mean

TRUST = "PURER_TRUST"  # environment variable: modules whose code a manifest may run, by commas


class Foreign(nn.Module):
    """A network from elsewhere, whose output is logits (n, k), as one that returns an `Output`."""

    def __init__(self, net: nn.Module, n_outputs: int, image_size: int) -> None:
        super().__init__()
        self.net = net
        self.channels_last = _takes_channels_last(net, image_size)
        self._seen: dict[int, Tensor] = {}  # of the pass under way: inputs by layer
        self._watched = [head(net, n_outputs), *(layer for _, layer in bn_layers(net))]
        for i, layer in enumerate(self._watched):
            layer.register_forward_pre_hook(functools.partial(self._catch, i))

    def forward(self, x: Tensor) -> Output:
        self._seen = {}
        logits = self.net(x if self.channels_last else x.contiguous())
        seen, self._seen = self._seen, {}
        if len(seen) < len(self._watched):
            raise ValueError("its head or a BatchNorm2d layer takes no part in its forward pass")
        z = seen[0].mean((2, 3)) if seen[0].dim() == 4 else seen[0].flatten(1)
        # In the order of `bn_layers`, whatever the order of the calls.
        return Output(logits, z, [seen[i] for i in range(1, len(self._watched))])

    def _catch(self, i: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[i] = inputs[0]


def _takes_channels_last(net: nn.Module, image_size: int) -> bool:
    """Whether its forward pass works with images and kernels laid out so, as all stages have them.

    Features that are laid out so cannot be flattened by `x.view(len(x), -1)`.
    """
    x = channels_last(torch.zeros(2, 3, image_size, image_size))
    try:
        twin = copy.deepcopy(net).eval()  # whatever its forward pass keeps is not of this trial
        named = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        with torch.no_grad():
            functional_call(twin, {name: channels_last(t) for name, t in named.items()}, (x,))
    except Exception as error:  # if it is another one, it fails anyway, and is reported as it is
        return "view" not in str(error)
    return True


def head(net: nn.Module, n_outputs: int) -> nn.Linear | nn.Conv2d:
    """The classifying layer. Raises BadInput if no layer has so many outputs."""
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    layers: list[nn.Linear | nn.Conv2d] = [*convolutions, *linear]
    if not layers:
        raise BadInput(f"{type(net).__name__}: neither nn.Linear nor nn.Conv2d: no known head")
    fitting = [layer for layer in layers if _width(layer) == n_outputs]
    if not fitting:
        raise BadInput(
            f"{type(net).__name__}: its head has {_width(layers[-1])} outputs, the manifest says"
            f" {n_outputs}"
        )
    return fitting[-1]


def _width(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def build_network(
    name: str, n_outputs: int, image_size: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly made network of that name that returns an `Output`; `arguments` go to its maker.

    Raises BadInput for a name that does not exist, with the nearest ones, for one whose package is
    not installed, and for outputs, a size or arguments that the maker refuses; the project's own
    take no arguments.
    """
    try:
        return _made(name, n_outputs, image_size, arguments or {})
    except BadInput:
        raise
    except Exception as error:  # whatever somebody's maker raises
        raise BadInput(
            f"no {name} of {n_outputs} outputs for {image_size} pixels with arguments"
            f" {arguments or {}}: {error}"
        ) from None


def check_trusted(name: str) -> None:
    """Raise BadInput if making that architecture runs code that the user has not trusted.

    For a name that was read from a file: what runs is then its author's choice.
    """
    kind, _, rest = name.partition("/")
    module = rest.partition(":")[0]
    trusted = [part.strip() for part in os.environ.get(TRUST, "").split(",") if part.strip()]
    if kind == "python" and module not in trusted:
        raise BadInput(
            f"architecture = {name!r}: to read this teacher is to run code of the Python module"
            f" {module!r} with arguments from the pool; if you trust both, set"
            f" {TRUST}={','.join([*trusted, module])}"
        )


def _made(name: str, n_outputs: int, image_size: int, arguments: Mapping[str, Any]) -> nn.Module:
    if name in ARCHITECTURES:
        if arguments:
            raise BadInput(f"arguments = {arguments}: {name} takes none")
        return build(name, n_outputs, image_size)
    kind, _, rest = name.partition("/")
    makers: dict[str, Callable[..., nn.Module]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "python": _python,
    }
    if kind not in makers or not rest:
        raise BadInput(
            f"architecture = {name!r}: allowed: {', '.join(ARCHITECTURES)},"
            f" torchvision/NAME, timm/NAME, python/MODULE:FUNCTION{_nearest(name)}"
        )
    return Foreign(makers[kind](rest, n_outputs, dict(arguments)), n_outputs, image_size)


def own_module(net: nn.Module) -> nn.Module:
    """The network whose state dict a teacher's file holds."""
    return net.net if isinstance(net, Foreign) else net


def namesake(name: str) -> str:
    """' (did you mean "torchvision/x"?)' for an x that torchvision has as well, else ''."""
    return f' (did you mean "torchvision/{name}"?)' if name in _torchvision_names() else ""


def _nearest(name: str) -> str:
    """A hint to what may have been meant by a name that says of no package."""
    last, theirs = name.rpartition("/")[2], _torchvision_names()
    meant = []
    for near in difflib.get_close_matches(last, [*{*ARCHITECTURES, *theirs}], n=3):
        meant += [f'"{near}"'] if near in ARCHITECTURES else []
        meant += [f'"torchvision/{near}"'] if near in theirs else []
    return namesake(last) or (f" (did you mean {' or '.join(meant)}?)" if meant else "")


def _torchvision_names() -> list[str]:
    """Its classifiers; none where it cannot be imported."""
    try:
        from torchvision import models
    except ImportError:
        return []
    return list(models.list_models(module=models))


def _torchvision(name: str, n_outputs: int, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models

    names = _torchvision_names()
    if name not in names:
        raise BadInput(
            f"architecture = 'torchvision/{name}': torchvision has no such classifier"
            + did_you_mean(name, names)
        )
    if name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": False} | arguments
    net: nn.Module = models.get_model(name, weights=None, num_classes=n_outputs, **arguments)
    return net


def _timm(name: str, n_outputs: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BadInput(
            f"architecture = 'timm/{name}': timm is not installed; pip install timm"
        ) from None
    names = timm.list_models()
    kind = name.partition(".")[0]  # after it comes which pretraining, which says nothing here
    if kind not in names:
        raise BadInput(
            f"architecture = 'timm/{name}': timm has no such model{did_you_mean(kind, names)}"
        )
    net: nn.Module = timm.create_model(
        kind,
        pretrained=False,
        checkpoint_path="",  # so that `arguments` cannot name a file, which timm might unpickle
        num_classes=n_outputs,
        **arguments,
    )
    return net


def _python(name: str, n_outputs: int, arguments: dict[str, Any]) -> nn.Module:
    module, _, function = name.partition(":")
    where = f"architecture = 'python/{name}'"
    try:
        maker = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise BadInput(f"{where}: {error}; is the module's folder on PYTHONPATH?") from None
    except AttributeError:
        raise BadInput(f"{where}: {module} has no {function!r}") from None
    made = maker(**arguments)
    if not isinstance(made, nn.Module):
        raise BadInput(f"{where}: gave a {type(made).__name__}, allowed: an nn.Module")
    return made
