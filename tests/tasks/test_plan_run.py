"""The verb `plan`: operations beside torch's counter, parameters beside transformers, and the arithmetic of budgets."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining

from bertsmith.cli import advice_verbs, main, model_verbs
from bertsmith.errors import SettingsError
from bertsmith.model.operations import TextShape
from bertsmith.tasks import plan_run
from bertsmith.tasks.advice_text import plan_sheets
from bertsmith.tasks.forecast import PretrainMeasured
from bertsmith.tasks.objectives import OBJECTIVES
from bertsmith.tasks.plan_run import PlanSettings, RunPlan, plan, synthetic_store, training_operations
from bertsmith.tasks.pretrain import prepare, pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus import read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.calibrate import Calibration, Pace, StageCost


@pytest.fixture(scope="module")
def store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    texts = tiny_documents.read_text(encoding="utf-8").split("\n\n")
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_corpus([folder / "documents.jsonl"], tiny_tokenizer, folder / "store", heldout_share=0.2, num_workers=1)
    return folder / "store"


@pytest.mark.parametrize(
    ("family", "objective"),
    [(name, one) for name in ("bert", "albert", "electra", "modernbert", "gpt2") for one in OBJECTIVES[name]],
)
def test_operations_of_a_step_are_those_that_torch_counts(store: Path, family: str, objective: Any) -> None:
    settings = PretrainSettings(
        corpus=store, out=Path("unused"), family=family, size="tiny", objective=objective, max_length=32, dropout=0.0,
    )  # fmt: skip
    if objective.startswith("mlm+"):
        settings = replace(settings, short_sequence_probability=0.0)
    prepared = prepare(settings)
    task, model = prepared.tasks[0], prepared.model
    examples = task.examples("train")
    batch = task.collate(examples.take(range(examples.num_examples(0)), 0))
    # A CPU computes sequences of one length without padding, and counts no pairs that are not there.
    length = max(batch.inputs.lengths, key=batch.inputs.lengths.count)
    chosen = [place for place, one in enumerate(batch.inputs.lengths) if one == length][:4]
    batch = task.collate([batch.examples[place] for place in chosen])
    with FlopCounterMode(display=False) as counter:
        losses = task.loss(model.train(), batch)
        sum(losses.values()).backward()  # type: ignore[union-attr]
    text = TextShape(len(chosen), len(chosen) * length, len(chosen) * length**2)
    predicted = batch.counts["clm" if objective == "clm" else "mlm"]
    assert counter.get_total_flops() == training_operations(prepared.config, objective, text, predicted)


def measured(settings: PretrainSettings, **changes: Any) -> PretrainMeasured:
    """A machine that takes 0.1 seconds for a step of 1,000 tokens, of which an epoch has 50."""
    prepared = prepare(settings)
    stage = StageCost(8, 8, 50, 9, Pace(0.1, 0.0), 1000.0, 8.0, 125_000.0, {"mlm": 150.0, "nsp": 8.0}, 1e-4, 1 << 30)
    stages = (stage,) * len(settings.phases)
    calibration = Calibration(1000, 1000, True, 1 << 30, stages, 2.0, 3000, 1.0, 1000, 0.5)
    return PretrainMeasured(5.0, replace(calibration, **changes), prepared.config, "mlm+nsp", 100, 10_000)


@pytest.fixture
def planned(store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`planned(budget="1h")`: a plan on that machine."""

    def make(changes: dict[str, Any] | None = None, **settings: Any) -> RunPlan:
        def stand_in(wanted: PretrainSettings, *, memory_limit_bytes: int) -> PretrainMeasured:
            return measured(wanted, **(changes or {}))

        monkeypatch.setattr(plan_run, "measure_pretrain", stand_in)
        return plan(PlanSettings(corpus=store, size="tiny", max_length=32, **settings))

    return make


def test_budgets_of_every_kind_come_to_the_same_run(planned: Any) -> None:
    plans = [planned(budget=budget) for budget in ("200K tokens", "200 steps", "4 epochs")]
    for one in plans:
        (stage,) = one.stages
        assert (stage.steps, stage.tokens, stage.epochs, stage.seconds) == (200, 200_000, 4, pytest.approx(20))
        # Ten evaluations of 10,000 tokens, a checkpoint, the model's folder and the report.
        assert one.forecast.evaluation_seconds == pytest.approx(10 * 1.0)
        assert one.forecast.seconds == pytest.approx(5 + 20 + 10 + 2 + 1 + 0.5)
        assert one.operations == pytest.approx(one.tokens * stage.operations_per_token)


