"""What a run will take, from what its first steps took in a process of their own.

The process does what the run does: it starts, imports, reads the data, makes the model, and takes steps
(`training/calibrate.py`). A forecast adds up how often the run does each thing.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.errors import SettingsError, StorageError
from bertsmith.model.config import EncoderConfig
from bertsmith.settings import read_size
from bertsmith.tasks import pretrain
from bertsmith.tasks.child import in_child
from bertsmith.tasks.finetune import make_task
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain import prepare
from bertsmith.tasks.pretrain_settings import ObjectiveName, PretrainSettings
from bertsmith.tasks.saved import task_kind, training_rows
from bertsmith.tasks.sentence_folder import as_before
from bertsmith.tasks.start import build_model, starting_point
from bertsmith.tasks.teaching import settings_for
from bertsmith.training.calibrate import Calibration, calibrate
from bertsmith.training.device import resolve_device
from bertsmith.training.memory import free_memory_bytes
from bertsmith.training.plan import Stage
from bertsmith.training.schedule import Budget, Spent

MEASURED_SECONDS = 10.0
"""For the steps of each stage; starting, evaluating and saving come on top."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of each part of a run, and the most memory and disk."""

    start_seconds: float
    """Until the first step: imports, data, model."""
    learning_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    """Of checkpoints, the model's folder and the report."""
    peak_bytes: int
    """Of main memory, or on CUDA of the device's."""
    disk_bytes: int
    """Of the run's folder when it is done; while it runs, checkpoints may take twice as much."""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.start_seconds + self.learning_seconds + self.evaluation_seconds + self.saving_seconds


@dataclass(frozen=True)
class FinetuneMeasured:
    """What was measured of a fine-tuning."""

    start_seconds: float
    calibration: Calibration
    num_examples: Mapping[str, int]
    """By split."""
    num_tokens: Mapping[str, int]
    """By split, of an epoch."""
    num_rows: int
    """Learnt from; a row of answering may be several examples."""

    def epoch_seconds(self, share: float = 1.0) -> float:
        """Of learning from a share of the training examples once."""
        (stage,) = self.calibration.stages
        examples = round(share * self.num_examples["train"], 3)  # a share of a third has a rest
        return stage.pace.seconds(math.ceil(examples / stage.batch_size), share * self.num_tokens["train"])

    def evaluation_seconds(self, split: str, epochs: float) -> float:
        """Of the evaluations of "dev" or "test" in a run of so many epochs."""
        times = {"dev": math.ceil(epochs) + 1, "test": 1}  # dev once more with the weights that are kept
        (stage,) = self.calibration.stages
        return times[split] * self.num_tokens[split] * stage.seconds_per_evaluated_token

    def forecast(self, epochs: float, share: float = 1.0) -> Forecast:
        """Of a run of so many epochs on a share of the training examples, evaluated after each."""
        cost = self.calibration
        learning = epochs * self.epoch_seconds(share)
        num_best = math.ceil(epochs) if self.num_tokens["dev"] else 0
        # The model's folder is written as well, and what was best is read again.
        num_saves = 1 + num_times(FinetuneSettings.save_every, Spent(seconds=learning))
        saving = num_saves * cost.save_seconds + (num_best + 2) * cost.best_seconds + cost.report_seconds
        return Forecast(
            start_seconds=self.start_seconds,
            learning_seconds=learning,
            evaluation_seconds=sum(self.evaluation_seconds(split, epochs) for split in ("dev", "test")),
            saving_seconds=saving,
            peak_bytes=cost.peak_bytes,
            disk_bytes=cost.save_bytes + (2 if num_best else 1) * cost.best_bytes,
        )


@dataclass(frozen=True)
class PretrainMeasured:
    """What was measured of a pre-training."""

    start_seconds: float
    calibration: Calibration
    config: EncoderConfig
    objective: ObjectiveName
    num_embeddings: int
    """Of the parameters: tables of tokens, positions and segments."""
    num_evaluated_tokens: int
    """In an evaluation of the last phase's length."""

    def evaluation_seconds(self) -> float:
        """Of one evaluation."""
        return self.num_evaluated_tokens * self.calibration.stages[-1].seconds_per_evaluated_token


