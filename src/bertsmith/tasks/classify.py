"""Task: a text, or a pair of texts, to one label or to a number (Devlin et al. 2018, section 4.1).

The pooled first token goes through dropout into a linear layer. A pair that is too long is cut
from the end of its longer text, as google-research/bert `run_classifier.py` does.
Shape letters: T tokens, S sequences (one an example), C labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from torch import Tensor, nn

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import PooledHead
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings, row_of
from bertsmith.tasks.pairs import assemble, num_pair_specials
from bertsmith.tasks.rows import ListExamples, class_weights, label_id
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import truncate_pair
from bertsmith.training.report import Matrix, Section, Table
from bertsmith.training.task import Batch

_SHOWN_MISTAKES = 20
_SHOWN_CHARACTERS = 300
_LARGEST_MATRIX = 40


@dataclass(frozen=True)
class ClassificationExample:
    """A row as the model gets it: int64 [L] token and segment ids; `target` is a label id or a number."""

    row: ClassificationRow
    token_ids: np.ndarray
    segment_ids: np.ndarray
    target: float | None
    cut_tokens: int

    @property
    def num_tokens(self) -> int:
        """L."""
        return len(self.token_ids)


@dataclass(frozen=True)
class ClassificationAnswer:
    """The likeliest label with the probabilities of all, float32 [C]; of a regression the number alone."""

    label: str | None
    scores: np.ndarray

    @property
    def score(self) -> float:
        """Probability of `label`, or the number of a regression."""
        return float(self.scores.max())


class SequenceClassifier(nn.Module):
    """The encoder with a pooled head of C outputs; one output for a regression."""

    def __init__(self, encoder: Encoder, num_outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled = PooledHead(encoder.config, num_outputs)


class Classification:
    """Text or pair to a label, or to a number when `settings.regression`."""

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
        """
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.settings = settings
        self.metric = settings.metric or ("spearman" if settings.regression else "accuracy")
        self.greater_is_better = self.metric != "mse"
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self._label_ids = {label: index for index, label in enumerate(self.labels)}
        self._splits = {name: ListExamples(self.encode(rows)) for name, rows in splits.items()}
        targets = [int(item.target or 0) for item in self._splits["train"].items] if "train" in splits else []
        self._class_weights_C = torch.ones(len(self.labels))
        if targets and self.labels:
            counts = np.bincount(targets, minlength=len(self.labels)).tolist()
            self._class_weights_C = torch.from_numpy(class_weights(settings.class_weights, self.labels, counts))

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
            examples.append(ClassificationExample(row, token_ids, segment_ids, self._target(row), cut_tokens))
        return examples

    def _target(self, row: ClassificationRow) -> float | None:
        if row.label is None:
            return None
        if not self.settings.regression:
            return label_id(row.label, self._label_ids, row.where)
        try:
            number = float(row.label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f'"{row.label}" is not a number, and a regression learns numbers.', row.where)
        return number

    def examples(self, split: str) -> ListExamples[ClassificationExample]:
        """The tokenized rows of one split."""
        return self._splits[split]

    def collate(self, examples: Sequence[ClassificationExample]) -> Batch:
        """Lay S examples flat. The count is the sum of the targets' class weights, by which PyTorch's mean divides."""
        inputs = pack([item.token_ids for item in examples], [item.segment_ids for item in examples])
        targets = [item.target for item in examples if item.target is not None]
        if len(targets) < len(examples):
            return Batch(inputs, {}, {self.name: 0.0}, examples)
        if self.settings.regression:
            return Batch(inputs, {"targets": torch.tensor(targets)}, {self.name: float(len(targets))}, examples)
        targets_S = torch.tensor(targets, dtype=torch.int64)
        return Batch(
            inputs, {"targets": targets_S}, {self.name: float(self._class_weights_C[targets_S].sum())}, examples
        )

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
        """Sum of the weighted, smoothed cross-entropy in nats, or of the squared errors."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits_SC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        targets_S = batch.labels["targets"]
        if self.settings.regression:
            return {self.name: nn.functional.mse_loss(logits_SC[:, 0], targets_S, reduction="sum")}
        loss = nn.functional.cross_entropy(
            logits_SC,
            targets_S,
            weight=self._class_weights_C.to(logits_SC.device),
            label_smoothing=self.settings.label_smoothing,
            reduction="sum",
        )
        return {self.name: loss}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [S, C] probabilities, or [S, 1] numbers of a regression."""
        logits_SC = self.logits(model, batch)
        return (logits_SC if self.settings.regression else logits_SC.softmax(-1)).cpu()

    def decode(self, output: Tensor, batch: Batch) -> list[ClassificationAnswer]:
        """One answer an example."""
        scores_SC = output.numpy()
        if self.settings.regression:
            return [ClassificationAnswer(None, scores_C) for scores_C in scores_SC]
        return [ClassificationAnswer(self.labels[int(scores_C.argmax())], scores_C) for scores_C in scores_SC]

    def score(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> dict[str, float]:
        """Metrics by scikit-learn and SciPy, the objective first.

        A correlation with constant predictions is not defined and counts as 0.
        """
        gold = [item.target for item in examples]
        if self.settings.regression:
            values = [answer.score for answer in answers]
            constant = len(set(values)) < 2 or len(set(gold)) < 2
            results = {
                "spearman": 0.0 if constant else float(stats.spearmanr(values, gold).statistic),
                "pearson": 0.0 if constant else float(stats.pearsonr(values, gold).statistic),
                "mse": float(metrics.mean_squared_error(gold, values)),
            }
        else:
            predicted = [self._label_ids[str(answer.label)] for answer in answers]
            results = {
                "accuracy": float(metrics.accuracy_score(gold, predicted)),
                "macro_f1": float(metrics.f1_score(gold, predicted, average="macro", zero_division=0.0)),
                "micro_f1": float(metrics.f1_score(gold, predicted, average="micro", zero_division=0.0)),
                # Of a single label scikit-learn warns, and gives 0 all the same.
                "mcc": float(metrics.matthews_corrcoef(gold, predicted)) if len({*gold, *predicted}) > 1 else 0.0,
            }
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

    def to_json(self, answer: ClassificationAnswer) -> dict[str, Any]:
        """`{"label", "score", "scores": {label: probability}}`, or `{"value"}` of a regression."""
        if answer.label is None:
            return {"value": answer.score}
        scores = {label: float(score) for label, score in zip(self.labels, answer.scores, strict=True)}
        return {"label": answer.label, "score": answer.score, "scores": scores}

    def sections(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> list[Section]:
        """For the report: confusion matrix, a row a label, and the mistakes the model was surest of."""
        if self.settings.regression:
            return [self._largest_errors(answers, examples)]
        gold = [str(item.row.label) for item in examples]
        predicted = [str(answer.label) for answer in answers]
        counts = metrics.confusion_matrix(gold, predicted, labels=self.labels)
        columns = metrics.precision_recall_fscore_support(gold, predicted, labels=self.labels, zero_division=0.0)
        precision, recall, f1, support = (column.tolist() for column in columns)
        rows = list(zip(self.labels, precision, recall, f1, support, strict=True))
        sections: list[Section] = [Table("By label", ("label", "precision", "recall", "F1", "rows"), rows)]
        if len(self.labels) <= _LARGEST_MATRIX:
            sections.insert(0, Matrix("Confusion matrix", self.labels, counts.tolist()))
        else:
            sections.append(self._confusions(counts))
        wrong = [(a, e) for a, e in zip(answers, examples, strict=True) if a.label != e.row.label]
        wrong.sort(key=lambda pair: -pair[0].score)
        mistakes = [(e.row.label, a.label, a.score, _shown(e.row), e.row.where) for a, e in wrong[:_SHOWN_MISTAKES]]
        note = f"{len(wrong)} of {len(examples)} rows are wrong; the surest first. Some may be wrongly labelled."
        return [*sections, Table("Mistakes", ("label", "predicted", "probability", "text", "row"), mistakes, note)]

    def _confusions(self, counts: np.ndarray) -> Table:
        """The largest numbers off the diagonal, where the whole matrix is too large to look at."""
        wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_SHOWN_MISTAKES]
        places = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
        rows = [(self.labels[i], self.labels[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]
        return Table("Most frequent confusions", ("label", "predicted", "rows"), rows)

    def _largest_errors(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> Table:
        pairs = sorted(
            zip(answers, examples, strict=True), key=lambda pair: -abs(pair[0].score - (pair[1].target or 0))
        )
        rows = [(e.target, a.score, _shown(e.row), e.row.where) for a, e in pairs[:_SHOWN_MISTAKES]]
        return Table("Largest errors", ("value", "predicted", "text", "row"), rows)


def _shown(row: ClassificationRow) -> str:
    """The text of a row, short enough for a table."""
    text = row.text if row.pair is None else f"{row.text} | {row.pair}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
