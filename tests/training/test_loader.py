"""The order of examples: a permutation an epoch, the same for any number of threads, resumable anywhere."""

import itertools
import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.errors import InputError, SettingsError
from bertsmith.training.loader import Loader, Step, evaluation_batches


def make(toy: SimpleNamespace, size: int, examples: Any = None, **options: Any) -> Loader:
    task = toy.Task(size=size)
    values = {"batch_size": 4, "seed": 7, "num_workers": 0, **options}
    return Loader(examples or toy.Examples(size), task.collate, **values)


def take(loader: Loader, count: int, epoch: int = 0, position: int = 0) -> list[Step]:
    with closing(loader.steps(epoch, position)) as steps:
        return list(itertools.islice(steps, count))


def content(step: Step) -> list[Any]:
    """Everything in a step, comparable with ==."""
    batches = [
        (
            batch.inputs.token_ids.tolist(),
            batch.inputs.lengths,
            {name: labels.tolist() for name, labels in batch.labels.items()},
            batch.counts,
            [example.index for example in batch.examples],
        )
        for batch in step.micro_batches
    ]
    return [step.epoch, step.position, step.epochs, step.sample_ids, batches]


@given(size=st.integers(1, 40), batch_size=st.integers(1, 12), micro=st.none() | st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_every_epoch_shows_each_example_once(
    toy: SimpleNamespace, size: int, batch_size: int, micro: int | None
) -> None:
    steps_in_epoch = -(-size // batch_size)
    steps = take(make(toy, size, batch_size=batch_size, micro_batch_size=micro), 3 * steps_in_epoch)
    for epoch in range(3):
        own = steps[epoch * steps_in_epoch : (epoch + 1) * steps_in_epoch]
        assert {step.epoch for step in own} == {epoch}
        assert sorted(index for step in own for index in step.sample_ids) == list(range(size))
        assert [step.position for step in own] == [min((i + 1) * batch_size, size) for i in range(steps_in_epoch)]
        assert own[-1].epochs == epoch + 1
    for step in steps:
        shown = [example.index for batch in step.micro_batches for example in batch.examples]
        assert shown == step.sample_ids
        assert all(len(batch.examples) <= (micro or batch_size) for batch in step.micro_batches)


@given(size=st.integers(1, 60), batch_size=st.integers(1, 12), data=st.data())
@settings(deadline=None, max_examples=60)
def test_an_epoch_ends_with_its_last_example_wherever_its_steps_begin(
    toy: SimpleNamespace, size: int, batch_size: int, data: st.DataObject
) -> None:
    """Batches that grow leave a position that is no multiple of the new size; a budget of epochs must not end there."""
    position = data.draw(st.integers(0, size - 1))
    steps = take(make(toy, size, batch_size=batch_size), -(-(size - position) // batch_size) + 1, position=position)
    *own, last, following = steps
    assert (last.epoch, last.position, last.epochs) == (0, size, 1.0) and following.epochs > 1
    assert all(step.epochs < 1 for step in own)
    assert sorted(step.epochs for step in steps) == [step.epochs for step in steps]


def test_epochs_streams_and_seeds_have_orders_of_their_own(toy: SimpleNamespace) -> None:
    def order(epoch: int = 0, **options: Any) -> tuple[int, ...]:
        return tuple(make(toy, 100, **options).sample_ids(epoch, 0, 100))

    orders = [order(), order(1), order(seed=8), order(stream=1)]
    assert len(set(orders)) == 4
    assert order() == orders[0]
    assert order(shuffle=False) == tuple(range(100))


@pytest.mark.parametrize("num_workers", [1, 4])
def test_any_number_of_threads_makes_the_same_batches(toy: SimpleNamespace, num_workers: int) -> None:
    alone = take(make(toy, 23, micro_batch_size=3), 20)
    together = take(make(toy, 23, micro_batch_size=3, num_workers=num_workers), 20)
    assert [content(step) for step in together] == [content(step) for step in alone]


def test_the_rest_follows_from_epoch_and_position(toy: SimpleNamespace) -> None:
    loader = make(toy, 23)
    whole = take(loader, 18)
    for done in range(1, 18):
        last = whole[done - 1]
        rest = take(loader, 18 - done, last.epoch, last.position)
        assert [content(step) for step in rest] == [content(step) for step in whole[done:]]


def test_counts_and_tokens_are_of_the_whole_step(toy: SimpleNamespace) -> None:
    step = take(make(toy, 23, batch_size=10, micro_batch_size=3), 1)[0]
    examples = [example for batch in step.micro_batches for example in batch.examples]
    assert step.counts == {"count": 10.0, "parity": sum(example.parity is not None for example in examples)}
    assert step.num_tokens == sum(len(example.token_ids) for example in examples)
    assert len({batch.counts["parity"] for batch in step.micro_batches}) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_in_an_example_names_it_and_leaves_no_thread(toy: SimpleNamespace, num_workers: int) -> None:
    order = make(toy, 30).sample_ids(0, 0, 30)

    def fail(index: int, epoch: int) -> None:
        if index == order[9]:
            raise ValueError("no such word")

    loader = make(toy, 30, toy.Examples(30, before=fail), num_workers=num_workers)
    shown = []
    with closing(loader.steps()) as steps, pytest.raises(ValueError, match="no such word") as caught:
        for step in steps:
            shown.append(step.position)
    assert shown == [4, 8]
    thread = "bertsmith-loader_" if num_workers else "MainThread"
    first, second = caught.value.__notes__
    assert first == f"in example {order[9]}"
    assert second.startswith(f"while making examples {order[8:12]} of epoch 0, in thread {thread}")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bertsmith-loader")]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_a_step_is_cut_again_as_a_loader_would_have_cut_it(toy: SimpleNamespace, size: int) -> None:
    collate = toy.Task().collate
    whole = take(make(toy, 23, batch_size=8, micro_batch_size=5), 4)
    for step, expected in zip(whole, take(make(toy, 23, batch_size=8, micro_batch_size=min(size, 5)), 4), strict=True):
        cut = step.cut(collate, size)
        assert [[one.index for one in batch.examples] for batch in cut.micro_batches] == [
            [one.index for one in batch.examples] for batch in expected.micro_batches
        ]
        assert (cut.counts, cut.num_tokens, cut.sample_ids) == (step.counts, step.num_tokens, step.sample_ids)
        assert (cut.epoch, cut.position, cut.epochs) == (step.epoch, step.position, step.epochs)


def test_a_fault_in_collate_names_the_micro_batch(toy: SimpleNamespace) -> None:
    def collate(examples: Any) -> Any:
        raise RuntimeError("ragged")

    loader = Loader(toy.Examples(4), collate, batch_size=2, seed=7, shuffle=False, num_workers=0)
    with pytest.raises(RuntimeError, match="ragged") as caught:
        take(loader, 1)
    assert caught.value.__notes__ == ["while batching examples [0, 1] of epoch 0, in thread MainThread"]


def test_closing_ends_the_threads(toy: SimpleNamespace) -> None:
    steps = make(toy, 30, num_workers=3).steps()
    next(steps)
    steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bertsmith-loader")]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_examples_is_an_error_and_not_an_endless_loop(toy: SimpleNamespace, num_workers: int) -> None:
    with pytest.raises(InputError, match="no training examples"):
        take(make(toy, 0, num_workers=num_workers), 1)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"micro_batch_size": 0}, {"num_workers": -1}])
def test_sizes_are_checked(toy: SimpleNamespace, wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="at least"):
        make(toy, 3, **wrong)


@given(size=st.integers(0, 60), budget=st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_evaluation_shows_each_example_once_in_batches_within_the_budget(
    toy: SimpleNamespace, size: int, budget: int
) -> None:
    examples = toy.Examples(size)
    batches = list(evaluation_batches(examples, toy.Task().collate, budget))
    places = [place for group, _ in batches for place in group]
    assert sorted(places) == list(range(size))
    lengths = [examples.num_tokens(place) for place in places]
    assert lengths == sorted(lengths, reverse=True)
    for group, batch in batches:
        assert [example.index for example in batch.examples] == group
        assert sum(batch.inputs.lengths) <= budget or len(group) == 1
    for (first, _), (second, _) in itertools.pairwise(batches):
        assert sum(examples.num_tokens(place) for place in [*first, second[0]]) > budget


def test_batches_are_on_the_cpu_and_move_as_a_whole(toy: SimpleNamespace) -> None:
    batch = take(make(toy, 5), 1)[0].micro_batches[0]
    moved = batch.to(torch.device("meta"))
    tensors = [moved.inputs.token_ids, moved.inputs.position_ids, moved.inputs.offsets, *moved.labels.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.counts, moved.inputs.lengths) == (batch.counts, batch.inputs.lengths)
