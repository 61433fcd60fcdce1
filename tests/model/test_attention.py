from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertsmith.model import attention as attention_module
from bertsmith.model.attention import EVERYTHING, Layout, Reach, attention, grouped_sdpa, reference_attention

Kernel = Callable[..., Tensor]
CAUSAL = Reach(is_causal=True)
REACHES = [EVERYTHING, CAUSAL, Reach(distance=0), Reach(distance=4), Reach(is_causal=True, distance=3)]
CPU = torch.device("cpu")
LENGTHS = st.lists(st.one_of(st.integers(1, 70), st.sampled_from([5, 16, 33])), min_size=1, max_size=24).map(tuple)


def random_qkv(lengths: tuple[int, ...], heads: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(sum(lengths))
    return torch.randn(sum(lengths), 3, heads, size, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("kernel", [attention, grouped_sdpa])
@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    heads=st.sampled_from([1, 3, 12]),
    size=st.sampled_from([1, 8, 20]),
    reach=st.sampled_from(REACHES),
)
def test_any_mix_of_lengths(kernel: Kernel, lengths: tuple[int, ...], heads: int, size: int, reach: Reach) -> None:
    qkv = random_qkv(lengths, heads, size)
    output = kernel(qkv, Layout(lengths, heads, CPU), 0.0, reach)
    expected = reference_attention(qkv, lengths, reach)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    toward = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(output, qkv, toward)
    (expected_gradient,) = torch.autograd.grad(expected, qkv, toward)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(kernel(qkv, Layout(lengths, heads, CPU), 0.0, reach), output)


@pytest.mark.parametrize("reach", REACHES)
def test_what_is_in_reach(reach: Reach) -> None:
    visible = reach.visible(9, CPU)
    left, right = reach.window_size
    for row in range(9):
        for column in range(9):
            is_near = reach.distance is None or abs(row - column) <= reach.distance
            assert visible[row, column] == (is_near and (column <= row or not reach.is_causal))
            in_window = (left < 0 or column >= row - left) and (right < 0 or column <= row + right)
            assert visible[row, column] == in_window


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60).map(tuple), heads=st.sampled_from([1, 4, 12]))
def test_every_token_is_in_one_group(lengths: tuple[int, ...], heads: int) -> None:
    layout = Layout(lengths, heads, CPU)
    assert layout.offsets.tolist() == [0, *accumulate(lengths)]
    tokens = torch.arange(sum(lengths))
    seen = torch.zeros(sum(lengths))
    of_sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    for group in layout.groups:
        taken = group.take(tokens)
        assert taken.shape == (group.count * group.length,)
        # A row, padding included, holds nothing of any other sequence.
        assert (of_sequence[taken].view(group.count, group.length).diff() == 0).all()
        seen.index_add_(0, group.without_padding(taken), torch.ones(len(group.without_padding(taken))))
        assert group.count == 1 or group.count * heads * group.length**2 < 2**23
    assert (seen == 1).all()


def test_equal_neighbours_are_not_copied() -> None:
    layout = Layout((128,) * 32, 4, CPU)
    values = torch.randn(128 * 32, 3)
    assert all(group.token_index is None and group.is_padding is None for group in layout.groups)
    assert all(group.take(values).data_ptr() == values[group.start].data_ptr() for group in layout.groups)
    scattered = Layout((64, 200, 64, 200, 64), 4, CPU).groups
    assert [(group.count, group.length, group.is_padding) for group in scattered] == [(2, 200, None), (3, 64, None)]


def test_padding_is_kept_where_a_group_costs_more() -> None:
    assert len(Layout((3, 9, 5, 4, 8, 7, 6), 2, CPU).groups) == 1
    assert len(Layout((12, 500, 11, 480, 13), 12, CPU).groups) >= 2


@pytest.mark.parametrize("kernel", [attention, grouped_sdpa])
def test_sequences_do_not_leak(kernel: Kernel) -> None:
    lengths = (9, 14, 3, 14, 40)
    starts = [0, *accumulate(lengths)]
    layout = Layout(lengths, 2, CPU)
    qkv = random_qkv(lengths, 2, 8, torch.float32).detach()
    output = kernel(qkv, layout, 0.0)
    for changed in range(len(lengths)):
        here = slice(starts[changed], starts[changed + 1])
        for poison in (torch.randn(lengths[changed], 3, 2, 8), float("nan"), float("inf")):
            other = qkv.clone()
            other[here] = poison
            other_output = kernel(other, layout, 0.0)
            others = torch.ones(sum(lengths), dtype=torch.bool)
            others[here] = False
            assert torch.equal(other_output[others], output[others])
            assert not torch.equal(other_output[here], output[here])


