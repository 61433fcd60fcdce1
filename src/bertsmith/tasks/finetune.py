"""The verbs `finetune` and `evaluate`: labelled rows and an encoder to a model that answers, and its figures.

out/
    config.yaml     the settings, as `--config` takes them
    metrics.jsonl   what the training loop wrote
    report.html     curves, figures, mistakes
    checkpoints/    to resume from
    model/          the finished Hugging Face folder
"""

import glob
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith import randomness
from bertsmith.errors import SettingsError
from bertsmith.files import atomic_write, sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import read_config
from bertsmith.model.resize import load_resized
from bertsmith.model.sizes import named_size
from bertsmith.settings import to_mapping, to_yaml
from bertsmith.tasks.card import model_card
from bertsmith.tasks.distill import Distillation, distil, source_name
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import choose_rows, split_rows
from bertsmith.tasks.saved import (
    FinetuneTask,
    Kind,
    check_vocabulary,
    claim_run_folder,
    is_written_as,
    load_task,
    model_folder,
    save_task,
    task_kind,
)
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.device import Precision, resolve_device, resolve_precision
from bertsmith.training.evaluate import Evaluation, evaluate_task
from bertsmith.training.loop import Stage, TrainResult, train
from bertsmith.training.report import Section, Table, Text, data_table, training_sections, write_report

_SIZE_PREFIX = "size:"


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning came to: metrics of the saved weights by split ("dev", "test"), and where things are."""

    metrics: dict[str, dict[str, float]]
    folder: Path
    training: TrainResult

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"


def finetune(
    task: str, settings: FinetuneSettings, options: Any = None, *, console: Console | None = None
) -> FinetuneResult:
    """Learn one of `TASKS` from labelled data, keep the best weights on dev, and write a run's folder.

    Nothing is written before the data, the tokenizer and the model have been read and fit together.

    Args:
        task: "classification", "tagging" or "answering".
        options: the task's own settings, such as `ClassificationSettings`; None: their defaults.
        console: where progress is shown; None is standard error.

    Raises:
        InputError: data that cannot be read, unknown columns or labels.
        SettingsError: `out` holds a run and neither `resume` nor `overwrite` is set; options of another task.
        ModelError: a model that cannot be loaded, or does not fit its tokenizer.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    kind = task_kind(task)
    options = kind.settings() if options is None else options
    if not isinstance(options, kind.settings):
        raise SettingsError(f"{task} takes {kind.settings.__name__}, not {type(options).__name__}.")
    plan = settings.train_settings(
        budget=f"{settings.epochs} epochs",
        learning_rate=settings.learning_rate,
        evaluate_every=settings.evaluate_every,
        early_stopping=settings.early_stopping,
        keep_best=True,
    )
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    claim_run_folder(settings.out, resume=settings.resume, overwrite=settings.overwrite, sources=_sources(settings))
    config, weights, tokenizer = _starting_point(settings)
    work = _make_task(kind, settings, options, tokenizer)
    model, new_tensors = _build_model(kind, work, config, weights, settings)
    taught = _taught(work, settings)
    data = {str(path): sha256(path) for path in _data_files(settings)}
    if settings.overwrite:
        shutil.rmtree(settings.out, ignore_errors=True)
    configuration = {**to_mapping(replace(settings, resume=False, overwrite=False)), **to_mapping(options)}
    if not settings.resume or not (settings.out / "config.yaml").is_file():
        note = f"# bertsmith finetune {task} --config config.yaml\n"
        atomic_write(settings.out / "config.yaml", note + to_yaml(configuration))

    screen = console or Console(stderr=True)
    for line in [_summary(work), *work.notes(), *(taught.notes() if taught else [])]:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    training = train(
        model,
        [Stage(taught or work)],
        plan,
        settings.out,
        resume=settings.resume,
        fingerprint={
            "task": task,
            "model": settings.model,
            "layers": settings.layers,
            "dropout": settings.dropout,
            "tokenizer": tokenizer.fingerprint,
            "teacher": taught.fingerprint if taught else None,
            "options": json.dumps(to_mapping(work.settings), sort_keys=True),
            "data": json.dumps(data, sort_keys=True),
        },
        console=screen,
    )
    evaluations = {
        split: evaluate_task(model, work, split, device=device, precision=precision)
        for split in ("dev", "test")
        if work.examples(split).num_examples(0)
    }
    metrics = {split: evaluation.metrics for split, evaluation in evaluations.items()}
    _save(kind, work, model.cpu(), config, settings, metrics, data, new_tensors)
    _write_report(work, settings, configuration, evaluations, training)
    return FinetuneResult(metrics, settings.out, training)


