"""Steps that go wrong: numbers that are not finite, spikes, no memory, an example that cannot be made, signals."""

import io
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bertsmith.errors import Interrupted, SettingsError, TrainingError
from bertsmith.training import loop
from bertsmith.training.checkpoint import find_fault, newest_checkpoint, read_state
from bertsmith.training.device import is_out_of_memory
from bertsmith.training.loader import Loader
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.progress import read_metrics

CHILDREN = Path(__file__).with_name("children.py")


def settings(budget: str = "12 steps", **changes: Any) -> TrainSettings:
    values = {"batch_size": 8, "precision": "fp32", "device": "cpu", "log_every": 1, "num_workers": 0, **changes}
    return TrainSettings(budget=budget, optimizer=OptimizerSettings(learning_rate=0.05), **values)


def run(model: nn.Module, task: Any, folder: Path, chosen: TrainSettings, **options: Any) -> TrainResult:
    return train(model, [Stage(task)], chosen, folder, **{"console": Console(quiet=True), **options})


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == kind]


def weights(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def order(task: Any, start: int, end: int) -> list[int]:
    """Which examples stand at these places of the first epoch."""
    return Loader(task.examples("train"), task.collate, batch_size=8, seed=42).sample_ids(0, start, end)


def spoil(task: Any, steps: set[int], value: float) -> None:
    """In these steps the number to be learnt is another one."""

    def before_loss(batch: Any) -> None:
        if len(task.seen) + 1 in steps:
            batch.labels["count"][0] = value

    task.before_loss = before_loss


# Not finite, and spikes


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_the_run(toy: SimpleNamespace, tmp_path: Path, value: float) -> None:
    model, task = toy.Model(), toy.Task()
    spoil(task, {6}, value)
    with pytest.raises(TrainingError) as caught:
        run(model, task, tmp_path, settings(save_every="4 steps"))
    message = str(caught.value)
    assert message.startswith("step 6: the gradient is not finite")
    assert f"examples {', '.join(map(str, order(task, 40, 48)))})" in message
    assert f"losses: count {value}, parity 0." in message
    assert "step-00000004" in message
    assert "learning rate 0.03" in message
    assert "--max-skipped-steps, now 0," in message
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert len(lines(tmp_path, "train")) == 5
    (line,) = lines(tmp_path, "bad_step")
    assert (line["step"], line["is_skipped"], line["losses"]["count"], line["grad_norm"]) == (6, False, None, None)


def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradient_is(toy: SimpleNamespace, tmp_path: Path) -> None:
    class Shifted(toy.Task):
        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            sums = super().loss(model, batch)
            return {**sums, "count": sums["count"] + torch.inf} if len(self.seen) == 3 else sums

    with pytest.raises(TrainingError, match=r"step 3: the loss is not finite \(norm [0-9.]+; losses: count inf"):
        run(toy.Model(), Shifted(), tmp_path, settings())


def test_a_skipped_step_uses_its_data_and_changes_nothing(toy: SimpleNamespace, tmp_path: Path) -> None:
    task, plain = toy.Task(), toy.Task()
    saved: list[dict[str, bytes]] = []
    spoil(task, {4, 5}, math.nan)
    before_loss = task.before_loss

    def remember(batch: Any) -> None:
        path = newest_checkpoint(tmp_path / "a" / "checkpoints")
        saved.append({file.name: file.read_bytes() for file in path.glob("*.safetensors")} if path else {})
        before_loss(batch)

    task.before_loss = remember
    options = {"max_skipped_steps": 2, "save_every": "1 step", "ema_decay": 0.9}
    result = run(toy.Model(), task, tmp_path / "a", settings(**options))
    run(toy.Model(), plain, tmp_path / "b", settings(**options))
    assert result.step == 12
    assert task.seen == plain.seen  # the same examples in the same steps
    assert sorted(saved[3]) == ["average.safetensors", "model.safetensors", "optimizer.safetensors"]
    assert saved[3] == saved[4] == saved[5]
    assert all(saved[3][name] != saved[2][name] != saved[6][name] for name in saved[3])


def test_skipped_steps_are_shown_and_counted_and_are_in_no_mean(toy: SimpleNamespace, tmp_path: Path) -> None:
    task, out = toy.Task(), io.StringIO()
    spoil(task, {4, 5, 9}, math.nan)
    options = {"max_skipped_steps": 2, "log_every": 6}
    run(toy.Model(), task, tmp_path, settings(**options), console=Console(file=out, width=200))
    bad = lines(tmp_path, "bad_step")
    assert [line["step"] for line in bad] == [4, 5, 9]
    assert [line["skipped_in_a_row"] for line in bad] == [1, 2, 1]
    assert [line["skipped_steps"] for line in bad] == [1, 2, 3]
    first = bad[0]
    assert (first["fault"], first["is_skipped"], first["sample_ids"]) == ("not finite", True, order(task, 24, 32))
    assert first["losses"]["count"] is None and first["losses"]["parity"] > 0 and first["grad_norm"] is None
    rates = {line["step"]: line["learning_rate"] for line in lines(tmp_path, "train") + bad}
    assert rates[4] == pytest.approx(0.05 * (1 - 3 / 12) / 0.9)
    assert "count nan" in first["text"]
    assert lines(tmp_path, "train")[0]["step"] == 8
    assert lines(tmp_path, "train")[0]["losses"]["count"] == pytest.approx(
        sum(loss["count"] for step, loss in enumerate(task.losses[:8], 1) if step not in (4, 5))
        / sum(len(ids) for step, ids in enumerate(task.seen[:8], 1) if step not in (4, 5))
    )
    assert out.getvalue().count("skipped: the gradient is not finite (norm nan; losses: count nan") == 3


def test_one_step_more_than_may_be_skipped_stops_the_run(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task()
    spoil(task, {2, 3, 5, 6, 7}, math.nan)
    with pytest.raises(
        TrainingError, match=r"step 7: .*The 2 steps before it were skipped\. .*step-00000006"
    ) as caught:
        run(toy.Model(), task, tmp_path, settings(max_skipped_steps=2, save_every="1 step"))
    assert "--max-skipped-steps, now 2," in str(caught.value)
    assert [line["is_skipped"] for line in lines(tmp_path, "bad_step")] == [True, True, True, True, False]
    # A run that was too strict can go on from there with more patience.
    task = toy.Task()
    assert run(toy.Model(), task, tmp_path, settings(max_skipped_steps=3), resume=True).step == 12
    assert lines(tmp_path, "bad_step")[-1]["skipped_steps"] == 4


def spiked(toy: SimpleNamespace, folder: Path, steps: set[int], **changes: Any) -> Any:
    task = toy.Task(size=400)
    spoil(task, steps, 200.0)
    result = run(
        toy.Model(), task, folder, settings("90 steps", **{"skip_spikes": 6.0, "max_skipped_steps": 9, **changes})
    )
    assert result.step == 90
    return result


def test_a_spike_is_what_the_rule_of_olmo_calls_one(toy: SimpleNamespace, tmp_path: Path) -> None:
    result = spiked(toy, tmp_path, {30, 75})
    (bad,) = lines(tmp_path, "bad_step")  # not step 30: until there are 64 norms, nothing is a spike
    assert (bad["step"], bad["fault"], bad["is_skipped"]) == (75, "spike", True)
    assert "the gradient is a spike" in bad["text"] and math.isfinite(bad["losses"]["count"])
    norms = [line["grad_norm"] for line in lines(tmp_path, "train")]
    assert len(norms) == 89
    deviation, mean = torch.std_mean(torch.tensor(norms[:74], dtype=torch.float64))
    assert bad["spike_norm"] == pytest.approx(float(mean + 6 * deviation), rel=1e-9)
    assert bad["grad_norm"] > bad["spike_norm"]
    window = read_state(result.checkpoint)["state"]["grad_norms"]
    assert window == [*norms[:74], bad["grad_norm"], *norms[74:]]


def test_a_spike_that_is_skipped_changes_nothing(toy: SimpleNamespace, tmp_path: Path) -> None:
    task, model = toy.Task(size=400), toy.Model()
    spoil(task, {75}, 200.0)
    before_loss, before_step = task.before_loss, []

    def remember(batch: Any) -> None:
        before_step.append(weights(model))
        before_loss(batch)

    task.before_loss = remember
    run(model, task, tmp_path, settings("90 steps", skip_spikes=6.0, max_skipped_steps=9))
    assert [line["step"] for line in lines(tmp_path, "bad_step")] == [75]
    unchanged = [step for step in range(60, 90) if before_step[step] == before_step[step - 1]]
    assert unchanged == [75]


def test_the_window_is_of_the_last_128_norms(toy: SimpleNamespace, tmp_path: Path) -> None:
    result = run(toy.Model(), toy.Task(), tmp_path, settings("140 steps", skip_spikes=50.0, max_skipped_steps=1))
    norms = [line["grad_norm"] for line in lines(tmp_path, "train")]
    assert read_state(result.checkpoint)["state"]["grad_norms"] == norms[-128:]


def test_gradients_that_stay_larger_are_accepted(toy: SimpleNamespace, tmp_path: Path) -> None:
    spiked(toy, tmp_path, set(range(75, 91)))
    steps = [line["step"] for line in lines(tmp_path, "bad_step")]
    assert steps == list(range(75, 75 + len(steps)))
    assert 1 <= len(steps) < 9


def test_spikes_and_what_is_not_finite_are_counted_together(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task(size=400)

    def before_loss(batch: Any) -> None:
        number = len(task.seen) + 1
        if number in (75, 76, 77):
            batch.labels["count"][0] = math.nan if number == 76 else 200.0

    task.before_loss = before_loss
    with pytest.raises(TrainingError, match=r"step 77: the gradient is a spike.*The 2 steps before it were skipped"):
        run(toy.Model(), task, tmp_path, settings("90 steps", skip_spikes=4.0, max_skipped_steps=2))
    assert [line["fault"] for line in lines(tmp_path, "bad_step")] == ["spike", "not finite", "spike"]


def test_without_the_option_a_spike_is_learnt_from(toy: SimpleNamespace, tmp_path: Path) -> None:
    result = spiked(toy, tmp_path, {75}, skip_spikes=None)
    assert lines(tmp_path, "bad_step") == []
    assert read_state(result.checkpoint)["state"]["grad_norms"] == []


def test_another_stage_has_other_norms(toy: SimpleNamespace, tmp_path: Path) -> None:
    stages = [Stage(toy.Task(), progress_end=0.9), Stage(toy.Task())]
    chosen = settings("80 steps", skip_spikes=6.0, max_skipped_steps=1)
    result = train(toy.Model(), stages, chosen, tmp_path, console=Console(quiet=True))
    assert len(read_state(result.checkpoint)["state"]["grad_norms"]) == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_skipped_steps": -1}, "max_skipped_steps is -1"),
        ({"skip_spikes": 0.0, "max_skipped_steps": 1}, "skip_spikes is 0.0"),
        ({"skip_spikes": math.nan, "max_skipped_steps": 1}, "skip_spikes is nan"),
        ({"skip_spikes": 6.0}, "max_skipped_steps is 0, which allows none"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainSettings(**wrong)


# No memory


def cuda_error() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def python_error() -> None:
    raise MemoryError


def cublas_error() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def cpu_error() -> None:
    torch.empty(1 << 55)


ERRORS = [cuda_error, python_error, cublas_error, cpu_error]


def crowd(task: Any, most: int, fail: Callable[[], None] = cuda_error) -> list[int]:
    """Let memory run out above so many examples; the sizes that were tried."""
    sizes: list[int] = []

    def before_loss(batch: Any) -> None:
        sizes.append(len(batch.examples))
        if sizes[-1] > most:
            fail()

    task.before_loss = before_loss
    return sizes


@pytest.mark.parametrize("fail", ERRORS)
def test_no_memory_is_an_error_that_says_what_to_change(
    toy: SimpleNamespace, tmp_path: Path, fail: Callable[[], None]
) -> None:
    task = toy.Task()
    first = task.collate([toy.Examples(50).example(i, 0) for i in order(task, 0, 8)]).inputs.lengths
    crowd(task, 7, fail)
    with pytest.raises(TrainingError) as caught:
        run(toy.Model(), task, tmp_path, settings())
    assert (
        f"step 1: memory ran out in a micro-batch of 8 sequences ({sum(first)} tokens, the longest {max(first)})"
        in str(caught.value)
    )
    for word in (
        "micro_batch_size below 8",
        "--auto-batch",
        "max_length",
        "--gradient-checkpointing",
        "bf16",
        "not yet written",
    ):
        assert word in str(caught.value)


def test_other_errors_are_not_taken_for_it(toy: SimpleNamespace, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    task = toy.Task()
    crowd(task, 0, fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(toy.Model(), task, tmp_path, settings(auto_batch=True))
    assert not is_out_of_memory(OSError("can't allocate memory"))


@pytest.mark.parametrize("fail", ERRORS)
def test_smaller_micro_batches_give_the_same_weights(
    toy: SimpleNamespace, tmp_path: Path, fail: Callable[[], None]
) -> None:
    torch.manual_seed(0)
    whole = toy.Model(dropout=0.0)
    run(whole, toy.Task(), tmp_path / "whole", settings())
    torch.manual_seed(0)
    cut, task, out = toy.Model(dropout=0.0), toy.Task(), io.StringIO()
    sizes = crowd(task, 3, fail)
    result = run(cut, task, tmp_path / "cut", settings(auto_batch=True), console=Console(file=out, width=200))
    assert sizes[:6] == [8, 4, 2, 2, 2, 2] and max(sizes[6:]) == 2
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(cut.state_dict()[name], tensor, atol=1e-6), name
    for own, other in zip(lines(tmp_path / "cut", "train"), lines(tmp_path / "whole", "train"), strict=True):
        for figure in ("loss", "grad_norm"):
            assert own[figure] == pytest.approx(other[figure], rel=1e-5)
        assert (own["tokens"], own["learning_rate"]) == (other["tokens"], other["learning_rate"])
    noted = lines(tmp_path / "cut", "out_of_memory")
    assert [(line["step"], line["failed"]["sequences"], line["micro_batch_size"]) for line in noted] == [
        (1, 8, 4),
        (1, 4, 2),
    ]
    assert "memory ran out in a micro-batch of 8 sequences" in out.getvalue()
    assert read_state(result.checkpoint)["state"]["micro_batch_limit"] == 2


def test_what_was_added_before_memory_ran_out_is_not_counted_twice(toy: SimpleNamespace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = toy.Model(dropout=0.0)
    run(whole, toy.Task(), tmp_path / "whole", settings("1 step"))
    torch.manual_seed(0)
    cut, task = toy.Model(dropout=0.0), toy.Task()

    def fail_in_the_second(batch: Any) -> None:
        if len(task.seen) == 1 and len(batch.examples) == 4:
            cuda_error()

    task.before_loss = fail_in_the_second
    run(cut, task, tmp_path / "cut", settings("1 step", micro_batch_size=4, auto_batch=True))
    assert [len(ids) for ids in task.seen] == [4, 2, 2, 2, 2]
    # Adam would take nearly the same first step with another gradient.
    norms = [lines(tmp_path / name, "train")[0]["grad_norm"] for name in ("whole", "cut")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(cut.state_dict()[name], tensor, atol=1e-6), name


def test_the_memory_of_what_failed_is_free_before_the_next_try(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task()
    held: list[weakref.ref[Tensor]] = []

    def hold(batch: Any) -> None:
        assert all(reference() is None for reference in held)
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        if len(batch.examples) > 1:
            cuda_error()

    task.before_loss = hold
    run(toy.Model(), task, tmp_path, settings("1 step", auto_batch=True))
    assert len(held) == 3 + 8


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is used is asked of Linux")
def test_a_run_goes_on_where_the_system_itself_refuses_memory(toy: SimpleNamespace, tmp_path: Path) -> None:
    """An example takes twice 300 MB of the 3.6 GB there are: eight fail half-way, four fit beside nothing else.

    Either takes more than a GiB at once, which is asked of the system and not found in what is kept of freed memory.
    """
    task, sizes = toy.Task(), []

    def allocate(batch: Any) -> None:
        sizes.append(len(batch.examples))
        first = torch.empty(75_000_000 * len(batch.examples))  # never touched, so that it is only an address
        second = torch.empty(75_000_000 * len(batch.examples))
        assert len(first) == len(second)

    task.before_loss = allocate
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 3_600_000_000, hard))
        run(toy.Model(), task, tmp_path, settings("2 steps", auto_batch=True))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert sizes == [8, 4, 4, 4, 4]


def test_one_example_that_does_not_fit_ends_the_run(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task()
    sizes = crowd(task, 0)
    with pytest.raises(TrainingError, match=r"a micro-batch of 1 sequences .*Use a smaller max_length"):
        run(toy.Model(), task, tmp_path, settings(auto_batch=True))
    assert sizes == [8, 4, 2, 1]


def test_a_batch_whose_examples_are_compared_is_not_cut_to_one(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task()
    sizes = crowd(task, 0)
    with pytest.raises(TrainingError, match=r"a micro-batch of 2 sequences .*Use a smaller max_length"):
        run(toy.Model(), task, tmp_path, settings(auto_batch=True, smallest_micro_batch=2))
    assert sizes == [8, 4, 2]


def test_no_memory_for_the_update_itself_is_not_tried_again(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = toy.Task()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *arguments: cuda_error())
    with pytest.raises(TrainingError, match="memory ran out while the weights were updated"):
        run(toy.Model(), task, tmp_path, settings(auto_batch=True))
    assert len(task.seen) == 1


def test_each_stage_finds_out_for_itself(toy: SimpleNamespace, tmp_path: Path) -> None:
    tasks = [toy.Task(), toy.Task()]
    first, second = crowd(tasks[0], 2), crowd(tasks[1], 8)
    stages = [Stage(tasks[0], progress_end=0.5), Stage(tasks[1])]
    train(toy.Model(), stages, settings("8 steps", auto_batch=True), tmp_path, console=Console(quiet=True))
    assert first[:3] == [8, 4, 2] and max(first[3:]) == 2
    assert max(second) == 8


# An example that cannot be made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_in_one_example_names_it_and_its_thread_and_loses_nothing(
    toy: SimpleNamespace, tmp_path: Path, num_workers: int
) -> None:
    torch.manual_seed(0)
    straight, task = toy.Model(), toy.Task()
    run(straight, task, tmp_path / "a", settings())
    bad = order(task, 36, 37)[0]

    def fail(index: int, epoch: int) -> None:
        if index == bad:
            raise ValueError("a broken row")

    broken = toy.Task()
    broken.examples = lambda split: toy.Examples(50, before=fail) if split == "train" else task.examples(split)
    chosen = settings(num_workers=num_workers, save_every="2 steps")
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="a broken row") as caught:
        run(toy.Model(), broken, tmp_path / "b", chosen)
    notes = "\n".join(caught.value.__notes__)
    assert f"in example {bad}\n" in notes
    assert ("in thread bertsmith-loader_" if num_workers else "in thread MainThread") in notes
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bertsmith-loader")]
    assert [line["step"] for line in lines(tmp_path / "b", "train")] == [1, 2, 3, 4]
    model = toy.Model()
    run(model, toy.Task(), tmp_path / "b", chosen, resume=True)
    assert weights(model) == weights(straight)


# Signals


STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP is heard, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_the_step_and_saves(toy: SimpleNamespace, tmp_path: Path, number: signal.Signals) -> None:
    task = toy.Task()
    handlers = list(map(signal.getsignal, STOPS))

    def press(batch: Any) -> None:
        if len(task.seen) == 4:
            os.kill(os.getpid(), number)

    task.before_loss = press
    with pytest.raises(Interrupted, match=r"after step 3; .*step-00000003.*--resume"):
        run(toy.Model(), task, tmp_path, settings(micro_batch_size=4, num_workers=1))
    assert len(task.seen) == 6
    assert find_fault(tmp_path / "checkpoints" / "step-00000003") is None
    assert [line["step"] for line in lines(tmp_path, "train")] == [1, 2, 3]
    assert list(map(signal.getsignal, STOPS)) == handlers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bertsmith-loader")]


@pytest.mark.parametrize("place", ["the last evaluation", "the last checkpoint"])
def test_a_signal_after_the_last_step_is_heard(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Other runs may follow, which it is for, too; resumed, this one has nothing left to do."""
    task, name = toy.Task(), {"the last evaluation": "evaluate_task", "the last checkpoint": "save_checkpoint"}[place]
    usual = getattr(loop, name)

    def press(*arguments: Any, **options: Any) -> Any:
        if len(task.seen) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"after step 12; .*step-00000012.*--resume"):
        patch.setattr(loop, name, press)
        run(toy.Model(), task, tmp_path, settings(evaluate_every="5 steps"))
    result = run(toy.Model(), task, tmp_path, settings(evaluate_every="5 steps"), resume=True)
    assert result.step == len(task.seen) == 12


def test_a_second_signal_does_what_it_always_did(toy: SimpleNamespace, tmp_path: Path) -> None:
    task = toy.Task()

    def press_twice(batch: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            time.sleep(0.001)  # two that arrive together count as one
        os.kill(os.getpid(), signal.SIGINT)

    task.before_loss = press_twice
    with pytest.raises(KeyboardInterrupt):
        run(toy.Model(), task, tmp_path, settings())
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_signals_are_left_alone(toy: SimpleNamespace, tmp_path: Path) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(run(toy.Model(), toy.Task(), tmp_path, settings())))
    thread.start()
    thread.join()
    assert results[0].step == 12


def test_what_nohup_ignores_is_ignored(toy: SimpleNamespace, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        task = toy.Task()
        task.before_loss = lambda batch: signal.raise_signal(signal.SIGHUP)
        assert run(toy.Model(), task, tmp_path, settings()).step == 12
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", STOPS)
def test_a_second_ctrl_c_ends_the_process_at_once_and_leaves_the_last_checkpoint(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A second SIGTERM does not: it is sent to a whole group, of which the parent sends it to its workers as well."""
    command = [sys.executable, str(CHILDREN), "sleep", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            for said in ("ready", "asked"):
                assert process.stdout.readline() == f"{said}\n"
                process.send_signal(number)
            if number != signal.SIGINT:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                process.send_signal(signal.SIGINT)
            process.wait(timeout=60)  # the step itself would last ten minutes
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    checkpoints = tmp_path / "start" / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    assert newest is not None and newest.name == "step-00000003"
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]
