"""The verb `finetune together`: several tasks, each with its data and head, over one encoder (`together_task.py`).

out/
    config.yaml     the settings, as `--config` takes them
    tasks.yaml      the tasks, as `--tasks` takes them
    metrics.jsonl   what the training loop wrote
    report.html     curves, figures of all tasks
    checkpoints/    to resume from
    NAME/model/     of each task the encoder with its head: a Hugging Face folder like any other
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith.errors import InputError, ModelError, SettingsError
from bertsmith.files import atomic_write, sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family
from bertsmith.model.resize import Extension
from bertsmith.screen import say
from bertsmith.settings import from_mapping, read_config, to_mapping, to_yaml
from bertsmith.tasks.advice_rules import by_width
from bertsmith.tasks.embed import Embedding, check_batches
from bertsmith.tasks.finetune import make_task
from bertsmith.tasks.finetune_report import data_files, data_fingerprint
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_folder import clear_run_folder, run_folder_held, write_config
from bertsmith.tasks.run_settings import RunSettings
from bertsmith.tasks.saved import FinetuneTask, Kind, task_kind
from bertsmith.tasks.seeds import equal_answers
from bertsmith.tasks.sentence_folder import as_before, folder_notes
from bertsmith.tasks.start import build_model, start_notes, starting_point
from bertsmith.tasks.teaching import (
    check_learning,
    decision,
    evaluated,
    option_values,
    save_finetuned,
    train_settings,
)
from bertsmith.tasks.together_task import Together, model_of, on_one_encoder
from bertsmith.training.device import resolve_precision
from bertsmith.training.distributed import ALONE
from bertsmith.training.interrupt import resumable
from bertsmith.training.launch import read_launch
from bertsmith.training.loop import Stage, train
from bertsmith.training.plan import TrainResult
from bertsmith.training.report import Table, data_table, training_sections, write_report

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = ("checkpoints", "model")
"""What a run's folder holds beside those of its tasks, or is known by."""
Metrics = Mapping[str, Mapping[str, float]]
"""Split -> metric -> value."""


@dataclass(frozen=True, kw_only=True)
class TogetherSettings(RunSettings):
    """What to start from, which tasks to learn, and how long."""

    model: str
    """A BERT-like folder, a run's folder, a Hub id; or "size:mini" for random weights, with a tokenizer."""
    tasks: Path
    """A YAML, TOML or JSON file: for each task a name with its task, train, dev, test and the task's own options."""
    tokenizer: str | None = None
    """A tokenizer folder or vocab.txt; by default the model's own."""
    extend_positions: Extension | None = None
    """Make the table of positions longer where max_length needs it: by copies (tile), or drawn out (interpolate)."""
    dev_share: float = 0.1
    """Share of the training texts of a task that is held back when it has no dev."""
    sampling: float = 1.0
    """How often a task is learnt: its batches to this power; 1: each row once an epoch, 0: all tasks as often."""
    epochs: float = 3.0
    """Passes over the training data of all tasks."""
    learning_rate: float | None = None
    """Peak of the schedule; by default by the width of the model, higher for small ones."""
    layer_decay: float | None = None
    """The learning rate of each layer is that of the layer above times this, such as 0.9; by default all have the
    same."""
    evaluate_every: str = "1 epoch"
    """How often the dev data of all tasks are evaluated: "1 epoch", "500 steps", "10%"; the end always is."""
    early_stopping: int | None = None
    """Stop after this many evaluations in a row without a new best mean; by default never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sampling <= 1:
            raise SettingsError(f"sampling must be in [0, 1], not {self.sampling}.")
        for name in ("micro_batch_size", "auto_batch"):
            if getattr(self, name):
                raise SettingsError(f"{name} cuts a step, and together a step is one batch of one task: leave it out.")


@dataclass(frozen=True)
class _Source:
    """What the file of the tasks says of each, beside the options of its kind."""

    task: str
    train: str
    dev: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class _Part:
    """One of the tasks: its kind, its options, and the settings as if it were learnt alone."""

    kind: Kind
    options: Any
    settings: FinetuneSettings


@dataclass(frozen=True)
class TogetherResult:
    """What it came to: metrics of the saved weights by task and split, and where things are."""

    metrics: Mapping[str, Metrics]
    folder: Path
    training: TrainResult

    def model(self, name: str) -> Path:
        """The Hugging Face folder of a task."""
        return self.folder / name / "model"


def finetune_together(settings: TogetherSettings, *, console: Console | None = None) -> TogetherResult:
    """Learn several tasks with one encoder, keep the weights that are best in the mean of their first metrics on dev.

    Nothing is written before the data of all tasks, the tokenizer and the model have been read and fit together.

    Args:
        console: where progress is shown; None is standard error.

    Raises:
        InputError: data that cannot be read, unknown columns or labels.
        SettingsError: fewer than two tasks, a name that is none for a folder, an unknown task or option; a metric that
            should be small; several ranks; `out` holds a run and neither `resume` nor `overwrite` is set, or another
            process writes there.
        ModelError: a model that cannot be loaded, or does not fit its tokenizer.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    if read_launch().size > 1:
        raise SettingsError("together a step is one batch of one task, which several ranks cannot share.")
    parts = read_parts(settings)
    check_learning(next(iter(parts.values())).settings)
    shared = (settings.model, settings.tokenizer, settings.tasks)
    sources = [source for one in parts.values() for source in (one.settings.train, one.settings.dev, one.settings.test)]
    with run_folder_held(ALONE, settings, "finetune together", (*shared, *sources)):
        return _finetune_together(settings, parts, console)


