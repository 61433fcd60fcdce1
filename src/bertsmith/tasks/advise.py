"""The verb `advise`: what to fine-tune with, for this data, model, time and memory, and what it will take.

The data is read and tokenized as `finetune` does it; rules choose the settings (`tasks/advice_rules.py`); the run's
own first steps are measured in a process of their own (`tasks/forecast.py`); and what does not fit the time or the
memory is changed, and the reason said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.errors import SettingsError
from bertsmith.files import atomic_write, refuse_folder
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family
from bertsmith.model.operations import TextShape, encoder_operations
from bertsmith.model.sizes import SIZES, named_size
from bertsmith.settings import settle_types, to_yaml
from bertsmith.tasks.advice_rules import Choice, DataFigures, Least, fewer_windows, for_lora, recommend, remarks
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.forecast import FinetuneMeasured, Forecast, measure_finetune, memory_limit, time_limit
from bertsmith.tasks.label_check import label_counts
from bertsmith.tasks.row_lengths import Encoded, answer_lengths, row_lengths
from bertsmith.tasks.run_settings import check_seed
from bertsmith.tasks.saved import Kind, read_training_rows, task_kind
from bertsmith.tasks.sentence_folder import as_before
from bertsmith.tasks.start import SIZE_PREFIX, starting_point
from bertsmith.tasks.teaching import configuration
from bertsmith.text.scripts import script_shares
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training.device import Precision

_LORA_RANK = 8
_EVALUATION_SHARE = 0.2  # of the time there is
_LEAST_DEV_SHARE = 0.005


@dataclass(frozen=True, kw_only=True)
class AdviceSettings:
    """What there is to learn from, and how much time and memory."""

    model: str
    """A BERT-like folder, a run's folder, a Hub id; or "size:mini" for random weights, with a tokenizer."""
    train: str
    """Labelled training data, in any form that finetune reads."""
    dev: str | None = None
    """Data that is to pick the best checkpoint; by default a share of the training data."""
    test: str | None = None
    """Data that is to be evaluated once, at the end."""
    tokenizer: str | None = None
    """A tokenizer folder or vocab.txt; by default the model's own."""
    budget: str | None = None
    """How long the run may take, such as 30m, from start to report; by default as long as it needs."""
    memory: str | None = None
    """How much memory it may have, such as 8GiB; by default what is free."""
    out: Path | None = None
    """Write the recommended settings there, as YAML that `finetune --config` takes; by default only say them."""
    run: Path = Path("runs/advised")
    """The folder of the run, in the command and in the settings that are recommended."""
    precision: Precision = "auto"
    """bf16 autocast where the hardware has it, unless said otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """That of the run: it fixes which rows stand together in a step."""

    def __post_init__(self) -> None:
        settle_types(self)
        check_seed(self.seed)
        time_limit(self.budget)
        if self.out is not None and self.out.suffix not in (".yaml", ".yml"):
            raise SettingsError(f"out {self.out}: the settings are YAML; give a name that ends in .yaml.")
        if self.out is not None:  # now, and not after all has been measured
            refuse_folder(self.out)
            existing = next(one for one in self.out.absolute().parents if one.exists())
            if not existing.is_dir():
                raise SettingsError(f"out {self.out}: {existing} is a file, and would have to be a folder.")


@dataclass(frozen=True)
class Advice:
    """What to do, why, and what it will take."""

    task: str
    data: DataFigures
    config: EncoderConfig
    """Of the model that is learnt from."""
    choices: tuple[Choice, ...]
    remarks: tuple[str, ...]
    settings: FinetuneSettings
    """What is recommended; where nothing fits, what was tried last, which wants the least."""
    options: Any
    """The task's settings."""
    measured: FinetuneMeasured
    forecast: Forecast | None
    """None: the model does not fit the memory, whatever is tried."""
    memory_limit_bytes: int
    time_limit_seconds: float | None
    is_cut_short: bool
    """Whether there are fewer epochs, or rows, than would be better, for want of time."""
    is_evaluated_less: bool
    """Whether less is held back for evaluation, for want of time."""
    settings_file: Path | None
    """Where the settings were to be written; they are if they fit."""

    @property
    def fits_time(self) -> bool:
        """Whether the run ends within the time that was given."""
        limit = self.time_limit_seconds
        return limit is None or (self.forecast is not None and self.forecast.seconds <= limit)

    @property
    def fits(self) -> bool:
        """Whether there is anything to recommend."""
        return self.forecast is not None and self.fits_time

    @property
    def least_seconds(self) -> float | None:
        """About how long a run takes at least; None: that cannot be measured, as it does not fit the memory.

        With more time, up to a fifth of it goes to the evaluation, if that was cut.
        """
        if self.forecast is None:
            return None
        return self.forecast.seconds / (1 - _EVALUATION_SHARE if self.is_evaluated_less else 1)

    def epoch_seconds(self) -> float:
        """Of learning from the training rows, or as many as are recommended, once."""
        return self.measured.epoch_seconds(self.share)

    def seconds_of_sizes(self) -> dict[str, float]:
        """About how long the run would take with each named size of the family, by operations."""
        if self.forecast is None:
            return {}
        (cost,) = self.measured.calibration.stages
        text = TextShape(cost.mean_sequences, cost.mean_tokens, cost.mean_token_pairs)
        vocab_size, model_type = self.config.vocab_size, self.config.model_type
        own = encoder_operations(self.config, text)
        beside = self.forecast.start_seconds + self.forecast.saving_seconds
        computing = self.forecast.seconds - beside
        configs = {size: named_size(size, vocab_size, model_type=model_type, pad_token_id=0) for size in SIZES}
        return {size: beside + computing * encoder_operations(one, text) / own for size, one in configs.items()}

    @property
    def share(self) -> float:
        """Of the training rows, that is learnt from."""
        return _share(self.settings, self.measured)


