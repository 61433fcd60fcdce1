"""The same fine-tuning with several seeds: what each came to, which of them failed, and the best of them.

On small data a fine-tuning is a draw: another seed gives other figures, and some runs learn nothing at all (Mosbach et
al. 2021, arXiv 2006.04884). A mean with its deviation says more than the best of them.

out/
    config.yaml   the settings
    report.html   mean and deviation of every metric, and a row a run
    seed-0/ ...   a run each, and result.json when it has finished
    model/        the best on dev
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.errors import SettingsError, StepError, TrainingError
from bertsmith.files import atomic_folder, atomic_write, read_json, write_json
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.answer_spans import decide
from bertsmith.tasks.choose import Choosing
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.embed import Embedding, of_length_1
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_folder import OF_A_SEED
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.tasks.tag import Tagging
from bertsmith.training.evaluate import Evaluation
from bertsmith.training.plan import TrainResult
from bertsmith.training.progress import read_metrics
from bertsmith.training.report import Curves, Section, Table

Metrics = dict[str, dict[str, float]]
"""Split -> metric -> value."""

_RESULT = "result.json"
_NOT_YET_NOTED = {"evaluate_every", "early_stopping", "weights"}  # in runs that ended before these were
_LINES = 20  # of metrics.jsonl in a short run
_LAST_SHARE = 0.25  # of them tells how a run ended
_FEWEST_ANSWERS = 8  # fewer may well all be the same
_SAME_NUMBER = 0.01  # of the range of the middle half of the data
_SAME_VECTOR = 1e-3  # in every direction, of length 1


@dataclass(frozen=True)
class SeedRun:
    """What one seed came to."""

    seed: int
    folder: Path
    metrics: Metrics
    training: TrainResult
    failure: str | None
    """How it learnt nothing, if it did."""


@dataclass(frozen=True)
class Spread:
    """A metric over several runs: its mean, and its sample standard deviation (n - 1)."""

    mean: float
    deviation: float


def seed_settings(settings: FinetuneSettings) -> list[FinetuneSettings]:
    """The settings of each seed's run.

    Raises:
        SettingsError: to resume, but `out` holds one run where several are asked for, several where one is, or more
            than are asked for.
    """
    out = settings.out
    if settings.resume and settings.seeds > 1 and (out / "checkpoints").exists():
        raise SettingsError(f"{out} holds a run of one seed, and seeds is {settings.seeds}. Choose another folder.")
    if settings.resume and settings.seeds == 1 and any(out.glob(f"{OF_A_SEED}*")):
        raise SettingsError(f"{out} holds a run of several seeds. Say how many with seeds.")
    if settings.seeds == 1:
        return [settings]
    seeds = range(settings.seed, settings.seed + settings.seeds)
    others = {path.name for path in out.glob(f"{OF_A_SEED}*")} - {f"{OF_A_SEED}{seed}" for seed in seeds}
    if settings.resume and others:
        raise SettingsError(
            f"{out} holds {', '.join(sorted(others))}, which {settings.seeds} seeds from {settings.seed} on leave out. "
            "Give as many as it holds, or more."
        )
    return [replace(settings, seed=seed, seeds=1, jobs=1, out=out / f"{OF_A_SEED}{seed}") for seed in seeds]


def log_interval(settings: FinetuneSettings, num_examples: int) -> int:
    """Steps between the lines of metrics.jsonl: so many that they tell, on any machine, how a short run went."""
    return max(1, min(50, int(settings.settled[0] * num_examples / settings.batch_size / _LINES)))


def write_finished(run: SeedRun, fingerprint: Mapping[str, Any]) -> None:
    """Note in its folder that a run has finished, with what it must be the same as to be taken as it is."""
    training = {**asdict(run.training), "checkpoint": run.training.checkpoint.name}
    values = {"metrics": run.metrics, "failure": run.failure, "training": training, "fingerprint": dict(fingerprint)}
    write_json(run.folder / _RESULT, values)


def read_finished(settings: FinetuneSettings, fingerprint: Mapping[str, Any]) -> SeedRun | None:
    """A run that has finished; None if it has not.

    Raises:
        TrainingError: it was made with other settings or data; names one.
    """
    path = settings.out / _RESULT
    if not path.is_file():
        return None
    saved = read_json(path)
    before: dict[str, Any] = saved["fingerprint"]
    for name in sorted((before.keys() | fingerprint.keys()) - (_NOT_YET_NOTED - before.keys())):
        if before.get(name) != fingerprint.get(name):
            raise TrainingError(
                f"cannot resume {settings.out}: {name} was {before.get(name)} and is now {fingerprint.get(name)}. "
                "Use the old value, or start a new run in another folder."
            )
    checkpoint = settings.out / "checkpoints" / saved["training"]["checkpoint"]
    training = TrainResult(**{**saved["training"], "checkpoint": checkpoint})
    return SeedRun(settings.seed, settings.out, saved["metrics"], training, saved["failure"])


def find_failure(
    task: FinetuneTask, evaluations: Mapping[str, Evaluation], run_folder: Path, *, goes_on: bool = False
) -> str | None:
    """How a run learnt nothing; None if it learnt something.

    Either it had a single step, whose rate is 0, or all its answers to a split of eight examples or more are the same
    where the data's are not, or its loss has not fallen: the mean over the last quarter of metrics.jsonl is not below
    the first line.

    Args:
        goes_on: it began with a head that knew the task, whose loss need not fall.
    """
    lines = [line for line in read_metrics(run_folder / "metrics.jsonl") if line["kind"] == "train"]
    if lines and (lines[-1]["step"], lines[-1]["learning_rate"]) == (1, 0):  # from which it would have risen
        return "its only step had a learning rate of 0: give more epochs, or a smaller batch_size"
    if same := equal_answers(task, evaluations):
        return same
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    last = losses[1:][-max(1, int(len(losses) * _LAST_SHARE)) :]
    if last and np.mean(last) >= losses[0] and not goes_on:
        return f"the training loss went from {losses[0]:.4f} to {np.mean(last):.4f}"
    return None


def equal_answers(task: FinetuneTask, evaluations: Mapping[str, Evaluation]) -> str | None:
    """What all answers to a split of eight examples or more are, where the data's are not the same; else None."""
    for split, evaluation in evaluations.items():
        if len(evaluation.answers) < _FEWEST_ANSWERS:
            continue
        if same := _same_answers(task, evaluation):
            return f"{same} on {split}"
    return None


