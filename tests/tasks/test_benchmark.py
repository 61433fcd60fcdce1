"""The verb `benchmark`: the peer computes what ours does, operations are those of what is timed, time is kept."""

import importlib.util
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bertsmith.cli import advice_verbs, main
from bertsmith.errors import ModelError, SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.model.operations import TextShape
from bertsmith.model.sizes import named_size
from bertsmith.tasks import benchmark as benchmark_module
from bertsmith.tasks.benchmark import BenchmarkResult, BenchmarkSettings, LeftOut, Timed, benchmark, fitting_size
from bertsmith.tasks.benchmark_peer import (
    PeerTraining,
    encoder_peer,
    padded_inputs,
    pretraining_inputs,
    pretraining_peer,
)
from bertsmith.tasks.benchmark_text import benchmark_sheets, progress_line, to_json, write_benchmark
from bertsmith.tasks.benchmark_turns import Conditions
from bertsmith.tasks.benchmark_work import FinetuningWork, InferenceWork, PretrainingWork, whole_operations
from bertsmith.tasks.plan_run import synthetic_store
from bertsmith.training import timing
from bertsmith.training.step import OutOfMemory
from bertsmith.training.timing import WARM_UP_ROUNDS

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "sizes": "tiny", "model": "size:tiny", "vocab_size": 200, "max_length": 16, "row_length": 8, "device": "cpu",
    "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    store = synthetic_store(tmp_path_factory.mktemp("benchmark"), 200)
    return Conditions(store=store, max_length=16, row_length=8, device=CPU, precision="fp32", has_peer=True, seed=0)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], float]]:
    """`ticking(0.5)` is a clock on which half a second goes by whenever it is looked at, and at no other time."""
    monkeypatch.setattr(timing, "CPU_SHAPE", (8, 4))

    def clock(step: float) -> Callable[[], float]:
        ticks = itertools.count()
        return lambda: step * next(ticks)

    return clock


@pytest.mark.conformance
def test_the_peer_has_our_loss_and_our_logits(conditions: Conditions) -> None:
    bench = PretrainingWork("tiny", conditions, 4).ready(4)
    ours, theirs = bench.turns
    try:
        ours.run()
    finally:
        bench.close()
    model, task, batches = ours.model.eval(), ours.task, ours.batches  # type: ignore[attr-defined]
    (batch,) = batches
    peer = pretraining_peer(model).eval()
    with torch.no_grad():
        logits = task.logits(model, batch)
        losses = {name: float(total) / batch.counts[name] for name, total in task.loss_from(logits, batch).items()}
        inputs = pretraining_inputs(batch)
        output = peer(**inputs)
    is_masked_SL = inputs["labels"] != -100
    torch.testing.assert_close(output.prediction_logits[is_masked_SL], logits.masked_MV, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.seq_relationship_logits, logits.pairs_S2, rtol=1e-4, atol=1e-5)
    assert float(output.loss) == pytest.approx(losses["mlm"] + losses["nsp"], rel=1e-5)
    # It takes its turn on the same samples, and counts as many tokens as ours without padding.
    theirs.prepare()
    assert theirs.run() == sum(batch.inputs.lengths)


@pytest.mark.conformance
def test_steps_of_the_peer_are_those_of_its_loss(conditions: Conditions) -> None:
    bench = PretrainingWork("tiny", conditions, 2).ready(2)
    try:
        bench.turns[0].run()
    finally:
        bench.close()
    ours: Any = bench.turns[0]
    peer = pretraining_peer(ours.model)
    turn = PeerTraining(peer, ours.batches, CPU, "fp32", 1e-3)
    turn.prepare()
    losses = []
    for _ in range(20):
        losses.append(peer(**pretraining_inputs(ours.batches[0])).loss.item())
        turn.run()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.conformance
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "albert", "electra", "modernbert"])
def test_the_peer_has_our_hidden_states(model_type: str) -> None:
    config = named_size("tiny", 200, model_type=model_type, max_length=64)
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    random = np.random.default_rng(0)
    batch = pack([random.integers(5, 200, length) for length in (9, 4, 9, 1, 30)])
    inputs = padded_inputs(batch, config.pad_token_id or 0)
    if config.type_vocab_size <= 1:
        inputs.pop("token_type_ids")
    with torch.no_grad():
        theirs_SLD = encoder_peer(encoder)(**inputs).last_hidden_state
        ours_TD = encoder(batch)
    torch.testing.assert_close(theirs_SLD[inputs["attention_mask"].bool()], ours_TD, rtol=1e-4, atol=1e-5)


