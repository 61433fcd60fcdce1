"""What `benchmark` times: steps of pre-training and fine-tuning, and passes of an encoder over sentences.

All of it on text of random words, since speed depends on how long texts are, not on what they say. Training takes the
steps of every run (`take_step` on the loader's batches); a pass is what every prediction waits for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from bertsmith import randomness
from bertsmith.errors import SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder, replay_layers
from bertsmith.model.folder import load_encoder, read_config
from bertsmith.model.operations import (
    TRAINING_PASSES,
    TextShape,
    encoder_operations,
    pooled_operations,
    vocabulary_operations,
)
from bertsmith.model.sizes import named_size
from bertsmith.tasks.benchmark_peer import PeerInference, PeerTraining, pretraining_peer
from bertsmith.tasks.benchmark_turns import RATE, Conditions, Inference, Training
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.classify_targets import ClassificationExample
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.rows import ListExamples
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.start import SIZE_PREFIX
from bertsmith.text.corpus import open_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.loader import Loader, evaluation_batches
from bertsmith.training.memory import keep_freed_memory
from bertsmith.training.task import Batch, Task
from bertsmith.training.timing import Turn

FEWEST_TOKENS = 4
"""Of a row; the lengths of rows are drawn evenly from here to the longest."""
LEAST_BATCH = 4
_MASK_SHARE = 0.15
_ROWS = 2000
_TOKENS_ON_CUDA, _TOKENS_ON_CPU = 8192, 1024
# Of a batch in inference. On a CPU a larger one gains us nothing, and would cost the peer padding.


@dataclass(frozen=True)
class Bench:
    """One work made ready. `operations_per_item` is asked when the rounds are over."""

    turns: Sequence[Turn]
    """Ours, and perhaps the peer's."""
    num_parameters: int
    operations_per_item: Callable[[], float]
    close: Callable[[], None] = lambda: None


class Work(Protocol):
    """Something to time."""

    name: str
    model: str
    """A named size or a folder."""
    item: str
    """What its speed counts, in the plural."""
    has_peer: bool
    largest: int
    """Batch, or sentences in a round."""
    least: int

    def operations(self, size: int) -> float:
        """Of one round of ours, by formula, before there is a model."""

    def ready(self, size: int) -> Bench:
        """Models, data and optimizers of a round of that size."""


def whole_operations(config: EncoderConfig, text: TextShape, num_masked: float) -> float:
    """Of forward and backward pass of pre-training: all of the encoder, and the vocabulary at masked positions only.

    Some of these ours leaves out in the last layer, where nobody asks for the result; a share of the matrix product
    that counts them can be compared with the figures of others.
    """
    return TRAINING_PASSES * (encoder_operations(config, text) + vocabulary_operations(config, num_masked))


def read_encoder_config(model: str, vocab_size: int) -> EncoderConfig:
    """Of "size:NAME" or of a folder, a run or a Hub id.

    Raises:
        ModelError: there is no such size or folder.
    """
    if model.startswith(SIZE_PREFIX):
        return named_size(model.removeprefix(SIZE_PREFIX), vocab_size)
    return read_config(model_folder(model))[0]


class PretrainingWork:
    """BERT of a named size, masked tokens and next sentences."""

    name, item, has_peer = "pre-training", "tokens", True

    def __init__(self, size: str, conditions: Conditions, batch_size: int | None) -> None:
        self.model = f"{SIZE_PREFIX}{size}"
        self._size, self._conditions = size, conditions
        self._tokenizer = load_tokenizer(conditions.store / "tokenizer")
        self.config = named_size(size, self._tokenizer.vocab_size, max_length=max(512, conditions.max_length))
        self.largest = batch_size or (256 if conditions.device.type == "cuda" else 32)
        self.least = batch_size or LEAST_BATCH

    def operations(self, size: int) -> float:
        """As if all sequences were as long as they may be."""
        length = self._conditions.max_length
        tokens = float(size * length * self._conditions.steps_in_round)
        return whole_operations(self.config, TextShape(0, tokens, tokens * length), _MASK_SHARE * tokens)

    def ready(self, size: int) -> Bench:
        """The task, the model and the loader of `pretrain`, and beside them `BertForPreTraining`."""
        conditions = self._conditions
        settings = PretrainSettings(
            corpus=conditions.store,
            out=conditions.store,
            size=self._size,
            max_length=conditions.max_length,
            seed=conditions.seed,
        )
        corpora = {"train": open_corpus(conditions.store, "train")}
        task = make_task(with_objective(settings, "bert"), conditions.max_length, self._tokenizer, corpora)
        torch.manual_seed(randomness.integer(conditions.seed, "initial weights"))
        model = task.build(Encoder(self.config))
        assert isinstance(model, PretrainingModel)  # by the objective of BERT
        peer = pretraining_peer(model) if conditions.has_peer else None
        ours = _training(model, task, conditions, size, counts_tokens=True)
        turns: list[Turn] = [ours]
        if peer is not None:
            turns.append(PeerTraining(peer, ours.batches, conditions.device, conditions.precision, RATE))

        def operations_per_item() -> float:
            return whole_operations(self.config, ours.text.shape, ours.text.masked) / ours.text.tokens

        return Bench(turns, _num_parameters(model), operations_per_item, ours.close)