def advise(task: str, settings: AdviceSettings, options: Any = None) -> Advice:
    """Read the data, choose, measure, and make it fit.

    Args:
        task: as for `finetune`.
        options: the task's own settings; what differs from their defaults stays as it is. None: their defaults.

    Raises:
        InputError, ModelError, SettingsError: as `finetune`.
        TrainingError: the process that measures was killed.
    """
    kind = task_kind(task)
    options = kind.settings() if options is None else options
    if not isinstance(options, kind.settings):
        raise SettingsError(f"{task} takes {kind.settings.__name__}, not {type(options).__name__}.")
    limit_bytes, limit_seconds = memory_limit(settings.memory, settings.device), time_limit(settings.budget)
    run = FinetuneSettings(
        out=settings.run,
        model=settings.model,
        train=settings.train,
        dev=settings.dev,
        test=settings.test,
        tokenizer=settings.tokenizer,
        precision=settings.precision,
        device=settings.device,
        seed=settings.seed,
    )
    config, weights, tokenizer = starting_point(run, options.max_length)
    as_before(options, weights, tokenizer)  # refuses what the fine-tuning would
    family(config.model_type).architecture(kind.architecture)  # refuses a head that the family has not
    data = read_figures(kind, task, run, options, tokenizer)
    asked = recommend(data, config, options, is_random=weights is None)
    choices, measured = _fitting_memory(data, run, options, asked, limit_bytes)
    wanted, less = choices, asked
    if measured.calibration.fits and limit_seconds is not None:
        if (less := _with_less_evaluation(asked, measured, limit_seconds)) != asked:  # other batches, so other memory
            choices, measured = _fitting_memory(data, run, options, less, limit_bytes)
        if measured.calibration.fits:
            choices = _fitting_time(choices, measured, len(data.labels), limit_seconds)
    run, options = _chosen(run, options, choices)
    forecast = None
    if measured.calibration.fits:
        forecast = measured.forecast(run.settled[0], _share(run, measured))
    notes = tuple(remarks(data, config, options))
    advice = Advice(
        task,
        data,
        config,
        tuple(choices),
        notes,
        run,
        options,
        measured,
        forecast,
        limit_bytes,
        limit_seconds,
        choices != wanted,
        less != asked,
        settings.out,
    )
    if settings.out is not None and advice.fits:
        note = f"# bertsmith finetune {task} --config {settings.out.name}\n"
        atomic_write(settings.out, note + to_yaml(configuration(run, options)))
    return advice


def read_figures(kind: Kind, task: str, settings: FinetuneSettings, options: Any, tokenizer: Tokenizer) -> DataFigures:
    """All that the rules ask of the data.

    Raises:
        InputError: data that cannot be read.
    """
    options, rows = read_training_rows(kind, settings.train, options)
    kind.find_labels(rows, options)
    sizes, longest = {"train": len(rows)}, 0
    for split, source in (("dev", settings.dev), ("test", settings.test)):
        if source is not None:
            others = kind.read_rows(source, options)[1]
            sizes[split] = len(others)
            longest = max(longest, *row_lengths(others, Encoded.of(others, tokenizer), tokenizer))
    encoded = Encoded.of(rows, tokenizer)
    answers = answer_lengths(rows, tokenizer) if task == Answering.name else [0]
    total = sum(map(sum, encoded.lengths))
    return DataFigures(
        task=task,
        rows=sizes,
        lengths=np.array(row_lengths(rows, encoded, tokenizer), dtype=np.int64),
        longest_evaluated=longest,
        labels=label_counts(rows, options),
        scripts=script_shares(text for row in rows for text in row.texts),
        unknown_share=encoded.num_unknown / max(1, total),
        answer_tokens=int(np.percentile(answers, 99, method="lower")),
    )


def _chosen(run: FinetuneSettings, options: Any, choices: list[Choice]) -> tuple[FinetuneSettings, Any]:
    """The settings of the run and of the task, with what was chosen."""
    of_run = {field.name for field in fields(run)}
    changes = {choice.name: choice.value for choice in choices}
    run = replace(run, **{name: value for name, value in changes.items() if name in of_run})
    return run, replace(options, **{name: value for name, value in changes.items() if name not in of_run})


