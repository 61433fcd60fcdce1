"""From start and end scores of all windows of a context to the answer.

A span scores the sum of its two logits, "no answer" the sum at [CLS]. The choice follows
google-research/bert `run_squad.py` (`write_predictions`), with two differences: spans are searched in
full instead of among the 20 best starts and ends of a window, and an answer is a slice of the context
by offsets instead of text that is aligned again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertsmith.tasks.answer_data import AnsweringExample, AnsweringSettings
from bertsmith.text.windows import max_context


@dataclass(frozen=True)
class Candidate:
    """Code points [start, end) of the context, its text, and the sum of its two logits."""

    start: int
    end: int
    text: str
    score: float
    probability: float


@dataclass(frozen=True)
class QuestionAnswer:
    """What the model says to one question.

    Attributes:
        best: the answer, None for "no answer" (or where the context has no text).
        probability: of the answer, among all candidates and, where it is allowed, "no answer".
        candidates: different texts, best first.
        null_difference: score of "no answer" minus that of the best candidate; None without one.
    """

    best: Candidate | None
    probability: float
    candidates: tuple[Candidate, ...]
    null_difference: float | None

    @property
    def text(self) -> str:
        """The answer's text, "" for "no answer"."""
        return self.best.text if self.best is not None else ""


def choose_answer(
    example: AnsweringExample, logits: Sequence[np.ndarray], settings: AnsweringSettings
) -> QuestionAnswer:
    """The best span of all windows, unless "no answer" wins or there is no span at all.

    Args:
        logits: float32 [length, 2] of each window: starts and ends.
    """
    candidates = _candidates(example, logits, settings)
    if not candidates:
        return QuestionAnswer(None, 1.0, (), None)
    null_score = min(float(window[0].sum()) for window in logits)
    null_difference = null_score - candidates[0].score
    scores = np.array([one.score for one in candidates] + [null_score] * (settings.unanswerable is True))
    shares = np.exp(scores - scores.max())
    probabilities = (shares / shares.sum()).tolist()
    candidates = [replace(one, probability=probabilities[index]) for index, one in enumerate(candidates)]
    return decide(QuestionAnswer(candidates[0], probabilities[0], tuple(candidates), null_difference), settings)


def decide(answer: QuestionAnswer, settings: AnsweringSettings) -> QuestionAnswer:
    """The same candidates, and from them the best, or "no answer" where it scores above the settings' threshold."""
    if answer.null_difference is None:
        return answer
    if settings.unanswerable is True and answer.null_difference > (settings.no_answer_threshold or 0.0):
        left = 1.0 - sum(one.probability for one in answer.candidates)
        return replace(answer, best=None, probability=max(0.0, left))
    return replace(answer, best=answer.candidates[0], probability=answer.candidates[0].probability)


def _candidates(
    example: AnsweringExample, logits: Sequence[np.ndarray], settings: AnsweringSettings
) -> list[Candidate]:
    """The `n_best` spans with different texts, best first; their probabilities are still open."""
    context, offsets = example.row.context, example.context.offsets
    found: dict[str, Candidate] = {}
    # A few spans of each window are nearly always enough; where many have the same text, all are sorted.
    for limit in ((settings.n_best + 1) ** 2, None):
        found = {}
        spans = [_best_spans(example, index, window, settings, limit) for index, window in enumerate(logits)]
        # Below the worst span that a window gave, it may have others that it did not give.
        floor = max([float(scores.min()) for scores, _, _ in spans if limit and len(scores) == limit], default=-np.inf)
        scores, firsts, lasts = (np.concatenate(values) for values in zip(*spans, strict=True))
        for index in np.lexsort((lasts, firsts, -scores)):
            if len(found) == settings.n_best or scores[index] <= floor:
                break
            start, end = int(offsets[firsts[index], 0]), int(offsets[lasts[index], 1])
            text = context[start:end].strip()  # white space is a token of some vocabularies
            if text and text not in found:
                start = context.index(text, start)
                found[text] = Candidate(start, start + len(text), text, float(scores[index]), 0.0)
        if len(found) == settings.n_best or floor == -np.inf:
            break
    return list(found.values())


def _best_spans(
    example: AnsweringExample, index: int, logits: np.ndarray, settings: AnsweringSettings, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, first and last context tokens of the best spans of one window, in no order; at most `limit`.

    A span may start only where this window sees the most context around the token, and has at most
    `max_answer_length` tokens.
    """
    window = example.windows[index]
    length = len(window)
    if length == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return np.zeros(0), nothing, nothing
    begin = example.first_context_token
    starts, ends = logits[begin : begin + length].astype(np.float64).T
    owners = max_context(example.windows, np.arange(window.start, window.end))
    starts = np.where(owners == index, starts, -np.inf)
    width = min(settings.max_answer_length, length)
    padded = np.concatenate([ends, np.full(width - 1, -np.inf)])
    scores = (starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)).ravel()
    spans = np.flatnonzero(np.isfinite(scores))
    if limit is not None and limit < len(spans):
        spans = spans[np.argpartition(-scores[spans], limit - 1)[:limit]]
    firsts = spans // width
    return scores[spans], firsts + window.start, firsts + spans % width + window.start