def test_operations_are_counted_as_in_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_pretraining", ROOT / "benchmarks" / "pretraining.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = named_size("mini", 1000)
    lengths = [128, 128, 40]
    tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
    whole = whole_operations(config, TextShape(3, tokens, pairs), 0.15 * tokens)
    assert whole / tokens == pytest.approx(module.operations(config, pairs / tokens))
    # 6 for each weight in a matrix of the layers, 12 x layers x width for each token seen, and the head's share.
    width, layers = config.hidden_size, config.num_hidden_layers
    head = 0.15 * (width**2 + width * 1000)
    assert whole / tokens == pytest.approx(6 * (12 * layers * width**2 + head) + 12 * layers * width * pairs / tokens)


def test_operations_of_rounds_are_those_of_their_text(conditions: Conditions) -> None:
    alone = replace(conditions, has_peer=False)
    config = named_size("tiny", 200)
    works = [
        PretrainingWork("tiny", alone, 4),
        FinetuningWork("size:tiny", config, alone, 4),
        InferenceWork("size:tiny", config, alone),
    ]
    for work in works:
        size = max(work.least, 32)
        bench = work.ready(size)
        try:
            assert len(bench.turns) == 1
            items = sum(bench.turns[0].run() for _ in range(4))
        finally:
            bench.close()
        # By formula before there is a batch, and by the batches: equal but for lengths that are drawn.
        assert 4 * work.operations(size) == pytest.approx(items * bench.operations_per_item(), rel=0.25)
        assert items == pytest.approx(4 * size * (16 if work.item == "tokens" else 1), rel=0.2)


class Halving:
    """A work whose round of one sequence takes a second."""

    name, model, item, has_peer = "work", "model", "items", False

    def __init__(self, largest: int, least: int) -> None:
        self.largest, self.least = largest, least

    def operations(self, size: int) -> float:
        return float(size)

    def ready(self, size: int) -> Any:
        raise OutOfMemory(None)


@pytest.mark.parametrize(
    ("allowed", "size"), [(100.0, 32), (32.0, 32), (31.9, 16), (9.0, 8), (6.0, 6), (5.0, None), (-1.0, None)]
)
def test_a_work_gets_the_largest_size_that_fits(allowed: float, size: int | None) -> None:
    assert fitting_size(Halving(32, 6), allowed, float) == size


def test_what_a_size_takes_is_its_rounds_at_a_share_of_the_product() -> None:
    runner = benchmark_module._Runner(100.0, True, lambda: 0.0, None)
    alone, raced = Halving(4, 4), Halving(4, 4)
    raced.has_peer = True
    rounds = WARM_UP_ROUNDS + timing.FEWEST_ROUNDS
    assert runner.expected_seconds(alone, 80) == pytest.approx(rounds * 80 / 40)
    assert runner.expected_seconds(raced, 80) == pytest.approx(4 * rounds * 80 / 40)
    # A smaller model of the same work reached 90 operations a second, of which 72 are counted on.
    runner.timed += [Timed("work", "m", "items", 4, 1, 9.0, (10.0,)), Timed("other", "m", "items", 4, 1, 9.0, (99.0,))]
    assert runner.expected_seconds(alone, 72) == pytest.approx(rounds)


def test_a_work_that_does_not_fit_the_memory_is_left_out() -> None:
    seen: list[Timed | LeftOut] = []
    runner = benchmark_module._Runner(1e9, False, lambda: 0.0, seen.append)
    runner.run([Halving(4, 4), Halving(2, 2)], 10.0)
    assert runner.timed == [] and runner.left_out == seen
    assert "memory ran out with 4 at once" in runner.left_out[0].reason and len(seen) == 2


def test_faults_of_a_work_are_not_hidden() -> None:
    class Broken(Halving):
        def ready(self, size: int) -> Any:
            raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        benchmark_module._Runner(1e9, False, lambda: 0.0, None).run([Broken(4, 4)], 10.0)