def evaluate(
    model: str | Path,
    data: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    predictions: Path | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> dict[str, float]:
    """Score a fine-tuned model on labelled data.

    Args:
        model: a run's folder, a model folder, or a Hub id.
        data: what the model's task reads.
        overrides: settings of the task to change, by field name, for example `{"text_column": "review"}`.
        predictions: write every answer there, a JSON object a line, in the order of the data.

    Returns:
        Metrics, the objective first.

    Raises:
        InputError: data that cannot be read; a label the model does not know.
        ModelError: a folder that is not a fine-tuned model.
    """
    work, module = load_task(model, overrides)
    kind = task_kind(work.name)
    found, rows = kind.read_rows(data, work.settings)
    scored = kind.make(work.tokenizer, work.labels, found, {"test": rows})
    place = resolve_device(device)
    evaluation = evaluate_task(
        module.to(place), scored, "test", device=place, precision=resolve_precision(precision, place)
    )
    if predictions is not None:
        lines = (
            json.dumps({"row": row.where, **scored.to_json(answer)}, ensure_ascii=False)
            for row, answer in zip(rows, evaluation.answers, strict=True)
        )
        atomic_write(predictions, "".join(f"{line}\n" for line in lines))
    return evaluation.metrics


def _summary(task: FinetuneTask) -> str:
    """What was found in the data, in one line."""
    sizes = {split: task.examples(split).num_examples(0) for split in ("train", "dev", "test")}
    found = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size)
    labels = f", {len(task.labels)} labels" if task.labels else ""
    return f"{task.name}: {found} examples{labels}."


def _data_files(settings: FinetuneSettings) -> list[Path]:
    """The local files among the sources: files, those of a folder, those of a pattern."""
    files: list[Path] = []
    for source in filter(None, (settings.train, settings.dev, settings.test)):
        path = Path(source)
        found = [path]
        if not path.is_file():
            found = sorted(path.rglob("*") if path.is_dir() else map(Path, glob.glob(source, recursive=True)))
        files += [file for file in found if file.is_file()]
    return files


def _sources(settings: FinetuneSettings) -> Iterator[str | Path | None]:
    """All that is read of what may lie on this machine."""
    yield from (settings.train, settings.dev, settings.test, settings.model, settings.tokenizer, settings.teacher)
    yield from _data_files(settings)


def _starting_point(settings: FinetuneSettings) -> tuple[EncoderConfig, str | None, Tokenizer]:
    """The encoder's configuration, the folder or Hub id of its weights (None: random ones), and the tokenizer."""
    weights: str | None = None
    if settings.model.startswith(_SIZE_PREFIX):
        if settings.tokenizer is None:
            raise SettingsError(f'"{settings.model}" has random weights and no tokenizer of its own: give tokenizer.')
        tokenizer = load_tokenizer(settings.tokenizer)
        config = named_size(settings.model.removeprefix(_SIZE_PREFIX), vocab_size=tokenizer.vocab_size)
    else:
        weights = model_folder(settings.model)
        config, _ = read_config(weights)
        tokenizer = load_tokenizer(settings.tokenizer or weights)
    check_vocabulary(tokenizer, config.vocab_size, settings.model)
    if settings.layers is not None:
        config = replace(config, num_hidden_layers=settings.layers)
    return config, weights, tokenizer


def _make_task(kind: Kind, settings: FinetuneSettings, options: Any, tokenizer: Tokenizer) -> FinetuneTask:
    """Read the data and find its labels. Labels are sought in all training rows, before any are held back."""
    options, train_rows = kind.read_rows(settings.train, options)
    labels = kind.find_labels(train_rows, options)
    dev_rows: list[Any] = []
    if settings.dev is not None:
        _, dev_rows = kind.read_rows(settings.dev, options)
    elif settings.dev_share > 0:
        train_rows, dev_rows = split_rows(train_rows, settings.dev_share)
    if settings.max_train_examples is not None:
        train_rows = choose_rows(train_rows, settings.max_train_examples)
    test_rows = kind.read_rows(settings.test, options)[1] if settings.test is not None else []
    return kind.make(tokenizer, labels, options, {"train": train_rows, "dev": dev_rows, "test": test_rows})


