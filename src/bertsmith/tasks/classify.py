"""Task: a text, or a pair of texts, to one label, to several, or to a number (Devlin et al. 2018, section 4.1).

The pooled first token goes through dropout into a linear layer. A pair that is too long is cut
from the end of its longer text, as google-research/bert `run_classifier.py` does. What the outputs mean is
for the target to say (`tasks/classify_targets.py`, `tasks/label_sets.py`).
Shape letters: T tokens, S sequences (one an example), C labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import PooledHead
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings, row_of
from bertsmith.tasks.classify_targets import ClassificationExample, LabelTarget, NumberTarget, Target
from bertsmith.tasks.label_sets import LabelSetTarget
from bertsmith.tasks.pairs import assemble, num_pair_specials
from bertsmith.tasks.rows import ListExamples
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import truncate_pair
from bertsmith.training.report import Section
from bertsmith.training.task import Batch


class SequenceClassifier(nn.Module):
    """The encoder with a pooled head of C outputs; one output for a regression."""

    def __init__(self, encoder: Encoder, num_outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled = PooledHead(encoder.config, num_outputs)


class Classification:
    """Text or pair to a label; to a number or to several labels where the settings say so."""

    name = "classification"
    architecture = "ForSequenceClassification"

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

    def row(self, value: str | Mapping[str, Any], where: str) -> ClassificationRow:
        """A row to predict: a text, or a mapping with this task's columns (or `text` and `pair`).

        Raises:
            InputError: a column is missing, or a plain text came where the model wants a pair.
        """
        if isinstance(value, str):
            if self.settings.pair_column is not None:
                raise InputError('this model reads pairs; give a row with "text" and "pair".', where)
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
            num_special_tokens = 2 if second is None or len(second) == 0 else num_pair_specials(self.tokenizer)
            length = len(first) + (0 if second is None else len(second))
            room = self.settings.max_length - num_special_tokens
            first_length, second_length = truncate_pair(len(first), length - len(first), room)
            token_ids, segment_ids = assemble(
                self.tokenizer, first[:first_length], None if second is None else second[:second_length]
            )
            cut_tokens = length - first_length - second_length
            examples.append(ClassificationExample(row, token_ids, segment_ids, self.target.encode(row), cut_tokens))
        return examples

    def examples(self, split: str) -> ListExamples[ClassificationExample]:
        """The tokenized rows of one split."""
        return self._splits[split]

    def collate(self, examples: Sequence[ClassificationExample]) -> Batch:
        """Lay S examples flat; their targets are left out if one has none."""
        inputs = pack([item.token_ids for item in examples], [item.segment_ids for item in examples])
        targets = [item.target for item in examples]
        if any(target is None for target in targets):
            return Batch(inputs, {}, {self.name: 0.0}, examples)
        together, count = self.target.collate(targets)
        return Batch(inputs, {"targets": together}, {self.name: count}, examples)

    def build(self, encoder: Encoder) -> SequenceClassifier:
        """The encoder with a fresh head.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table, or leaves no room for text.
        """
        longest = encoder.config.max_sequence_length
        if not 4 <= self.settings.max_length <= longest:
            raise SettingsError(
                f"max_length is {self.settings.max_length}; this model takes 4 to {longest} tokens "
                "(max_position_embeddings)."
            )
        return SequenceClassifier(encoder, len(self.labels) or 1)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [S, C], or [S, 1] numbers of a regression."""
        assert isinstance(model, SequenceClassifier)
        positions_S = model.pooled.positions(batch.inputs)
        if positions_S is None:
            logits_SC: Tensor = model.pooled(model.encoder(batch.inputs), batch.inputs)
        else:
            logits_SC = model.pooled.of_pooled(model.encoder(batch.inputs, positions_S))
        return logits_SC.float()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of the target's loss: cross-entropy in nats, or squared errors."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits_SC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        return {self.name: self.target.loss(logits_SC, batch.labels["targets"])}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [S, C] probabilities, or [S, 1] numbers of a regression."""
        return self.target.scores(self.logits(model, batch)).cpu()

    def decode(self, output: Tensor, batch: Batch) -> list[Any]:
        """One answer an example."""
        return self.target.decode(output.numpy())

    def score(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """The target's metrics, the objective first."""
        results = self.target.score(answers, examples)
        return {self.metric: results[self.metric], **results}

    def notes(self) -> list[str]:
        """How much of each split was cut at `max_length`."""
        notes = []
        for split, examples in self._splits.items():
            cut_tokens = [item.cut_tokens for item in examples.items if item.cut_tokens]
            if cut_tokens:
                share = len(cut_tokens) / len(examples.items)
                notes.append(
                    f"{len(cut_tokens):,} of {len(examples.items):,} {split} texts ({share:.1%}) are longer than "
                    f"max_length {self.settings.max_length} and lose {sum(cut_tokens):,} tokens at their end."
                )
        return notes

    def to_json(self, answer: Any) -> dict[str, Any]:
        """`{"label", "score", "scores": {label: probability}}`, `{"labels", "scores"}` of several, or `{"value"}`."""
        return self.target.to_json(answer)

    def sections(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> list[Section]:
        """For the report: what the target shows."""
        return self.target.sections(answers, examples)


def _target(labels: Sequence[str], settings: ClassificationSettings, train_rows: Sequence[ClassificationRow]) -> Target:
    if settings.regression:
        return NumberTarget()
    return LabelSetTarget(labels, settings) if settings.multi_label else LabelTarget(labels, settings, train_rows)
