"""The verbs `finetune` and `evaluate`: labelled rows and an encoder to a model that answers, and its figures.

out/
    config.yaml     the settings, as `--config` takes them
    metrics.jsonl   what the training loop wrote
    report.html     curves, figures, mistakes
    checkpoints/    to resume from
    adapt/          with `adapt`: pre-training on the texts of the task, see `tasks/adapt.py`
    augment/        with `augment_model`: other words for those of the training rows, see `tasks/augment.py`
    model/          the finished Hugging Face folder

With several seeds, folds, or a search, there is such a folder for each run in `out`: see `tasks/seeds.py`,
`tasks/folds.py`, `tasks/search.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bertsmith.errors import SettingsError, StepError
from bertsmith.files import sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family
from bertsmith.screen import say
from bertsmith.tasks import folds, search, seeds
from bertsmith.tasks.adapt import adapt
from bertsmith.tasks.advice_rules import by_size, for_lora
from bertsmith.tasks.augment import check_augmentation
from bertsmith.tasks.distill import Distillation, distil, teacher_names
from bertsmith.tasks.embed import Embedding, check_batches
from bertsmith.tasks.embed_data import EmbeddingSettings, refuse_scores
from bertsmith.tasks.finetune_report import data_files, write_folds_report, write_search_report, write_seeds_report
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.folds import Fold
from bertsmith.tasks.jobs import Work, outcomes
from bertsmith.tasks.mixup import Mixup
from bertsmith.tasks.regularise import Adversarial, RDrop
from bertsmith.tasks.rows import choose_rows, split_rows
from bertsmith.tasks.run_folder import clear_run_folder, run_folder_held, write_config
from bertsmith.tasks.saved import FinetuneTask, Kind, read_training_rows, task_kind
from bertsmith.tasks.search import Trial
from bertsmith.tasks.seeds import SeedRun
from bertsmith.tasks.sentence_folder import as_before, folder_notes
from bertsmith.tasks.start import build_model, start_notes, starting_point
from bertsmith.tasks.teaching import (
    PREDICTIONS,
    Teaching,
    check_learning,
    configuration,
    summary,
)
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training.device import resolve_precision
from bertsmith.training.distributed import Ranks, joined
from bertsmith.training.interrupt import resumable
from bertsmith.training.launch import read_launch
from bertsmith.training.plan import TrainResult
from bertsmith.training.task import Task


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning came to: metrics of the saved weights by split ("dev", "test"), and where things are.

    With folds no weights are saved; metrics are then the means over the folds, and `training` is that of the last.
    """

    metrics: seeds.Metrics
    folder: Path
    training: TrainResult
    seeds: tuple[SeedRun, ...]
    """Every seed's or fold's run that could go on, in order; one, unless the settings ask for several."""
    predictions: Path | None = None
    """With folds: every training row's answer by the model that did not learn from it, a JSON object a line."""

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"


@dataclass(frozen=True)
class _Read:
    """The data as they were read; `options` are settled by it."""

    options: Any
    labels: tuple[str, ...]
    train: list[Any]
    dev: list[Any]
    test: list[Any]

    def of_fold(self, fold: Fold) -> "_Read":
        """The same where a fold is the test, and the other training rows are those to learn from."""
        return replace(self, train=fold.learnt, test=fold.scored)