def test_gradients_do_not_leak() -> None:
    lengths = (9, 14, 3)
    qkv = random_qkv(lengths, 2, 8)
    attention(qkv, Layout(lengths, 2, CPU), 0.3)[9:23].sum().backward()
    assert qkv.grad is not None
    assert not qkv.grad[:9].any() and not qkv.grad[23:].any() and qkv.grad[9:23].any()


@pytest.mark.parametrize("lengths", [(6, 6, 6), (4, 7, 2, 7)])
def test_the_gradient_with_dropout(lengths: tuple[int, ...]) -> None:
    layout = Layout(lengths, 2, CPU)

    def with_fixed_mask(qkv: Tensor) -> Tensor:
        torch.manual_seed(11)
        return attention(qkv, layout, 0.4)

    assert torch.autograd.gradcheck(with_fixed_mask, (random_qkv(lengths, 2, 3),))


def test_dropout_keeps_the_mean() -> None:
    lengths = (12, 5, 12)
    layout = Layout(lengths, 2, CPU)
    qkv = random_qkv(lengths, 2, 4).detach()
    draws = torch.stack([attention(qkv, layout, 0.2) for _ in range(4000)])
    expected = reference_attention(qkv, lengths)
    error = (draws.mean(dim=0) - expected).abs() / (draws.std(dim=0) / 4000**0.5)
    assert draws.std(dim=0).min() > 0.01
    assert error.max() < 5


@pytest.mark.parametrize("kernel", [attention, grouped_sdpa])
def test_without_dropout_nothing_is_drawn(kernel: Kernel) -> None:
    qkv = random_qkv((5, 9), 2, 4)
    before = torch.get_rng_state()
    kernel(qkv, Layout((5, 9), 2, CPU), 0.0).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lengths", [(33, 33), (30, 9, 17)])
