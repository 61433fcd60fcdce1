"""The verbs `finetune` and `evaluate`: labelled rows and an encoder to a model that answers, and its figures.

out/
    config.yaml     the settings, as `--config` takes them
    metrics.jsonl   what the training loop wrote
    report.html     curves, figures, mistakes
    checkpoints/    to resume from
    adapt/          with `adapt`: pre-training on the texts of the task, see `tasks/adapt.py`
    model/          the finished Hugging Face folder

With several seeds there is such a folder for each of them in `out`: see `tasks/seeds.py`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith.errors import SettingsError
from bertsmith.files import atomic_write, sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family
from bertsmith.model.low_rank import merge_low_rank
from bertsmith.settings import to_mapping, to_yaml
from bertsmith.tasks import seeds
from bertsmith.tasks.adapt import adapt
from bertsmith.tasks.card import model_card
from bertsmith.tasks.distill import Distillation, distil, source_name
from bertsmith.tasks.finetune_report import data_files, write_run_report, write_seeds_report
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.regularise import Adversarial, RDrop
from bertsmith.tasks.rows import choose_rows, split_rows
from bertsmith.tasks.saved import FinetuneTask, Kind, claim_run_folder, load_task, save_task, task_kind
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.start import SIZE_PREFIX, build_model, starting_point
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training import plan
from bertsmith.training.device import Precision, ResolvedPrecision, resolve_device, resolve_precision
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.task import Task

_OF_MODEL = ("adapt", "layer_decay", "freeze", "reinit_layers", "lora", "lora_alpha")


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning came to: metrics of the saved weights by split ("dev", "test"), and where things are."""

    metrics: seeds.Metrics
    folder: Path
    training: TrainResult
    seeds: tuple[SeedRun, ...]
    """Every seed's run, in order; one, unless the settings ask for several."""

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
        task: "classification", "tagging", "answering" or "embedding".
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
    learning = _train_settings(settings)
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    claim_run_folder(settings.out, resume=settings.resume, overwrite=settings.overwrite, sources=_sources(settings))
    runs = seeds.seed_settings(settings)
    config, weights, tokenizer = starting_point(settings)
    work = _make_task(kind, settings, options, tokenizer)
    if len(runs) > 1:
        log_every = seeds.log_interval(settings, work.examples("train").num_examples(0))
        learning = replace(learning, log_every=log_every)
    model, new_tensors = build_model(work, config, weights, settings)
    taught = _taught(work, settings)
    data = {str(path): sha256(path) for path in data_files(settings)}
    if settings.overwrite:
        shutil.rmtree(settings.out, ignore_errors=True)
    _write_configuration(task, settings, options)

    screen = console or Console(stderr=True)
    for line in [_summary(work), *work.notes(), *(taught.notes() if taught else [])]:
        _say(screen, line)
    if settings.adapt is not None and weights is not None:
        _say(screen, f"First {settings.adapt} of pre-training on the texts of the training rows.")
        examples = work.examples("train")
        texts = (text for item in examples.take(range(examples.num_examples(0)), 0) for text in item.row.texts)
        weights = adapt(settings, weights, config, texts, screen)
        model, new_tensors = build_model(work, config, weights, settings)
    learnt = _regularised(work, taught, settings)
    teaching = _Teaching(kind, work, taught, learnt, config, weights, learning, data, device, precision, screen)
    if len(runs) == 1:
        run = teaching.learn(settings, options, model, new_tensors)
        return FinetuneResult(run.metrics, settings.out, run.training, (run,))
    del model  # made to be sure that it can be; each run makes its own
    return _learn_all(teaching, settings, runs, options)


@dataclass(frozen=True)
class _Teaching:
    """What every seed's run has in common."""

    kind: Kind
    task: FinetuneTask
    taught: Distillation | None
    learnt: Task
    """`task`, with its teacher and regularisers."""
    config: EncoderConfig
    weights: str | None
    learning: TrainSettings
    data: Mapping[str, str]
    """File -> SHA-256."""
    device: torch.device
    precision: ResolvedPrecision
    screen: Console

    def learn(self, settings: FinetuneSettings, options: Any, model: nn.Module, new_tensors: list[str]) -> SeedRun:
        """One run in its folder, from a model of initial or pre-trained weights to metrics, model and report."""
        training = train(
            model,
            [Stage(self.learnt)],
            replace(self.learning, seed=settings.seed),
            settings.out,
            resume=settings.resume,
            fingerprint=self.fingerprint(settings),
            console=self.screen,
        )
        if settings.lora is not None:
            merge_low_rank(model.encoder)  # type: ignore[arg-type]
        evaluations = {
            split: evaluate_task(model, self.task, split, device=self.device, precision=self.precision)
            for split in ("dev", "test")
            if self.task.examples(split).num_examples(0)
        }
        metrics = {split: evaluation.metrics for split, evaluation in evaluations.items()}
        _save(self.kind, self.task, model.cpu(), self.config, settings, metrics, self.data, new_tensors)
        write_run_report(self.task, settings, _configuration(settings, options), evaluations, training)
        failure = seeds.find_failure(self.task, evaluations, settings.out)
        if failure is not None:
            _say(self.screen, f"Seed {settings.seed} learnt nothing: {failure}.")
        return SeedRun(settings.seed, settings.out, metrics, training, failure)

    def fingerprint(self, settings: FinetuneSettings) -> dict[str, str | int | float | bool | None]:
        """What has to be equal on resume, beside the loop's own."""
        return {
            "task": self.task.name,
            "model": settings.model,
            "layers": settings.layers,
            "adapt": settings.adapt,
            "freeze": settings.freeze,
            "lora": settings.lora,
            "lora_alpha": settings.lora_alpha,
            "reinit_layers": settings.reinit_layers,
            "dropout": settings.dropout,
            "tokenizer": self.task.tokenizer.fingerprint,
            "teacher": self.taught.fingerprint if self.taught else None,
            "r_drop": settings.r_drop,
            "adversarial": settings.adversarial,
            "options": json.dumps(to_mapping(self.task.settings), sort_keys=True),
            "data": json.dumps(dict(self.data), sort_keys=True),
        }

    def whole_fingerprint(self, settings: FinetuneSettings) -> dict[str, Any]:
        """The same with the loop's."""
        learning = replace(self.learning, seed=settings.seed)
        stages = [Stage(self.learnt)]
        return {**plan.fingerprint(stages, learning, self.precision), **self.fingerprint(settings)}


