"""DRO: Wasserstein distributionally robust model fusion (Wang et al., UAI 2022; METHODS 2).

An affine f maps a task embedding e to all parameters of a learner: W e + b, where the rows of W
and b that belong to one tensor are that tensor's linear layer. With n teachers, p parameters and
the embedding e_i (d,) of teacher i,

    l(e, theta) = ||f(e) - theta||^2 / dim(e)                       minus the log-likelihood

    1. W, b, e_i <- SGD step on l(e_i, theta_i)                     teacher i of S
    2. e' = e_j - lr * gradient at e_j of  -l(., theta_j) + gamma ||. - e_j||^2   teacher j of Q
    3. W, b <- SGD step on l(e', theta_j)

Step 2 seeks the worst case in a Wasserstein ball (Lagrangian form), K = 1 step from its centre,
where the penalty is flat: gamma changes the recorded `robust_loss`, not the learner. And f being
affine, f(mean embedding), where meta-testing starts, goes to the baseline Average as l goes to 0.

The division by dim(e) is ours [M]: a step of W and b multiplies a teacher's residual by
1 - 2 lr (||e||^2 + 1) / dim(e), about 0.94 with e from N(0, I), whatever the architecture; -2
undivided (diverges), 0.9999 divided by p (stands still). W starts at zero, b at a fresh learner: a
drawn W would give the embeddings' steps a curvature that grows with p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import grad

from stages.common.architectures import channels_last
from stages.common.learner import Theta, initial_theta
from stages.common.loop import Records, recent
from stages.common.pool import Teacher
from stages.common.seeds import generator
from stages.interface.errors import BadInput
from stages.meta_train.params import Dro
from stages.meta_train.starts import require_equal


class DroRun:
    """One run; BadInput unless there are two teachers or more, all of the learner's shape."""

    meta_learner = "none"
    distilled = None

    def __init__(
        self,
        pool: Sequence[Teacher],
        architecture: str,
        params: Dro,
        *,
        n_way: int,
        image_size: int,
        seed: int,
        device: str,
    ) -> None:
        if len(pool) < 2:
            raise BadInput(
                f"dro: {len(pool)} teacher cannot be divided into S and Q; allowed: from 2"
            )
        require_equal(pool, (architecture, n_way, image_size), "dro")
        self.architecture, self._params, self._seed = architecture, params, seed
        self._targets = torch.stack([flat(dict(t.net.named_parameters())) for t in pool]).to(device)
        start = initial_theta(architecture, n_way, image_size, self._stream("initialisation"))
        self._shapes = {name: p.shape for name, p in start.items()}
        n, d, bias = len(pool), params.embedding_dim, flat(start)
        drawn = torch.randn(n, d, generator=self._stream("embeddings"))
        tensors = {"embeddings": drawn, "weight": torch.zeros(len(bias), d), "bias": bias}
        self._variables = {name: t.to(device).requires_grad_() for name, t in tensors.items()}
        self._optimizer = torch.optim.SGD(list(self._variables.values()), params.lr)
        order = torch.randperm(n, generator=self._stream("split")).tolist()
        n_support = min(max(round(params.support_fraction * n), 1), n - 1)
        self._parts = order[:n_support], order[n_support:]  # S and Q

    def step(self, t: int) -> dict[str, float]:
        """Iteration t: the three steps of the module's head; losses as each step found them."""
        stream = self._stream("teachers", t)
        i, j = (part[int(torch.randint(len(part), (), generator=stream))] for part in self._parts)
        likelihood_loss = self._loss(self._variables["embeddings"][i], self._targets[i])
        self._ascend(likelihood_loss)
        e, theta_j = self._variables["embeddings"][j].detach(), self._targets[j]
        start = e.clone().requires_grad_()
        moved = e - self._params.lr * grad(self._lagrangian(start, e, theta_j), start)[0]
        robust_loss = -self._lagrangian(moved, e, theta_j).detach()
        self._ascend(self._loss(moved, theta_j))
        return {
            "likelihood_loss": likelihood_loss.item(),
            "robust_loss": robust_loss.item(),
            "embedding_shift": (moved - e).norm().item(),
        }

    def _f(self, e: Tensor) -> Tensor:
        """f(e) (p,) of e (d,)."""
        return self._variables["weight"] @ e + self._variables["bias"]

    def _loss(self, e: Tensor, theta: Tensor) -> Tensor:
        """l(e, theta), a scalar; e (d,), theta (p,)."""
        return (self._f(e) - theta).square().sum() / len(e)

    def _lagrangian(self, moved: Tensor, e: Tensor, theta: Tensor) -> Tensor:
        """What step 2 descends: -l(e', theta) + gamma ||e' - e||^2; e', e (d,), theta (p,)."""
        return self._params.penalty * (moved - e).square().sum() - self._loss(moved, theta)

    def _ascend(self, loss: Tensor) -> None:
        """One SGD step up the log-likelihood, of every variable that `loss` depends on."""
        self._optimizer.zero_grad()  # to None: steps 1 and 3 differ in whether embeddings move
        loss.backward()
        self._optimizer.step()

    def _stream(self, purpose: str, *index: int) -> torch.Generator:
        return generator(self._seed, "meta_train", f"dro {purpose}", *index)

    def progress(self, records: Records) -> dict[str, float | str]:
        """Means of the last twenty iterations."""
        return {
            "likelihood": recent(records, "likelihood_loss"),
            "robust": recent(records, "robust_loss"),
        }

    def snapshot(self) -> Theta:
        """f(mean embedding) as the learner's parameters."""
        parameters = self._f(self._variables["embeddings"].mean(0)).detach()
        parts = parameters.split([shape.numel() for shape in self._shapes.values()])
        return {
            name: channels_last(part.view(shape))
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def synthetic(self) -> list[tuple[Tensor, Tensor]]:
        return []  # DRO works in parameter space

    def state(self) -> dict[str, Tensor]:
        """Embeddings (n, d), W (p, d) and b (p,): SGD without momentum keeps nothing else."""
        return {name: t.detach() for name, t in self._variables.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, variable in self._variables.items():
                variable.copy_(tensors[name])


def flat(theta: Theta) -> Tensor:
    """All parameters in their order, as one vector (p,)."""
    return torch.cat([p.detach().flatten() for p in theta.values()])
