"""The moving average beside torch's own, and the model while the average is in its place."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bertsmith.training.average import WeightAverage


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.conformance
@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_that_of_torch_with_the_decay_of_tensorflow(toy: SimpleNamespace, decay: float) -> None:
    model = toy.Model()
    own = WeightAverage(dict(model.named_parameters()), decay)

    def mean(average: Tensor, weight: Tensor, num_averaged: Tensor | int) -> Tensor:
        # The first of `num_averaged` is the copy of the initial weights.
        number = int(num_averaged) - 1
        kept = min(decay, (1 + number) / (10 + number))
        return kept * average + (1 - kept) * weight

    theirs = AveragedModel(model, avg_fn=mean)
    theirs.update_parameters(model)
    for step in range(30):
        move(model)
        own.update(step)
        theirs.update_parameters(model)
    expected = values(theirs.module)
    assert own.tensors.keys() == expected.keys()
    for name, tensor in own.tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_the_model_has_the_average_only_meanwhile(toy: SimpleNamespace) -> None:
    model = toy.Model()
    average = WeightAverage(dict(model.named_parameters()), 0.9)
    move(model)
    average.update(0)
    weights, means = values(model), {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(ValueError, match="stop"), average.in_place():
        assert all(torch.equal(tensor, means[name]) for name, tensor in values(model).items())
        raise ValueError("stop")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in values(model).items())
    assert all(torch.equal(tensor, means[name]) for name, tensor in average.tensors.items())
    average.keep()
    assert all(torch.equal(tensor, means[name]) for name, tensor in values(model).items())
    # The average is not the weights themselves: going on would spoil it.
    move(model)
    assert all(torch.equal(tensor, means[name]) for name, tensor in average.tensors.items())


def test_without_a_decay_there_is_nothing(toy: SimpleNamespace) -> None:
    model = toy.Model()
    before = values(model)
    average = WeightAverage(dict(model.named_parameters()), None)
    average.update(0)
    with average.in_place():
        pass
    average.keep()
    assert average.tensors == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
