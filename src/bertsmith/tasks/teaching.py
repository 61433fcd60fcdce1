"""What all runs of a fine-tuning have in common, and one run: from initial or pre-trained weights to a folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith.files import atomic_write
from bertsmith.locks import only_writer
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family
from bertsmith.model.folder import resolve
from bertsmith.model.low_rank import merge_low_rank
from bertsmith.screen import say
from bertsmith.settings import to_mapping
from bertsmith.tasks import seeds
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.augment import augmented
from bertsmith.tasks.card import code_span, model_card
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow
from bertsmith.tasks.data_check import given_answer
from bertsmith.tasks.distill import Distillation, source_name, teacher_names, weight_hashes
from bertsmith.tasks.embed import Embedding, smallest_micro_batch
from bertsmith.tasks.finetune_report import data_fingerprint, write_run_report
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_folder import write_config
from bertsmith.tasks.saved import FinetuneTask, Kind, save_task
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.sentence_folder import has_modules
from bertsmith.tasks.start import SIZE_PREFIX, build_model
from bertsmith.text.labelled import Question
from bertsmith.training import plan
from bertsmith.training.device import ResolvedPrecision
from bertsmith.training.distributed import Ranks
from bertsmith.training.evaluate import Evaluation, evaluate_task
from bertsmith.training.loop import Stage, TrainSettings, train
from bertsmith.training.task import Task

_OF_MODEL = (
    *("extend_positions", "adapt", "layer_decay", "freeze", "reinit_layers", "lora", "lora_alpha", "layers", "dropout"),
    *("optimizer", "schedule", "ema_decay", "r_drop", "adversarial", "adversarial_steps", "mixup"),
    "max_train_examples",
    *("augment_delete", "augment_swap", "augment_replace", "augment_share", "augment_variants"),
)
"""Settings that a card names where they are not the usual ones."""
_OF_CHANGES = tuple(one.name for one in fields(FinetuneSettings) if one.name.startswith("augment_"))
_FEW_EXAMPLES = 20
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Teaching:
    """What the runs of different seeds, or of different settings, have in common."""

    kind: Kind
    task: FinetuneTask
    taught: Distillation | None
    learnt: Task
    """`task`, with its teacher and regularisers."""
    config: EncoderConfig
    weights: str | None
    options: Any
    """The task's own settings, as they were given."""
    log_every: int | None
    data: Mapping[str, str]
    """File -> SHA-256."""
    device: torch.device
    precision: ResolvedPrecision
    screen: Console
    ranks: Ranks
    fold: str | None = None
    """Which part of the data is the test, and how it was chosen; None: what the settings say."""
    adapted: str | None = None
    """The model whose encoder is taken instead of that of `weights`."""

    def finished(self, settings: FinetuneSettings) -> SeedRun | None:
        """A run that had finished before the whole was stopped, and is resumed."""
        run = seeds.read_finished(settings, self._whole_fingerprint(settings)) if settings.resume else None
        if run is not None:
            say(self.screen, f"{settings.out.name}: finished before.")
        return run

    def run(self, settings: FinetuneSettings) -> SeedRun:
        """A finished run, or a new one, whose folder is held: see `only_writer`.

        The folder around it is held as well, by another process where there are jobs; if that is killed, this one
        still saves its step, and nobody may resume the run before.
        """
        run = self.finished(settings)
        if run is None:
            with only_writer(settings.out):
                self.write_config(settings)
                run = self.learn(settings, *build_model(self.task, self.config, self.weights, settings, self.adapted))
                seeds.write_finished(run, self._whole_fingerprint(settings))
        return run

    def learn(self, settings: FinetuneSettings, model: nn.Module, new_tensors: list[str]) -> SeedRun:
        """One run in its folder, from a model of initial or pre-trained weights to metrics, model and report."""
        learnt = augmented(self.learnt, self.task, settings, self.ranks, self.device, self.precision)
        training = train(
            model,
            [Stage(learnt)],
            self._learning(settings),
            settings.out,
            resume=settings.resume,
            fingerprint=self._fingerprint(settings),
            console=self.screen,
            ranks=self.ranks,
        )
        if settings.lora is not None:
            merge_low_rank(model.encoder)  # type: ignore[arg-type]

        def finish() -> tuple[seeds.Metrics, str | None]:
            self.write_config(settings, has_ended=True)
            task, evaluations = evaluated(model, self.task, device=self.device, precision=self.precision)
            if task is not self.task:
                say(self.screen, decision(task))
            if self.fold is not None:
                write_predictions(settings.out / PREDICTIONS, task, evaluations["test"])
            metrics = {split: evaluation.metrics for split, evaluation in evaluations.items()}
            save_finetuned(self.kind, task, model.cpu(), self.config, settings, metrics, self.data, new_tensors)
            goes_on = not any(".out." in name for name in new_tensors)
            if isinstance(task, Embedding):  # which has no head: what its encoder was made for says the folder
                goes_on = self.weights is not None and has_modules(resolve(self.weights))
            failure = seeds.find_failure(task, evaluations, settings.out, goes_on=goes_on)
            write_run_report(task, settings, configuration(settings, self.options), evaluations, training, failure)
            return metrics, failure

        metrics, failure = self.ranks.first(finish)
        if failure is not None:
            say(self.screen, f"{settings.out.name} learnt nothing: {failure}.")
        return SeedRun(settings.seed, settings.out, metrics, training, failure)

    def write_config(self, settings: FinetuneSettings, *, has_ended: bool = False) -> None:
        """The configuration in the folder of a run, or of them all."""
        configured = configuration(settings, self.options)
        write_config(settings, f"finetune {self.task.name}", configured, has_ended=has_ended)

    def _learning(self, settings: FinetuneSettings) -> TrainSettings:
        return replace(settings_for(self.task, settings), log_every=self.log_every)

    def _fingerprint(self, settings: FinetuneSettings) -> dict[str, str | int | float | bool | None]:
        """What has to be equal on resume, beside the loop's own."""
        return {
            "task": self.task.name,
            "model": settings.model,
            "layers": settings.layers,
            "extend_positions": settings.extend_positions,
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
            **({"adversarial_steps": settings.adversarial_steps} if settings.is_given("adversarial_steps") else {}),
            "mixup": settings.mixup,
            **({name: getattr(settings, name) for name in _OF_CHANGES} if settings.is_augmented else {}),
            **option_values(self.task.settings),
            "dev_share": settings.dev_share if settings.dev is None else None,
            "max_train_examples": settings.max_train_examples,
            "fold": self.fold,
            "data": data_fingerprint(settings, self.data),
        }

    def _whole_fingerprint(self, settings: FinetuneSettings) -> dict[str, Any]:
        """The same with the loop's, and with what only a run that has ended does not go on with."""
        learning = plan.fingerprint([Stage(self.learnt)], self._learning(settings), self.precision)
        ended = {
            "evaluate_every": settings.evaluate_every,
            "early_stopping": settings.early_stopping,
            "weights": None if self.weights is None else json.dumps(weight_hashes(self.weights)),
        }
        return {**learning, **self._fingerprint(settings), **ended}