def finetune(
    task: str, settings: FinetuneSettings, options: Any = None, *, console: Console | None = None
) -> FinetuneResult:
    """Learn one of `TASKS` from labelled data, keep the best weights on dev, and write a run's folder.

    Nothing is written before the data, the tokenizer and the model have been read and fit together. Under torchrun all
    ranks call this with the same arguments, share each step, and have the same result; rank 0 alone writes and speaks.

    Args:
        task: "classification", "tagging", "answering", "choice" or "embedding".
        options: the task's own settings, such as `ClassificationSettings`; None: their defaults.
        console: where progress is shown; None is standard error.

    Raises:
        InputError: data that cannot be read, unknown columns or labels.
        SettingsError: `out` holds a run and neither `resume` nor `overwrite` is set, or another process writes there;
            options of another task; mixup or changed examples where the task has no answer to them.
        ModelError: a model that cannot be loaded, or does not fit its tokenizer.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    are_several = settings.seeds > 1 or settings.is_folded or settings.search is not None
    read_launch().check(
        [settings.batch_size], auto_batch=settings.auto_batch, overwrite=settings.overwrite, are_several=are_several
    )
    with joined(settings.device) as ranks, resumable(settings.out):
        with run_folder_held(ranks, settings, f"finetune {task}", _sources(settings)):
            return _finetune(ranks, task, settings, options, console)


def _finetune(
    ranks: Ranks, task: str, settings: FinetuneSettings, options: Any, console: Console | None
) -> FinetuneResult:
    kind = task_kind(task)
    options = kind.settings() if options is None else options
    if not isinstance(options, kind.settings):
        raise SettingsError(f"{task} takes {kind.settings.__name__}, not {type(options).__name__}.")
    check_learning(settings)
    settings.check_mixup(ranks.launch.size)
    device = ranks.device(settings.device)
    precision = resolve_precision(settings.precision, device)
    seeds.seed_settings(settings)  # refuses what does not go together, before anything is read
    search.check(settings)
    folds.check(settings)
    config, weights, tokenizer = starting_point(settings, options.max_length)
    options = as_before(options, weights, tokenizer)
    family(config.model_type).architecture(kind.architecture)  # refuses a head that the family has not
    read = _read(kind, settings, options)
    settings, chosen = _settled(task, settings, len(read.train), config, is_random=weights is None)
    runs = seeds.seed_settings(settings)
    parts = folds.split(read.train, settings, read.options)
    for part in parts:
        with folds.naming(part):
            _parted(read.of_fold(part), settings)
    work = _make_task(kind, read.of_fold(parts[0]) if parts else read, settings, tokenizer)
    are_several = len(runs) > 1 or bool(parts)
    log_every = seeds.log_interval(settings, work.examples("train").num_examples(0)) if are_several else None
    if isinstance(work, Embedding):
        check_batches(work, settings.at_once(ranks.launch.size))
    model, new_tensors = build_model(work, config, weights, settings)
    taught = _taught(work, settings)
    learnt = _regularised(work, taught, settings)
    check_augmentation(work, settings)
    data = {str(path): sha256(path) for path in data_files(settings)}

    def begin() -> None:
        if settings.overwrite:
            clear_run_folder(settings.out)
        write_config(settings, f"finetune {task}", configuration(settings, options))

    ranks.first(begin)
    screen = ranks.console(console)
    kept = [*folder_notes(options, weights, config.max_sequence_length), *start_notes(work, weights)]
    notes = [*kept, *work.notes(), *(taught.notes() if taught else []), *folds.notes(parts, settings, read.options)]
    for line in [*summary(work, settings), *chosen, *notes]:
        say(screen, line)
    adapted = None
    if settings.adapt is not None and weights is not None:
        say(screen, f"First {settings.adapt} of pre-training on the texts of the training rows.")
        texts = (text for item in work.examples("train").items for text in item.row.texts)
        adapted = adapt(ranks, settings, weights, config, texts, screen)
        model, new_tensors = build_model(work, config, weights, settings, adapted)
    found = (kind, work, taught, learnt, config, weights, options, log_every, data, device, precision, screen, ranks)
    teaching = Teaching(*found, adapted=adapted)
    if parts:
        del model  # as below
        return _cross_validate(teaching, settings, read, parts)
    if settings.search is None and len(runs) == 1:
        run = teaching.learn(settings, model, new_tensors)
        return FinetuneResult(run.metrics, settings.out, run.training, (run,))
    del model  # made to be sure that it can be; each run makes its own
    return _learn_all(teaching, settings, runs) if settings.search is None else _search(teaching, settings)


def _learn_all(teaching: Teaching, settings: FinetuneSettings, each: Sequence[FinetuneSettings]) -> FinetuneResult:
    """A run a seed; then the best of them in `out`. One that cannot go on does not end the others."""
    runs: list[SeedRun] = []
    stopped: dict[str, StepError] = {}

    def works() -> Iterator[Work]:
        for number, own in enumerate(each, start=1):
            say(teaching.screen, f"Seed {own.seed}, {number} of {len(each)}.")
            yield teaching, own

    with closing(outcomes(works(), min(settings.jobs, len(each)), teaching.screen)) as ended:
        for own, outcome in zip(each, ended, strict=True):
            if isinstance(outcome, SeedRun):
                runs.append(outcome)
                continue
            say(teaching.screen, f"{own.out.name} failed: {outcome}")
            stopped[own.out.name] = outcome
    if not runs:
        raise next(iter(stopped.values()))
    teaching.write_config(settings, has_ended=True)
    best = seeds.best_of(runs, teaching.task)
    seeds.publish(runs, best, settings.out, stopped)
    write_seeds_report(teaching.task, settings, configuration(settings, teaching.options), runs, best, stopped)
    say(teaching.screen, seeds.failures(runs, stopped))
    return FinetuneResult(best.metrics, settings.out, best.training, tuple(runs))


def _cross_validate(
    teaching: Teaching, settings: FinetuneSettings, read: _Read, parts: Sequence[Fold]
) -> FinetuneResult:
    """A run a fold; then what they said of all rows in `out`. The task of `teaching` is that of the first fold."""

    def works() -> Iterator[Work]:
        for number, part in enumerate(parts):
            say(teaching.screen, f"Fold {number}, {number + 1} of {len(parts)}.")
            own = replace(teaching, fold=part.chosen_by)
            if number > 0:
                work = _make_task(teaching.kind, read.of_fold(part), settings, teaching.task.tokenizer)
                taught = _taught(work, settings)
                own = replace(own, task=work, taught=taught, learnt=_regularised(work, taught, settings))
            yield own, folds.fold_settings(settings, number)

    runs = []
    with closing(outcomes(works(), min(settings.jobs, len(parts)), teaching.screen)) as each:
        for outcome in each:
            if isinstance(outcome, StepError):  # nobody would answer the rows of its fold
                raise outcome
            seeds.discard_weights(outcome.folder)
            runs.append(outcome)
    teaching.write_config(settings, has_ended=True)
    folds.write_out_of_fold(runs, parts, read.train, settings.out / PREDICTIONS)
    described = configuration(settings, teaching.options)
    write_folds_report(teaching.task, settings, described, runs, folds.section(parts))
    say(teaching.screen, seeds.failures(runs))
    means = {split: {name: one.mean for name, one in metrics.items()} for split, metrics in seeds.spread(runs).items()}
    return FinetuneResult(means, settings.out, runs[-1].training, tuple(runs), settings.out / PREDICTIONS)


def _search(teaching: Teaching, settings: FinetuneSettings) -> FinetuneResult:
    """A run a trial; then the best of them in `out`."""
    trials: list[Trial] = []
    begun: list[FinetuneSettings] = []

    def works() -> Iterator[Work]:
        better = teaching.task.greater_is_better
        while (own := search.propose(settings, trials, begun[len(trials) :], greater_is_better=better)) is not None:
            begun.append(own)
            say(teaching.screen, f"Trial {len(begun)} of {settings.search}: {search.describe(own)}.")
            yield teaching, own

    with closing(outcomes(works(), min(settings.jobs, settings.search or 1), teaching.screen)) as each:
        for outcome in each:
            own = begun[len(trials)]
            if isinstance(outcome, StepError):  # the others go on
                say(teaching.screen, f"{own.out.name} failed: {outcome}")
            trials.append(Trial(own, outcome if isinstance(outcome, SeedRun) else None))
            search.tidy(trials, teaching.task)
    best = search.best_of(trials, teaching.task)
    teaching.write_config(settings, has_ended=True)
    search.publish(trials, best, settings.out)
    write_search_report(teaching.task, settings, configuration(settings, teaching.options), trials, best)
    assert best.run is not None
    for line in search.failures(trials):
        say(teaching.screen, line)
    say(teaching.screen, f"Best on dev: {search.describe(best.settings)} ({best.settings.out.name}).")
    return FinetuneResult(best.run.metrics, settings.out, best.run.training, (best.run,))


def _settled(
    task: str, settings: FinetuneSettings, num_rows: int, config: EncoderConfig, *, is_random: bool
) -> tuple[FinetuneSettings, list[str]]:
    """The settings with what was left to the size of data and model, and a sentence for each of these."""
    number = min(num_rows, settings.max_train_examples or num_rows)
    choices = [one for one in by_size(task, number, config, is_random=is_random) if getattr(settings, one.name) is None]
    if settings.lora is not None:
        choices = [for_lora(one) if one.name == "learning_rate" else one for one in choices]
    return replace(settings, **{one.name: one.value for one in choices}), [one.as_default for one in choices]


def _sources(settings: FinetuneSettings) -> Iterator[str | Path | None]:
    """All that is read of what may lie on this machine."""
    yield from (settings.train, settings.dev, settings.test, settings.model, settings.tokenizer)
    yield settings.augment_model
    yield from teacher_names(settings.teacher) if settings.teacher is not None else ()
    yield from data_files(settings)


def _read(kind: Kind, settings: FinetuneSettings, options: Any) -> _Read:
    """Read the data and find its labels. Labels are sought in all training rows, before any are held back."""
    options, train_rows = read_training_rows(kind, settings.train, options)
    labels = kind.find_labels(train_rows, options)
    others = []
    for source in (settings.dev, settings.test):
        found, rows = (options, []) if source is None else kind.read_rows(source, options)
        if isinstance(options, EmbeddingSettings):
            refuse_scores(found, options, rows[0].where if rows else "")
        others.append(rows)
    return _Read(options, labels, train_rows, *others)


def make_task(kind: Kind, settings: FinetuneSettings, options: Any, tokenizer: Tokenizer) -> FinetuneTask:
    """The task with its data, as a run has it.

    Raises:
        InputError: data that cannot be read, unknown columns or labels.
    """
    return _make_task(kind, _read(kind, settings, options), settings, tokenizer)


def _make_task(kind: Kind, read: _Read, settings: FinetuneSettings, tokenizer: Tokenizer) -> FinetuneTask:
    return kind.make(tokenizer, read.labels, read.options, _parted(read, settings))


def _parted(read: _Read, settings: FinetuneSettings) -> dict[str, list[Any]]:
    """The rows of each split, with what is held back for dev, and no more of training than are asked for."""
    train_rows, dev_rows = read.train, read.dev
    if settings.dev is None and settings.dev_share > 0:
        train_rows, dev_rows = split_rows(train_rows, settings.dev_share)
    if settings.max_train_examples is not None:
        train_rows = choose_rows(train_rows, settings.max_train_examples)
    return {"train": train_rows, "dev": dev_rows, "test": read.test}


def _taught(task: FinetuneTask, settings: FinetuneSettings) -> Distillation | None:
    """The task with its teacher, where there is one."""
    if settings.teacher is None:
        return None
    return distil(task, settings.teacher, weight=settings.distill_weight, temperature=settings.temperature)


def _regularised(task: FinetuneTask, taught: Distillation | None, settings: FinetuneSettings) -> Task:
    """What is trained: the task, or the task with its teacher, and the regularisers around it."""
    learnt: Task = taught or task
    if settings.mixup is not None:
        learnt = Mixup(task, settings.mixup)
    if settings.r_drop is not None:
        learnt = RDrop(task, settings.r_drop)
    if settings.adversarial is not None:
        learnt = Adversarial(learnt, settings.adversarial, settings.adversarial_steps)
    return learnt
