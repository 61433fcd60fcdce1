"""What can be reached by always saying what is most frequent: the least a model has to beat."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bertsmith.errors import did_you_mean
from bertsmith.tasks.entities import read_spans, score_entities
from bertsmith.tasks.squad_metrics import f1

Rows = Sequence[Mapping[str, Any]]


def majority_score(task: str, train: Rows, test: Rows) -> float:
    """The score of the majority of the training rows on the test rows, in [0, 1].

    classification: accuracy of the most frequent label.
    tagging: strict F1 of giving each word the tag it has most often, and O to words never seen.
    answering: F1 of the most frequent answer to a type, and to a default.

    Raises:
        KeyError: another task.
    """
    scorers: dict[str, Callable[[Rows, Rows], float]] = {
        "classification": _classification,
        "tagging": _tagging,
        "answering": _answering,
    }
    if task not in scorers:
        raise KeyError(did_you_mean(task, scorers))
    return scorers[task](train, test)


def _classification(train: Rows, test: Rows) -> float:
    label = _most_frequent(("", row["label"]) for row in train)[""]
    return float(np.mean([row["label"] == label for row in test]))


def _tagging(train: Rows, test: Rows) -> float:
    usual = _most_frequent(pair for row in train for pair in zip(row["words"], row["tags"], strict=True))
    gold = [read_spans(row["tags"]) for row in test]
    guessed = [read_spans([usual.get(word, "O") for word in row["words"]]) for row in test]
    return float(score_entities(gold, guessed)[""].f1)


def _answering(train: Rows, test: Rows) -> float:
    usual = _most_frequent((_asked(row), row["answers"][0]["text"]) for row in train)
    return float(np.mean([f1(row["answers"][0]["text"], usual.get(_asked(row), ""), "squad-1.1") for row in test]))


def _asked(row: Mapping[str, Any]) -> str:
    """The question without the parameter's name."""
    return str(row["question"]).rpartition(" ")[0]


def _most_frequent(pairs: Iterable[tuple[Hashable, str]]) -> dict[Hashable, str]:
    """For each key its most frequent value; of equally frequent ones the first in the alphabet."""
    counts: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, value in pairs:
        counts[key][value] += 1
    return {key: min(counter, key=lambda value: (-counter[value], value)) for key, counter in counts.items()}
