"""A search over learning rate, batch size and epochs: what is tried, what is kept, and stopping in between."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bertsmith.cli import main
from bertsmith.errors import Interrupted, MissingExtraError, SettingsError, StepError, TrainingError
from bertsmith.settings import read_config
from bertsmith.tasks import search, teaching
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.search import Trial, propose
from bertsmith.tasks.seeds import SeedRun
from bertsmith.training.report import Curves, Table

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)


def settings(folder: Path, tokenizer: Path, **changes: Any) -> FinetuneSettings:
    words = {"animal": ("cat", "dog", "bird"), "place": ("city", "river", "house")}
    rows = [f"the {one} is {n},{label}" for n in range(10) for label, those in words.items() for one in those]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    values: dict[str, Any] = {"model": "size:tiny", "tokenizer": str(tokenizer), "train": str(folder / "train.csv")}
    values |= {"out": folder / "run", "dev_share": 0.3, "epochs": 1, "batch_size": 16, "learning_rate": 4e-4}
    values |= {"precision": "fp32", "device": "cpu", "search": 4}
    return FinetuneSettings(**{**values, **changes})


def tried(folder: Path) -> list[tuple[float, int, float]]:
    configs = [read_config(path) for path in sorted(folder.glob("trial-*/config.yaml"))]
    return [(config["learning_rate"], config["batch_size"], config["epochs"]) for config in configs]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> tuple[Path, FinetuneResult]:
    folder = tmp_path_factory.mktemp("search")
    return folder / "run", finetune("classification", settings(folder, tiny_tokenizer), OPTIONS, console=QUIET)


def test_the_best_trial_is_the_model(searched: tuple[Path, FinetuneResult]) -> None:
    out, result = searched
    metrics = {path.parent.name: json.loads(path.read_text())["metrics"]["dev"] for path in out.glob("*/result.json")}
    assert sorted(metrics) == [f"trial-{number:02}" for number in range(4)]
    best = max(sorted(metrics), key=lambda name: metrics[name]["accuracy"])
    assert result.metrics["dev"] == metrics[best]
    kept, published = (load_file(place / "model" / "model.safetensors") for place in (out / best, out))
    assert all(torch.equal(kept[name], published[name]) for name in kept)
    assert [path.parent.name for path in out.glob("trial-*/model")] == [best]
    assert [path.parent.name for path in out.glob("trial-*/checkpoints")] == [best]
    assert f"trial-{best[-2:]} (best)" in (out / "report.html").read_text()
    assert "The best on dev of 4 trials (learning_rate" in (out / "model" / "README.md").read_text()


def test_the_first_trial_is_as_was_asked_and_the_others_are_around_it(searched: tuple[Path, FinetuneResult]) -> None:
    first, *others = tried(searched[0])
    assert first == (4e-4, 16, 1.0)
    assert len({first, *others}) == 4
    for rate, batch_size, epochs in others:
        assert 1e-4 <= rate <= 1.6e-3
        assert batch_size in (8, 16, 32)
        assert epochs in (0.5, 1.0, 2.0)


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    searched: tuple[Path, FinetuneResult], tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(tmp_path, tiny_tokenizer, num_workers=0)
    learn, runs = teaching.Teaching.learn, []

    def stop_in_the_third(self: Any, settings: Any, *rest: Any) -> Any:
        runs.append(settings.out.name)
        if len(runs) == 3:
            signal.raise_signal(signal.SIGINT)
        return learn(self, settings, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="with --resume to go on"):
        patch.setattr(teaching.Teaching, "learn", stop_in_the_third)
        finetune("classification", own, OPTIONS, console=QUIET)
    runs.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            teaching.Teaching, "learn", lambda self, one, *rest: runs.append(one.out.name) or learn(self, one, *rest)
        )
        resumed = finetune("classification", replace(own, resume=True), OPTIONS, console=QUIET)
    assert runs == ["trial-02", "trial-03"]
    assert tried(own.out) == tried(searched[0])
    assert resumed.metrics == searched[1].metrics
    with pytest.raises(TrainingError, match=r"dropout was None and is now 0\.5"):
        finetune("classification", replace(own, resume=True, dropout=0.5), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match=r"holds 4 trials: give search 4 or more"):
        finetune("classification", replace(own, resume=True, search=2), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match=r"holds a search\. Say how many trials"):
        finetune("classification", replace(own, resume=True, search=None), OPTIONS, console=QUIET)


def test_a_trial_that_diverges_does_not_end_the_search(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = teaching.Teaching.learn

    def fail_in_the_second(self: Any, settings: Any, *rest: Any) -> Any:
        if settings.out.name == "trial-01":
            raise StepError("step 3: the loss is not finite")
        return learn(self, settings, *rest)

    monkeypatch.setattr(teaching.Teaching, "learn", fail_in_the_second)
    own = settings(tmp_path, tiny_tokenizer, search=3)
    finetune("classification", own, OPTIONS, console=QUIET)
    assert (own.out / "trial-02" / "result.json").exists()
    assert "<td>failed</td>" in (own.out / "report.html").read_text()
    monkeypatch.setattr(search, "propose", lambda *all, **named: None)
    with pytest.raises(TrainingError, match="all 1 trials failed"):
        search.best_of([Trial(own, None)], Classification)  # type: ignore[arg-type]


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_it_goes_where_it_is_better(tmp_path: Path, greater_is_better: bool) -> None:
    """On a figure that depends on the learning rate alone, beside draws by chance."""
    own = settings(tmp_path, tmp_path, search=40)

    def loss(rate: float) -> float:
        return abs(torch.tensor(rate / 1.3e-3).log().item())

    trials: list[Trial] = []
    while (next_one := propose(own, trials, greater_is_better=greater_is_better)) is not None:
        value = loss(next_one.learning_rate)
        metrics = {"dev": {"accuracy": -value if greater_is_better else value}}
        trials.append(Trial(next_one, SeedRun(0, next_one.out, metrics, None, None)))  # type: ignore[arg-type]
    found = sorted(loss(trial.settings.learning_rate) for trial in trials[-20:])
    by_chance = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = sorted(loss(by_chance.ask().suggest_float("rate", 1e-4, 1.6e-3, log=True)) for _ in range(200))
    assert found[10] < drawn[40]  # the median of the last is within the best fifth
    assert trials[7].settings == propose(own, trials[:7], greater_is_better=greater_is_better)


@pytest.mark.parametrize(("batch_size", "tried"), [(1, {1, 2}), (2, {2, 4}), (8, {4, 8, 16})])
def test_no_trial_has_batches_of_one_text(tmp_path: Path, batch_size: int, tried: set[int]) -> None:
    """Which mixup and embeddings refuse."""
    own = settings(tmp_path, tmp_path, search=60, batch_size=batch_size)
    trials: list[Trial] = []
    while (one := propose(own, trials, greater_is_better=True)) is not None and len(trials) < 20:
        trials.append(Trial(one, SeedRun(0, one.out, {"dev": {"accuracy": 0.5}}, None, None)))  # type: ignore[arg-type]
    assert {trial.settings.batch_size for trial in trials} == tried


def test_trials_under_way_are_known_and_kept_away_from(tmp_path: Path) -> None:
    own = settings(tmp_path, tmp_path, search=60)

    def trial(number: int, rate: float, value: float) -> Trial:
        tried = replace(own, learning_rate=rate, search=None, out=own.out / f"trial-{number:02}")
        return Trial(tried, SeedRun(0, tried.out, {"dev": {"accuracy": value}}, None, None))  # type: ignore[arg-type]

    rates = [1e-4 * 16 ** (number / 29) for number in range(30)]
    trials = [trial(number, rate, float(rate > 1e-3)) for number, rate in enumerate(rates)]
    alone = propose(own, trials, greater_is_better=True)
    assert alone is not None
    beside = propose(own, trials, [alone] * 3, greater_is_better=True)
    assert beside is not None and (beside.out.name, beside.jobs) == ("trial-33", 1)
    assert beside == propose(own, trials, [alone] * 3, greater_is_better=True)
    assert beside.learning_rate != propose(own, [*trials, trials[0], trials[0], trials[0]], greater_is_better=True)
    assert propose(replace(own, search=31), trials, [alone], greater_is_better=True) is None


def test_trials_that_learnt_nothing_are_counted(tmp_path: Path) -> None:
    own = settings(tmp_path, tmp_path)
    ends = ["every prediction is a on dev", None]
    runs = [SeedRun(0, tmp_path, {"dev": {"f1": 0.5}}, None, end) for end in ends]  # type: ignore[arg-type]
    trials = [Trial(replace(own, out=tmp_path / f"trial-0{n}"), run) for n, run in enumerate([*runs, None])]
    assert search.failures(trials) == ["1 of 3 trials learnt nothing: trial-00."]
    assert search.failures(trials[1:]) == []


def test_sections_rank_the_best_first(tmp_path: Path) -> None:
    own = settings(tmp_path, tmp_path)
    runs = [SeedRun(0, tmp_path, {"dev": {"f1": value}}, None, None) for value in (0.5, 0.9)]  # type: ignore[arg-type]
    trials = [Trial(replace(own, out=tmp_path / f"trial-0{n}"), run) for n, run in enumerate([*runs, None])]
    table, curve = search.sections(trials, trials[1])
    assert isinstance(table, Table) and isinstance(curve, Curves)
    assert [row[0] for row in table.rows] == ["trial-01 (best)", "trial-00", "trial-02"]
    assert table.rows[2][4] == "failed"
    assert curve.series["trials"] == ([4e-4, 4e-4], [0.5, 0.9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": 0}, "search must be at least 1"),
        ({"learning_rate": 0.0}, "it must be positive"),
        ({"seeds": 2}, "search first, then run the best with seeds"),
        ({"dev_share": 0.0}, "the best is chosen on dev, and there is none"),
    ],
)
def test_what_cannot_be_searched(tiny_tokenizer: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(tmp_path, tiny_tokenizer, **changes)


def test_without_optuna_the_extra_is_named(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "bertsmith\[search\]"'):
        finetune("classification", settings(tmp_path, tiny_tokenizer), OPTIONS, console=QUIET)
    assert not (tmp_path / "run").exists()


def test_the_command(tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(tmp_path, tiny_tokenizer)
    files = [f"--train={own.train}", f"--tokenizer={tiny_tokenizer}", f"--out={own.out}", "--max-length=24"]
    sizes = ["--model=size:tiny", "--epochs=0.5", "--batch-size=16", "--device=cpu"]
    assert main(["finetune", "classification", *files, *sizes, "--search=2"]) == 0
    said = capsys.readouterr()
    assert "Trial 2 of 2: learning_rate" in said.err and "Best on dev: learning_rate" in said.err
    assert "dev: accuracy" in said.out
