"""Every optimizer beside a plain reading of where it was published, over steps whose gradients differ in size."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Muon, Optimizer

from bertsmith.training import optimizers
from bertsmith.training.optimizers import BertAdam, Lamb, MatrixMuon, StableAdamW, orthogonalised

BETAS, EPSILON, DECAY = (0.9, 0.99), 1e-3, 0.1
SHAPES = {"matrix": (5, 4), "zeros": (3, 3), "vector": (6,), "bias": (2,)}
RATES = [0.0, 0.01, 0.1, 0.1, 0.05, 0.02, 0.01]

Array = np.ndarray[Any, np.dtype[np.float64]]
Rule = Callable[[Array, list[Array]], Iterator[Array]]


def gradients(shape: tuple[int, ...]) -> list[Array]:
    """One a step; that of the fourth is thirty times as long as the others, the last is nothing."""
    random = np.random.default_rng(len(shape) + shape[0])
    sizes = [1.0, 0.5, 1.0, 30.0, 1.0, 0.1, 0.0]
    return [size * random.normal(size=shape) for size in sizes]


def initial(name: str, shape: tuple[int, ...]) -> Array:
    values = np.random.default_rng(7).normal(size=shape)
    return values * 0 if name in ("zeros", "bias") else values


def bert_original(weights: Array, grads: list[Array]) -> Iterator[Array]:
    """AdamWeightDecayOptimizer.apply_gradients of google-research/bert, optimization.py."""
    m = v = np.zeros_like(weights)
    for grad, learning_rate in zip(grads, RATES, strict=True):
        m = BETAS[0] * m + (1.0 - BETAS[0]) * grad
        v = BETAS[1] * v + (1.0 - BETAS[1]) * np.square(grad)
        update = m / (np.sqrt(v) + EPSILON)
        update = update + DECAY * weights
        weights = weights - learning_rate * update
        yield weights


def stable_adamw(theta: Array, grads: list[Array]) -> Iterator[Array]:
    """Algorithm 2 of arXiv 2304.13013, with its names."""
    v = u = np.zeros_like(theta)
    for t, (g, alpha) in enumerate(zip(grads, RATES, strict=True), start=1):
        beta1_hat = BETAS[0] * (1 - BETAS[0] ** (t - 1)) / (1 - BETAS[0] ** t)
        beta2_hat = BETAS[1] * (1 - BETAS[1] ** (t - 1)) / (1 - BETAS[1] ** t)
        v = beta1_hat * v + (1 - beta1_hat) * g
        u = beta2_hat * u + (1 - beta2_hat) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(u, EPSILON**2)))
        eta = alpha / max(1.0, rms)
        theta = theta - eta * DECAY * theta - eta * v / (np.sqrt(u) + EPSILON)
        yield theta


def lamb(x: Array, grads: list[Array]) -> Iterator[Array]:
    """Algorithm 2 of arXiv 1904.00962 with phi(z) = z; where a norm is 0, and for vectors, a ratio of 1."""
    m = v = np.zeros_like(x)
    for t, (g, eta) in enumerate(zip(grads, RATES, strict=True), start=1):
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g**2
        r = (m / (1 - BETAS[0] ** t)) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPSILON)
        update = r + DECAY * x
        norms = np.linalg.norm(x), np.linalg.norm(update)
        x = x - eta * (norms[0] / norms[1] if all(norms) and x.ndim > 1 else 1.0) * update
        yield x


CASES = [(BertAdam, bert_original), (StableAdamW, stable_adamw), (Lamb, lamb)]
IDS = [kind.__name__ for kind, _ in CASES]


def build(kind: type, parameters: dict[str, nn.Parameter]) -> Optimizer:
    group = {"params": list(parameters.values()), "weight_decay": DECAY}
    optimizer: Optimizer = kind([group], lr=1.0, betas=BETAS, eps=EPSILON)
    return optimizer


def trace(kind: type, device: str) -> dict[str, list[Array]]:
    """All parameters after every step."""
    parameters = {
        name: nn.Parameter(torch.tensor(initial(name, shape), dtype=torch.float32, device=device))
        for name, shape in SHAPES.items()
    }
    optimizer = build(kind, parameters)
    steps: dict[str, list[Array]] = {name: [] for name in SHAPES}
    for step, learning_rate in enumerate(RATES):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients(SHAPES[name])[step], dtype=torch.float32, device=device)
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        for name, parameter in parameters.items():
            steps[name].append(parameter.detach().cpu().double().numpy().copy())
    return steps


@pytest.mark.conformance
@pytest.mark.parametrize(("kind", "rule"), CASES, ids=IDS)
def test_every_step_is_the_published_one(kind: type, rule: Rule) -> None:
    for name, steps in trace(kind, "cpu").items():
        expected = rule(initial(name, SHAPES[name]), gradients(SHAPES[name]))
        for number, (own, theirs) in enumerate(zip(steps, expected, strict=True)):
            np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-6, err_msg=f"{name}, step {number}")


@pytest.mark.parametrize("kind", [StableAdamW, Lamb])
def test_all_tensors_at_once_are_as_one_by_one(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = trace(kind, "cpu")
    monkeypatch.setattr(optimizers, "_CPU_AT_ONCE", 3)
    for name, steps in trace(kind, "cpu").items():
        np.testing.assert_array_equal(steps, one_by_one[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", [BertAdam, StableAdamW, Lamb], ids=IDS)
def test_an_accelerator_comes_to_the_same(kind: type) -> None:
    on_cpu = trace(kind, "cpu")
    for name, steps in trace(kind, "cuda").items():
        np.testing.assert_allclose(steps, on_cpu[name], rtol=1e-5, atol=1e-6)


def test_the_gradients_show_the_difference_between_the_rules() -> None:
    """Otherwise the tests above would pass with plain AdamW."""
    start, grads = initial("matrix", SHAPES["matrix"]), gradients(SHAPES["matrix"])
    ends = [list(rule(start, grads))[-1] for _, rule in CASES]
    differences = [np.abs(one - other).max() for one in ends for other in ends if one is not other]
    assert min(differences) > 0.01


@pytest.mark.parametrize("kind", [BertAdam, StableAdamW, Lamb], ids=IDS)
def test_what_has_no_gradient_stays_as_it_is(kind: type) -> None:
    parameters = {name: nn.Parameter(torch.ones(2, 2)) for name in ("used", "unused")}
    optimizer = build(kind, parameters)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert torch.equal(parameters["used"], torch.ones(2, 2))
    parameters["used"].grad = torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(parameters["used"], torch.ones(2, 2))
    assert torch.equal(parameters["unused"], torch.ones(2, 2))
    # Each parameter counts its own steps: one that comes later is corrected as if it were first.
    parameters["unused"].grad = torch.ones(2, 2)
    parameters["used"].grad = None
    optimizer.step()
    assert torch.equal(parameters["used"], parameters["unused"])


@pytest.mark.conformance
@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_stacked_matrices_are_orthogonalised_one_by_one_as_torch_does(
    num_parts: int, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "has_fast_bf16", lambda device: is_fast)
    torch.manual_seed(0)
    start = torch.randn(num_parts * 4, 6)
    stacked = nn.Parameter(start.clone())
    separate = [nn.Parameter(part.clone()) for part in start.chunk(num_parts)]
    own = MatrixMuon([{"params": [stacked], "num_parts": num_parts}], lr=0.02, weight_decay=0.1)
    theirs = Muon(separate, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        before, gradient = stacked.detach().clone(), torch.randn_like(start)
        stacked.grad = gradient.clone()
        for parameter, part in zip(separate, gradient.chunk(num_parts), strict=True):
            parameter.grad = part.clone()
        own.step()
        theirs.step()
        # torch computes in bfloat16, which is right to 2 or 3 digits; an update is about 0.2 x 0.02 x sqrt(6) long.
        torch.testing.assert_close(stacked.detach(), torch.cat(separate).detach(), rtol=0, atol=6e-4)
        assert (stacked - before).abs().mean() > 3e-3
        with torch.no_grad():
            stacked.copy_(torch.cat(separate))
    assert own.state[stacked].keys() == {"momentum_buffer"}
    assert own.state[stacked]["momentum_buffer"].shape == stacked.shape
    stacked.grad = None
    own.step()
    assert torch.equal(stacked, torch.cat(separate))


@pytest.mark.parametrize("smallest_power", [0, -4])
@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 9), (1, 12, 3), (1, 64, 256)])
def test_singular_values_follow_the_published_polynomial(
    shape: tuple[int, int, int], smallest_power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The five steps leave U and V as they are, and take each singular value through a x + b x^3 + c x^5."""
    monkeypatch.setattr(optimizers, "has_fast_bf16", lambda device: False)
    matrices = np.random.default_rng(1).normal(size=shape) * np.logspace(0, smallest_power, shape[-1])
    for found, matrix in zip(orthogonalised(torch.tensor(matrices, dtype=torch.float32)), matrices, strict=True):
        left, values, right = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
        for _ in range(5):
            values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
        np.testing.assert_allclose(found.numpy(), left * values @ right, atol=2e-4)