def num_times(every: str, spent: Spent) -> int:
    """How often something is due in a run that comes to `spent`, its end left out.

    >>> num_times("10%", Spent(step=100)), num_times("10m", Spent(seconds=1500))
    (9, 2)
    """
    interval = Budget.parse(every)
    return max(0, math.ceil(interval.used(spent, progress=1.0) / interval.amount - 1e-9) - 1)


def measure_finetune(
    task: str, settings: FinetuneSettings, options: Any, *, memory_limit_bytes: int
) -> FinetuneMeasured:
    """Take the first steps of a fine-tuning in a process of its own; nothing is left in `settings.out`.

    Raises:
        BertsmithError: what `finetune` raises before it begins to learn, or that the process was killed.
    """
    return in_child(_measure_finetune, task, settings, options, memory_limit_bytes, MEASURED_SECONDS, time.time())


def _measure_finetune(
    task: str, settings: FinetuneSettings, options: Any, memory_limit_bytes: int, seconds: float, asked: float
) -> FinetuneMeasured:
    config, weights, tokenizer = starting_point(settings, options.max_length)
    options = as_before(options, weights, tokenizer)
    work = make_task(task_kind(task), settings, options, tokenizer)
    model, _ = build_model(work, config, weights, settings)
    start_seconds = time.time() - asked
    collections = {split: work.examples(split) for split in ("train", "dev", "test")}
    calibration = calibrate(
        model,
        [Stage(work)],
        settings_for(work, settings),
        memory_limit_bytes=memory_limit_bytes,
        seconds=seconds,
        folder=writable(settings.out),
    )
    sizes = {split: examples.num_examples(0) for split, examples in collections.items()}
    tokens = {split: sum(map(one.num_tokens, range(sizes[split]))) for split, one in collections.items()}
    return FinetuneMeasured(start_seconds, calibration, sizes, tokens, len(training_rows(work)))


def measure_pretrain(settings: PretrainSettings, *, memory_limit_bytes: int) -> PretrainMeasured:
    """Take the first steps of each phase of a pre-training in a process of its own.

    Raises:
        BertsmithError: what `pretrain` raises before it begins to learn, or that the process was killed.
    """
    return in_child(_measure_pretrain, settings, memory_limit_bytes, MEASURED_SECONDS, time.time())


def _measure_pretrain(
    settings: PretrainSettings, memory_limit_bytes: int, seconds: float, asked: float
) -> PretrainMeasured:
    prepared = prepare(settings)
    start_seconds = time.time() - asked
    calibration = calibrate(
        prepared.model,
        prepared.stages(),
        pretrain.train_settings(settings),
        memory_limit_bytes=memory_limit_bytes,
        seconds=seconds,
        folder=writable(settings.out),
    )
    dev = prepared.tasks[-1].examples("dev")
    tables = {
        parameter
        for name, parameter in prepared.model.named_parameters()
        if name.endswith(("token_embedding.weight", "position_embedding.weight", "segment_embedding.weight"))
    }
    objective = prepared.settings.objective
    assert objective is not None  # `prepare` decides
    return PretrainMeasured(
        start_seconds,
        calibration,
        prepared.config,
        objective,
        sum(table.numel() for table in tables),
        sum(map(dev.num_tokens, range(dev.num_examples(0)))),
    )


def memory_limit(given: str | None, device: str) -> int:
    """How much memory a run may have, in bytes: what was said ("8GiB"), or what is free.

    Raises:
        SettingsError: not a size; no such device.
    """
    return free_memory_bytes(resolve_device(device)) if given is None else read_size(given, "memory")


def time_limit(given: str | None) -> float | None:
    """How long a run may take, in seconds; None: as long as it needs.

    Raises:
        SettingsError: not a time.
    """
    if given is None:
        return None
    budget = Budget.parse(given, "budget")
    if budget.unit != "seconds":
        raise SettingsError(f'budget "{given}" is no time. Write a time such as 30m or 2h.')
    return budget.amount


def writable(folder: Path) -> Path:
    """The folder, or the nearest above it that is there.

    Raises:
        StorageError: nothing can be written there.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        raise StorageError(f"{place} cannot be written to: {error.strerror}. Give --run a folder that can.") from None