def test_a_budget_of_time_is_shared_out(planned: Any) -> None:
    one = planned(budget="1h", price_per_hour=3.0)
    forecast = one.forecast
    assert forecast.learning_seconds + forecast.evaluation_seconds + forecast.saving_seconds == pytest.approx(
        3601.5, abs=1
    )
    assert one.stages[0].steps == pytest.approx(forecast.learning_seconds / 0.1, abs=1)
    assert one.cost == pytest.approx(3.0 * forecast.seconds / 3600)
    assert planned(budget="1h").cost is None


def test_batches_that_grow_have_their_phases(planned: Any) -> None:
    stages = planned(budget="100 steps", batch_size=64, initial_batch_size=8, batch_warmup_share=0.2).stages
    assert [stage.steps for stage in stages] == [7, 7, 6, 80]


def test_two_phases_have_their_shares(planned: Any) -> None:
    short, long = planned(budget="200K tokens", long_length=64, long_share=0.25).stages
    assert (short.tokens, long.tokens) == (150_000, 50_000)
    assert (short.max_length, long.max_length) == (32, 64)


@pytest.mark.parametrize(
    ("sizes", "given", "length", "expected"),
    [
        ((16,), None, None, 16),
        ((64,), None, None, None),
        ((16,), 16, None, 16),
        ((8,), 16, None, 8),
        ((64, 16), None, 64, 32),
        ((16, 8), None, 64, 16),
    ],
)
def test_smaller_micro_batches_are_in_the_command(
    planned: Any,
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, ...],
    given: int | None,
    length: int | None,
    expected: int | None,
) -> None:
    """Those that were measured; of phases, what fits in each when it is asked for at the usual length."""
    measured_whole = measured

    def cut(settings: PretrainSettings, **changes: Any) -> PretrainMeasured:
        whole = measured_whole(settings, **changes)
        costs = zip(whole.calibration.stages, sizes, strict=True)
        stages = tuple(replace(one, batch_size=64, micro_batch_size=size) for one, size in costs)
        return replace(whole, calibration=replace(whole.calibration, stages=stages))

    monkeypatch.setitem(globals(), "measured", cut)
    one = planned(budget="100 steps", batch_size=64, micro_batch_size=given, long_length=length)
    assert one.settings.micro_batch_size == expected
    if expected is not None:
        assert f"--micro-batch-size {expected}" in advice_verbs.command(["pretrain"], one.settings)


def test_a_run_that_levels_off_keeps_one_checkpoint_more(planned: Any) -> None:
    falling, level = (planned(budget="100 steps", schedule=schedule).forecast for schedule in ("linear", "wsd"))
    assert (falling.disk_bytes, level.disk_bytes) == (4000, 7000)
    assert level.saving_seconds - falling.saving_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("is_lean", [False, True])
def test_what_does_not_fit_is_said(
    planned: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_lean: bool
) -> None:
    one = planned({"fits": False, "stages": ()}, budget="1h", gradient_checkpointing=is_lean)
    assert (one.forecast, one.stages) == (None, ())
    (why,) = [why for sheet in plan_sheets(one) for _, value, why in sheet.lines if "does not fit" in value]
    assert why.endswith("take a smaller model") and ("--gradient-checkpointing" in why) != is_lean
    monkeypatch.setattr(advice_verbs, "plan_run", lambda settings: one)
    assert main(["plan", "--corpus", "store"]) == 2
    out, err = capsys.readouterr()
    assert "does not fit" in out and "bertsmith pretrain" not in out
    assert "the run does not fit the memory of" in err and err.endswith("No command is given.\n")


def test_a_synthetic_store_has_the_vocabulary_and_the_text(tmp_path: Path) -> None:
    manifest = read_manifest(synthetic_store(tmp_path, 1000))
    assert manifest.vocab_size == 1000
    assert sum(split.num_tokens for split in manifest.splits.values()) == pytest.approx(200_000, rel=0.01)