def _same_answers(task: FinetuneTask, evaluation: Evaluation) -> str | None:
    """What every answer is, where the data has more than that."""
    answers, rows = evaluation.answers, [example.row for example in evaluation.examples]
    if isinstance(task, Classification) and task.settings.regression:
        values, gold = [answer.score for answer in answers], [example.target for example in evaluation.examples]
        usual = np.subtract(*np.percentile(gold, [75, 25])) or np.ptp(gold)  # one far away says nothing of the others
        is_same = np.ptp(values) < _SAME_NUMBER * usual
        return f"every number is about {np.mean(values):.4g}" if is_same else None
    if isinstance(task, Classification) and task.settings.multi_label:
        found, gold = [", ".join(answer.labels) or "no label" for answer in answers], [row.labels for row in rows]
        return _one_of_many(found, gold)
    if isinstance(task, Classification):
        return _one_of_many([answer.label for answer in answers], [row.label for row in rows])
    if isinstance(task, Tagging) and task.has_entities:
        has_entities = any(tag != "O" for row in rows for tag in row.tags or ())
        return "no entity was found" if has_entities and not any(answer.entities for answer in answers) else None
    if isinstance(task, Tagging):
        gold = [tag for row in rows for tag in row.tags or ()]
        return _one_of_many([label for answer in answers for label in answer.labels], gold)
    if isinstance(task, Choosing):
        return _one_of_many([answer.index for answer in answers], [row.label for row in rows])
    if isinstance(task, Embedding):
        vectors = of_length_1(np.stack([answer.vectors[0] for answer in answers]))
        is_same = len({row.text for row in rows}) > 1 and np.ptp(vectors, axis=0).max() < _SAME_VECTOR
        return "every text has the same vector" if is_same else None
    if isinstance(task, Answering):
        # By itself: dev may find that a model which answers had better be silent.
        unmoved = replace(task.settings, no_answer_threshold=None)
        is_silent = not any(decide(answer, unmoved).text for answer in answers)
        return "no question was answered" if is_silent and any(row.answers for row in rows) else None
    return None


def _one_of_many(predicted: Sequence[object], gold: Sequence[object]) -> str | None:
    if len(set(predicted)) > 1 or len(set(gold)) < 2:
        return None
    return f"every prediction is {predicted[0]}"


def best_of(runs: Sequence[SeedRun], task: FinetuneTask) -> SeedRun:
    """The run with the best first metric on dev, of several the first."""
    sign = 1 if task.greater_is_better else -1
    return max(runs, key=lambda run: sign * next(iter(run.metrics["dev"].values())))


