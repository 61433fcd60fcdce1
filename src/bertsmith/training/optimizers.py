"""Optimizers that torch does not have, and how two of its own become one.

What they remember are tensors, a few a parameter and under its key, so that a checkpoint can hold them.
They take the gradients as they are and no closure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from bertsmith.training.device import has_fast_bf16

_CPU_AT_ONCE = 1
"""Parameters that are computed together on a CPU: one stays in its cache. On an accelerator it is all of them."""
_MUON_MOMENTUM = 0.95
_MUON_EPSILON = 1e-7
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""The polynomial a x + b x^3 + c x^5 of a singular value x; these, its steps and the momentum are the author's."""
_NEWTON_SCHULZ_STEPS = 5


class BertAdam(AdamW):
    """Adam without bias correction and with decoupled decay: BERT's own, optimization.py of google-research/bert.

    Without the correction the first update is (1 - beta1) / sqrt(1 - beta2), 3.2 times, as long as Adam's. It is
    AdamW at the step infinity, where both of its corrections are 1, so that torch's fused kernel computes it.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0, fused=True)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.full((), math.inf, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


class StableAdamW(Optimizer):
    """AdamW with update clipping (Wortsman et al. 2023, arXiv 2304.13013, algorithm 2).

    A tensor whose squared gradients have outgrown their running mean, so that the root mean square of
    gradient / sqrt(mean) is above 1, takes a step that is smaller by that much.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for part in _adam(self, group):
                roots = torch._foreach_sqrt(part.squares)
                epsilons = [group["eps"] * scale for scale in part.square_scales]
                ratios = torch._foreach_clamp_min(roots, epsilons)
                torch._foreach_reciprocal_(ratios)
                torch._foreach_mul_(ratios, part.gradients)
                norms = _floats(torch._foreach_norm(ratios))
                rates = [
                    group["lr"] / max(1.0, norm * scale / math.sqrt(parameter.numel()))
                    for norm, scale, parameter in zip(norms, part.square_scales, part.parameters, strict=True)
                ]
                torch._foreach_mul_(part.parameters, [1.0 - rate * group["weight_decay"] for rate in rates])
                torch._foreach_add_(roots, epsilons)
                lengths = [-rate * scale for rate, scale in zip(rates, part.scales, strict=True)]
                torch._foreach_addcdiv_(part.parameters, part.means, roots, lengths)