def test_a_synthetic_store_of_a_models_own_words(tiny_tokenizer: Path, tmp_path: Path) -> None:
    manifest = read_manifest(synthetic_store(tmp_path, str(tiny_tokenizer)))
    tokenizer = load_tokenizer(tiny_tokenizer)
    assert manifest.vocab_size == tokenizer.vocab_size
    assert sum(split.num_tokens for split in manifest.splits.values()) == pytest.approx(200_000, rel=0.01)
    lines = (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()
    words = {word for line in lines for word in json.loads(line)["text"].split()}
    assert len(words) > 50 and all(len(tokenizer.encode(word.rstrip(".")).ids) == 1 for word in words)


@pytest.mark.parametrize("given", [{"from_model": True}, {"teacher": True}])
def test_without_a_store_the_vocabulary_is_that_of_the_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, bool]
) -> None:
    run = PretrainSettings(
        corpus=store, out=tmp_path / "run", size="tiny", max_length=32, budget="1 steps", evaluation_samples=8,
        precision="fp32",
    )  # fmt: skip
    model = str(pretrain(run, console=Console(quiet=True)).model)
    calls: list[PretrainSettings] = []

    def stand_in(wanted: PretrainSettings, *, memory_limit_bytes: int) -> PretrainMeasured:
        calls.append(wanted)
        return measured(wanted)

    monkeypatch.setattr(plan_run, "measure_pretrain", stand_in)
    settings = PlanSettings(tokens="2M", max_length=32, budget="2 epochs", **dict.fromkeys(given, model))  # type: ignore[arg-type]
    one = plan(settings)
    assert getattr(calls[0], next(iter(given))) == model
    # An epoch of the stand-in has 50 steps on 200,000 tokens.
    assert one.stages[0].steps == pytest.approx(2 * 50 * 10, rel=0.01)
    # Of ten times its 10,000 held-out tokens no more than 500 samples of 1,000 / 8 tokens are evaluated at a time.
    assert one.measured.num_evaluated_tokens == 500 * 125
    few = plan(replace(settings, evaluation_samples=8))
    assert few.measured.num_evaluated_tokens == 8 * 125
    assert plan(replace(settings, tokens="1M")).measured.num_evaluated_tokens == pytest.approx(50_000, rel=0.01)
    with pytest.raises(SettingsError, match="leave vocab_size out"):
        replace(settings, vocab_size=100)


def test_a_plan_without_a_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Measured for real; the command it ends with parses, and its parameters are those of transformers."""
    monkeypatch.setattr("bertsmith.tasks.forecast.MEASURED_SECONDS", 0.2)
    words = [
        "plan",
        "--tokens",
        "2M",
        "--vocab-size",
        "500",
        "--size",
        "tiny",
        "--batch-size",
        "8",
        "--max-length",
        "32",
    ]
    words += [
        "--budget",
        "2 epochs",
        "--evaluation-samples",
        "8",
        "--precision",
        "fp32",
        "--run",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    expected = BertForPreTraining(
        BertConfig(vocab_size=500, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
    )
    assert f"parameters: {sum(p.numel() for p in expected.parameters()):,} (" in out
    assert "2 epochs of the text" in out
    assert not (tmp_path / "run").exists()
    calls: list[PretrainSettings] = []
    monkeypatch.setattr(model_verbs, "pretrain_model", lambda settings: calls.append(settings))
    monkeypatch.setattr(model_verbs, "_show_run", lambda *arguments: None)
    monkeypatch.setattr(model_verbs, "_show_metrics", lambda *arguments: None)
    line = out.rstrip("\n").rpartition("\n")[2]
    with pytest.raises(AttributeError):  # of the result, which there is none of
        main(shlex.split(line)[1:])
    (settings,) = calls
    assert (settings.size, settings.batch_size, settings.budget) == ("tiny", 8, "2 epochs")
    assert settings.out == tmp_path / "run" and settings.corpus == Path("STORE")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give corpus, or tokens and vocab_size"),
        (["--tokens", "1M"], "give corpus, or tokens and vocab_size"),
        (["--corpus", "c", "--tokens", "1M"], "leave tokens and vocab_size out"),
        (["--tokens", "many", "--vocab-size", "100"], 'error: tokens: cannot read "many tokens"'),
        (["--tokens", "1M", "--vocab-size", "5"], "vocab_size must be above"),
        (["--corpus", "c", "--price-per-hour", "-1"], "price_per_hour must be at least 0"),
        (["--corpus", "c", "--compile"], "compile: steps are measured without it"),
        (["--corpus", "missing"], "missing"),
        (["--corpus", "c", "--budget", "20%"], "share of itself"),
        (["--corpus", "c", "--budget", "soon"], "error: budget: cannot read"),
        (["--corpus", "c", "--memory", "lots"], "memory: cannot read the size"),
    ],
)
def test_what_cannot_be_planned_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
