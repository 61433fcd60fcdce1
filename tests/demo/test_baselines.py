"""Majorities on examples worked by hand, and against scikit-learn and nervaluate."""

import numpy as np
import pytest
from nervaluate.evaluator import Evaluator
from sklearn.dummy import DummyClassifier

from bertsmith.demo.baselines import majority_score


@pytest.mark.conformance
def test_classification_is_the_dummy_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    train, test = (random.choice(["a", "b", "c"], size=size, p=[0.2, 0.5, 0.3]).tolist() for size in (50, 40))
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((50, 1)), train)
    rows = [[{"text": "", "label": label} for label in labels] for labels in (train, test)]
    assert majority_score("classification", *rows) == pytest.approx(dummy.score(np.zeros((40, 1)), test))


@pytest.mark.conformance
def test_tagging_gives_words_their_usual_tags() -> None:
    train = [
        {"words": ["call", "fit", "with", "X"], "tags": ["O", "B-FUNC", "O", "B-NAME"]},
        {"words": ["a", "fit", "of", "fit"], "tags": ["O", "O", "O", "B-FUNC"]},
    ]
    test = [
        {"words": ["fit", "X", "and", "y"], "tags": ["B-FUNC", "B-NAME", "O", "B-NAME"]},
        {"words": ["the", "fit"], "tags": ["O", "O"]},
    ]
    gold = [["B-FUNC", "B-NAME", "O", "B-NAME"], ["O", "O"]]
    guess = [["B-FUNC", "B-NAME", "O", "O"], ["O", "B-FUNC"]]
    judged = Evaluator(gold, guess, tags=["FUNC", "NAME"], loader="list").evaluate()["overall"]["strict"]
    assert majority_score("tagging", train, test) == pytest.approx(judged.f1)
    # Two of three found names are right, two of three marked ones are found.
    assert majority_score("tagging", train, test) == pytest.approx(2 / 3)


def test_answering_gives_the_usual_answer_to_each_kind() -> None:
    def row(kind: str, answer: str) -> dict[str, object]:
        return {"question": f"What is the {kind} of x?", "answers": [{"text": answer, "answer_start": 0}]}

    train = [row("type", "int"), row("type", "bool"), row("type", "bool"), row("default", "None")]
    test = [row("type", "bool"), row("type", "list of bool"), row("default", "0")]
    assert majority_score("answering", train, test) == pytest.approx((1 + 0.5 + 0) / 3)


def test_another_task_is_refused() -> None:
    with pytest.raises(KeyError, match="tagging"):
        majority_score("taging", [], [])
