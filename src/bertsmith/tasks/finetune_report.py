"""The report of a fine-tuning: of one run, of the same with several seeds or folds, or of a search."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bertsmith.errors import InputError, StepError
from bertsmith.tasks import search, seeds
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.tasks.search import Trial
from bertsmith.tasks.seeds import SeedRun
from bertsmith.text.sources import HUB, expand_sources
from bertsmith.training.evaluate import Evaluation
from bertsmith.training.plan import TrainResult
from bertsmith.training.report import Section, Table, Text, data_table, training_sections, write_report


def data_files(settings: FinetuneSettings) -> list[Path]:
    """The local files of all splits."""
    return local_files((settings.train, settings.dev, settings.test))


def local_files(sources: Iterable[str | None]) -> list[Path]:
    """The local files among sources: files, and those that are read of a folder or a pattern."""
    files: list[Path] = []
    for source in filter(None, sources):
        path = Path(source).expanduser()
        if path.is_file():
            files.append(path)
            continue
        with suppress(InputError):  # the readers say what is wrong with it
            files += [file for file in map(Path, expand_sources([source])) if file.is_file()]
    return files


def data_fingerprint(settings: FinetuneSettings, hashes: Mapping[str, str]) -> str:
    """Says what a run learns from, wherever it lies: the SHA-256 of its files, and names on the Hub.

    Args:
        hashes: of the files, in the order of `data_files`.
    """
    on_hub = [name for name in (settings.train, settings.dev, settings.test) if name and name.startswith(HUB)]
    return ", ".join([*(value[:16] for value in hashes.values()), *on_hub])


def write_run_report(
    task: FinetuneTask,
    settings: FinetuneSettings,
    configuration: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    training: TrainResult,
    failure: str | None,
) -> None:
    """`report.html` of one run: figures, the task's own sections of its last split, curves, data.

    Args:
        failure: how it learnt nothing, if it did.
    """
    sections: list[Section] = [] if failure is None else [Text("This run learnt nothing", [f"{failure}."])]
    found, facts = results(task, evaluations)
    sections += found
    facts |= {"steps": f"{training.step:,}", "tokens": f"{training.tokens:,}", "seconds": f"{training.seconds:,.0f}"}
    if training.best_step is not None:
        facts["best step"] = f"{training.best_step:,}"
    if training.stopped_early:
        facts["stopped early"] = f"{settings.early_stopping} evaluations in a row without a new best"
    is_regression = isinstance(task, Classification) and task.settings.regression
    unit = "squared error by the variance" if is_regression else "nats"
    sections += training_sections(settings.out / "metrics.jsonl", unit)
    sections += _data_sections(task, settings)
    write_report(settings.out, f"Fine-tuning: {task.name}", sections, config=configuration, facts=facts)


def results(task: FinetuneTask, evaluations: Mapping[str, Evaluation]) -> tuple[list[Section], dict[str, str]]:
    """The figures of each split, and what the task shows of the last; and the figures that stand above all."""
    if not evaluations:
        return [], {}
    # What a split has no example of has no figure there, such as a type of entity.
    names = list(dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.metrics))
    rows = [(name, *(evaluation.metrics.get(name, "") for evaluation in evaluations.values())) for name in names]
    sections: list[Section] = [Table("Results", ("metric", *evaluations), rows)]
    split, last = list(evaluations.items())[-1]
    own = task.sections(last.answers, last.examples)
    if own and len(evaluations) > 1:
        sections.append(Text("Details", [f"What follows, up to the curves, is of {split} alone."]))
    facts = {f"{names[0]} on {split}": f"{evaluation.objective:.4f}" for split, evaluation in evaluations.items()}
    return [*sections, *own], facts


def write_seeds_report(
    task: FinetuneTask,
    settings: FinetuneSettings,
    configuration: Mapping[str, Any],
    runs: Sequence[SeedRun],
    best: SeedRun,
    stopped: Mapping[str, StepError],
) -> None:
    """`report.html` of several runs, each of which has its own beside it.

    Args:
        stopped: folder -> why that run could not go on.
    """
    facts = {}
    for split, metrics in seeds.spread(runs).items():
        name, one = next(iter(metrics.items()))
        facts[f"{name} on {split}, mean and deviation"] = f"{one.mean:.4f} ± {one.deviation:.4f}"
    num_failed = sum(run.failure is not None for run in runs) + len(stopped)
    facts |= {"best seed": str(best.seed), "failed": f"{num_failed} of {len(runs) + len(stopped)}"}
    sections = [*seeds.sections(runs, best, stopped), *_data_sections(task, settings)]
    title = f"Fine-tuning: {task.name}, {len(runs) + len(stopped)} seeds"
    write_report(settings.out, title, sections, config=configuration, facts=facts)


def write_folds_report(
    task: FinetuneTask,
    settings: FinetuneSettings,
    configuration: Mapping[str, Any],
    runs: Sequence[SeedRun],
    folds: Section,
) -> None:
    """`report.html` of a cross-validation, whose runs have their own beside it.

    Args:
        folds: how large they are.
    """
    name, one = next(iter(seeds.spread(runs)["test"].items()))
    facts = {
        f"{name} on the folds, mean and deviation": f"{one.mean:.4f} ± {one.deviation:.4f}",
        "failed": f"{sum(run.failure is not None for run in runs)} of {len(runs)}",
    }
    note = Text("Test", ["The test of each run is its fold, from which it has learnt nothing."])
    sections = [*seeds.sections(runs, None), note, folds, data_table(data_files(settings))]
    title = f"Fine-tuning: {task.name}, {len(runs)} folds"
    write_report(settings.out, title, sections, config=configuration, facts=facts)


def write_search_report(
    task: FinetuneTask,
    settings: FinetuneSettings,
    configuration: Mapping[str, Any],
    trials: Sequence[Trial],
    best: Trial,
) -> None:
    """`report.html` of a search, whose trials have their own beside it."""
    assert best.run is not None
    facts = {
        f"{name} on {split}": f"{value:.4f}"
        for split, metrics in best.run.metrics.items()
        for name, value in list(metrics.items())[:1]
    }
    facts |= {
        "best trial": best.settings.out.name,
        "failed": f"{sum(trial.run is None for trial in trials)}",
        "learnt nothing": f"{sum(trial.run is not None and trial.run.failure is not None for trial in trials)}",
    }
    sections = [*search.sections(trials, best), *_data_sections(task, settings)]
    title = f"Fine-tuning: {task.name}, a search of {len(trials)} trials"
    write_report(settings.out, title, sections, config=configuration, facts=facts)


def _data_sections(task: FinetuneTask, settings: FinetuneSettings) -> list[Section]:
    """What was learnt from."""
    sizes = []
    for split in ("train", "dev", "test"):
        examples = task.examples(split)
        lengths = [examples.num_tokens(index) for index in range(examples.num_examples(0))]
        if lengths:
            sizes.append((split, len(lengths), sum(lengths), max(lengths)))
    sections: list[Section] = [Table("Examples", ("split", "examples", "tokens", "longest"), sizes)]
    if task.notes():
        sections.append(Text("Notes", task.notes()))
    return [*sections, data_table(data_files(settings))]