@pytest.mark.parametrize("seconds", [20, 60, 240])
def test_the_time_is_kept(
    monkeypatch: pytest.MonkeyPatch, ticking: Callable[[float], Callable[[], float]], seconds: int
) -> None:
    monkeypatch.setattr(benchmark_module, "matrix_product_speed", lambda *_: 1e12)
    settings = BenchmarkSettings(**{**SMALL, "sizes": "tiny,mini,small"}, budget=f"{seconds}s", batch_size=1)
    result = benchmark(settings, clock=ticking(0.5))
    assert len(result.timed) == 5
    # Until it is used up, give or take a round, in which this clock is looked at four times, and a last look.
    assert abs(result.seconds - seconds) <= 5 * 0.5


def test_what_is_too_slow_is_left_out(ticking: Callable[[float], Callable[[], float]]) -> None:
    seen: list[Timed | LeftOut] = []
    settings = BenchmarkSettings(**{**SMALL, "sizes": "tiny,large"}, budget="60s")
    result = benchmark(settings, clock=ticking(0.001), progress=seen.append)
    # 8 x 4 times 4 x 8 in a millisecond are 512,000 operations a second.
    assert result.matrix_product == pytest.approx(512_000)
    assert [(one.work, one.model) for one in result.left_out][-1] == ("pre-training", "size:large")
    assert "give a larger budget" in result.left_out[-1].reason
    assert len(seen) == 4 == len(result.timed) + len(result.left_out)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, ticking: Any) -> Callable[..., BenchmarkResult]:
    """`measured(peer=True)`: every work with as few rounds as there can be, on a clock that ticks."""

    def make(**changes: Any) -> BenchmarkResult:
        monkeypatch.setattr(benchmark_module, "matrix_product_speed", lambda *_: 1e12)
        monkeypatch.setattr(timing, "MOST_ROUNDS", timing.FEWEST_ROUNDS)
        values = {**SMALL, "batch_size": 2, "budget": "1h", **changes}
        return benchmark(BenchmarkSettings(**values), clock=ticking(0.25))

    return make


def test_all_works_are_timed(measured: Callable[..., BenchmarkResult]) -> None:
    result = measured()
    assert [(one.work, one.model, one.item) for one in result.timed] == [
        ("fine-tuning", "size:tiny", "rows"),
        ("inference", "size:tiny", "sentences"),
        ("pre-training", "size:tiny", "tokens"),
    ]
    assert result.left_out == () and result.device == "cpu" and result.precision == "fp32"
    tuning, inference, pretraining = result.timed
    # A quarter of a second goes by from one look at the clock to the next.
    assert tuning.ours == (8.0,) * 3 and inference.speed == inference.size / 0.25
    assert pretraining.speed <= 2 * 16 / 0.25
    assert all(one.theirs == () and one.ratio is None for one in result.timed)
    assert result.share(tuning) == pytest.approx(8.0 * tuning.operations_per_item / 1e12)


