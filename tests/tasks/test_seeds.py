"""Fine-tuning that is steady: several seeds, what failed, layers that are frozen or made anew, rates by layer."""

import io
import json
import shutil
import signal
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from bertsmith.cli import main
from bertsmith.errors import Interrupted, ModelError, SettingsError, StepError, TrainingError
from bertsmith.files import sha256
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks import finetune as verb
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.answer_spans import Candidate, QuestionAnswer
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.classify_targets import ClassificationAnswer
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.label_sets import LabelSetAnswer
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import task_kind
from bertsmith.tasks.seeds import SeedRun, best_of, find_failure, sections, spread
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.evaluate import Evaluation
from bertsmith.training.report import Curves, Table
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)
ANIMALS, PLACES = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")


def rows(number: int) -> str:
    """Which kind of word is in it?"""
    lines = ["text,label"]
    for place in range(number):
        words, label = (ANIMALS, "animal") if place % 2 else (PLACES, "place")
        lines.append(f"the {words[place // 2 % 4]} is old {place},{label}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.csv").write_text(rows(64))
    (folder / "dev.csv").write_text(rows(12))
    (folder / "test.csv").write_text(rows(8))
    return folder


def settings(data: Path, own_tokenizer: Path, **changes: Any) -> FinetuneSettings:
    base = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(own_tokenizer),
        train=str(data / "train.csv"),
        dev=str(data / "dev.csv"),
        test=str(data / "test.csv"),
        out=data / "run",
        epochs=1,
        batch_size=8,
        learning_rate=3e-4,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)


def encoder_folder(tokenizer: Path, where: Path, model_type: str = "bert") -> Path:
    """Weights that no seed gives."""
    own = load_tokenizer(tokenizer)
    config = named_size("tiny", own.vocab_size, model_type=model_type)
    torch.manual_seed(99)
    where.mkdir()
    save_model(where, nn.ModuleDict({"encoder": Encoder(config)}), config, family(model_type).bare)
    own.save(where)
    return where


@pytest.fixture(scope="module")
def run(data: Path, tiny_tokenizer: Path) -> FinetuneResult:
    return finetune("classification", settings(data, tiny_tokenizer, seeds=3, seed=4), OPTIONS, console=QUIET)


# Several seeds


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_seed_that_diverges_is_named_and_the_others_go_on(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    carried_out = verb.outcomes

    def failing(*all: Any) -> Any:
        for number, outcome in enumerate(carried_out(*all)):
            yield StepError("step 3: the loss is not finite.") if number == 1 else outcome

    screen = Console(file=io.StringIO(), width=200)
    own = settings(data, tiny_tokenizer, seeds=3, jobs=jobs, out=tmp_path / "run")
    monkeypatch.setattr(verb, "outcomes", failing)
    result = finetune("classification", own, OPTIONS, console=screen)
    assert [one.seed for one in result.seeds] == [0, 2]
    said = "Could not go on, and in no figure: seed-1."
    assert said in screen.file.getvalue()  # type: ignore[attr-defined]
    assert said in (result.model / "README.md").read_text()
    report = (own.out / "report.html").read_text()
    assert said in report and "stopped: step 3: the loss is not finite." in report
    mean = np.mean([one.metrics["dev"]["accuracy"] for one in result.seeds])
    assert f"{mean:.4f} ± " in report

    monkeypatch.setattr(verb, "outcomes", lambda *all: (StepError(f"step {number}") for number in range(3)))
    with pytest.raises(StepError, match="step 0"):
        finetune("classification", replace(own, out=tmp_path / "none"), OPTIONS, console=QUIET)


def test_every_seed_is_a_run_and_the_best_on_dev_is_the_model(run: FinetuneResult, data: Path) -> None:
    assert [one.seed for one in run.seeds] == [4, 5, 6]
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"config.yaml", "report.html", "model", "seed-4", "seed-5", "seed-6"}
    for one in run.seeds:
        expected = {"config.yaml", "metrics.jsonl", "report.html", "checkpoints", "model", "result.json"}
        assert {path.name for path in one.folder.iterdir()} == expected
        assert evaluate(one.folder, str(data / "dev.csv"), precision="fp32") == pytest.approx(one.metrics["dev"])
    best = max(run.seeds, key=lambda one: one.metrics["dev"]["accuracy"])
    assert run.metrics == best.metrics and run.training == best.training
    assert sha256(run.model / "model.safetensors") == sha256(best.folder / "model" / "model.safetensors")
    assert evaluate(run.folder, str(data / "test.csv"), precision="fp32") == pytest.approx(best.metrics["test"])
    assert len({sha256(one.folder / "model" / "model.safetensors") for one in run.seeds}) == 3


