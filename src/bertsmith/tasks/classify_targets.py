"""What classification learns of a text: which labels there are; one of them, or a number. Any number of labels are in
`tasks/label_sets.py`.

Each has its loss, its answers, its figures and what the report shows of it.
Shape letters: S examples, C labels.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import InputError, SettingsError, did_you_mean
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings, number_of
from bertsmith.tasks.cross_entropy import weighted_cross_entropy
from bertsmith.tasks.rows import class_weights, label_id, sorted_labels
from bertsmith.training.report import LARGEST_MATRIX, Curves, Matrix, Section, Table, no_matrix

SHOWN_MISTAKES = 20
_SHOWN_CHARACTERS = 300
_CALIBRATION_BINS = 10
_FEWEST_NUMBERS = 10  # that make a regression likely
_MOST_LABELS = 0.9  # for each row,
_FEWEST_ROWS = 50  # where there are so many
_SHOWN_LABEL = 40  # characters
_SAME_UNIT = 5.0  # times as far numbers may lie from each other in one sample as in another
_YES = {("0", "1"), ("false", "true"), ("no", "yes")}


@dataclass(frozen=True)
class ClassificationExample:
    """A row as the model gets it: int64 token and segment ids of one sequence, or of several windows; `target` is as
    `Target.encode` makes it."""

    row: ClassificationRow
    token_ids: tuple[np.ndarray, ...]
    segment_ids: tuple[np.ndarray, ...]
    target: Any
    cut_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(map(len, self.token_ids))


@dataclass(frozen=True)
class ClassificationAnswer:
    """The likeliest label with the probabilities of all, float32 [C]; of a regression the number alone."""

    label: str | None
    scores: np.ndarray

    @property
    def score(self) -> float:
        """Probability of `label`, or the number of a regression."""
        return float(self.scores.max())


class Target(Protocol):
    """What is learnt of a text."""

    problem_type: str
    """Hugging Face's name of it."""
    default_metric: str

    def encode(self, row: ClassificationRow) -> Any:
        """What a row's answer is, None if it has none.

        Raises:
            InputError: a label that is not known, or no number.
        """

    def collate(self, targets: Sequence[Any]) -> tuple[Tensor, float]:
        """Targets as a tensor of S rows, and by what the sum of their loss is divided."""

    def loss(self, logits_SC: Tensor, targets: Tensor) -> Tensor:
        """The sum over the texts, in nats or shares of the variance."""

    def scores(self, logits_SC: Tensor) -> Tensor:
        """[S, C] probabilities, or [S, 1] numbers."""

    def decode(self, scores_SC: np.ndarray) -> list[Any]:
        """An answer a text."""

    def score(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """Metrics."""

    def to_json(self, answer: Any) -> dict[str, Any]:
        """An answer as plain values."""

    def sections(self, answers: Sequence[Any], examples: Sequence[ClassificationExample]) -> list[Section]:
        """What the report shows."""


class LabelTarget:
    """One label of C: cross-entropy, weighted and smoothed. A target is a label's id."""

    problem_type = "single_label_classification"
    default_metric = "accuracy"

    def __init__(
        self, labels: Sequence[str], settings: ClassificationSettings, train_rows: Sequence[ClassificationRow]
    ) -> None:
        """`train_rows`, of which there may be none, decide the weights of the labels."""
        self._labels = tuple(labels)
        self._smoothing = settings.label_smoothing
        self._ids = {label: index for index, label in enumerate(labels)}
        self._positive = 1 if tuple(label.lower() for label in labels) in _YES else None
        if settings.positive_label is not None:
            if settings.positive_label not in self._ids:
                hint = did_you_mean(settings.positive_label, labels)
                raise SettingsError(f'positive_label: no label "{settings.positive_label}". {hint}')
            self._positive = self._ids[settings.positive_label]
        if settings.metric == "f1" and self._positive is None:
            raise SettingsError(
                f"metric: f1 is that of one label: give positive_label (one of {', '.join(labels[:9])}), or macro_f1."
            )
        self._class_weights_C = torch.ones(len(labels))
        if train_rows:
            found = Counter(row.label for row in train_rows)
            weights = class_weights(settings.class_weights, self._labels, [found[label] for label in labels])
            self._class_weights_C = torch.from_numpy(weights)

    def encode(self, row: ClassificationRow) -> int | None:
        """See `Target`."""
        return None if row.label is None else label_id(row.label, self._ids, row.where)

    def collate(self, targets: Sequence[int]) -> tuple[Tensor, float]:
        """int64 [S]; the count is the sum of the targets' class weights, by which PyTorch's mean divides."""
        targets_S = torch.tensor(targets, dtype=torch.int64)
        return targets_S, float(self._class_weights_C[targets_S].sum())

    def loss(self, logits_SC: Tensor, targets: Tensor) -> Tensor:
        """See `Target`."""
        return weighted_cross_entropy(logits_SC, targets, self._class_weights_C, self._smoothing)

    def scores(self, logits_SC: Tensor) -> Tensor:
        """See `Target`."""
        return logits_SC.softmax(-1)

    def decode(self, scores_SC: np.ndarray) -> list[ClassificationAnswer]:
        """See `Target`."""
        return [ClassificationAnswer(self._labels[int(scores_C.argmax())], scores_C) for scores_C in scores_SC]

    def score(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> dict[str, float]:
        """By scikit-learn."""
        from sklearn import metrics

        gold = [item.target for item in examples]
        predicted = [self._ids[str(answer.label)] for answer in answers]
        return {
            "accuracy": float(metrics.accuracy_score(gold, predicted)),
            **({} if self._positive is None else {"f1": self._f1(gold, predicted)}),
            "macro_f1": float(metrics.f1_score(gold, predicted, average="macro", zero_division=0.0)),
            "micro_f1": float(metrics.f1_score(gold, predicted, average="micro", zero_division=0.0)),
            # Of a single label scikit-learn warns, and gives 0 all the same.
            "mcc": float(metrics.matthews_corrcoef(gold, predicted)) if len({*gold, *predicted}) > 1 else 0.0,
        }

    def _f1(self, gold: Sequence[int], predicted: Sequence[int]) -> float:
        """Of the one label, as GLUE scores MRPC and QQP."""
        from sklearn import metrics

        own = ([one == self._positive for one in ids] for ids in (gold, predicted))
        return float(metrics.f1_score(*own, zero_division=0.0))

    def to_json(self, answer: ClassificationAnswer) -> dict[str, Any]:
        """`{"label", "score", "scores": {label: probability}}`."""
        return {"label": answer.label, "score": answer.score, "scores": by_label(self._labels, answer.scores)}

    def sections(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> list[Section]:
        """Confusion matrix, a row a label, calibration, and the mistakes the model was surest of."""
        from sklearn import metrics

        gold = [str(item.row.label) for item in examples]
        predicted = [str(answer.label) for answer in answers]
        counts = metrics.confusion_matrix(gold, predicted, labels=self._labels)
        columns = metrics.precision_recall_fscore_support(gold, predicted, labels=self._labels, zero_division=0.0)
        precision, recall, f1, support = (column.tolist() for column in columns)
        rows = list(zip(self._labels, precision, recall, f1, support, strict=True))
        sections: list[Section] = [Table("By label", ("label", "precision", "recall", "F1", "rows"), rows)]
        if len(self._labels) <= LARGEST_MATRIX:
            sections.insert(0, Matrix("Confusion matrix", self._labels, counts.tolist()))
        else:
            sections.append(self._confusions(counts))
        sections.append(calibration([answer.score for answer in answers], np.array(gold) == np.array(predicted)))
        wrong = [(a, e) for a, e in zip(answers, examples, strict=True) if a.label != e.row.label]
        wrong.sort(key=lambda pair: -pair[0].score)
        mistakes = [(e.row.label, a.label, a.score, shown(e.row), e.row.where) for a, e in wrong[:SHOWN_MISTAKES]]
        note = f"{len(wrong)} of {len(examples)} rows are wrong; the surest first. Some may be wrongly labelled."
        return [*sections, Table("Mistakes", ("label", "predicted", "probability", "text", "row"), mistakes, note)]

    def _confusions(self, counts: np.ndarray) -> Table:
        """The largest numbers off the diagonal, where the whole matrix is too large to look at."""
        wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
        order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_MISTAKES]
        places = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
        rows = [(self._labels[i], self._labels[j], int(wrong[i, j])) for i, j in places if wrong[i, j]]
        return Table("Most frequent confusions", ("label", "predicted", "rows"), rows, no_matrix(len(counts)))


class NumberTarget:
    """A number: squared error, as a share of the numbers' variance. A target is a float.

    Adam moves a weight by about the learning rate in a step, so that a last layer of usual weights would take thousands
    of steps to reach points from 80 to 100. So it starts at the numbers' mean, its weights are as large as their
    deviation, and their unit is divided out of the loss: what is learnt does not depend on it.

    Attributes:
        variance: of the numbers that are learnt from; 1 where there are none, or all are the same.
    """

    problem_type = "regression"
    default_metric = "r2"

    def __init__(self, train_rows: Sequence[ClassificationRow]) -> None:
        """`train_rows`, of which there may be none, decide mean and variance."""
        numbers = [number_of(row.label, row.where) for row in train_rows if row.label is not None]
        self._mean = float(np.mean(numbers)) if numbers else 0.0
        self.variance = float(np.var(numbers)) if len(set(numbers)) > 1 else 1.0

    @property
    def unit(self) -> dict[str, float]:
        """Mean and deviation of the numbers that are learnt from."""
        return {"mean": self._mean, "deviation": math.sqrt(self.variance)}

    @torch.no_grad()
    def start(self, output: nn.Linear) -> None:
        """Let a new last layer, whose answers deviate by about 1 around 0, begin with the numbers' mean and deviation.
        GPT-2's has no bias, and must learn the mean."""
        output.weight *= math.sqrt(self.variance)
        if output.bias is not None:
            output.bias.fill_(self._mean)

    @torch.no_grad()
    def go_on(self, output: nn.Linear, unit: Mapping[str, float]) -> None:
        """Let the last layer of a model that has learnt numbers of this `unit` say as many deviations from the mean of
        these, unless they may well be some more of the same: 50 texts with 4 or 5 stars of 1 to 5."""
        ratio = math.sqrt(self.variance) / unit["deviation"]
        if abs(self._mean - unit["mean"]) <= 2 * unit["deviation"] and 1 / _SAME_UNIT <= ratio <= _SAME_UNIT:
            return
        output.weight *= ratio
        if output.bias is not None:
            output.bias.copy_((output.bias - unit["mean"]) * ratio + self._mean)

    def encode(self, row: ClassificationRow) -> float | None:
        """See `Target`."""
        return None if row.label is None else number_of(row.label, row.where)

    def collate(self, targets: Sequence[float]) -> tuple[Tensor, float]:
        """float32 [S], and S."""
        return torch.tensor(targets), float(len(targets))

    def loss(self, logits_SC: Tensor, targets: Tensor) -> Tensor:
        """See `Target`; 1 a text for always saying the mean."""
        return F.mse_loss(logits_SC[:, 0], targets, reduction="sum") / self.variance

    def scores(self, logits_SC: Tensor) -> Tensor:
        """The logits themselves."""
        return logits_SC

    def decode(self, scores_SC: np.ndarray) -> list[ClassificationAnswer]:
        """See `Target`."""
        return [ClassificationAnswer(None, scores_C) for scores_C in scores_SC]

    def score(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> dict[str, float]:
        """By SciPy and scikit-learn; r2 is the share of the variance that the answers explain, below 0 if they are
        worse than the mean. A correlation with constant predictions is not defined and counts as 0, and so does the r2
        of constant numbers."""
        from scipy import stats
        from sklearn import metrics

        gold = [item.target for item in examples]
        values = [answer.score for answer in answers]
        constant = len(set(values)) < 2 or len(set(gold)) < 2
        return {
            "r2": 0.0 if len(set(gold)) < 2 else float(metrics.r2_score(gold, values)),
            "spearman": 0.0 if constant else float(stats.spearmanr(values, gold).statistic),
            "pearson": 0.0 if constant else float(stats.pearsonr(values, gold).statistic),
            "mse": float(metrics.mean_squared_error(gold, values)),
        }

    def to_json(self, answer: ClassificationAnswer) -> dict[str, Any]:
        """`{"value"}`."""
        return {"value": answer.score}

    def sections(
        self, answers: Sequence[ClassificationAnswer], examples: Sequence[ClassificationExample]
    ) -> list[Section]:
        """The largest errors."""
        pairs = sorted(
            zip(answers, examples, strict=True), key=lambda pair: -abs(pair[0].score - (pair[1].target or 0))
        )
        rows = [(e.target, a.score, shown(e.row), e.row.where) for a, e in pairs[:SHOWN_MISTAKES]]
        return [Table("Largest errors", ("value", "predicted", "text", "row"), rows)]


def find_labels(rows: Sequence[ClassificationRow], settings: ClassificationSettings) -> tuple[str, ...]:
    """The labels of the training rows in the order of their ids; none for a regression.

    Raises:
        InputError: only one label or number, or the same labels in every row; labels that are numbers with fractions,
            or nearly as many as there are rows.
    """
    if settings.regression:
        numbers = {float(label) if _is_number(label) else label for row in rows if (label := row.label) is not None}
        if len(rows) > 1 and len(numbers) < 2:
            raise InputError(f"every row has the number {rows[0].label}: nothing to tell apart.", rows[0].where)
        return ()
    if settings.multi_label:
        sets = {frozenset(row.labels or ()) for row in rows}
        if len(sets) < 2:
            same = ", ".join(sorted(next(iter(sets)))) or "none"
            raise InputError(f"every row has the same labels ({same}): nothing to tell apart.", rows[0].where)
        if frozenset().union(*sets) == {"0", "1"}:
            raise InputError(
                "the labels are 0 and 1, as if each place of a list were a label. Give the names of those that a row "
                'has, such as ["history", "rivers"].',
                rows[0].where,
            )
        return sorted_labels(frozenset().union(*sets))
    labels = sorted_labels(row.label for row in rows if row.label is not None)
    if len(labels) < 2:
        raise InputError(f'every row has the label "{labels[0]}": nothing to tell apart.', rows[0].where)
    if len(labels) > _FEWEST_NUMBERS and all(_is_fraction(label) for label in labels):
        raise InputError(
            f"the labels look like numbers ({', '.join(labels[:3])}, ...). Say regression to learn them as numbers, "
            f"or choose another label_column than {settings.label_column}.",
            rows[0].where,
        )
    if len(rows) >= _FEWEST_ROWS and len(labels) > _MOST_LABELS * len(rows):
        raise _no_classes(labels, len(rows), settings, rows[0].where)
    return labels


def _no_classes(labels: Sequence[str], num_rows: int, settings: ClassificationSettings, where: str) -> InputError:
    shown = ", ".join(
        f'"{label if len(label) <= _SHOWN_LABEL else label[:_SHOWN_LABEL] + "..."}"' for label in labels[:3]
    )
    number = " If they are numbers to learn, say regression." if all(map(_is_number, labels)) else ""
    return InputError(
        f'{len(labels):,} labels in {num_rows:,} rows: hardly any of the column "{settings.label_column}" stands twice '
        f"({shown}, ...), so it seems to hold something else. Choose another label_column; if the file has no header "
        f"line, give columns in the order in which they stand in it, else leave them out.{number}",
        where,
    )


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _is_fraction(label: str) -> bool:
    return "." in label and _is_number(label)


def calibration(scores: Sequence[float], is_right: np.ndarray) -> Curves:
    """How often answers are right by how sure the model was of them, in ten equal bins of probability.

    The expected calibration error is the mean distance of the two over all answers (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence = np.asarray(scores, dtype=np.float64)
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    used = sorted(set(bins.tolist()))
    sure = [float(confidence[bins == one].mean()) for one in used]
    right = [float(is_right[bins == one].mean()) for one in used]
    sizes = [int((bins == one).sum()) for one in used]
    error = sum(size * abs(x - y) for size, x, y in zip(sizes, sure, right, strict=True)) / len(confidence)
    series = {"this model": (sure, right), "as often right as sure": ([0.0, 1.0], [0.0, 1.0])}
    return Curves(f"Calibration (expected error {error:.3f})", "probability", "share right", series, from_zero=True)


def by_label(labels: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The probability of each label, float32 [C], by its name."""
    return {label: float(score) for label, score in zip(labels, scores, strict=True)}


def shown(row: ClassificationRow) -> str:
    """The text of a row, short enough for a table."""
    text = row.text if row.pair is None else f"{row.text} | {row.pair}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
