"""Scores of answers against a second reading of the official scripts, and cases worked by hand."""

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.tasks.squad_metrics import best_over_references, best_threshold, exact_match, f1, normalize_answer

WORDS = ["the", "a", "An", "cat", "Cat", "sat,", "U.S.", "theme", "-", "of", "1,000", "don't", "été", "\u00a0", ""]
answers = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)


def official_normalize(s: str) -> str:
    """evaluate-v1.1.py and evaluate-v2.0.py normalize_answer."""
    s = s.lower()
    s = "".join(ch for ch in s if ch not in set(string.punctuation))
    s = re.sub(r"\b(a|an|the)\b", " ", s)
    return " ".join(s.split())


def official_f1_v1(prediction: str, truth: str) -> float:
    prediction_tokens, truth_tokens = official_normalize(prediction).split(), official_normalize(truth).split()
    num_same = sum((collections.Counter(prediction_tokens) & collections.Counter(truth_tokens)).values())
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(prediction_tokens), 1.0 * num_same / len(truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def official_f1_v2(gold: str, prediction: str) -> float:
    gold_tokens = official_normalize(gold).split() if gold else []
    prediction_tokens = official_normalize(prediction).split() if prediction else []
    if len(gold_tokens) == 0 or len(prediction_tokens) == 0:
        return int(gold_tokens == prediction_tokens)
    return official_f1_v1(prediction, gold)


@given(answers | st.text(max_size=20))
def test_normalization_is_the_official_one(text):
    assert normalize_answer(text) == official_normalize(text)


@given(st.lists(answers, min_size=1, max_size=4), answers)
def test_squad_1_takes_the_best_over_all_references(references, prediction):
    assert best_over_references(f1, references, prediction, "squad-1.1") == pytest.approx(
        max(official_f1_v1(prediction, truth) for truth in references)
    )
    assert best_over_references(exact_match, references, prediction, "squad-1.1") == max(
        official_normalize(prediction) == official_normalize(truth) for truth in references
    )


@given(st.lists(answers, max_size=4), answers)
def test_squad_2_takes_nothing_as_the_reference_where_there_is_none(references, prediction):
    gold = [text for text in references if official_normalize(text)] or [""]
    assert best_over_references(f1, references, prediction, "squad-2.0") == pytest.approx(
        max(official_f1_v2(truth, prediction) for truth in gold)
    )
    assert best_over_references(exact_match, references, prediction, "squad-2.0") == max(
        official_normalize(truth) == official_normalize(prediction) for truth in gold
    )


def test_a_case_worked_by_hand():
    # "cat sat on mat" against "cat on mat": 3 common words of 3 and 4.
    assert f1("The cat on the mat", "cat sat on a mat!", "squad-1.1") == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert exact_match("The U.S.", "us", "squad-1.1") == 1.0


CHINESE_PUNCTUATION = [
    "-", ":", "_", "*", "^", "/", "\\", "~", "`", "+", "=", "，", "。", "：", "？", "！", "“", "”", "；", "’", "《",
    "》", "……", "·", "、", "「", "」", "（", "）", "－", "～", "『", "』",
]  # fmt: skip


def cmrc_f1(answer: str, prediction: str) -> float:
    """cmrc2018_evaluate.py, where words of other scripts are parted by spaces only."""

    def segments(text: str) -> list[str]:
        found, rest = [], ""
        for character in text.lower().strip():
            if character in CHINESE_PUNCTUATION:
                continue
            if re.search(r"[\u4e00-\u9fa5]", character):
                found += [*rest.split(), character]
                rest = ""
            else:
                rest += character
        return found + rest.split()

    ours, theirs = segments(answer), segments(prediction)
    longest = max(
        (n for n in range(1, len(ours) + 1) for i in range(len(ours) - n + 1) for j in range(len(theirs) - n + 1)
         if ours[i : i + n] == theirs[j : j + n]),
        default=0,
    )  # fmt: skip
    if longest == 0:
        return 0
    precision, recall = longest / len(theirs), longest / len(ours)
    return 2 * precision * recall / (precision + recall)


chinese = st.text(alphabet="北京大学，。、·-《》Aab12 ", max_size=9)


@given(chinese, chinese)
def test_chinese_f1_is_over_the_longest_common_run_of_characters(reference, prediction):
    assert f1(reference, prediction, "cmrc-2018") == pytest.approx(cmrc_f1(reference, prediction))


def test_chinese_cases_worked_by_hand():
    assert exact_match("《北京》大学。", "北京大学", "cmrc-2018") == 1.0
    assert f1("北京大学", "北大学", "cmrc-2018") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert best_over_references(f1, [], "", "cmrc-2018") == 1.0
    assert best_over_references(f1, [], "北京", "cmrc-2018") == 0.0


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.integers(-4, 4)), min_size=1, max_size=8),
)
def test_no_threshold_is_better_than_the_best_threshold(rows):
    has_answer, values, differences = (np.array(column) for column in zip(*rows, strict=True))

    def mean_at(threshold: float) -> float:
        silent = differences > threshold
        return float(np.where(silent, ~has_answer, has_answer * values).mean())

    best, threshold = best_threshold(values.astype(float), differences.astype(float), has_answer)
    assert mean_at(threshold) == pytest.approx(best)
    assert best == pytest.approx(max(mean_at(t) for t in range(-6, 6)))


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [("3.14", "3.15", 0.0), ("12,500元", "13,500元", 0.5), ("192.168.1.1", "192.168.1.2", 0.0)],
)
def test_a_number_in_chinese_is_one_unit(reference: str, answer: str, expected: float) -> None:
    """As NLTK's word_tokenize, which cmrc2018_evaluate.py asks, has it."""
    assert f1(reference, answer, "cmrc-2018") == expected