class FinetuningWork:
    """A classifier of two labels on short texts."""

    name, item, has_peer = "fine-tuning", "rows", False

    def __init__(self, model: str, config: EncoderConfig, conditions: Conditions, batch_size: int | None) -> None:
        self.model = model
        self._config, self._conditions = config, conditions
        self._lengths = _lengths(conditions.row_length, config)
        self.largest = batch_size or 32
        self.least = batch_size or LEAST_BATCH

    def operations(self, size: int) -> float:
        """Of rows of the mean length."""
        return self._operations(_shape_of(self._lengths, size * self._conditions.steps_in_round))

    def ready(self, size: int) -> Bench:
        """The task and the loader of `finetune classification`."""
        conditions, labels = self._conditions, ("no", "yes")
        # Rows are made of ids, so that the tokenizer, which no model here has to have, is never asked.
        tokenizer = load_tokenizer(conditions.store / "tokenizer")
        settings = ClassificationSettings(max_length=conditions.row_length)
        task = _OfRows(tokenizer, labels, settings, {})
        examples = [
            ClassificationExample(
                ClassificationRow(f"row {number}", "", None, labels[number % 2]),
                (ids,),
                (np.zeros_like(ids),),
                number % 2,
                0,
            )
            for number, ids in enumerate(_rows(self._lengths, self._config.vocab_size))
        ]
        task.rows = ListExamples(examples)
        model = task.build(_encoder(self.model, self._config, conditions.seed))
        ours = _training(model, task, conditions, size, counts_tokens=False)

        def operations_per_item() -> float:
            return self._operations(ours.text.shape) / ours.text.sequences

        return Bench([ours], _num_parameters(model), operations_per_item, ours.close)

    def _operations(self, text: TextShape) -> float:
        passes = encoder_operations(self._config, text) + pooled_operations(self._config, text.sequences, 2)
        return TRAINING_PASSES * passes


class InferenceWork:
    """The encoder alone, on sentences that are tokenized already."""

    name, item, has_peer = "inference", "sentences", True
    least = 32

    def __init__(self, model: str, config: EncoderConfig, conditions: Conditions) -> None:
        self.model = model
        self._config, self._conditions = config, conditions
        self._lengths = _lengths(conditions.row_length, config)
        self.largest = 8192 if conditions.device.type == "cuda" else 512

    def operations(self, size: int) -> float:
        """Of sentences of the mean length."""
        return encoder_operations(self._config, _shape_of(self._lengths, size))

    def ready(self, size: int) -> Bench:
        """The encoder, and beside it the bare model of its family."""
        conditions = self._conditions
        encoder = _encoder(self.model, self._config, conditions.seed).eval()
        lengths = np.resize(self._lengths, size)
        examples = ListExamples([_Sentence(ids) for ids in _rows(lengths, self._config.vocab_size)])
        tokens = _TOKENS_ON_CUDA if conditions.device.type == "cuda" else _TOKENS_ON_CPU
        batches = [batch.inputs for _, batch in evaluation_batches(examples, _collate, tokens)]
        turns: list[Turn] = []
        if conditions.has_peer:
            turns.append(PeerInference(encoder, batches, conditions.device, conditions.precision))
        turns.insert(0, Inference(encoder.to(conditions.device), batches, conditions))
        operations = encoder_operations(self._config, _shape_of(lengths, size)) / size
        return Bench(turns, _num_parameters(encoder), lambda: operations)


class _OfRows(Classification):
    """Classification of rows that are made, not read."""

    rows: ListExamples[ClassificationExample]

    def examples(self, split: str) -> ListExamples[ClassificationExample]:
        """The rows, whatever the split."""
        return self.rows


@dataclass(frozen=True)
class _Sentence:
    token_ids: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def _collate(sentences: Sequence[_Sentence]) -> Batch:
    labels: Mapping[str, torch.Tensor] = {}
    return Batch(pack([one.token_ids for one in sentences]), labels, {}, sentences)


def _training(
    model: nn.Module, task: Task, conditions: Conditions, batch_size: int, *, counts_tokens: bool
) -> Training:
    pins = conditions.device.type == "cuda"
    if conditions.device.type == "cpu":
        keep_freed_memory()
    loader = Loader(task.examples("train"), task.collate, batch_size=batch_size, seed=conditions.seed, pins_memory=pins)
    model = model.to(conditions.device)
    replay_layers(model, conditions.precision == "bf16")
    return Training(model, task, loader, conditions, counts_tokens)


def _encoder(model: str, config: EncoderConfig, seed: int) -> Encoder:
    if not model.startswith(SIZE_PREFIX):
        return load_encoder(model_folder(model))[0]
    torch.manual_seed(randomness.integer(seed, "initial weights"))
    return Encoder(config)


def _lengths(longest: int, config: EncoderConfig) -> np.ndarray:
    """int64 [2000], as many of each length as of any other, in random order."""
    if longest > config.max_sequence_length:
        raise SettingsError(f"row_length is {longest}; this model takes up to {config.max_sequence_length} tokens.")
    lengths = np.resize(np.arange(FEWEST_TOKENS, longest + 1), _ROWS)
    return np.random.default_rng(0).permutation(lengths)


def _rows(lengths: np.ndarray, vocab_size: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, vocab_size, int(length)) for length in lengths]


def _shape_of(lengths: np.ndarray, number: int) -> TextShape:
    """Of so many sequences that are on average as these."""
    return TextShape(number, number * float(lengths.mean()), number * float((lengths.astype(float) ** 2).mean()))


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
