import pytest
import torch
from torch.nn import functional as F

from bertsmith.tasks.cross_entropy import summed_cross_entropy, weighted_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_sum_and_gradient_are_those_of_torch(dtype: torch.dtype, size: float) -> None:
    """Also where the label's probability is too small for a float."""
    torch.manual_seed(0)
    logits = (size * torch.randn(9, 50)).to(dtype)
    labels = torch.randint(50, (9,))
    found = []
    for function in (summed_cross_entropy, lambda *given: F.cross_entropy(given[0].float(), given[1], reduction="sum")):
        own = logits.clone().requires_grad_()
        total = function(own, labels)
        (3.0 * total).backward()
        found.append((total.detach().float(), own.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-4)
    assert found[0][1].dtype == dtype
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=1e-5)


def test_a_second_backward_pass_is_no_wrong_gradient() -> None:
    total = summed_cross_entropy(torch.randn(4, 7, requires_grad=True), torch.tensor([0, 6, 3, 3]))
    total.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        total.backward()


def test_without_a_gradient_and_without_tokens() -> None:
    logits, labels = torch.randn(5, 8), torch.arange(5)
    with torch.inference_mode():
        expected = F.cross_entropy(logits, labels, reduction="sum")
        torch.testing.assert_close(summed_cross_entropy(logits, labels), expected)
    none = torch.zeros(0, 8, requires_grad=True)
    total = summed_cross_entropy(none, torch.zeros(0, dtype=torch.int64))
    total.backward()
    assert total == 0 and none.grad.shape == (0, 8)


def test_smoothing_does_not_make_a_rare_label_the_best_answer() -> None:
    """The best logits for texts without any difference say the share of each label, whatever the weights."""
    targets, weights = torch.tensor([0] * 97 + [1] * 3), torch.tensor([100 / (2 * 97), 100 / (2 * 3)])
    features = F.one_hot(targets).float()
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weighted_cross_entropy(layer(features), targets, weights, 0.1)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert layer(features).argmax(-1).equal(targets)
    # Each label is as sure as smoothing wants it to be: 0.9 and half of 0.1.
    torch.testing.assert_close(layer(features).softmax(-1).max(-1).values, torch.full((100,), 0.95), rtol=0, atol=0.01)


def test_weights_alone_and_smoothing_alone_are_those_of_torch() -> None:
    logits, targets, weights = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 2, 0]), torch.tensor([0.5, 2.0, 7.0])
    expected = F.cross_entropy(logits, targets, weight=weights, reduction="sum")
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights, 0.0), expected)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.3, reduction="sum")
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, torch.ones(3), 0.3), expected)
