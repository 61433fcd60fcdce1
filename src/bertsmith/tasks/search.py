"""A search for the learning rate, batch size and number of epochs that are best on dev.

Optuna proposes them, by a tree of Parzen estimators (Bergstra et al. 2011, Algorithms for Hyper-Parameter
Optimization). The first trial has the settings as they were given. A trial is a function of the settings and of the
trials before it, so that a search that was stopped goes on as if it had not been. With n jobs, the last n - 1 of these
are known to be under way, and nothing else.

out/
    config.yaml     the settings
    report.html     a row a trial, and what became of each learning rate
    trial-00/ ...   a run each, and result.json when it has finished; only the best keeps its model and checkpoints
    model/          the best on dev
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from bertsmith.errors import MissingExtraError, SettingsError, TrainingError
from bertsmith.settings import read_config
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_folder import OF_A_TRIAL
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.tasks.seeds import SeedRun, discard_weights, publish_run
from bertsmith.training.report import Curves, Section, Table

_RATE_SPAN = 4.0
_FACTORS = (0.5, 1.0, 2.0)
_STARTUP_TRIALS = 5
"""Trials by chance, before the estimators have something to go by."""


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and what came of them; None if they failed."""

    settings: FinetuneSettings
    run: SeedRun | None

    @property
    def objective(self) -> float | None:
        """The first metric on dev."""
        return None if self.run is None else next(iter(self.run.metrics["dev"].values()))


def check(settings: FinetuneSettings) -> None:
    """Refuse a search that cannot be made.

    Raises:
        MissingExtraError: Optuna is not installed.
        SettingsError: to resume, but `out` holds one run, or one run is asked for where it holds a search, or fewer
            trials are than it holds, or the search was begun with other jobs: its trials would be others.
    """
    num_trials = len(list(settings.out.glob(f"{OF_A_TRIAL}*")))
    is_search = num_trials > 0
    if settings.resume and (settings.out / "checkpoints").exists() and settings.search is not None:
        raise SettingsError(f"{settings.out} holds a single run, and search is given. Choose another folder.")
    if settings.resume and is_search and settings.search is None:
        raise SettingsError(f"{settings.out} holds a search. Say how many trials with search.")
    if settings.resume and settings.search is not None and num_trials > settings.search:
        raise SettingsError(f"{settings.out} holds {num_trials} trials: give search {num_trials} or more.")
    if settings.search is not None:
        _optuna()
    if settings.resume and is_search:
        jobs = read_config(settings.out / "config.yaml").get("jobs", 1)
        if jobs != settings.jobs:
            raise SettingsError(
                f"{settings.out} holds a search that was begun with jobs {jobs}, and goes on with as many."
            )


def propose(
    settings: FinetuneSettings,
    trials: Sequence[Trial],
    under_way: Sequence[FinetuneSettings] = (),
    *,
    greater_is_better: bool,
) -> FinetuneSettings | None:
    """The settings of the next trial; None when there have been enough.

    Args:
        trials: those that have ended.
        under_way: those that were begun after them; the next one keeps away from them, as if they had been bad.
    """
    number = len(trials) + len(under_way)
    if number == settings.search:
        return None
    chosen: Mapping[str, Any] = {}
    if number > 0:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        space = _space(settings, optuna)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=(settings.seed + number) % 2**32,
                n_startup_trials=_STARTUP_TRIALS,
                constant_liar=bool(under_way),
            )
        study = optuna.create_study(direction="maximize" if greater_is_better else "minimize", sampler=sampler)
        states = optuna.trial.TrialState
        told = [
            (one.settings, one.objective, states.FAIL if one.objective is None else states.COMPLETE) for one in trials
        ]
        for tried, value, state in [*told, *((one, None, states.RUNNING) for one in under_way)]:
            values = {name: getattr(tried, name) for name in space}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=space, value=value, state=state))
        chosen = study.ask(space).params
    return replace(settings, **chosen, search=None, jobs=1, out=settings.out / f"{OF_A_TRIAL}{number:02}")


