"""What is measured of a run's first steps, on the toy task: nothing is learnt, nothing is left, memory is kept to."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.training import calibrate as calibrate_module
from bertsmith.training import memory
from bertsmith.training.calibrate import Calibration, Pace, calibrate
from bertsmith.training.loader import Loader
from bertsmith.training.loop import Stage
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.plan import TrainSettings
from bertsmith.training.step import OutOfMemory

PLENTY = 1 << 40


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(1e-4, 100, allow_nan=False)), min_size=1, max_size=30))
def test_a_pace_gives_the_mean_step_its_mean_time(points: list[tuple[int, float]]) -> None:
    tokens, seconds = zip(*points, strict=True)
    pace = Pace.fit(tokens, seconds)
    assert pace.seconds_per_step >= 0 and pace.seconds_per_token >= 0
    assert pace.seconds(len(points), sum(tokens)) == pytest.approx(sum(seconds))


def test_a_pace_is_the_line_of_least_squares() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(100, 900, 50)
    seconds = 0.2 + 0.001 * tokens + random.normal(0, 0.01, 50)
    slope, start = np.polyfit(tokens, seconds, 1)
    pace = Pace.fit(tokens.tolist(), seconds.tolist())
    assert (pace.seconds_per_token, pace.seconds_per_step) == pytest.approx((slope, start))


def run(toy: SimpleNamespace, folder: Path, limit: int = PLENTY, **changes: Any) -> Calibration:
    values = {"batch_size": 8, "precision": "fp32", "device": "cpu", "num_workers": 0, **changes}
    settings = TrainSettings(optimizer=OptimizerSettings(learning_rate=0.05), **values)
    return calibrate(toy.Model(), [Stage(toy.Task())], settings, memory_limit_bytes=limit, seconds=0.05, folder=folder)


def test_nothing_is_learnt_and_nothing_is_left(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, task = toy.Model(), toy.Task()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    settings = TrainSettings(batch_size=8, precision="fp32", device="cpu")
    calibration = calibrate(model, [Stage(task)], settings, memory_limit_bytes=PLENTY, seconds=0.05, folder=tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())
    assert list(tmp_path.iterdir()) == []
    (stage,) = calibration.stages
    examples = task.examples("train")
    assert calibration.fits and stage.num_measured >= 3
    assert stage.steps_per_epoch == -(-examples.num_examples(0) // 8)
    # Weights, and two moments of the same size with a step for each.
    num_bytes = 4 * calibration.num_parameters
    assert calibration.best_bytes >= num_bytes and calibration.save_bytes >= 3 * num_bytes
    assert min(stage.pace.seconds(1, 1), stage.seconds_per_evaluated_token, calibration.report_seconds) > 0


def test_figures_of_steps_are_those_of_the_runs_first_steps(toy: SimpleNamespace, tmp_path: Path) -> None:
    (stage,) = run(toy, tmp_path, batch_size=1000).stages  # every step is the whole epoch
    lengths = [toy.Task().examples("train").num_tokens(place) for place in range(stage_size(toy))]
    assert stage.steps_per_epoch == 1
    assert stage.mean_tokens == sum(lengths)
    assert stage.mean_token_pairs == sum(length**2 for length in lengths)
    assert stage.mean_sequences == len(lengths)


@pytest.mark.parametrize("is_lean", [False, True])
def test_layers_are_computed_again_while_it_is_measured(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lean: bool
) -> None:
    """The toy task's model, with an encoder beside it; the setting is the run's."""
    model = toy.Model()
    model.encoder = Encoder(named_size("tiny", 12))
    seen: list[bool] = []
    take_step = calibrate_module.take_step

    def noting(model: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(model.encoder.recomputes_layers)
        return take_step(model, *arguments, **options)

    monkeypatch.setattr(calibrate_module, "take_step", noting)
    settings = TrainSettings(batch_size=8, precision="fp32", device="cpu", gradient_checkpointing=is_lean)
    calibrate(model, [Stage(toy.Task())], settings, memory_limit_bytes=PLENTY, seconds=0.05, folder=tmp_path)
    assert seen and set(seen) == {is_lean}


def stage_size(toy: SimpleNamespace) -> int:
    size: int = toy.Task().examples("train").num_examples(0)
    return size


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], int]], list[int]]:
    """`machine(bytes_of)`: a machine on which a step takes so many bytes; the peak so far, which can be set back."""

    def make(bytes_of: Callable[[Any], int]) -> list[int]:
        peak = [0]
        take_step = calibrate_module.take_step

        def counting(model: Any, task: Any, step: Any, *arguments: Any, **options: Any) -> Any:
            peak[0] = max(peak[0], bytes_of(step))
            return take_step(model, task, step, *arguments, **options)

        monkeypatch.setattr(calibrate_module, "take_step", counting)
        monkeypatch.setattr(memory, "peak_memory_bytes", lambda: peak[0])
        monkeypatch.setattr(memory, "forget_peak_memory", lambda: peak.__setitem__(0, 0))
        return peak

    return make


def test_micro_batches_are_cut_until_they_fit(toy: SimpleNamespace, tmp_path: Path, machine: Any) -> None:
    """A step takes 100 bytes and 10 for each of its examples at once; a quarter comes on top."""
    peak = machine(lambda step: 100 + 10 * step.micro_batch_size)
    for limit, fitting in ((325, 16), (324, 8), (225, 8), (174, 2), (137, 1)):
        peak[0] = 0
        calibration = run(toy, tmp_path, limit, batch_size=16)
        assert calibration.stages[0].micro_batch_size == fitting
        assert calibration.peak_bytes == int(1.25 * (100 + 10 * fitting)) <= limit
    peak[0] = 0
    calibration = run(toy, tmp_path, 136, batch_size=16)
    assert (calibration.fits, calibration.peak_bytes, calibration.stages) == (False, 137, ())


def test_whole_steps_that_want_more_are_cut_further(toy: SimpleNamespace, tmp_path: Path, machine: Any) -> None:
    """Each further micro-batch of a step takes 5 bytes more, which the first, measured alone, does not tell."""
    peak = machine(lambda step: 100 + 10 * step.micro_batch_size + 5 * (len(step.micro_batches) - 1))
    calibration = run(toy, tmp_path, 225, batch_size=16)  # 8 alone take 1.25 x 180, two of them 1.25 x 185
    assert (calibration.fits, calibration.stages[0].micro_batch_size) == (True, 4)
    assert calibration.peak_bytes == int(1.25 * 155) <= 225
    peak[0] = 0
    calibration = run(toy, tmp_path, 225, batch_size=16, smallest_micro_batch=8)
    assert (calibration.fits, calibration.peak_bytes) == (False, int(1.25 * 185))


def test_the_largest_micro_batch_of_the_run_is_what_must_fit(
    toy: SimpleNamespace, tmp_path: Path, machine: Any
) -> None:
    """A step takes 10 bytes for each token at once: of all epochs, and wherever in a batch the longest texts stand."""
    machine(lambda step: 10 * max(sum(batch.inputs.lengths) for batch in step.micro_batches))
    task = toy.Task()
    examples, size = task.examples("train"), stage_size(toy)
    for number, limit in enumerate((10**6, 600, 420, 240)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (stage,) = run(toy, folder, limit, batch_size=16, budget="5 epochs", seed=0).stages
        loader = Loader(examples, task.collate, batch_size=16, micro_batch_size=stage.micro_batch_size, seed=0)
        largest = max(
            sum(map(examples.num_tokens, loader.sample_ids(epoch, start, min(start + stage.micro_batch_size, size))))
            for epoch in range(5)
            for start in range(0, size, stage.micro_batch_size)
        )
        assert stage.peak_bytes == int(1.25 * 10 * largest) <= limit
        machine(lambda step: 10 * max(sum(batch.inputs.lengths) for batch in step.micro_batches))


def test_memory_that_runs_out_is_no_error(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = calibrate_module.take_step

    def small(model: Any, task: Any, step: Any, *arguments: Any, **options: Any) -> Any:
        if step.micro_batch_size > 4:
            raise OutOfMemory(None)
        return take_step(model, task, step, *arguments, **options)

    monkeypatch.setattr(calibrate_module, "take_step", small)
    assert run(toy, tmp_path, batch_size=16).stages[0].micro_batch_size == 4


def test_the_peak_of_memory_is_seen_and_forgotten() -> None:
    before = memory.peak_memory_bytes()
    block = torch.ones(64 * 2**20)  # 256 MiB
    high = memory.peak_memory_bytes()
    assert high - before > 100 * 2**20
    del block
    memory.forget_peak_memory()
    if Path("/proc/self/clear_refs").exists():
        assert memory.peak_memory_bytes() < high - 100 * 2**20
    assert 0 < memory.free_memory_bytes(torch.device("cpu"))
