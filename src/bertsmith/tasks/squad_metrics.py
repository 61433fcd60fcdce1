"""Exact match and F1 of answers, by the rules of the official scripts.

`evaluate-v1.1.py` and `evaluate-v2.0.py` (rajpurkar/SQuAD-explorer) for languages with words, and
`cmrc2018_evaluate.py` (ymcui/cmrc2018) for Chinese. The scripts print percent; here every figure is
a share in [0, 1], as all metrics of this package are.
"""

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Rules = Literal["squad-1.1", "squad-2.0", "cmrc-2018"]
"""Whose script: both SQuADs compare words without articles, CMRC 2018 Chinese characters."""

Metric = Callable[[str, str, Rules], float]
"""`exact_match` or `f1`: (reference, answer, rules) -> value."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# cmrc2018_evaluate.py `sp_char`; its two-character "……" never equals a character, so it is not here.
_CHINESE_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE_UNIT = re.compile(r"[\u4e00-\u9fa5]|[^\s\u4e00-\u9fa5]+")
# As NLTK's word_tokenize, which the script asks, in all but rarities: "3.14" and "12,500" are whole.
_LATIN_UNIT = re.compile(r"\w+(?:\.\w+|,(?=\d)\w+)*|[^\w\s]")


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(reference: str, answer: str, rules: Rules) -> float:
    """1 if both are the same after normalization, else 0."""
    if rules == "cmrc-2018":
        return float(_without_punctuation(reference) == _without_punctuation(answer))
    return float(normalize_answer(reference) == normalize_answer(answer))


def f1(reference: str, answer: str, rules: Rules) -> float:
    """Overlap of two answers: common words, or in Chinese the longest common run of characters.

    Two answers without any word agree by the rules of SQuAD 2.0, and have nothing in common by
    those of 1.1 and CMRC.
    """
    if rules == "cmrc-2018":
        wanted, found = _chinese_units(reference), _chinese_units(answer)
        common = difflib.SequenceMatcher(None, wanted, found, autojunk=False).find_longest_match().size
    else:
        wanted, found = normalize_answer(reference).split(), normalize_answer(answer).split()
        common = (Counter(wanted) & Counter(found)).total()
    if rules == "squad-2.0" and not (wanted and found):
        return float(wanted == found)
    return 2 * common / (len(wanted) + len(found)) if common else 0.0


def best_over_references(metric: Metric, references: Sequence[str], answer: str, rules: Rules) -> float:
    """The best value over all references; where there are none, the right answer is to say nothing.

    References that are only articles and punctuation do not count in SQuAD 2.0.
    """
    if rules == "squad-2.0":
        references = [text for text in references if normalize_answer(text)]
    if not references:
        return exact_match("", answer, rules)
    return max(metric(reference, answer, rules) for reference in references)


def best_threshold(scores: np.ndarray, null_differences: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """The no-answer threshold that would have been best on these questions, and what it gives.

    The search of evaluate-v2.0 `find_best_thresh`: a question is left unanswered when its null
    difference is above the threshold.

    Args:
        scores: float [Q], what the best answer that is not "no answer" is worth; of a question
            without an answer it does not matter.
        null_differences: float [Q], score of "no answer" minus that of the best answer; infinite for a
            question that has no other answer than "no answer".
        has_answer: bool [Q], whether the question has one.

    Returns:
        The best mean score, and the threshold.
    """
    order = np.argsort(null_differences, kind="stable")
    gains = np.where(has_answer, scores, -1.0)[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)]) + (~has_answer).sum()
    # A threshold cannot part two questions with the same difference: only the last of a tie counts.
    differences = null_differences[order]
    is_cut = np.concatenate([[True], differences[1:] != differences[:-1], [True]])
    best = int(np.where(is_cut, totals, -np.inf).argmax())
    threshold = differences[best - 1] if best else differences[0] - 1.0
    return float(totals[best] / len(scores)), float(threshold) if np.isfinite(threshold) else 0.0


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CHINESE_PUNCTUATION)


def _chinese_units(text: str) -> list[str]:
    """Chinese characters one by one, everything between them in words."""
    units: list[str] = []
    for unit in _CHINESE_UNIT.findall(_without_punctuation(text)):
        units.extend([unit] if "\u4e00" <= unit <= "\u9fa5" else _LATIN_UNIT.findall(unit))
    return units