def _build_model(
    kind: Kind, task: FinetuneTask, config: EncoderConfig, weights: str | None, settings: FinetuneSettings
) -> tuple[nn.Module, list[str]]:
    """The encoder and head in training form, and the names of the tensors that are newly made."""
    if settings.dropout is not None:
        config = config.with_dropout(settings.dropout, settings.dropout, settings.dropout)
        config = replace(config, classifier_dropout=settings.dropout)
    torch.manual_seed(randomness.integer(settings.seed, "initial weights"))
    model = task.build(Encoder(config))
    if weights is None:
        return model, list(model.state_dict())
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".out." in name}
    kept = load_resized(weights, model, task.build)
    if is_written_as(kind, read_config(weights)[1].get("architectures") or []):
        return model, kept
    # What another task's head tells apart may be as many things, but not the same: its outputs are not gone on from.
    model.load_state_dict(fresh, strict=False)
    return model, [*kept, *(name for name in fresh if name not in kept)]


def _taught(task: FinetuneTask, settings: FinetuneSettings) -> Distillation | None:
    """The task with its teacher, where there is one."""
    if settings.teacher is None:
        return None
    return distil(task, settings.teacher, weight=settings.distill_weight, temperature=settings.temperature)


def _save(
    kind: Kind,
    task: FinetuneTask,
    model: nn.Module,
    config: EncoderConfig,
    settings: FinetuneSettings,
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
    new_tensors: list[str],
) -> None:
    """The folder `model/` with its card. Its dropout is the configuration's, whatever fine-tuning used."""
    names = {Path(source).name: digest for source, digest in data.items()}
    is_random = settings.model.startswith(_SIZE_PREFIX)
    origin = "random weights" if is_random else f"`{source_name(settings.model)}`"
    teaching: dict[str, Any] = {}
    if settings.teacher is not None:
        name, weight = source_name(settings.teacher), settings.distill_weight
        teaching = {"teacher": name, "distill_weight": weight, "temperature": settings.temperature}
        origin = f"{origin}, taught by `{name}`"
    row = family(config.model_type)
    card = model_card(
        f"{row.class_prefix} for {task.name}",
        kind.pipeline_tag,
        model_type=row.model_type,
        made_from=f"{row.class_prefix}, fine-tuned for {task.name} from {origin}.",
        metrics=metrics,
        labels=task.labels,
        data=names,
        settings={
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
            **teaching,
            **{name: value for name, value in to_mapping(task.settings).items() if value is not None},
        },
    )
    facts = {"metrics": metrics, "data": names, "new_tensors": [] if is_random else new_tensors, **teaching}
    save_task(settings.out / "model", task, model, config, card, facts)


def _write_report(
    task: FinetuneTask,
    settings: FinetuneSettings,
    configuration: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    training: TrainResult,
) -> None:
    """`report.html`: figures, the task's own sections of its last split, curves, data."""
    sections: list[Section] = []
    facts: dict[str, str] = {}
    if evaluations:
        # What a split has no example of has no figure there, such as a type of entity.
        names = list(dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.metrics))
        rows = [(name, *(evaluation.metrics.get(name, "") for evaluation in evaluations.values())) for name in names]
        sections.append(Table("Results", ("metric", *evaluations), rows))
        facts |= {f"{names[0]} on {split}": f"{evaluation.objective:.4f}" for split, evaluation in evaluations.items()}
        last = list(evaluations.values())[-1]
        sections += task.sections(last.answers, last.examples)
    facts |= {"steps": f"{training.step:,}", "tokens": f"{training.tokens:,}", "seconds": f"{training.seconds:,.0f}"}
    if training.best_step is not None:
        facts["best step"] = f"{training.best_step:,}"
    sections += training_sections(settings.out / "metrics.jsonl")
    sizes = []
    for split in ("train", "dev", "test"):
        examples = task.examples(split)
        lengths = [examples.num_tokens(index) for index in range(examples.num_examples(0))]
        if lengths:
            sizes.append((split, len(lengths), sum(lengths), max(lengths)))
    sections.append(Table("Examples", ("split", "examples", "tokens", "longest"), sizes))
    if task.notes():
        sections.append(Text("Notes", task.notes()))
    sections.append(data_table(_data_files(settings)))
    write_report(settings.out, f"Fine-tuning: {task.name}", sections, config=configuration, facts=facts)
