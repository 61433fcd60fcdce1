"""Task: a text, or a pair of texts, to one label, to several, or to a number (Devlin et al. 2018, section 4.1).

The pooled first token goes through dropout into a linear layer. What is too long is cut, a pair token by token
from its longer text, as google-research/bert `run_classifier.py` does; or read in windows, whose logits are pooled.
What the outputs mean is for the target to say (`tasks/classify_targets.py`, `tasks/label_sets.py`).
Shape letters: T tokens, S sequences (one an example, if it has no windows), E examples, C labels, D hidden width.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.errors import InputError
from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import PooledHead, mean_of_tokens
from bertsmith.model.initial_weights import initialise_new_output
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings, row_of
from bertsmith.tasks.classify_targets import ClassificationExample, LabelTarget, NumberTarget, Target
from bertsmith.tasks.label_sets import LabelSetTarget
from bertsmith.tasks.pairs import assemble, num_pair_specials
from bertsmith.tasks.rows import ListExamples, check_max_length, given_as, sub_batches
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import Kept, keep, spread, truncate_pair, windows
from bertsmith.training.report import Section
from bertsmith.training.task import Batch

_Texts = tuple[np.ndarray, np.ndarray | None]


class SequenceClassifier(nn.Module):
    """The encoder with a pooled head of C outputs; one output for a regression, or for a choice."""

    def __init__(self, encoder: Encoder, num_outputs: int, *, of_choices: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled = PooledHead(encoder.config, num_outputs, of_choices=of_choices)
        initialise_new_output(self.pooled.out)


class Classification:
    """Text or pair to a label; to a number or to several labels where the settings say so."""

    name = "classification"
    architecture = "ForSequenceClassification"
    num_neighbours = 0

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        settings: ClassificationSettings,
        splits: Mapping[str, Sequence[ClassificationRow]],
    ) -> None:
        """`labels` are in the order of their ids, empty for a regression; `splits` may be empty to predict.

        Raises:
            InputError: a label in `splits` that is not in `labels`, or not a number in a regression.
            SettingsError: a class weight of a label that there is not.
        """
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.settings = settings
        self.target = _target(self.labels, settings, splits.get("train", ()))
        self.metric = settings.metric or self.target.default_metric
        self.greater_is_better = self.metric != "mse"
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self._splits = {name: ListExamples(self.encode(rows)) for name, rows in splits.items()}
        self._has_dev = bool(splits.get("dev"))

    def row(self, value: str | Mapping[str, Any], where: str) -> ClassificationRow:
        """A row to predict: a text, or a mapping with this task's columns (or `text` and `pair`).

        Raises:
            InputError: a column is missing, a plain text came where the model wants a pair, or the reverse.
        """
        text, pair = self.settings.text_column, self.settings.pair_column
        form = given_as(value, (text, pair))
        wanted = "a text alone" if pair is None else 'a row with "text" and "pair"'
        if form == "question":
            raise InputError(f"this model does not answer questions; give {wanted}.", where)
        if form == "pair" and text is not None and pair is None:  # a folder of others may read both
            raise InputError('this model reads one text; leave "pair" out.', where)
        if isinstance(value, str):
            if pair is not None:
                raise InputError(f"this model reads pairs; give {wanted} (on the command line --pair).", where)
            return ClassificationRow(where, value, None, None)
        return row_of(value, self.settings, where)

    def encode(self, rows: Sequence[ClassificationRow]) -> list[ClassificationExample]:
        """Tokenize rows and check their labels; one example a row, in order."""
        texts = [row.text for row in rows] + [row.pair for row in rows if row.pair is not None]
        encodings = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        firsts, seconds = encodings[: len(rows)], iter(encodings[len(rows) :])
        examples = []
        for row, first in zip(rows, firsts, strict=True):
            second = None if row.pair is None else next(seconds)
            parts, cut_tokens = self._parts(first, second)
            sequences = [assemble(self.tokenizer, *part) for part in parts]
            token_ids, segment_ids = zip(*sequences, strict=True)
            examples.append(ClassificationExample(row, token_ids, segment_ids, self.target.encode(row), cut_tokens))
        return examples

    def _parts(self, first: np.ndarray, second: np.ndarray | None) -> tuple[list[_Texts], int]:
        """What each sequence of an example shows of its text or texts, and how many tokens none of them does."""
        lengths = (len(first), 0 if second is None else len(second))
        room = self.settings.max_length - (num_pair_specials(self.tokenizer) if lengths[1] else 2)
        part, step = self.settings.long, self.settings.doc_stride
        if part != "windows":
            kept = truncate_pair(*lengths, room)
            texts = (_kept(first, kept[0], part), None if second is None else _kept(second, kept[1], part))
            return [texts], sum(lengths) - sum(kept)
        if second is None or sum(lengths) <= room or lengths[1] == 0:
            shown, unseen = self._windows(first, room, step)
            return [(piece, second) for piece in shown], unseen
        # The shorter text stands beside each window of the longer one, and leaves it at least half of the room.
        shorter, longer = sorted((first, second), key=len)
        beside = shorter[: room // 2]
        pieces, unseen = self._windows(longer, room - len(beside), step)
        pairs: list[_Texts] = [(beside, piece) if longer is second else (piece, beside) for piece in pieces]
        return pairs, unseen + len(shorter) - len(beside)

    def _windows(self, ids: np.ndarray, room: int, step: int | None) -> tuple[list[np.ndarray], int]:
        """The windows of a text, and how many of its tokens are in none of them."""
        parts = spread(windows(len(ids), room, step or room), self.settings.max_windows)
        is_seen = np.zeros(len(ids), dtype=bool)
        for one in parts:
            is_seen[one.start : one.end] = True
        return [ids[one.start : one.end] for one in parts], int((~is_seen).sum())

    def examples(self, split: str) -> ListExamples[ClassificationExample]:
        """The tokenized rows of one split."""
        return self._splits[split]

    def collate(self, examples: Sequence[ClassificationExample]) -> Batch:
        """Lay E examples flat; their targets are left out if one has none.

        Where an example has windows, `examples`, int64 [S], is whose each sequence is.
        """
        inputs = pack(
            [ids for item in examples for ids in item.token_ids], [ids for item in examples for ids in item.segment_ids]
        )
        labels: dict[str, Tensor] = {}
        if len(inputs.lengths) > len(examples):
            counts = torch.tensor([len(item.token_ids) for item in examples])
            labels["examples"] = torch.repeat_interleave(counts)
        targets = [item.target for item in examples]
        if any(target is None for target in targets):
            return Batch(inputs, labels, {self.name: 0.0}, examples)
        labels["targets"], count = self.target.collate(targets)
        return Batch(inputs, labels, {self.name: count}, examples)

    def build(self, encoder: Encoder) -> SequenceClassifier:
        """The encoder with a fresh head.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table, or leaves no room for text.
        """
        check_max_length(self.settings.max_length, encoder, fewest=4)
        model = SequenceClassifier(encoder, len(self.labels) or 1)
        if isinstance(self.target, NumberTarget):
            self.target.start(model.pooled.out)
        return model

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [E, C], or [E, 1] numbers of a regression."""
        return self._of_examples(sequence_logits(model, batch.inputs), batch)

    def _of_examples(self, logits_SC: Tensor, batch: Batch) -> Tensor:
        """[S, C] -> [E, C]"""
        if "examples" not in batch.labels:
            return logits_SC
        examples_SC = batch.labels["examples"][:, None].expand_as(logits_SC)
        reduce = "amax" if self.settings.window_pooling == "max" else "mean"
        empty_EC = logits_SC.new_zeros(len(batch.examples), logits_SC.shape[-1])
        return empty_EC.scatter_reduce(0, examples_SC, logits_SC, reduce, include_self=False)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of the target's loss: cross-entropy in nats, or squared errors by the variance."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits_SC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        return {self.name: self.target.loss(logits_SC, batch.labels["targets"])}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [E, C] probabilities, or [E, 1] numbers of a regression."""
        logits_SC = torch.cat([sequence_logits(model, inputs) for _, inputs in sub_batches(batch.inputs)])
        return self.target.scores(self._of_examples(logits_SC, batch)).cpu()

    def decode(self, output: Tensor, batch: Batch) -> list[Any]:
        """One answer an example."""
        return self.target.decode(output.numpy())

    def score(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """The target's metrics, the objective first; with the threshold that is best, if dev is to choose it."""
        if self._has_dev:
            decided, answers = self.decided_on(answers, examples)
            results = decided.target.score(answers, examples)
        else:
            results = self.target.score(answers, examples)
        return {self.metric: results[self.metric], **results}

    def decided_on(
        self, answers: Sequence[Any], examples: Sequence[ClassificationExample]
    ) -> tuple["Classification", list[Any]]:
        """The task with the threshold that is best on these, and its answers; as it is where there is none to choose.

        There is where a text may have several labels, and the settings leave the threshold open.
        """
        if not isinstance(self.target, LabelSetTarget) or self.settings.threshold is not None:
            return self, list(answers)
        decided = copy(self)
        decided.settings = replace(self.settings, threshold=self.target.best_threshold(answers, examples, self.metric))
        decided.target = LabelSetTarget(self.labels, decided.settings)
        return decided, decided.target.decode(np.stack([answer.scores for answer in answers]))

    def notes(self) -> list[str]:
        """How many texts of each split are longer than `max_length`, and what becomes of them."""
        part = self.settings.long
        lost = {"head": "at their end", "tail": "at their beginning", "head-tail": "in their middle"}
        notes = []
        for split, examples in self._splits.items():
            long = [item for item in examples.items if item.cut_tokens or len(item.token_ids) > 1]
            if not long:
                continue
            cut_tokens = sum(item.cut_tokens for item in long)
            what = f"lose {cut_tokens:,} tokens {lost.get(part, 'that no window shows')}"
            if part == "windows":
                numbers = [len(item.token_ids) for item in long]
                what = f"are read in {sum(numbers):,} windows, the longest in {max(numbers):,} at once" + (
                    f", but {what}" if cut_tokens else ""
                )
            notes.append(
                f"{len(long):,} of {len(examples.items):,} {split} texts ({len(long) / len(examples.items):.1%}) are "
                f"longer than max_length {self.settings.max_length} and {what}."
            )
        return notes

    def to_json(self, answer: Any) -> dict[str, Any]:
        """`{"label", "score", "scores": {label: probability}}`, `{"labels", "scores"}` of several, or `{"value"}`."""
        return self.target.to_json(answer)

    def sections(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> list[Section]:
        """For the report: what the target shows."""
        return self.target.sections(answers, examples)


def sequence_logits(model: nn.Module, inputs: PackedBatch) -> Tensor:
    """float32 [S, C]"""
    assert isinstance(model, SequenceClassifier)
    logits_SC: Tensor = model.pooled.of_pooled(sequence_vectors(model, inputs))
    return logits_SC


def sequence_vectors(model: SequenceClassifier, inputs: PackedBatch) -> Tensor:
    """[S, D], what stands for each sequence, as the head gets it."""
    positions_S = model.pooled.positions(inputs)
    if positions_S is None:
        return mean_of_tokens(model.encoder(inputs), inputs)
    vectors_SD: Tensor = model.encoder(inputs, positions_S)
    return vectors_SD


def _kept(ids: np.ndarray, length: int, part: Kept) -> np.ndarray:
    """`length` tokens of a text."""
    return np.concatenate([ids[one.start : one.end] for one in keep(len(ids), length, part)])


def _target(labels: Sequence[str], settings: ClassificationSettings, train_rows: Sequence[ClassificationRow]) -> Target:
    if settings.regression:
        return NumberTarget(train_rows)
    return LabelSetTarget(labels, settings) if settings.multi_label else LabelTarget(labels, settings, train_rows)
