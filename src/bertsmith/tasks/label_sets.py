"""What classification learns of a text that may have several labels, or none: a decision for each label.

Shape letters: S examples, C labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.classify_targets import SHOWN_MISTAKES, ClassificationExample, by_label, shown
from bertsmith.tasks.rows import label_id
from bertsmith.training.report import Section, Table

_USUAL_THRESHOLD = 0.5
_THRESHOLDS = sorted((percent / 100 for percent in range(1, 100)), key=lambda one: abs(one - _USUAL_THRESHOLD))


@dataclass(frozen=True)
class LabelSetAnswer:
    """The labels that are likely enough, perhaps none, with the probabilities of all, float32 [C]."""

    labels: tuple[str, ...]
    scores: np.ndarray


class LabelSetTarget:
    """Any number of C labels, each a decision of its own: binary cross-entropy. A target is a tuple of ids."""

    problem_type = "multi_label_classification"
    default_metric = "micro_f1"

    def __init__(self, labels: Sequence[str], settings: ClassificationSettings) -> None:
        self._labels = tuple(labels)
        self._threshold = _USUAL_THRESHOLD if settings.threshold is None else settings.threshold
        self._ids = {label: index for index, label in enumerate(labels)}

    def encode(self, row: ClassificationRow) -> tuple[int, ...] | None:
        """See `Target`."""
        return None if row.labels is None else tuple(label_id(label, self._ids, row.where) for label in row.labels)

    def collate(self, targets: Sequence[tuple[int, ...]]) -> tuple[Tensor, float]:
        """float32 [S, C] of 0 and 1; the count is S x C, by which PyTorch's (and transformers') mean divides."""
        targets_SC = torch.from_numpy(self._indicators(targets)).float()
        return targets_SC, float(targets_SC.numel())

    def loss(self, logits_SC: Tensor, targets: Tensor) -> Tensor:
        """Summed over texts and labels."""
        return F.binary_cross_entropy_with_logits(logits_SC, targets, reduction="sum")

    def scores(self, logits_SC: Tensor) -> Tensor:
        """See `Target`; they do not add up to 1."""
        return logits_SC.sigmoid()

    def decode(self, scores_SC: np.ndarray) -> list[LabelSetAnswer]:
        """Every label whose probability reaches the threshold."""
        chosen_SC = scores_SC >= self._threshold
        return [
            LabelSetAnswer(tuple(self._labels[index] for index in np.flatnonzero(chosen_C)), scores_C)
            for chosen_C, scores_C in zip(chosen_SC, scores_SC, strict=True)
        ]

    def score(self, answers: Sequence[LabelSetAnswer], examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """Those of scikit-learn with `zero_division=0`: F1 over all decisions, the mean over labels, and over texts;
        the share of texts all of whose labels are right. A text that has no label and gets none has an F1 of 0."""
        gold_SC, found_SC = self._gold_and_found(answers, examples)
        return {name: figure(gold_SC, found_SC) for name, figure in _FIGURES.items()}

    def best_threshold(
        self, answers: Sequence[LabelSetAnswer], examples: Sequence[ClassificationExample], metric: str
    ) -> float:
        """The whole per cent at which the metric is best on these; of equal ones the nearest to 0.5."""
        gold_SC = self._indicators([example.target for example in examples])
        scores_SC = np.stack([answer.scores for answer in answers])
        return max(_THRESHOLDS, key=lambda one: _FIGURES[metric](gold_SC, scores_SC >= one))

    def to_json(self, answer: LabelSetAnswer) -> dict[str, Any]:
        """`{"labels": [...], "scores": {label: probability}}`."""
        return {"labels": list(answer.labels), "scores": by_label(self._labels, answer.scores)}

    def sections(self, answers: Sequence[LabelSetAnswer], examples: Sequence[ClassificationExample]) -> list[Section]:
        """A row a label, and the texts whose probabilities are furthest from their labels."""
        gold_SC, found_SC = self._gold_and_found(answers, examples)
        right_C, gold_C, found_C = (gold_SC & found_SC).sum(0), gold_SC.sum(0), found_SC.sum(0)
        columns = (right_C / np.maximum(found_C, 1), right_C / np.maximum(gold_C, 1), _f1(gold_SC, found_SC, 0))
        rows = list(zip(self._labels, *(one.tolist() for one in (*columns, gold_C, found_C)), strict=True))
        names = ("label", "precision", "recall", "F1", "rows", "predicted")
        note = f"A label is predicted from a probability of {self._threshold:g} on."
        distances_S = np.abs(np.stack([answer.scores for answer in answers]) - gold_SC).sum(1)
        wrong = [int(place) for place in np.argsort(-distances_S, kind="stable") if (gold_SC != found_SC)[place].any()]
        mistakes = [
            (
                ", ".join(examples[place].row.labels or ()),
                ", ".join(answers[place].labels),
                shown(examples[place].row),
                examples[place].row.where,
            )
            for place in wrong[:SHOWN_MISTAKES]
        ]
        return [
            Table("By label", names, rows, note),
            Table(
                "Mistakes",
                ("labels", "predicted", "text", "row"),
                mistakes,
                f"{len(wrong)} of {len(examples)} rows have a wrong or missing label; the surest first.",
            ),
        ]

    def _indicators(self, targets: Sequence[tuple[int, ...]]) -> np.ndarray:
        """bool [S, C]."""
        found_SC = np.zeros((len(targets), len(self._labels)), dtype=bool)
        for row, ids in enumerate(targets):
            found_SC[row, list(ids)] = True
        return found_SC

    def _gold_and_found(
        self, answers: Sequence[LabelSetAnswer], examples: Sequence[ClassificationExample]
    ) -> tuple[np.ndarray, np.ndarray]:
        found = [tuple(self._ids[label] for label in answer.labels) for answer in answers]
        return self._indicators([example.target for example in examples]), self._indicators(found)


def _f1(gold_SC: np.ndarray, found_SC: np.ndarray, axis: int | None) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) along an axis, 0 where there is neither a label nor a prediction."""
    right = (gold_SC & found_SC).sum(axis)
    total = gold_SC.sum(axis) + found_SC.sum(axis)
    scores: np.ndarray = 2 * right / np.maximum(total, 1)
    return scores


_FIGURES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "micro_f1": lambda gold_SC, found_SC: float(_f1(gold_SC, found_SC, None)),
    "macro_f1": lambda gold_SC, found_SC: float(_f1(gold_SC, found_SC, 0).mean()),
    "samples_f1": lambda gold_SC, found_SC: float(_f1(gold_SC, found_SC, 1).mean()),
    "subset_accuracy": lambda gold_SC, found_SC: float((gold_SC == found_SC).all(1).mean()),
}