@pytest.mark.conformance
def test_figures_are_written_for_programs_and_for_people(
    measured: Callable[..., BenchmarkResult], tmp_path: Path
) -> None:
    result = measured(peer=True)
    write_benchmark(result, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"benchmark.json", "report.html"}
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert written == json.loads(json.dumps(to_json(result)))
    assert written["settings"]["peer"] is True and written["threads"] == torch.get_num_threads()
    assert {"torch", "transformers", "processor", "memory", "Python"} <= set(written["machine"])
    assert written["matrix_product_operations_per_second"] == 1e12
    by_work = {one["work"]: one for one in written["timed"]}
    assert [name for name, one in by_work.items() if one["peer"]] == ["inference", "pre-training"]
    for one in by_work.values():
        assert one["ours"]["median"] == statistics.median(one["ours"]["rounds"])
        speed = one["share_of_matrix_product"] * 1e12 / one["operations_per_item"]
        assert speed == pytest.approx(one["ours"]["median"])
        if one["peer"]:
            assert len(one["peer"]["rounds"]) == len(one["ours"]["rounds"]) == 3
            assert one["ratio"] == one["ours"]["median"] / one["peer"]["median"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What this machine does" in page and page.count('class="bar"') == 5


def canned(settings: BenchmarkSettings) -> BenchmarkResult:
    machine = {"processor": "Abacus", "cores": "2 usable, 1 threads in torch", "torch": "2.13.0"}
    timed = Timed("pre-training", "size:mini", "tokens", 32, 11_000_000, 2e7, (4000.0, 5000.0, 6000.0), (2000.0,) * 3)
    left = LeftOut("pre-training", "size:base", "would take some 90 s, and 20 s were left; give a larger budget")
    return BenchmarkResult(settings, machine, "cpu", "fp32", 1, 2e11, (timed,), (left,), 119.6)


def test_what_is_said() -> None:
    result = canned(BenchmarkSettings())
    machine, pretraining = benchmark_sheets(result)
    lines = {name: (value, why) for name, value, why in machine.lines}
    assert lines["device"] == ("Abacus", "") and lines["largest matrix product"][0] == "200 GFLOP/s"
    assert lines["measured in"] == ("120 s", "of 2m")
    assert pretraining.title == "Pre-training"
    (size, speed, why), (_, left, reason) = pretraining.lines
    assert (size, speed) == ("size:mini", "5,000 tokens/s")
    assert why == "50% of the matrix product, batches of 32, 3 rounds; transformers 2,000: 2.50 times as fast"
    assert left == "left out" and "larger budget" in reason
    assert progress_line(result.timed[0]) == "pre-training, size:mini: 5,000 tokens/s"
    assert progress_line(result.left_out[0]).startswith("pre-training, size:base: left out: would take")


def test_the_command_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[BenchmarkSettings] = []

    def stand_in(settings: BenchmarkSettings, *, progress: Callable[[Timed | LeftOut], None]) -> BenchmarkResult:
        calls.append(settings)
        result = canned(settings)
        progress(result.timed[0])
        return result

    monkeypatch.setattr(advice_verbs, "run_benchmark", stand_in)
    out = tmp_path / "out"
    assert main(["benchmark", "--budget", "30s", "--sizes", "mini,base", "--peer", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "  size:mini: 5,000 tokens/s (50% of the matrix product" in captured.out
    assert captured.out.endswith(f"Report: {out / 'report.html'}\n")
    assert captured.err == "pre-training, size:mini: 5,000 tokens/s\n"
    assert json.loads((out / "benchmark.json").read_text())["settings"]["sizes"] == "mini,base"
    (settings,) = calls
    assert settings.peer and settings.size_names == ("mini", "base")
    assert main(["benchmark"]) == 0
    assert calls[1] == BenchmarkSettings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "3 epochs"}, "is no time"),
        ({"budget": "soon"}, "^budget: cannot read"),
        ({"sizes": " , "}, "names no size"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"row_length": 3}, "row_length must be at least 4"),
        ({"max_length": 7}, "8 is the least"),
        ({"vocab_size": 99}, "vocab_size must be at least 100"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"row_length": 513}, "row_length is 513; this model takes up to 512"),
        ({"device": "tpu"}, 'device "tpu" is not known'),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        benchmark(BenchmarkSettings(**{**SMALL, **changes}))


@pytest.mark.parametrize("changes", [{"sizes": "tiny,minni"}, {"model": "size:minni"}])
def test_sizes_that_there_are_not_are_named_before_anything_is_timed(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r'no model size "minni"\. Did you mean "mini"'):
        benchmark(BenchmarkSettings(**{**SMALL, **changes}))


def test_a_folder_that_is_there_is_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"already exists\. Name another folder"):
        benchmark(BenchmarkSettings(**SMALL, out=tmp_path))


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r'pip install "transformers>=5.0", or leave peer out'):
        benchmark(BenchmarkSettings(**SMALL, peer=True))


def test_a_folder_is_fine_tuned_and_read(measured: Callable[..., BenchmarkResult], tmp_path: Path) -> None:
    config = named_size("tiny", 300, model_type="distilbert", max_length=32)
    model = nn.ModuleDict({"encoder": Encoder(config)})
    save_model(tmp_path / "model", model, config, "DistilBertModel")
    result = measured(model=str(tmp_path / "model"))
    assert [one.model for one in result.timed] == [str(tmp_path / "model")] * 2 + ["size:tiny"]