def _space(settings: FinetuneSettings, optuna: ModuleType) -> dict[str, Any]:
    """From a quarter to four times the learning rate, from half to twice the batch size and the epochs."""
    (epochs, rate), batch_size = settings.settled, settings.batch_size
    choices = optuna.distributions.CategoricalDistribution
    smallest = min(batch_size, 2)  # of one text there is nothing to mix, and of one pair nothing to tell it from
    return {
        "learning_rate": optuna.distributions.FloatDistribution(rate / _RATE_SPAN, rate * _RATE_SPAN, log=True),
        "batch_size": choices(sorted({max(smallest, round(batch_size * factor)) for factor in _FACTORS})),
        "epochs": choices([epochs * factor for factor in _FACTORS]),
    }


def describe(settings: FinetuneSettings) -> str:
    """What a trial tries, in words."""
    epochs, rate = settings.settled
    return f"learning_rate {rate:.3g}, batch_size {settings.batch_size}, epochs {epochs:g}"


def best_of(trials: Sequence[Trial], task: FinetuneTask) -> Trial:
    """The trial with the best first metric on dev, of several the first.

    Raises:
        TrainingError: every one failed.
    """
    finished = [trial for trial in trials if trial.objective is not None]
    if not finished:
        raise TrainingError(f"all {len(trials)} trials failed. A lower learning_rate may help.")
    sign = 1 if task.greater_is_better else -1
    return max(finished, key=lambda trial: sign * (trial.objective or 0.0))


def failures(trials: Sequence[Trial]) -> list[str]:
    """Which trials learnt nothing, though all their steps could be taken."""
    names = [trial.settings.out.name for trial in trials if trial.run is not None and trial.run.failure]
    return [f"{len(names)} of {len(trials)} trials learnt nothing: {', '.join(names)}."] if names else []


def tidy(trials: Sequence[Trial], task: FinetuneTask) -> None:
    """Remove models and checkpoints of finished trials that are not the best so far."""
    if all(trial.run is None for trial in trials):
        return
    best = best_of(trials, task)
    for trial in trials:
        if trial.run is not None and trial is not best:
            discard_weights(trial.settings.out)


def publish(trials: Sequence[Trial], best: Trial, out: Path) -> None:
    """Put a copy of the best trial's model into `out`; its card says that it was chosen, and among how many."""
    said = f"\n## Search\n\nThe best on dev of {len(trials)} trials ({describe(best.settings)}).\n"
    publish_run(best.settings.out, out, said)


def sections(trials: Sequence[Trial], best: Trial) -> list[Section]:
    """For the report: a row a trial, the best first; and the objective by learning rate."""
    assert best.run is not None
    name = next(iter(best.run.metrics["dev"]))
    ranked = sorted(trials, key=lambda trial: (trial is not best, trial.objective is None))
    rows = [
        (
            trial.settings.out.name + (" (best)" if trial is best else ""),
            trial.settings.learning_rate,
            trial.settings.batch_size,
            trial.settings.epochs,
            "failed" if trial.objective is None else trial.objective,
            (trial.run and trial.run.failure) or "",
            f"{trial.settings.out.name}/report.html",
        )
        for trial in ranked
    ]
    points = sorted((trial.settings.settled[1], trial.objective) for trial in trials if trial.objective is not None)
    curve = ([rate for rate, _ in points], [value for _, value in points])
    columns = ("trial", "learning rate", "batch size", "epochs", f"{name} on dev", "learnt nothing", "report")
    return [
        Table(
            f"{len(trials)} trials", columns, rows, "The best was chosen on dev, whose figure is therefore too good."
        ),
        Curves(f"{name} on dev by learning rate", "learning rate", name, {"trials": curve}),
    ]


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "search", "search") from error
    module: ModuleType = optuna
    return module