def option_values(options: Any) -> dict[str, str | int | float | bool | None]:
    """A task's settings for a fingerprint, one by one, so that what differs is said by its name."""
    values = to_mapping(options)
    if "threshold" in values and not values["multi_label"]:
        values["threshold"] = 0.5  # as checkpoints have it that are from before it could be left open
    return {
        name: value if value is None or isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
    }


def evaluated(
    model: nn.Module, task: FinetuneTask, *, device: torch.device, precision: ResolvedPrecision
) -> tuple[FinetuneTask, dict[str, Evaluation]]:
    """The evaluations of "dev" and "test" as far as there are any; and the task, with what dev decides.

    That is the threshold of "no answer" or of a text's labels, where the settings leave it open: dev's own figures are
    with it, too.
    """
    evaluations: dict[str, Evaluation] = {}
    for split in ("dev", "test"):
        if not task.examples(split).num_examples(0):
            continue
        found = evaluate_task(model, task, split, device=device, precision=precision)
        if split == "dev" and isinstance(task, Answering | Classification):
            decided, answers = task.decided_on(found.answers, found.examples)
            if decided is not task:
                task, found = decided, Evaluation(decided.score(answers, found.examples), answers, found.examples)
        evaluations[split] = found
    return task, evaluations


def decision(task: FinetuneTask) -> str:
    """What `evaluated` has found, in a sentence."""
    if isinstance(task, Classification):
        return f"A text has the labels whose probability is {task.settings.threshold:.2f} or more: by dev."
    return f"There is no answer where that scores {task.settings.no_answer_threshold:.2f} above the best: by dev."


def settings_for(task: FinetuneTask, settings: FinetuneSettings) -> TrainSettings:
    """The loop's settings, with the fewest examples that this task can be learnt from at once."""
    smallest = smallest_micro_batch(task) if isinstance(task, Embedding) else 1 if settings.mixup is None else 2
    return replace(train_settings(settings), smallest_micro_batch=smallest)