def spread(runs: Sequence[SeedRun]) -> dict[str, dict[str, Spread]]:
    """Split -> metric -> mean and deviation over the runs, the failed ones too; one run deviates by 0.

    A metric that some runs lack, such as the F1 of a type that is not in every fold, is that of the others.
    """
    found: dict[str, dict[str, Spread]] = {}
    for split in runs[0].metrics:
        names = dict.fromkeys(name for run in runs for name in run.metrics[split])
        values = {name: [run.metrics[split][name] for run in runs if name in run.metrics[split]] for name in names}
        found[split] = {
            name: Spread(float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else 0.0)
            for name, each in values.items()
        }
    return found


def sections(
    runs: Sequence[SeedRun], best: SeedRun | None, stopped: Mapping[str, StepError] | None = None
) -> list[Section]:
    """For the report: each metric's mean and deviation, a row a run, and how each run's objective on dev grew.

    Args:
        runs: in folders of names such as "seed-0"; what they are called begins with the same word.
        best: is marked; None: none is.
        stopped: folder -> why that run could not go on, of those that have no figures.
    """
    what = _name(runs[0]).partition(" ")[0]
    splits = spread(runs)
    columns = ["metric"]
    for split in splits:
        columns += [f"{split}, mean", "deviation"]
    names = list(dict.fromkeys(name for metrics in splits.values() for name in metrics))
    rows: list[list[object]] = []
    for name in names:
        found = [metrics.get(name) for metrics in splits.values()]
        rows.append([name, *(cell for one in found for cell in ((one.mean, one.deviation) if one else ("", "")))])
    objective = names[0]
    each = [
        (
            _name(run).removeprefix(f"{what} ") + (" (best)" if run is best else ""),
            *(metrics.get(objective, "") for metrics in run.metrics.values()),
            run.failure or "",
            f"{run.folder.name}/report.html",
        )
        for run in runs
    ]
    each += [
        (name.removeprefix(f"{what}-"), *("" for _ in splits), f"stopped: {error}", "")
        for name, error in (stopped or {}).items()
    ]
    said = failures(runs, stopped)
    found_sections: list[Section] = [
        Table(f"{len(runs)} {what}s", columns, rows, f"Sample standard deviation (n - 1). {said}"),
        Table("Runs", (what, *(f"{objective} on {split}" for split in splits), "failure", "report"), each),
    ]
    curves = {_name(run): _learning_curve(run.folder, objective) for run in runs}
    if any(len(steps) > 1 for steps, _ in curves.values()):
        found_sections.append(Curves(f"{objective} on dev, each {what}", "step", objective, curves))
    return found_sections


def _learning_curve(folder: Path, metric: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the evaluations of one run."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "eval"]
    found = [(float(line["step"]), float(line["metrics"][metric])) for line in lines if metric in line["metrics"]]
    return [step for step, _ in found], [value for _, value in found]


def _name(run: SeedRun) -> str:
    """What a run is called: "seed 0" in the folder seed-0."""
    return run.folder.name.replace("-", " ")


def failures(runs: Sequence[SeedRun], stopped: Mapping[str, StepError] | None = None) -> str:
    """How many runs learnt nothing, and how, and which could not go on, in a sentence each."""
    lost = f" Could not go on, and in no figure: {', '.join(stopped)}." if stopped else ""
    failed = [run for run in runs if run.failure]
    how = "; ".join(f"{_name(run)}: {run.failure}" for run in failed)
    learnt = "Every run learnt something."
    if failed:
        learnt = f"{len(failed)} of {len(runs)} runs learnt nothing, and are in the mean all the same ({how})."
    return learnt + lost


def publish(runs: Sequence[SeedRun], best: SeedRun, out: Path, stopped: Mapping[str, StepError] | None = None) -> None:
    """Put a copy of the best run's model into `out`; its card says that it was chosen, and from what."""
    lines = [
        f"\n## Seeds\n\nThe best on dev of {len(runs)} runs with different seeds (this is seed {best.seed}). "
        f"{failures(runs, stopped)}\n",
        "| | mean | standard deviation |\n| --- | ---: | ---: |",
    ]
    for split, metrics in spread(runs).items():
        lines += [f"| {name}, {split} | {one.mean:.4f} | {one.deviation:.4f} |" for name, one in metrics.items()]
    publish_run(best.folder, out, "\n".join(lines) + "\n")


def discard_weights(run: Path) -> None:
    """Remove the model and the checkpoints of a run that has finished; its figures stay."""
    for name in ("model", "checkpoints"):
        shutil.rmtree(run / name, ignore_errors=True)


def publish_run(run: Path, out: Path, said: str) -> None:
    """Put a copy of a run's model into `out`, with `said` at the end of its card."""
    with atomic_folder(out / "model", replace=True) as temporary:
        shutil.copytree(run / "model", temporary, dirs_exist_ok=True)
        card = (temporary / "README.md").read_text(encoding="utf-8")
        atomic_write(temporary / "README.md", card + said)