def test_bf16_stays_bf16_and_near(lengths: tuple[int, ...]) -> None:
    exact = random_qkv(lengths, 3, 16, torch.float32)
    rough = exact.detach().bfloat16().requires_grad_()
    layout = Layout(lengths, 3, CPU)
    toward = torch.randn(sum(lengths), 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(rough, layout, 0.0)
        untouched = attention(exact, layout, 0.0)
    assert output.dtype == torch.bfloat16 and untouched.dtype == torch.float32
    expected = reference_attention(exact, lengths)
    (gradient,) = torch.autograd.grad(output, rough, toward.bfloat16())
    (expected_gradient,) = torch.autograd.grad(expected, exact, toward)
    torch.testing.assert_close(untouched, expected, rtol=0, atol=1e-5)
    assert (output - expected).abs().mean() < 0.01 * expected.abs().mean() + 0.002
    assert (gradient - expected_gradient).abs().mean() < 0.02 * expected_gradient.abs().mean() + 0.002


def test_the_variable_length_kernel_is_given_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs CUDA; here a stand-in checks its arguments and computes the definition from them."""

    def stand_in(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_query: Tensor,
        cu_key: Tensor,
        longest: int,
        longest_key: int,
        dropout: float,
        is_causal: bool,
        returns_weights: bool,
        *,
        window_size_left: int,
        window_size_right: int,
    ) -> tuple[Tensor]:
        assert query.shape == (14, 2, 8) and cu_query.dtype == torch.int32
        assert (dropout, is_causal, returns_weights, window_size_left, window_size_right) == (0.1, True, False, -1, 0)
        assert longest == longest_key == 9 and torch.equal(cu_query, cu_key)
        return (reference_attention(torch.stack([query, key, value], dim=1), cu_query.diff().tolist(), CAUSAL),)

    monkeypatch.setattr(attention_module, "_variable_length_kernel", stand_in)
    qkv = random_qkv((3, 9, 2), 2, 8)
    output = attention_module.flash(qkv, Layout((3, 9, 2), 2, CPU), 0.1, CAUSAL)
    torch.testing.assert_close(output, attention(qkv, Layout((3, 9, 2), 2, CPU), 0.0, CAUSAL))


def test_devices_of_other_kinds_use_pytorchs_kernels() -> None:
    meta = torch.device("meta")
    qkv = torch.empty(14, 3, 2, 8, device=meta)
    assert attention(qkv, Layout((3, 9, 2), 2, meta), 0.1).shape == (14, 2, 8)


@pytest.mark.parametrize(
    ("size", "dtype", "dropout", "kernel"),
    [
        (256, torch.bfloat16, 0.0, "flash"),
        (264, torch.bfloat16, 0.0, "grouped_sdpa"),
        (20, torch.bfloat16, 0.0, "grouped_sdpa"),
        (64, torch.float32, 0.0, "grouped_sdpa"),
        (64, torch.float16, 0.1, "flash"),
    ],
)
def test_the_variable_length_kernel_is_given_only_what_it_takes(
    size: int, dtype: torch.dtype, dropout: float, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flash", "grouped_sdpa"):
        monkeypatch.setattr(attention_module, name, lambda *_, name=name: name)
    qkv: Any = SimpleNamespace(device=torch.device("cuda"), is_cuda=True, dtype=dtype, shape=(14, 3, 2, size))
    assert attention(qkv, Layout((14,), 2, CPU), dropout) == kernel  # type: ignore[comparison-overlap]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [32, 264])
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_cuda(dtype: torch.dtype, reach: Reach, size: int) -> None:
    lengths = (33, 7, 128, 33)
    device = torch.device("cuda")
    qkv = random_qkv(lengths, 4, size, torch.float32).detach().to(device, dtype).requires_grad_()
    output = attention(qkv, Layout(lengths, 4, device), 0.0, reach)
    expected = reference_attention(qkv.float(), lengths, reach)
    assert output.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=tolerance)
    toward = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(output, qkv, toward.to(dtype))
    (expected_gradient,) = torch.autograd.grad(expected, qkv, toward)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=10 * tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_on_cuda_follows_the_seed_and_keeps_the_mean(dtype: torch.dtype) -> None:
    lengths = (12, 5, 12)
    device = torch.device("cuda")
    layout = Layout(lengths, 2, device)
    qkv = random_qkv(lengths, 2, 8, torch.float32).detach().to(device, dtype)
    torch.manual_seed(1)
    draws = torch.stack([attention(qkv, layout, 0.2) for _ in range(4000)]).float()
    torch.manual_seed(1)
    assert torch.equal(attention(qkv, layout, 0.2).float(), draws[0])
    error = (draws.mean(dim=0) - reference_attention(qkv.float(), lengths)).abs()
    assert draws.std(dim=0).min() > 0.01
    assert (error < 5 * draws.std(dim=0) / 4000**0.5 + (0.01 if dtype == torch.bfloat16 else 0)).all()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (CPU, torch.float32),
        pytest.param(
            torch.device("cuda"),
            torch.bfloat16,
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
def test_the_gradient_is_that_of_the_weights_that_were_not_dropped(device: torch.device, dtype: torch.dtype) -> None:
    """Values that are rows of the identity show which weights a seed drops; the rest follows from the definition."""
    lengths, heads, size, dropout = (32, 7, 19, 32), 2, 32, 0.3
    layout = Layout(lengths, heads, device)
    qkv = random_qkv(lengths, heads, size, torch.float32).detach().to(device, dtype)
    showing = qkv.clone()
    showing[:, 2] = torch.cat([torch.eye(length, size) for length in lengths])[:, None].to(device, dtype)
    torch.manual_seed(3)
    kept = [part != 0 for part in torch.split(attention(showing, layout, dropout), lengths)]
    qkv.requires_grad_()
    torch.manual_seed(3)
    output = attention(qkv, layout, dropout)
    expected = []
    for qkv_L3NH, kept_LNL in zip(torch.split(qkv.float(), lengths), kept, strict=True):
        query_NLH, key_NLH, value_NLH = qkv_L3NH.permute(1, 2, 0, 3)
        weights_NLL = torch.softmax(query_NLH @ key_NLH.transpose(1, 2) / size**0.5, dim=-1)
        mask_NLL = kept_LNL.permute(1, 0, 2)[..., : len(qkv_L3NH)] / (1 - dropout)
        expected.append(((weights_NLL * mask_NLL) @ value_NLH).transpose(0, 1))
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(output.float(), torch.cat(expected), rtol=0, atol=tolerance)
    toward = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, qkv, toward)
    (expected_gradient,) = torch.autograd.grad(torch.cat(expected), qkv, toward.float())
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=3 * tolerance)
    shares = [float(one[..., : len(one)].float().mean()) for one in kept]
    assert sum(shares) / len(shares) == pytest.approx(1 - dropout, abs=0.05)