def train_settings(settings: FinetuneSettings) -> TrainSettings:
    """The loop's settings, whatever the task."""
    epochs, learning_rate = settings.settled
    learning = settings.train_settings(
        budget=f"{epochs} epochs",
        learning_rate=learning_rate,
        evaluate_every=settings.evaluate_every,
        early_stopping=settings.early_stopping,
        keep_best=True,
    )
    return replace(learning, optimizer=replace(learning.optimizer, layer_decay=settings.layer_decay))


def check_learning(settings: FinetuneSettings) -> None:
    """Refuse what is out of range before anything is read; what data and model are to settle will not be."""
    epochs = 1.0 if settings.epochs is None else settings.epochs
    learning_rate = 1e-5 if settings.learning_rate is None else settings.learning_rate
    train_settings(replace(settings, epochs=epochs, learning_rate=learning_rate))


def configuration(settings: FinetuneSettings, options: Any) -> dict[str, Any]:
    """What `--config` would be given for the same run."""
    return {**to_mapping(replace(settings, resume=False, overwrite=False)), **to_mapping(options)}


def write_predictions(path: Path, task: FinetuneTask, evaluation: Evaluation) -> None:
    """Every answer as a JSON object a line, in the order of the data, with the place of its row and what is given."""
    lines = (
        json.dumps({"row": example.row.where, **_given(example.row), **task.to_json(answer)}, ensure_ascii=False)
        for example, answer in zip(evaluation.examples, evaluation.answers, strict=True)
    )
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def _given(row: Any) -> dict[str, Any]:
    """What the data say of a row: a text; of several labels, and of the answers to a question, a list."""
    if isinstance(row, Question):
        return {"id": row.id, "given": [answer.text for answer in row.answers]}
    labels = row.labels if isinstance(row, ClassificationRow) else None
    return {"given": given_answer(row) if labels is None else sorted(labels)}


def save_finetuned(
    kind: Kind,
    task: FinetuneTask,
    model: nn.Module,
    config: EncoderConfig,
    settings: FinetuneSettings,
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
    new_tensors: list[str],
    *,
    beside: Sequence[str] = (),
    shared: Mapping[str, object] | None = None,
) -> None:
    """The folder `model/` with its card. Its dropout is the configuration's, whatever fine-tuning used.

    Args:
        metrics: split -> metric -> value.
        data: file -> SHA-256.
        new_tensors: those that `settings.model` did not have.
        beside: the names of other tasks that were learnt with the same encoder.
        shared: further settings of the run that the card names.
    """
    files = {Path(source): digest for source, digest in data.items()}
    times = Counter(path.name for path in files)
    names = {path.name if times[path.name] == 1 else "/".join(path.parts[-2:]): one for path, one in files.items()}
    is_random = settings.model.startswith(SIZE_PREFIX)
    origin = "random weights" if is_random else code_span(source_name(settings.model))
    teaching: dict[str, Any] = {}
    if settings.teacher is not None:
        teachers, weight = [source_name(one) for one in teacher_names(settings.teacher)], settings.distill_weight
        teaching = {"teacher": ", ".join(teachers), "distill_weight": weight, "temperature": settings.temperature}
        origin = f"{origin}, taught by {', '.join(map(code_span, teachers))}"
    if beside:
        origin = f"{origin}, together with {', '.join(beside)}"
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
            **{name: getattr(settings, name) for name in _OF_MODEL if settings.is_given(name)},
            **({} if settings.augment_model is None else {"augment_model": source_name(settings.augment_model)}),
            **(shared or {}),
            **teaching,
            **{name: value for name, value in to_mapping(task.settings).items() if value is not None},
        },
    )
    facts = {"metrics": metrics, "data": names, "new_tensors": [] if is_random else new_tensors, **teaching}
    save_task(settings.out / "model", task, model, config, card, facts)


def summary(task: FinetuneTask, settings: FinetuneSettings) -> Iterator[str]:
    """What was found in the data, in a line; and whether that is too little to choose by."""
    sizes = {split: task.examples(split).num_examples(0) for split in ("train", "dev", "test")}
    found = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size)
    labels = f", {len(task.labels)} labels" if task.labels else ""
    yield f"{task.name}: {found} examples{labels}."
    if 0 < sizes["dev"] < _FEW_EXAMPLES and settings.dev is None:
        yield (
            f"Only {sizes['dev']} of these were held back as dev, too few to tell one checkpoint from another: give "
            "more (--dev-share 0.3), data of their own (--dev), or score all rows in turns (--folds 5)."
        )