class Lamb(Optimizer):
    """Adam with a step as long as a share of the weights themselves (You et al. 2019, arXiv 1904.00962, algorithm 2).

    That is so for matrices. Vectors, which are norms and biases, take AdamW's step, as in the code that
    pre-trained with it (google-research/albert, lamb_optimizer.py): a bias of 0 has no length to take a share of.
    """

    def __init__(self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for part in _adam(self, group):
                roots = torch._foreach_sqrt(part.squares)
                torch._foreach_add_(roots, [group["eps"] * scale for scale in part.square_scales])
                updates = torch._foreach_div(part.means, roots)
                torch._foreach_mul_(updates, part.scales)
                torch._foreach_add_(updates, part.parameters, alpha=group["weight_decay"])
                norms = _floats(torch._foreach_norm(part.parameters))
                update_norms = _floats(torch._foreach_norm(updates))
                ratios = [
                    norm / update_norm if parameter.ndim > 1 and norm > 0 and update_norm > 0 else 1.0
                    for parameter, norm, update_norm in zip(part.parameters, norms, update_norms, strict=True)
                ]
                lengths = [-group["lr"] * ratio for ratio in ratios]
                torch._foreach_mul_(updates, lengths)
                torch._foreach_add_(part.parameters, updates)


class MatrixMuon(Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), also for weights of several matrices.

    It makes the mean of the gradients orthogonal before it is taken as an update. Queries, keys and values are
    one weight here and three matrices there, one above the other; a group's `num_parts` says how many each of its
    weights holds, and each is orthogonalised by itself. Updates are as long as AdamW's, so that learning rate and
    decay are (Liu et al. 2025, arXiv 2502.16982, section 2.2). torch's own Muon takes one matrix at a time, and
    always in bfloat16, which a processor without such instructions emulates, slowly.
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "num_parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight not in self.state:
                    self.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}
                momentum = self.state[weight]["momentum_buffer"].lerp_(weight.grad, 1 - _MUON_MOMENTUM)
                looked_ahead = weight.grad.lerp(momentum, _MUON_MOMENTUM)  # as Nesterov does
                parts = orthogonalised(looked_ahead.unflatten(0, (group["num_parts"], -1)))
                length = group["lr"] * 0.2 * math.sqrt(max(parts.shape[1:]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(parts.flatten(0, 1), alpha=-length)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest thing to U V' of each matrix U S V' that five steps of Newton and Schulz give.

    Args:
        matrices: [parts, rows, columns], in any floating dtype.

    Returns:
        The same shape, in bfloat16 where the device multiplies it, in float32 elsewhere; singular values lie
        between about 0.7 and 1.2, which serves as well as 1 (Jordan et al. 2024).
    """
    dtype = torch.bfloat16 if has_fast_bf16(matrices.device) else torch.float32
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if is_tall else matrices).to(dtype)
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=_MUON_EPSILON)
    a, b, c = _NEWTON_SCHULZ
    if dtype == torch.float32 and wide.shape[-1] >= 2 * wide.shape[-2]:
        wide = _factor(wide @ wide.mT) @ wide
    else:
        for _ in range(_NEWTON_SCHULZ_STEPS):
            gram = wide @ wide.mT
            wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if is_tall else wide


def _factor(gram: Tensor) -> Tensor:
    """What all steps together multiply a matrix X by, from X X' [parts, rows, rows].

    A step is X -> p(X X') X. The factors commute, so the next X X' is p^2 times this one, and X itself is needed once:
    with four times as many columns as rows that takes 0.6 of the time. In bfloat16 the squares would lose too much.
    """
    a, b, c = _NEWTON_SCHULZ
    factor = torch.eye(gram.shape[-1], device=gram.device).expand_as(gram)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = polynomial @ factor
        gram = polynomial @ (gram @ polynomial)
    return factor


class Combined(Optimizer):
    """Several optimizers as one. Groups and state are theirs, so that a learning rate set here is set there."""

    def __init__(self, *optimizers: Optimizer) -> None:
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update by each of them."""
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass(frozen=True)
class _Part:
    """Parameters that are computed together, and Adam's moments of them after this step's gradients.

    The bias-corrected mean over the root of the bias-corrected square, with its epsilon, is
    scale * mean / (sqrt(square) + epsilon * square_scale).
    """

    parameters: list[Tensor]
    gradients: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    scales: list[float]
    square_scales: list[float]


def _adam(optimizer: Optimizer, group: dict[str, Any]) -> Iterator[_Part]:
    """Take the gradients of a group into Adam's moments (Kingma & Ba 2014, arXiv 1412.6980, algorithm 1)."""
    beta1, beta2 = group["betas"]
    trained = [parameter for parameter in group["params"] if parameter.grad is not None]
    at_once = len(trained) if trained and trained[0].is_cuda else _CPU_AT_ONCE
    for first in range(0, len(trained), at_once):
        parameters = trained[first : first + at_once]
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [optimizer.state[parameter] for parameter in parameters]
        means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        numbers = _floats(steps)
        square_scales = [math.sqrt(1.0 - beta2**number) for number in numbers]
        scales = [root / (1.0 - beta1**number) for root, number in zip(square_scales, numbers, strict=True)]
        yield _Part(parameters, gradients, means, squares, scales, square_scales)


def _floats(scalars: Sequence[Tensor]) -> list[float]:
    """The numbers in 0-dimensional tensors, fetched from their device together."""
    numbers: list[float] = torch.stack(list(scalars)).tolist()
    return numbers
