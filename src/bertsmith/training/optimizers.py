"""Optimizers that torch does not have, and how two of its own become one.

What they remember are tensors, a few a parameter and under its key, so that a checkpoint can hold them.
They take the gradients as they are and no closure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.optimizer import ParamsT

_CPU_AT_ONCE = 1
"""Parameters that are computed together on a CPU: one stays in its cache. On an accelerator it is all of them."""


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
    """torch's Muon, also for weights that are several matrices one above the other: each is orthogonalised by itself.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the mean of the gradients
    orthogonal before it is taken as an update. Queries, keys and values are one weight here and three
    matrices there. Updates are as long as AdamW's, so that learning rate and decay are (Liu et al. 2025,
    arXiv 2502.16982, section 2.2).

    A group's `num_parts` says how many matrices each of its weights holds.
    """

    def __init__(self, params: ParamsT, *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "num_parts": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            parts: dict[Tensor, dict[str, Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight not in self.state:
                    self.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}
                tensors = (weight.detach(), weight.grad, self.state[weight]["momentum_buffer"])
                views = (tensor.chunk(group["num_parts"]) for tensor in tensors)
                for matrix, gradient, momentum in zip(*views, strict=True):
                    parameter = nn.Parameter(matrix)
                    parameter.grad = gradient
                    parts[parameter] = {"momentum_buffer": momentum}
            if parts:
                # It remembers nothing but the momentum, so that it can be made anew.
                muon = Muon(parts, lr=group["lr"], weight_decay=group["weight_decay"], adjust_lr_fn="match_rms_adamw")
                muon.state.update(parts)
                muon.step()  # type: ignore[no-untyped-call]


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