def _learn_all(
    teaching: _Teaching, settings: FinetuneSettings, each: Sequence[FinetuneSettings], options: Any
) -> FinetuneResult:
    """A run a seed, but for those that had finished before the whole was stopped; then the best of them in `out`."""
    runs = []
    for number, own in enumerate(each, start=1):
        fingerprint = teaching.whole_fingerprint(own)
        run = seeds.read_finished(own, fingerprint) if own.resume else None
        _say(teaching.screen, f"Seed {own.seed}, {number} of {len(each)}{': finished before' if run else ''}.")
        if run is None:
            _write_configuration(teaching.task.name, own, options)
            model, new_tensors = build_model(teaching.task, teaching.config, teaching.weights, own)
            run = teaching.learn(own, options, model, new_tensors)
            seeds.write_finished(run, fingerprint)
        runs.append(run)
    best = seeds.best_of(runs, teaching.task)
    seeds.publish(runs, best, settings.out)
    write_seeds_report(teaching.task, settings, _configuration(settings, options), runs, best)
    _say(teaching.screen, seeds.failures(runs))
    return FinetuneResult(best.metrics, settings.out, best.training, tuple(runs))


def _train_settings(settings: FinetuneSettings) -> TrainSettings:
    """The loop's settings."""
    learning = settings.train_settings(
        budget=f"{settings.epochs} epochs",
        learning_rate=settings.learning_rate,
        evaluate_every=settings.evaluate_every,
        early_stopping=settings.early_stopping,
        keep_best=True,
    )
    return replace(learning, optimizer=replace(learning.optimizer, layer_decay=settings.layer_decay))


def _configuration(settings: FinetuneSettings, options: Any) -> dict[str, Any]:
    """What `--config` would be given for the same run."""
    return {**to_mapping(replace(settings, resume=False, overwrite=False)), **to_mapping(options)}


def _write_configuration(task: str, settings: FinetuneSettings, options: Any) -> None:
    if not settings.resume or not (settings.out / "config.yaml").is_file():
        note = f"# bertsmith finetune {task} --config config.yaml\n"
        atomic_write(settings.out / "config.yaml", note + to_yaml(_configuration(settings, options)))


def _say(screen: Console, line: str) -> None:
    screen.print(line, markup=False, highlight=False, soft_wrap=True)


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


def _sources(settings: FinetuneSettings) -> Iterator[str | Path | None]:
    """All that is read of what may lie on this machine."""
    yield from (settings.train, settings.dev, settings.test, settings.model, settings.tokenizer, settings.teacher)
    yield from data_files(settings)


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


def _taught(task: FinetuneTask, settings: FinetuneSettings) -> Distillation | None:
    """The task with its teacher, where there is one."""
    if settings.teacher is None:
        return None
    return distil(task, settings.teacher, weight=settings.distill_weight, temperature=settings.temperature)


def _regularised(task: FinetuneTask, taught: Distillation | None, settings: FinetuneSettings) -> Task:
    """What is trained: the task, or the task with its teacher, and the regularisers around it."""
    learnt: Task = taught or task
    if settings.r_drop is not None:
        learnt = RDrop(task, settings.r_drop)
    return learnt if settings.adversarial is None else Adversarial(learnt, settings.adversarial)


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
    is_random = settings.model.startswith(SIZE_PREFIX)
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
            **{name: value for name in _OF_MODEL if (value := getattr(settings, name)) is not None},
            **teaching,
            **{name: value for name, value in to_mapping(task.settings).items() if value is not None},
        },
    )
    facts = {"metrics": metrics, "data": names, "new_tensors": [] if is_random else new_tensors, **teaching}
    save_task(settings.out / "model", task, model, config, card, facts)