def _fitting_memory(
    data: DataFigures, run: FinetuneSettings, options: Any, choices: list[Choice], limit_bytes: int
) -> tuple[list[Choice], FinetuneMeasured]:
    """Measure with smaller micro-batches, then in other ways that want less memory (`_leaner`), until it fits."""
    for more in _leaner(run, choices, fewer_windows(data, choices, options)):
        tried = _changed(choices, *more)
        measured = measure_finetune(data.task, *_chosen(run, options, tried), memory_limit_bytes=limit_bytes)
        if measured.calibration.fits:
            break
    for cost in measured.calibration.stages:
        if cost.micro_batch_size < cost.batch_size:
            same = (
                "others of it to be told from are fewer"
                if data.task == "embedding"
                else "but for dropout, updates are equal"
            )
            why = f"More at once does not fit the memory; {same}."
            tried = _changed(tried, Choice("micro_batch_size", cost.micro_batch_size, why))
    return tried, measured


def _leaner(run: FinetuneSettings, choices: list[Choice], windows: Choice | None) -> Iterator[tuple[Choice, ...]]:
    """What to change for want of memory, in the order in which it is tried: as little as can be of what is learnt.

    With each, layers are first kept and then computed again: time is given up before anything that is learnt is.
    """
    again = Choice(
        "gradient_checkpointing",
        True,
        "Memory is short. Computing each layer again for its gradient changes nothing of what is learnt, and took 37 % "
        "more time here (docs/performance.md).",
    )
    freeze = Choice(
        "freeze",
        0,
        "Memory is short. The table of tokens is most of a small model, and leaving it as it is (with "
        "--ema-decay) cost SST-2 0.1 points here.",
    )
    lora = Choice(
        "lora", _LORA_RANK, "Memory is short: gradients and moments of small matrices alone (Hu et al. 2021)."
    )
    faster = for_lora(next(choice for choice in choices if choice.name == "learning_rate"))
    # Random weights have all to learn.
    learning: list[tuple[Choice, ...]] = [()] if run.model.startswith(SIZE_PREFIX) else [(), (freeze,), (lora, faster)]
    if windows is not None:
        learning = [(), *((windows, *changes) for changes in learning)]
    for changes in learning:
        yield changes
        yield (*changes, again)


def _with_less_evaluation(choices: list[Choice], measured: FinetuneMeasured, limit_seconds: float) -> list[Choice]:
    """Less held back, where evaluating that would take more than a fifth of the time there is, in a run of one epoch.

    A test set is evaluated once, however large it is.
    """
    share = next((choice.value for choice in choices if choice.name == "dev_share"), None)
    evaluating = measured.evaluation_seconds("dev", 1)
    epochs = next(choice.value for choice in choices if choice.name == "epochs")
    fits = measured.forecast(epochs).seconds <= limit_seconds
    if share is None or fits or evaluating <= _EVALUATION_SHARE * limit_seconds:
        return choices
    smaller = max(_LEAST_DEV_SHARE, round(share * _EVALUATION_SHARE * limit_seconds / evaluating, 3))
    why = "More to evaluate would take more than a fifth of the time there is."
    return _changed(choices, Choice("dev_share", smaller, why))


def _fitting_time(
    choices: list[Choice], measured: FinetuneMeasured, num_labels: int, limit_seconds: float
) -> list[Choice]:
    """Fewer passes over the data, and where not even one fits, a share of it: no less than teaches anything."""
    epochs = next(choice.value for choice in choices if choice.name == "epochs")
    if measured.forecast(epochs).seconds <= limit_seconds:
        return choices
    number = measured.num_rows
    batch = measured.calibration.stages[0].batch_size
    least = Least.of(number, num_labels, batch, epochs)
    passes = range(int(epochs), least.epochs - 1, -1)
    fitting = next((one for one in passes if measured.forecast(one).seconds <= limit_seconds), None)
    if fitting is not None:
        why = f"{epochs:g} would be better, but take longer than there is."
        return _changed(choices, Choice("epochs", float(fitting), why))
    if least.rows == number:
        return _changed(choices, Choice("epochs", float(least.epochs), f"{epochs:g} would be better; {least.why}"))
    epoch = measured.epoch_seconds()
    left = limit_seconds - (measured.forecast(1).seconds - epoch)
    kept = max(least.rows, int(number * max(0.0, left) / epoch) // batch * batch)
    why = f"{kept / number:.0%} of the {number:,} training rows are what fits the time."
    if kept == least.rows:
        why = f"{kept / number:.0%} of the {number:,} training rows; {least.why}"
    return _changed(
        choices,
        Choice("epochs", 1.0, f"{epochs:g} would be better, but not even one over all rows fits the time."),
        Choice("max_train_examples", kept, why),
    )


def _changed(choices: Sequence[Choice], *new: Choice) -> list[Choice]:
    """Some choices in the place of those of the same names."""
    names = {choice.name for choice in new}
    return [*(choice for choice in choices if choice.name not in names), *new]


def _share(run: FinetuneSettings, measured: FinetuneMeasured) -> float:
    number = measured.num_rows
    return 1.0 if run.max_train_examples is None else min(1.0, run.max_train_examples / max(1, number))
