"""The verb `plan`: what a pre-training will take, before it is begun.

Parameters and operations are counted, time and memory are measured on this machine by the run's own first steps
(`tasks/forecast.py`), and the rest is arithmetic. Without a store, the steps are taken on one of random words, out of
the vocabulary of the model that is gone on from, or of one with the size that is given: time and memory depend on how
much text there is, not on what it says.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from bertsmith.errors import SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.operations import (
    TRAINING_PASSES,
    TextShape,
    detection_operations,
    encoder_operations,
    pooled_operations,
    vocabulary_operations,
)
from bertsmith.tasks.forecast import Forecast, PretrainMeasured, measure_pretrain, memory_limit, num_times
from bertsmith.tasks.objectives import PAIR_NAMES
from bertsmith.tasks.pretrain import train_settings
from bertsmith.tasks.pretrain_settings import ObjectiveName, PretrainOptions, PretrainSettings
from bertsmith.tasks.replaced_tokens import generator_config
from bertsmith.tasks.run_folder import model_folder
from bertsmith.text.corpus import read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.calibrate import Calibration, StageCost
from bertsmith.training.schedule import Budget, Spent

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SYNTHETIC_TOKENS = 200_000  # more than a calibration's steps read of any size, or they read it again
_WORDS_IN_SENTENCE, _SENTENCES_IN_DOCUMENT = 20, 20  # a full stop counts as a word
_EVALUATION_SHARE = 0.1  # of a time budget, beyond which the loop leaves evaluations out
_EVALUATE_EVERY = "10%"  # of the loop, where nothing is said


@dataclass(frozen=True, kw_only=True)
class PlanSettings(PretrainOptions):
    """What to plan: all that shapes a pre-training, and what it may read and cost."""

    corpus: Path | None = None
    """The token store made by `bertsmith corpus build`; or leave it out, and give tokens and vocab_size."""
    tokens: str | None = None
    """How much text there will be, such as 500M; without a store."""
    vocab_size: int | None = None
    """Tokens of the vocabulary; without a store, and without a model to go on from or a teacher, whose own it is."""
    run: Path = Path("runs/pretrain")
    """The folder of the run that is planned, of which only the disk is looked at."""
    memory: str | None = None
    """How much memory it may have, such as 8GiB; by default what is free."""
    price_per_hour: float | None = None
    """What an hour of this machine costs, in any currency."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise SettingsError(
                "compile: steps are measured without it. Leave it out here; the run then takes less time."
            )
        if self.corpus is not None and (self.tokens is not None or self.vocab_size is not None):
            raise SettingsError("corpus says how many tokens there are; leave tokens and vocab_size out.")
        if self.vocab_size is not None and self.known_model is not None:
            raise SettingsError(f"the vocabulary is that of {self.known_model}; leave vocab_size out.")
        if self.corpus is None and (self.tokens is None or (self.vocab_size is None and self.known_model is None)):
            raise SettingsError("give corpus, or tokens and vocab_size where there is no store yet.")
        if self.tokens is not None:
            num_tokens(self.tokens)
        if self.vocab_size is not None and self.vocab_size <= len(_SPECIAL_TOKENS):
            raise SettingsError(f"vocab_size must be above {len(_SPECIAL_TOKENS)}, not {self.vocab_size}.")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise SettingsError(f"price_per_hour must be at least 0, not {self.price_per_hour}.")

    @property
    def known_model(self) -> str | None:
        """The model whose vocabulary the corpus will have."""
        return self.from_model or self.teacher


@dataclass(frozen=True)
class StagePlan:
    """One phase of the run."""

    max_length: int
    cost: StageCost
    steps: int
    tokens: float
    epochs: float
    operations_per_token: float
    """Of forward and backward pass."""
    seconds: float