def _finetune_together(settings: TogetherSettings, parts: dict[str, _Part], console: Console | None) -> TogetherResult:
    first = next(iter(parts.values())).settings
    device = ALONE.device(settings.device)
    config, weights, tokenizer = starting_point(first, max(part.options.max_length for part in parts.values()))
    parts = {name: replace(one, options=as_before(one.options, weights, tokenizer)) for name, one in parts.items()}
    for part in parts.values():
        family(config.model_type).architecture(part.kind.architecture)  # refuses a head that the family has not
    rate = by_width(config, is_random=weights is None) if settings.learning_rate is None else None
    if rate is not None:
        settings = replace(settings, learning_rate=rate.value)
        parts = {
            name: replace(one, settings=replace(one.settings, learning_rate=rate.value)) for name, one in parts.items()
        }
    tasks: dict[str, FinetuneTask] = {}
    built: dict[str, tuple[nn.Module, list[str]]] = {}
    for name, one in parts.items():
        with _naming(name):
            tasks[name] = task = make_task(one.kind, one.settings, one.options, tokenizer)
            if isinstance(task, Embedding):
                check_batches(task, settings.batch_size)
            built[name] = build_model(task, config, weights, one.settings)
    together = Together(tasks, settings.batch_size, settings.sampling, settings.seed)
    model = on_one_encoder({name: own for name, (own, _) in built.items()})
    data = {name: {str(path): sha256(path) for path in data_files(one.settings)} for name, one in parts.items()}
    if settings.overwrite:
        clear_run_folder(settings.out)
    if not settings.resume or not (settings.out / "tasks.yaml").is_file():
        atomic_write(settings.out / "tasks.yaml", to_yaml(read_config(settings.tasks)))
    write_config(settings, "finetune together", _configuration(settings))
    screen = ALONE.console(console)
    if rate is not None:
        say(screen, rate.as_default)
    for (name, task), number in zip(tasks.items(), together.batches.numbers.tolist(), strict=True):
        say(screen, f"{name}: {task.name}, {task.examples('train').num_examples(0):,} rows, {number:,} steps an epoch.")
        kept = folder_notes(task.settings, weights, config.max_sequence_length)
        for line in [*kept, *start_notes(task, weights), *task.notes()]:
            say(screen, f"{name}: {line}")
    with resumable(settings.out):
        training = train(
            model,
            [Stage(together, batch_size=1)],
            train_settings(next(iter(parts.values())).settings),
            settings.out,
            resume=settings.resume,
            fingerprint=_fingerprint(settings, parts, tasks, data),
            console=screen,
        )
        write_config(settings, "finetune together", _configuration(settings), has_ended=True)
        metrics: dict[str, Metrics] = {}
        failures: dict[str, str] = {}
        precision = resolve_precision(settings.precision, device)
        for name, task in tasks.items():
            own = model_of(model, name)
            tasks[name], evaluations = evaluated(own, task, device=device, precision=precision)
            if tasks[name] is not task:
                say(screen, f"{name}: {decision(tasks[name])}")
            if same := equal_answers(tasks[name], evaluations):
                failures[name] = same
                say(screen, f"{name} learnt nothing: {same}.")
            metrics[name] = {split: evaluation.metrics for split, evaluation in evaluations.items()}
        new_tensors = {name: new for name, (_, new) in built.items()}
        _save(parts, tasks, model, config, metrics, data, new_tensors, settings.sampling)
        _write_report(settings, parts, metrics, failures, training)
    return TogetherResult(metrics, settings.out, training)