def test_a_seed_is_the_run_that_it_would_be_alone(
    run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    alone = finetune("classification", settings(data, tiny_tokenizer, seed=5, out=tmp_path / "alone"), OPTIONS)
    assert sha256(alone.model / "model.safetensors") == sha256(run.folder / "seed-5" / "model" / "model.safetensors")
    assert alone.metrics == run.seeds[1].metrics and len(alone.seeds) == 1
    saved = yaml.safe_load((run.folder / "seed-5" / "config.yaml").read_text())
    assert (saved["seed"], saved["seeds"], saved["out"]) == (5, 1, str(run.folder / "seed-5"))


def test_report_and_card_tell_mean_and_deviation(run: FinetuneResult) -> None:
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    card = (run.model / "README.md").read_text(encoding="utf-8")
    for split in ("dev", "test"):
        for name in ("accuracy", "macro_f1"):
            values = [one.metrics[split][name] for one in run.seeds]
            assert f"| {name}, {split} | {np.mean(values):.4f} | {np.std(values, ddof=1):.4f} |" in card
        values = [one.metrics[split]["accuracy"] for one in run.seeds]
        assert f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in report
    assert all(f"seed-{seed}/report.html" in report for seed in (4, 5, 6))
    assert "The best on dev of 3 runs" in card


def test_finished_seeds_are_not_run_again(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second of three, and gone on with: the same weights as without a stop."""
    whole = finetune("classification", settings(data, tiny_tokenizer, seeds=3, out=tmp_path / "whole"), OPTIONS)
    steps = 0
    loss = Classification.loss

    def counting(self: Classification, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == 12:  # eight a run
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    monkeypatch.setattr(Classification, "loss", counting)
    parts = settings(data, tiny_tokenizer, seeds=3, out=tmp_path / "parts")
    with pytest.raises(Interrupted, match="--resume"):
        finetune("classification", parts, OPTIONS, console=QUIET)
    assert (parts.out / "seed-0" / "result.json").is_file() and not (parts.out / "seed-2").exists()
    with pytest.raises(ModelError, match="has no model yet"):
        model_folder(parts.out)
    with pytest.raises(SettingsError, match="already holds a run"):
        finetune("classification", parts, OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match=r"seed-0: optimizer\.learning_rate was 0\.0003 and is now 0\.001"):
        finetune("classification", replace(parts, resume=True, learning_rate=1e-3), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match=r"holds seed-0, which 2 seeds from 1 on leave out"):
        finetune("classification", replace(parts, resume=True, seeds=2, seed=1), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match="holds a run of several seeds"):
        finetune("classification", replace(parts, resume=True, seeds=1), OPTIONS, console=QUIET)
    finished = (parts.out / "seed-0" / "model").stat().st_ino
    steps = 100
    resumed = finetune("classification", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert steps == 112 and (parts.out / "seed-0" / "model").stat().st_ino == finished
    assert [one.metrics for one in resumed.seeds] == [one.metrics for one in whole.seeds]
    for name in ("model", "seed-1/model", "seed-2/model"):
        weights = [sha256(run.folder / name / "model.safetensors") for run in (whole, resumed)]
        assert weights[0] == weights[1], name
    # More seeds can be added to those that there are, if they are learnt alike.
    for changes, message in (
        ({"early_stopping": 3}, "seed-0: early_stopping was None and is now 3"),
        ({"evaluate_every": "2 steps"}, "seed-0: evaluate_every was 1 epoch and is now 2 steps"),
    ):
        with pytest.raises(TrainingError, match=message):
            finetune("classification", replace(parts, resume=True, seeds=4, **changes), OPTIONS, console=QUIET)
    more = finetune("classification", replace(parts, resume=True, seeds=4), OPTIONS, console=QUIET)
    assert steps == 120 and more.seeds[:3] == resumed.seeds


def test_seeds_begin_from_the_same_weights(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    model = encoder_folder(tiny_tokenizer, tmp_path / "model")
    chosen = settings(data, tiny_tokenizer, model=str(model), tokenizer=None, epochs=0.5, seeds=2, out=tmp_path / "run")
    finetune("classification", chosen, OPTIONS, console=QUIET)
    more = replace(chosen, resume=True, seeds=3)
    noted = tmp_path / "run" / "seed-0" / "result.json"
    whole = json.loads(noted.read_text())
    for name in ("weights", "early_stopping", "evaluate_every"):  # of an earlier version
        del whole["fingerprint"][name]
    noted.write_text(json.dumps(whole))
    finetune("classification", more, OPTIONS, console=QUIET)
    shutil.rmtree(model)
    own = load_tokenizer(tiny_tokenizer)
    config = named_size("tiny", own.vocab_size)
    model.mkdir()
    save_model(model, nn.ModuleDict({"encoder": Encoder(config)}), config, family("bert").bare)
    own.save(model)
    with pytest.raises(TrainingError, match="seed-1: weights was "):
        finetune("classification", replace(more, seeds=4), OPTIONS, console=QUIET)


def test_seeds_that_cannot_be(run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": 2, "dev": None, "dev_share": 0.0}, "the best is chosen on dev"),
        ({"seeds": 2, "seed": 2**63 - 1}, "below 2"),
        ({"early_stopping": 2, "dev": None, "dev_share": 0.0}, "early_stopping goes by dev, and there is none"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings(data, tiny_tokenizer, **changes)
    one = settings(data, tiny_tokenizer, out=tmp_path / "one", epochs=0.2)
    finetune("classification", one, OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match="holds a run of one seed"):
        finetune("classification", replace(one, seeds=2, resume=True), OPTIONS, console=QUIET)
    # All of it is replaced, not the folders that both have.
    again = settings(data, tiny_tokenizer, out=tmp_path / "one", epochs=0.2, seeds=2, overwrite=True)
    finetune("classification", again, OPTIONS, console=QUIET)
    assert {path.name for path in again.out.iterdir()} == {"config.yaml", "report.html", "model", "seed-0", "seed-1"}


def seed_runs(**values: list[float]) -> list[SeedRun]:
    """Runs with these metrics on dev, and ten times them on test."""
    return [
        SeedRun(
            seed,
            Path(f"seed-{seed}"),
            {
                "dev": dict(zip(values, one, strict=True)),
                "test": {name: 10 * x for name, x in zip(values, one, strict=True)},
            },
            SimpleNamespace(),  # type: ignore[arg-type]
            "every prediction is a on dev" if seed == 2 else None,
        )
        for seed, one in enumerate(zip(*values.values(), strict=True))
    ]


def test_mean_deviation_and_the_best() -> None:
    runs = seed_runs(accuracy=[0.5, 0.9, 0.7, 0.9], macro_f1=[0.4, 0.6, 0.9, 0.8])
    found = spread(runs)
    for split, factor in (("dev", 1), ("test", 10)):
        for name in ("accuracy", "macro_f1"):
            values = [factor * run.metrics["dev"][name] for run in runs]
            assert found[split][name].mean == pytest.approx(statistics.mean(values))
            assert found[split][name].deviation == pytest.approx(statistics.stdev(values))
    greater, smaller = SimpleNamespace(greater_is_better=True), SimpleNamespace(greater_is_better=False)
    best = best_of(runs, greater)  # type: ignore[arg-type]
    assert (best.seed, best_of(runs, smaller).seed) == (1, 0)  # type: ignore[arg-type]
    metrics, each = sections(runs, best)
    assert isinstance(metrics, Table) and isinstance(each, Table)
    assert metrics.columns == ["metric", "dev, mean", "deviation", "test, mean", "deviation"]
    deviation = statistics.stdev([0.5, 0.9, 0.7, 0.9])
    assert metrics.rows[0] == ["accuracy", *map(pytest.approx, (0.75, deviation, 7.5, 10 * deviation))]
    said = "1 of 4 runs learnt nothing, and are in the mean all the same (seed 2: every prediction is a on dev)."
    assert said in metrics.note
    assert each.rows[1] == ("1 (best)", 0.9, 9.0, "", "seed-1/report.html")
    assert each.rows[2] == ("2", 0.7, 7.0, "every prediction is a on dev", "seed-2/report.html")
    assert spread(runs[:1])["dev"]["accuracy"].deviation == 0.0


def test_the_learning_curves_of_all_seeds(tmp_path: Path) -> None:
    runs = [replace(run, folder=tmp_path / f"seed-{run.seed}") for run in seed_runs(accuracy=[0.5, 0.9], loss=[1, 2])]
    for run in runs:
        lines = [
            {"kind": "train", "step": 1},
            *({"kind": "eval", "step": s, "metrics": {"accuracy": s / 10}} for s in (3, 5)),
        ]
        run.folder.mkdir()
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[: 3 - run.seed]))
    curves = sections(runs, runs[0])[2]
    assert isinstance(curves, Curves) and curves.y_label == "accuracy"
    assert curves.series == {"seed 0": ([3.0, 5.0], [0.3, 0.5]), "seed 1": ([3.0], [0.3])}


# Runs that learnt nothing


def test_a_run_that_says_the_same_to_everything_is_named(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    still = settings(data, tiny_tokenizer, seeds=2, learning_rate=0.0, out=tmp_path / "still")
    result = finetune("classification", still, OPTIONS, console=QUIET)
    failures = [str(one.failure) for one in result.seeds]
    assert all("every prediction is" in failure or "the training loss went from" in failure for failure in failures)
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "2 of 2 runs learnt nothing, and are in the mean all the same (seed 0:" in report
    assert "2 of 2 runs learnt nothing" in (result.model / "README.md").read_text(encoding="utf-8")
    own = (result.folder / "seed-0" / "report.html").read_text(encoding="utf-8")
    assert "This run learnt nothing" in own and failures[0] in own


def lines(folder: Path, losses: list[float]) -> Path:
    folder.mkdir(exist_ok=True)
    written = [
        json.dumps({"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-3})
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps({"kind": "run", "step": 0}), *written]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("losses", "failed"),
    [
        ([0.7, 0.6, 0.5, 0.4], False),
        ([0.7, 0.3, 0.2, 0.7], True),
        ([0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6], True),
        ([0.7], False),
        ([], False),
    ],
)
def test_a_loss_that_has_not_fallen_is_a_failure(tmp_path: Path, losses: list[float], failed: bool) -> None:
    failure = find_failure(SimpleNamespace(), {}, lines(tmp_path / "run", losses))  # type: ignore[arg-type]
    assert (failure is not None and failure.startswith("the training loss went from 0.7000 to")) == failed
    assert find_failure(SimpleNamespace(), {}, tmp_path / "run", goes_on=True) is None  # type: ignore[arg-type]


def test_a_run_of_one_step_says_that_it_learnt_nothing(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The rate of the first step is 0, as in google-research/bert and transformers."""
    short = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=1, batch_size=64, seeds=2)
    result = finetune("classification", short, OPTIONS, console=QUIET)
    assert [run.training.step for run in result.seeds] == [1, 1]
    for run in result.seeds:
        assert run.failure == "its only step had a learning rate of 0: give more epochs, or a smaller batch_size"


def evaluation(answers: list[Any], examples: list[Any]) -> dict[str, Evaluation]:
    return {"dev": Evaluation({}, answers, [SimpleNamespace(**example) for example in examples])}


def test_each_task_has_its_way_to_say_nothing(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)

    def failure(task: Any, answers: list[Any], examples: list[Any]) -> str | None:
        assert find_failure(task, evaluation(answers, examples), tmp_path) is None  # so few say nothing
        return find_failure(task, evaluation(answers * 8, examples * 8), tmp_path)

    def row(**values: Any) -> dict[str, Any]:
        return {"row": SimpleNamespace(**values)}

    labels = Classification(tokenizer, ("a", "b"), OPTIONS, {})
    says_a, says_b = (ClassificationAnswer(label, np.array([0.5, 0.5], dtype=np.float32)) for label in "ab")
    assert failure(labels, [says_a, says_a], [row(label="a"), row(label="b")]) == "every prediction is a on dev"
    assert failure(labels, [says_a, says_b], [row(label="a"), row(label="b")]) is None
    assert failure(labels, [says_a, says_a], [row(label="a"), row(label="a")]) is None  # there is nothing else to say

    numbers = Classification(tokenizer, (), replace(OPTIONS, regression=True), {})
    says = [ClassificationAnswer(None, np.array([value], dtype=np.float32)) for value in (2.0, 2.001, 3.5)]
    gold = [{"target": value, "row": None} for value in (1.0, 5.0)]
    assert failure(numbers, says[:2], gold) == "every number is about 2 on dev"
    assert failure(numbers, says[1:], gold) is None
    near = [ClassificationAnswer(None, np.array([value], dtype=np.float32)) for value in (1.0, 3.0, 5.0)]
    one_far_away = [{"target": value, "row": None} for value in (*(1.0, 3.0, 5.0) * 7, 1.0, 3.0, 1e6)]
    assert find_failure(numbers, evaluation(near * 8, one_far_away), tmp_path) is None

    several = Classification(tokenizer, ("a", "b"), replace(OPTIONS, multi_label=True), {})
    says_none, says_both = (LabelSetAnswer(labels, np.zeros(2, dtype=np.float32)) for labels in ((), ("a", "b")))
    both = [row(labels=("a",)), row(labels=())]
    assert failure(several, [says_none, says_none], both) == "every prediction is no label on dev"
    assert failure(several, [says_none, says_both], both) is None

    tagging = task_kind("tagging").make(tokenizer, ("O", "B-X"), TaggingSettings(), {})
    found, none = (SimpleNamespace(entities=entities, labels=()) for entities in (("x",), ()))
    tags = [row(tags=("O", "B-X")), row(tags=("O",))]
    assert failure(tagging, [none, none], tags) == "no entity was found on dev"
    assert failure(tagging, [found, none], tags) is None
    assert failure(tagging, [none], tags[1:]) is None
    words = task_kind("tagging").make(tokenizer, ("NOUN", "VERB"), TaggingSettings(), {})
    said = [SimpleNamespace(entities=(), labels=labels) for labels in (("NOUN", "NOUN"), ("NOUN", "VERB"))]
    assert failure(words, said[:1], [row(tags=("NOUN", "VERB"))]) == "every prediction is NOUN on dev"
    assert failure(words, said[1:], [row(tags=("NOUN", "VERB"))]) is None

    answering = task_kind("answering").make(tokenizer, (), AnsweringSettings(unanswerable=True), {})
    found = Candidate(0, 8, "the mill", 1.0, 0.5)
    silent, speaking = (QuestionAnswer(best, 0.5, (found,), gap) for best, gap in ((None, 1.0), (found, -1.0)))
    assert failure(answering, [silent], [row(answers=("the mill",))]) == "no question was answered on dev"
    assert failure(answering, [silent], [row(answers=())]) is None
    assert failure(answering, [speaking], [row(answers=("the mill",))]) is None
    # A threshold that dev has chosen silences a model, which has learnt something nonetheless.
    hushed = replace(speaking, best=None)
    assert failure(answering, [hushed], [row(answers=("the mill",))]) is None


def test_the_command_line_shows_mean_and_deviation(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--{name}={data / f'{name}.csv'}" for name in ("train", "dev")]
    sizes = ["--model=size:tiny", f"--tokenizer={tiny_tokenizer}", "--epochs=0.2", "--max-length=24", "--device=cpu"]
    out = tmp_path / "run"
    assert main(["finetune", "classification", *files, *sizes, "--seeds=2", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    values = [json.loads((out / f"seed-{seed}" / "result.json").read_text())["metrics"]["dev"] for seed in (0, 1)]
    accuracies = [metrics["accuracy"] for metrics in values]
    assert f"dev, 2 seeds: accuracy {np.mean(accuracies):.4g} ± {np.std(accuracies, ddof=1):.2g}," in said
    assert f"Model: {out / 'model'} (seed {int(accuracies[1] > accuracies[0])}, the best on dev)" in said


# What is frozen, and what is made anew


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_layers_are_saved_unchanged(data: Path, tiny_tokenizer: Path, tmp_path: Path, optimizer: str) -> None:
    where = encoder_folder(tiny_tokenizer, tmp_path / "encoder")
    changed = settings(data, tiny_tokenizer, model=str(where), tokenizer=None, out=tmp_path / "run", freeze=1)
    result = finetune("classification", replace(changed, optimizer=optimizer, ema_decay=0.5), OPTIONS, console=QUIET)
    before, after = load_file(where / "model.safetensors"), load_file(result.model / "model.safetensors")
    for name, tensor in before.items():
        is_frozen = name.startswith(("embeddings.", "encoder.layer.0."))
        assert torch.equal(after[f"bert.{name}"], tensor) == is_frozen, name
    moments = load_file(result.training.checkpoint / "optimizer.safetensors")
    assert moments and not any("embedding" in name or "layers.0" in name for name in moments)


def test_freezing_no_layer_freezes_the_embeddings(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = encoder_folder(tiny_tokenizer, tmp_path / "encoder", "albert")
    changed = settings(data, tiny_tokenizer, model=str(where), tokenizer=None, out=tmp_path / "run", freeze=0)
    result = finetune("classification", changed, OPTIONS, console=QUIET)
    before, after = load_file(where / "model.safetensors"), load_file(result.model / "model.safetensors")
    for name in before:
        is_frozen = "embedding" in name  # the projection of the narrow embeddings, too
        assert torch.equal(after[f"albert.{name}"], before[name]) == is_frozen, name


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_the_highest_layers_start_from_initial_weights(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, model_type: str
) -> None:
    """Those of the seed: what a model of random weights with the same seed has."""
    where = encoder_folder(tiny_tokenizer, tmp_path / "encoder", model_type)
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "epochs": 0.2, "tokenizer": None}
    first = settings(data, tiny_tokenizer, model=str(where), out=tmp_path / "first", **still)
    tuned = finetune("classification", first, OPTIONS, console=QUIET)
    again = replace(first, model=str(tuned.folder), seed=7)
    anew = finetune("classification", replace(again, out=tmp_path / "anew", reinit_layers=1), OPTIONS, console=QUIET)
    other = encoder_folder(tiny_tokenizer, tmp_path / "other", model_type)
    weights = load_file(other / "model.safetensors")  # other weights below do not change what is made anew
    lower = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(lower, other / "model.safetensors", metadata={"format": "pt"})
    changed = replace(again, model=str(other), out=tmp_path / "other-run", reinit_layers=1)
    elsewhere = finetune("classification", changed, OPTIONS, console=QUIET)
    old, new, reference = (load_file(run.model / "model.safetensors") for run in (tuned, anew, elsewhere))
    is_anew = {name for name in new if not torch.equal(new[name], old[name])}
    names = {name for name in new if torch.equal(new[name], reference[name])}
    assert is_anew <= names  # norms and biases have the same initial values in every seed
    assert {name for name in names if "embeddings" in name or "ayer.0." in name or "ayers.0." in name} == set()
    assert {name for name in new if "ayer.1." in name or "ayers.1." in name} <= names
    above = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "head.dense.weight"}
    assert (above | {"model.final_norm.weight"}) & new.keys() <= names
    saved = json.loads((anew.model / "bertsmith.json").read_text())["new_tensors"]
    assert "encoder.layers.1.qkv.weight" in saved and "pooled.dense.weight" in saved
    assert not any("layers.0" in name or "embedding" in name for name in saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": 3}, "freeze is 3; this model has 2 layers"),
        ({"reinit_layers": 3}, "reinit_layers is 3; this model has 2 layers"),
        ({"freeze": 2, "reinit_layers": 1}, "has to be trained"),
        ({"freeze": 2, "layers": 1}, "freeze is 2; this model has 1 layers"),
        ({"freeze": -1}, "freeze must be at least 0"),
        ({"reinit_layers": 0}, "reinit_layers must be at least 1"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        finetune("classification", settings(data, tiny_tokenizer, out=tmp_path / "run", **changes), OPTIONS)
    assert not (tmp_path / "run").exists()


def test_layer_decay_reaches_the_optimizer_and_is_kept_on_resume(
    data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    base = settings(data, tiny_tokenizer, epochs=0.2, max_grad_norm=0.0, weight_decay=0.0, dropout=0.0)
    runs = {}
    for decay in (None, 1.0, 1e-9):
        changed = replace(base, out=tmp_path / str(decay), layer_decay=decay)
        runs[decay] = load_file(finetune("classification", changed, OPTIONS).model / "model.safetensors")
    still = load_file(
        finetune("classification", replace(base, out=tmp_path / "still", learning_rate=0.0), OPTIONS).model
        / "model.safetensors"
    )
    for name, tensor in still.items():
        assert torch.equal(runs[None][name], runs[1.0][name])
        is_head = name.startswith(("classifier", "bert.pooler"))
        assert torch.allclose(runs[1e-9][name], tensor, rtol=0, atol=1e-9) != is_head, name
    with pytest.raises(TrainingError, match=r"optimizer\.layer_decay was 1\.0 and is now 0\.5"):
        finetune("classification", replace(base, out=tmp_path / "1.0", layer_decay=0.5, resume=True), OPTIONS)


def test_few_rows_to_choose_by_are_said(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    page = io.StringIO()
    few = settings(data, tiny_tokenizer, out=tmp_path / "few", epochs=0.1, dev=None, dev_share=0.001)
    finetune("classification", few, OPTIONS, console=Console(file=page, width=200))
    assert "Only 1 of these were held back as dev, too few to tell one checkpoint from another" in page.getvalue()
