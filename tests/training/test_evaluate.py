"""Evaluation: every example once, in its own order, and the model as it was before."""

from types import SimpleNamespace

import pytest
import torch

from bertsmith.errors import TrainingError
from bertsmith.training.device import has_fast_bf16
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.task import Batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("token_budget", [1, 20, 10_000])
def test_answers_come_in_the_order_of_the_collection(toy: SimpleNamespace, token_budget: int) -> None:
    model, task = toy.Model(), toy.Task(dev_size=37)
    evaluation = evaluate_task(model, task, "dev", device=CPU, token_budget=token_budget)
    assert [index for index, _ in evaluation.answers] == list(range(37))
    assert [example.index for example in evaluation.examples] == list(range(37))
    # One by one, without any batching of ours.
    model.eval()
    for example, (_, value) in zip(evaluation.examples, evaluation.answers, strict=True):
        assert value == pytest.approx(float(model(task.collate([example]))[0].detach()), abs=1e-5)
    expected = sum(abs(value - e.marked) for e, (_, value) in zip(evaluation.examples, evaluation.answers, strict=True))
    assert evaluation.metrics == {"error": pytest.approx(expected / 37), "examples": 37.0}
    assert evaluation.objective == evaluation.metrics["error"]


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_is_put_back(toy: SimpleNamespace, mode: bool) -> None:
    model, task = toy.Model(), toy.Task()
    model.train(mode)
    evaluate_task(model, task, "dev", device=CPU)
    assert model.training is mode

    def fail(answers: object, examples: object) -> dict[str, float]:
        raise ValueError("no score")

    task.decode = fail
    with pytest.raises(ValueError, match="no score"):
        evaluate_task(model, task, "dev", device=CPU)
    assert model.training is mode


@pytest.mark.parametrize("room", [1, 3, 8])
def test_batches_that_do_not_fit_the_memory_are_cut(toy: SimpleNamespace, room: int) -> None:
    model, task = toy.Model(), toy.Task(dev_size=37)
    whole = evaluate_task(model, task, "dev", device=CPU)
    predict, sizes = task.predict, []

    def short_of_memory(model: object, batch: Batch) -> object:
        sizes.append(len(batch.examples))
        if sizes[-1] > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return predict(model, batch)

    task.predict = short_of_memory
    cut = evaluate_task(model, task, "dev", device=CPU)
    assert [index for index, _ in cut.answers] == list(range(37))
    assert [value for _, value in cut.answers] == pytest.approx([value for _, value in whole.answers], abs=1e-5)
    assert cut.metrics == pytest.approx(whole.metrics)
    assert max(sizes) == 37 and sum(size for size in sizes if size <= room) == 37


def test_a_single_example_that_does_not_fit_is_an_error(toy: SimpleNamespace) -> None:
    task = toy.Task(dev_size=4)

    def fail(model: object, batch: Batch) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    task.predict = fail
    with pytest.raises(TrainingError, match=r"memory ran out in a single example, of \d tokens"):
        evaluate_task(toy.Model(), task, "dev", device=CPU)


def test_an_empty_split_has_nothing_to_say(toy: SimpleNamespace) -> None:
    evaluation = evaluate_task(toy.Model(), toy.Task(dev_size=0), "dev", device=CPU)
    assert (evaluation.metrics, evaluation.answers, evaluation.objective) == ({}, [], None)


@pytest.mark.skipif(not has_fast_bf16(CPU), reason="this CPU has no bf16 instructions")
def test_bf16_is_near_and_training_goes_on_after_it(toy: SimpleNamespace) -> None:
    model, task = toy.Model(), toy.Task()
    exact = evaluate_task(model, task, "dev", device=CPU)
    rounded = evaluate_task(model, task, "dev", device=CPU, precision="bf16")
    assert rounded.answers != exact.answers
    assert [v for _, v in rounded.answers] == pytest.approx([v for _, v in exact.answers], abs=0.05)
    batch = task.collate(exact.examples)
    task.loss(model, batch)["count"].backward()
    assert model.hidden.weight.grad is not None
