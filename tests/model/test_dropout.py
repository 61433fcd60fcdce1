import pytest
import torch

from bertsmith.model.dropout import dropout, keep_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_and_scale(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    mask = keep_mask((300, 401), probability, dtype)
    assert mask.dtype == dtype and mask.shape == (300, 401)
    values = mask.unique().float()
    # 2**-8 is what bf16 can tell apart near 1.
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - probability)]), rtol=2**-8, atol=1e-4)
    dropped = (mask == 0).float()
    # Four standard deviations of a share of 120,300 draws.
    allowed = 4 * (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(dropped.mean().item() - probability) < allowed
    assert abs(dropped.mean(dim=0).std().item() - (probability * (1 - probability) / 300) ** 0.5) < 0.01


def test_neighbours_are_independent() -> None:
    """Four elements share one random word; none may tell anything about another."""
    torch.manual_seed(4)
    kept = (keep_mask((50_000, 4), 0.5, torch.float32) > 0).double()
    correlations = torch.corrcoef(kept.T)
    assert (correlations - torch.eye(4)).abs().max() < 4 / 50_000**0.5
    rows = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))
    assert abs(rows[0, 1].item()) < 4 / 200_000**0.5


def test_the_seed_decides() -> None:
    values = torch.ones(1001)
    torch.manual_seed(5)
    first = dropout(values, 0.3, training=True)
    second = dropout(values, 0.3, training=True)
    torch.manual_seed(5)
    assert torch.equal(dropout(values, 0.3, training=True), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_with_nothing_to_do_nothing_is_drawn(probability: float, training: bool) -> None:
    values = torch.randn(10)
    before = torch.get_rng_state()
    assert dropout(values, probability, training) is values
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gradient_meets_the_same_mask() -> None:
    values = torch.randn(500, requires_grad=True)
    dropped = dropout(values, 0.4, training=True)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), dropped.detach())


def test_an_extreme_probability_still_keeps_the_scale_finite() -> None:
    assert torch.isfinite(keep_mask((1000,), 1 - 1e-9, torch.float32)).all()


def test_other_devices_use_their_own() -> None:
    values = torch.ones(4, device="meta")
    assert dropout(values, 0.5, training=True).shape == (4,)