@dataclass(frozen=True)
class RunPlan:
    """What a pre-training will take. `forecast` is None if the model does not fit the memory."""

    settings: PretrainSettings
    memory_limit_bytes: int
    measured: PretrainMeasured
    stages: tuple[StagePlan, ...]
    forecast: Forecast | None
    cost: float | None
    """Of the whole, in the currency of the price."""

    @property
    def tokens(self) -> float:
        """That are learnt from, special ones included."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def operations(self) -> float:
        """Of all training steps."""
        return sum(stage.tokens * stage.operations_per_token for stage in self.stages)


def plan(settings: PlanSettings) -> RunPlan:
    """Measure the first steps of a pre-training, and say what the whole will take.

    Raises:
        SettingsError, CorpusError, ModelError: as `pretrain`.
        TrainingError: the process that measures was killed.
    """
    limit = memory_limit(settings.memory, settings.device)
    if Budget.parse(settings.budget, "budget").unit == "share":
        raise SettingsError(f'the budget "{settings.budget}" is a share of itself; give a time or a number.')
    given = {field.name: getattr(settings, field.name) for field in fields(PretrainOptions)}
    if settings.corpus is not None:
        read_manifest(settings.corpus)  # before a process is started
        wanted = PretrainSettings(**given, corpus=settings.corpus, out=settings.run)
        return _planned(wanted, measure_pretrain(wanted, memory_limit_bytes=limit), 1.0, limit, settings.price_per_hour)
    assert settings.tokens is not None  # or the settings would not be
    vocabulary = settings.vocab_size if settings.known_model is None else model_folder(settings.known_model)
    assert vocabulary is not None
    with tempfile.TemporaryDirectory() as temporary:
        store = synthetic_store(Path(temporary), vocabulary)
        stored_tokens = sum(split.num_tokens for split in read_manifest(store).splits.values())
        measured = measure_pretrain(PretrainSettings(**given, corpus=store, out=settings.run), memory_limit_bytes=limit)
    wanted = PretrainSettings(**given, corpus=Path("STORE"), out=settings.run)
    times_as_long = num_tokens(settings.tokens) / stored_tokens
    if measured.calibration.fits:
        last = measured.calibration.stages[-1]
        most = settings.evaluation_samples * last.mean_tokens / last.batch_size
        evaluated = round(min(most, measured.num_evaluated_tokens * times_as_long))
        measured = replace(measured, num_evaluated_tokens=evaluated)
    return _planned(wanted, measured, times_as_long, limit, settings.price_per_hour)


def num_tokens(text: str) -> float:
    """A number of tokens such as "500M".

    Raises:
        SettingsError: it is none.
    """
    return Budget.parse(f"{text.strip().removesuffix('tokens').strip()} tokens", "tokens").amount


def training_operations(
    config: EncoderConfig, objective: ObjectiveName, text: TextShape, num_masked: float, generator_share: float = 0.25
) -> float:
    """Of a training step: forward and backward pass of model and heads; a teacher's are not counted.

    Args:
        text: of the step.
        num_masked: tokens that are predicted, the only ones that the vocabulary head sees.
    """
    if objective == "rtd":
        generator = generator_config(config, generator_share)
        passes = encoder_operations(generator, text, num_masked) + vocabulary_operations(generator, num_masked)
        passes += encoder_operations(config, text) + detection_operations(config, text.tokens)
        return TRAINING_PASSES * passes
    has_pairs = objective in PAIR_NAMES
    asked = num_masked + (text.sequences if has_pairs else 0)
    passes = encoder_operations(config, text, asked) + vocabulary_operations(config, num_masked)
    if has_pairs:
        passes += pooled_operations(config, text.sequences, 2)
    return TRAINING_PASSES * passes


def synthetic_store(folder: Path, vocabulary: int | str) -> Path:
    """A token store of some 200,000 random words, each a token.

    Args:
        folder: an empty one.
        vocabulary: so many tokens; or the folder or Hub id of a model, for its own.

    Raises:
        ModelError: the model has no tokenizer.
    """
    if isinstance(vocabulary, int):
        words = [f"w{number}" for number in range(vocabulary - len(_SPECIAL_TOKENS) - 1)]
        tokenizer: str | Path = folder / "vocab.txt"
        pieces = "".join(f"{token}\n" for token in (*_SPECIAL_TOKENS, ".", *words))
        (folder / "vocab.txt").write_text(pieces, encoding="utf-8")
    else:
        tokenizer, words = vocabulary, _whole_words(load_tokenizer(vocabulary))
    num_documents = _SYNTHETIC_TOKENS // (_SENTENCES_IN_DOCUMENT * _WORDS_IN_SENTENCE)
    shape = (num_documents, _SENTENCES_IN_DOCUMENT, _WORDS_IN_SENTENCE - 1)
    drawn = np.array(words or ["."])[np.random.default_rng(0).integers(0, max(1, len(words)), shape)]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as lines:
        for document in drawn:
            text = " ".join(f"{' '.join(sentence)}." for sentence in document)
            lines.write(json.dumps({"text": text}) + "\n")
    build_corpus([str(folder / "text.jsonl")], tokenizer, folder / "store", num_workers=1)
    return folder / "store"


def _whole_words(tokenizer: Tokenizer) -> list[str]:
    """The words of letters and digits that are one token."""
    words = [tokenizer.decode([token_id]).strip() for token_id in range(tokenizer.vocab_size)]
    words = list(dict.fromkeys(word for word in words if word.isalnum()))
    return [word for word, encoding in zip(words, tokenizer.encode_batch(words), strict=True) if len(encoding.ids) == 1]


def _planned(
    settings: PretrainSettings,
    measured: PretrainMeasured,
    times_as_long: float,
    limit_bytes: int,
    price_per_hour: float | None,
) -> RunPlan:
    """`times_as_long`: the text that is planned for, over that of the store that was measured on."""
    cost, budget = measured.calibration, Budget.parse(settings.budget)
    if not cost.fits:
        return RunPlan(settings, limit_bytes, measured, (), None, None)
    settings = _in_micro_batches(settings, cost)
    stages = _stages(settings, measured, times_as_long, budget.amount)
    evaluating, saving = _beside_learning(settings, measured, stages)
    if budget.unit == "seconds":
        # At most half of a budget is kept back for what comes after the last step.
        learning = max(budget.amount / 2, budget.amount - evaluating - saving)
        stages = _stages(settings, measured, times_as_long, learning)
    forecast = Forecast(
        start_seconds=measured.start_seconds,
        learning_seconds=sum(stage.seconds for stage in stages),
        evaluation_seconds=evaluating,
        saving_seconds=saving + cost.best_seconds + cost.report_seconds,
        peak_bytes=cost.peak_bytes,
        disk_bytes=(1 + _keeps_stable(settings)) * cost.save_bytes + cost.best_bytes,
    )
    price = None if price_per_hour is None else forecast.seconds / 3600 * price_per_hour
    return RunPlan(settings, limit_bytes, measured, stages, forecast, price)


def _in_micro_batches(settings: PretrainSettings, cost: Calibration) -> PretrainSettings:
    """The settings with the micro-batches that were measured, where those that are asked for do not fit the memory."""
    fitting = []
    for stage, one in zip(settings.phases, cost.stages, strict=True):
        given = settings.micro_batch_size
        asked = one.batch_size if given is None else round(given * settings.max_length / stage.max_length)
        if one.micro_batch_size < min(one.batch_size, asked):
            # Of the usual length; `pretrain` takes fewer sequences where they are longer.
            fitting.append(max(1, one.micro_batch_size * stage.max_length // settings.max_length))
    return replace(settings, micro_batch_size=min(fitting)) if fitting else settings


def _keeps_stable(settings: PretrainSettings) -> bool:
    """Whether a checkpoint is kept from before the rate falls."""
    return train_settings(settings).optimizer.preset.schedule == "wsd"


def _stages(
    settings: PretrainSettings, measured: PretrainMeasured, times_as_long: float, amount: float
) -> tuple[StagePlan, ...]:
    """The phases of a run that learns for `amount` of the unit of its budget."""
    unit = Budget.parse(settings.budget).unit
    stages: list[StagePlan] = []
    begin = 0.0
    for phase, cost in zip(settings.phases, measured.calibration.stages, strict=True):
        steps_per_epoch = max(1.0, cost.steps_per_epoch * times_as_long)
        a_step = cost.pace.seconds(1, cost.mean_tokens)
        steps_of = {
            "seconds": amount / a_step,
            "tokens": amount / cost.mean_tokens,
            "steps": amount,
            "epochs": amount * steps_per_epoch,
        }
        steps = max(1, math.ceil(phase.end * steps_of[unit] - 1e-9) - math.ceil(begin * steps_of[unit] - 1e-9))
        begin = phase.end
        text = TextShape(cost.mean_sequences, cost.mean_tokens, cost.mean_token_pairs)
        masked = cost.mean_counts["clm" if measured.objective == "clm" else "mlm"]
        operations = training_operations(measured.config, measured.objective, text, masked, settings.generator_share)
        stages.append(
            StagePlan(
                max_length=phase.max_length,
                cost=cost,
                steps=steps,
                tokens=steps * cost.mean_tokens,
                epochs=steps / steps_per_epoch,
                operations_per_token=operations / cost.mean_tokens,
                seconds=steps * a_step,
            )
        )
    return tuple(stages)


def _beside_learning(
    settings: PretrainSettings, measured: PretrainMeasured, stages: Sequence[StagePlan]
) -> tuple[float, float]:
    """Seconds of all evaluations, and of all checkpoints."""
    budget = Budget.parse(settings.budget)
    seconds, epochs = sum(stage.seconds for stage in stages), sum(stage.epochs for stage in stages)
    spent = Spent(sum(stage.steps for stage in stages), round(sum(stage.tokens for stage in stages)), seconds, epochs)
    an_evaluation = measured.evaluation_seconds()
    in_run = num_times(settings.evaluate_every or _EVALUATE_EVERY, spent) * an_evaluation
    if budget.unit == "seconds" and settings.evaluate_every is None:
        in_run = min(in_run, _EVALUATION_SHARE * budget.amount)
    num_saves = 1 + _keeps_stable(settings) + num_times(settings.save_every, spent)
    return in_run + an_evaluation, num_saves * measured.calibration.save_seconds