def read_parts(settings: TogetherSettings) -> dict[str, _Part]:
    """The tasks of the file, by name.

    Raises:
        SettingsError: fewer than two; a name that is none for a folder; an unknown task or option.
    """
    values = read_config(settings.tasks)
    if len(values) < 2:
        raise SettingsError(f"{settings.tasks}: {len(values)} tasks; together at least two are learnt.")
    common = {one.name for one in fields(TogetherSettings)} & {one.name for one in fields(FinetuneSettings)} - {"out"}
    shared = {name: getattr(settings, name) for name in common}
    parts: dict[str, _Part] = {}
    for name, given in values.items():
        where = f"{settings.tasks}, {name}"
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise SettingsError(f"{where}: a task's name is also that of its folder: letters, digits, - and _.")
        if not isinstance(given, Mapping):
            raise SettingsError(f"{where}: a task has keys and values, such as task and train.")
        own = {one.name for one in fields(_Source)}
        source = from_mapping(_Source, {key: value for key, value in given.items() if key in own}, where)
        with _naming(where):
            kind = task_kind(source.task)
        options = from_mapping(kind.settings, {key: value for key, value in given.items() if key not in own}, where)
        alone = FinetuneSettings(
            train=source.train, dev=source.dev, test=source.test, out=settings.out / name, **shared
        )
        parts[name] = _Part(kind, options, alone)
    return parts


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """What is wrong with one of several tasks is said with its name."""
    try:
        yield
    except (InputError, ModelError, SettingsError) as error:
        raise type(error)(f"{task}: {error}") from error


def _fingerprint(
    settings: TogetherSettings,
    parts: Mapping[str, _Part],
    tasks: Mapping[str, FinetuneTask],
    data: Mapping[str, Mapping[str, str]],
) -> dict[str, str | int | float | bool | None]:
    """What has to be equal on resume, beside the loop's own."""
    of_tasks = {name: {"task": task.name, **option_values(task.settings)} for name, task in tasks.items()}
    return {
        "model": settings.model,
        "tokenizer": next(iter(tasks.values())).tokenizer.fingerprint,
        "dropout": settings.dropout,
        "extend_positions": settings.extend_positions,
        "batch_size": settings.batch_size,
        "dev_share": settings.dev_share,
        "sampling": settings.sampling,
        **{f"{name}, {option}": value for name, values in of_tasks.items() for option, value in values.items()},
        "data": json.dumps({name: data_fingerprint(part.settings, data[name]) for name, part in parts.items()}),
    }


def _configuration(settings: TogetherSettings) -> dict[str, Any]:
    return to_mapping(replace(settings, resume=False, overwrite=False))


def _save(
    parts: Mapping[str, _Part],
    tasks: Mapping[str, FinetuneTask],
    model: nn.ModuleDict,
    config: EncoderConfig,
    metrics: Mapping[str, Metrics],
    data: Mapping[str, Mapping[str, str]],
    new_tensors: Mapping[str, list[str]],
    sampling: float,
) -> None:
    """A model folder a task."""
    model.to(torch.device("cpu"))
    for name, task in tasks.items():
        (parts[name].settings.out).mkdir(exist_ok=True)
        save_finetuned(
            parts[name].kind,
            task,
            model_of(model, name),
            config,
            parts[name].settings,
            metrics[name],
            data[name],
            new_tensors[name],
            beside=[other for other in tasks if other != name],
            shared={"sampling": sampling},
        )


def _write_report(
    settings: TogetherSettings,
    parts: Mapping[str, _Part],
    metrics: Mapping[str, Metrics],
    failures: Mapping[str, str],
    training: TrainResult,
) -> None:
    """`report.html`: the figures of all tasks, which have learnt nothing, curves, data."""
    rows = [
        (name, key, *(of_splits[split].get(key, "") if split in of_splits else "" for split in ("dev", "test")))
        for name, of_splits in metrics.items()
        for key in dict.fromkeys(key for values in of_splits.values() for key in values)
    ]
    facts = {
        f"{name}, {next(iter(values))} on {split}": f"{next(iter(values.values())):.4f}"
        for name, of_splits in metrics.items()
        for split, values in of_splits.items()
    }
    note = " ".join(f"{name} learnt nothing: {failure}." for name, failure in failures.items())
    facts |= {"steps": f"{training.step:,}", "seconds": f"{training.seconds:,.0f}"}
    sections = [
        Table("Results", ("task", "metric", "dev", "test"), rows, note),
        *training_sections(settings.out / "metrics.jsonl"),
        data_table([path for part in parts.values() for path in data_files(part.settings)]),
    ]
    write_report(settings.out, "Fine-tuning: several tasks", sections, config=_configuration(settings), facts=facts)
