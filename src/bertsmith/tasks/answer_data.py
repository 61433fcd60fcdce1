"""What answering learns from: settings, questions about contexts, and the windows they are cut into.

The windows are those of google-research/bert `run_squad.py`; where a question's answer lies is known
by characters, so no text is ever compared to find it again.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from bertsmith import randomness
from bertsmith.errors import InputError, SettingsError, collecting
from bertsmith.settings import settle_types
from bertsmith.tasks.rows import iter_records, nothing_read
from bertsmith.text.labelled import Question, holds_rows, question_row, read_squad
from bertsmith.text.scripts import script_shares
from bertsmith.text.tables import understood_column
from bertsmith.text.tokenizer import Encoding, Tokenizer
from bertsmith.text.windows import Window, overlap, windows

NUM_SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
NULL_TARGET = (0, 0)
"""Start and end of an answer that a window does not hold: [CLS]."""
_CHINESE_SHARE = 0.5  # of the letters


@dataclass(frozen=True)
class AnsweringSettings:
    """Where questions and answers stand in the data, how long text is cut, and how answers are chosen."""

    question_column: str = "question"
    """The column of the question, in JSONL, Parquet or Hub data; SQuAD JSON needs no names."""
    context_column: str = "context"
    """The column of the text that holds the answer."""
    answers_column: str = "answers"
    """The column of the answers: [{"text", "answer_start"}], or {"text": [], "answer_start": []}."""
    lenient: bool = False
    """Leave questions whose answer is not at its place out of training, instead of stopping."""
    max_length: int = 384
    """Tokens in a sequence: question, a window of the context, and three special tokens."""
    max_query_length: int = 64
    """Tokens of a question; what is longer is cut."""
    doc_stride: int = 128
    """Tokens from the start of a window to the start of the next: a step, not an overlap."""
    null_windows: float | Literal["all"] = 2.0
    """Windows without the answer that an epoch learns from, for each with it, of questions that have one; or "all"."""
    max_answer_length: int = 30
    """Tokens of the longest answer."""
    n_best: int = 20
    """Candidates that are kept for each question."""
    unanswerable: bool | None = None
    """Whether "no answer" is an answer; by default if the training data has questions without one."""
    no_answer_threshold: float | None = None
    """Say "no answer" if it scores more than this above the best answer; by default what gives dev its best F1, or
    0."""
    language: Literal["en", "zh"] | None = None
    """Whose rules score answers: SQuAD's (words), or those of CMRC 2018 (Chinese characters), "zh"; by default the
    latter where most letters of the contexts that are asked about are Chinese characters."""
    metric: Literal["f1", "exact_match"] = "f1"
    """What picks the best checkpoint."""

    def __post_init__(self) -> None:
        settle_types(self)
        if self.max_length <= self.max_query_length + NUM_SPECIAL_TOKENS:
            raise SettingsError(
                f"max_length {self.max_length} leaves no room for the context beside a question of "
                f"max_query_length {self.max_query_length} and {NUM_SPECIAL_TOKENS} special tokens."
            )
        for name in ("max_query_length", "doc_stride", "max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}.")
        threshold = self.no_answer_threshold
        if threshold is not None and not math.isfinite(threshold):
            raise SettingsError(f"no_answer_threshold must be a number, not {threshold}.")
        if threshold is not None and self.unanswerable is False:
            raise SettingsError(
                'no_answer_threshold says when there is "no answer", which there never is here: no question of the '
                "training data lacks one, or unanswerable is off. Leave it out, or say --unanswerable."
            )
        if self.null_windows != "all" and not 0 <= self.null_windows < float("inf"):
            raise SettingsError(f'null_windows must be at least 0, or "all", not {self.null_windows}.')

    def describe_windows(self) -> str:
        """Step and overlap in one line, since other tools give the overlap the same name."""
        room = self.max_length - NUM_SPECIAL_TOKENS - self.max_query_length
        step = min(self.doc_stride, room)  # as `windows` has it
        what = "doc_stride as a step" if step == self.doc_stride else f"doc_stride {self.doc_stride}, cut to the room"
        shared = overlap(room, step)
        lost = "" if shared else f" Answers that lie across a border get lost: give a doc_stride below {room}."
        return (
            f"Beside a question of {self.max_query_length} tokens, windows of {self.max_length} tokens move {step} "
            f"tokens at a time ({what}), and neighbours share {shared} tokens of the context (what Hugging Face "
            f"tokenizers call stride).{lost}"
        )


@dataclass(frozen=True)
class AnsweringExample:
    """A question with windows of its context: all of them, or in training a single one.

    `targets` are the first and last token of the answer in each window's sequence, (0, 0) where the
    window does not hold it; empty to predict.
    """

    row: Question
    question_ids: np.ndarray  # int32 [Q]
    context: Encoding  # shared by all questions about the context
    windows: tuple[Window, ...]
    targets: tuple[tuple[int, int], ...] = ()
    num_separators: int = 1
    """Special tokens between question and context; with one before and one behind they frame both."""
    cut_tokens: int = 0
    """Those that the question has lost."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        frame = len(self.question_ids) + 2 + self.num_separators
        return sum(len(window) + frame for window in self.windows)

    @property
    def first_context_token(self) -> int:
        """Where the context starts in each sequence."""
        return len(self.question_ids) + 1 + self.num_separators

    @property
    def is_null(self) -> bool:
        """In training: whether the question has an answer, and its window does not hold it."""
        return bool(self.row.answers) and self.targets == (NULL_TARGET,)


class TrainingWindows:
    """Windows to learn from, one an example: in each epoch all but null ones, and some of those, in turn.

    Most windows of a long context do not hold the answer. Where all are learnt, much of the time goes into learning to
    be silent, so some are left out, as for Natural Questions (Alberti et al. 2019, arXiv 1901.08634).
    """

    def __init__(self, examples: Sequence[AnsweringExample], null_windows: float | Literal["all"]) -> None:
        self.items = examples
        self._others = [example for example in examples if not example.is_null]
        nulls = [example for example in examples if example.is_null]
        with_answer = sum(example.targets != (NULL_TARGET,) for example in self._others)
        order = randomness.shuffled(np.arange(len(nulls)), len(nulls), 0, "null windows")
        self._nulls: list[AnsweringExample] = [nulls[place] for place in order.tolist()]
        wanted = len(nulls) if null_windows == "all" else round(null_windows * with_answer)
        self._nulls_an_epoch = min(wanted, len(nulls))

    @property
    def num_left_out(self) -> int:
        """Null windows that an epoch does not learn from."""
        return len(self._nulls) - self._nulls_an_epoch

    def describe(self) -> str:
        """How many there are, and how many are learnt from, in a sentence."""
        return (
            f"Of {len(self._nulls):,} windows that do not hold their question's answer an epoch learns from "
            f'{self._nulls_an_epoch:,}, in turn (null_windows; "all" for all of them).'
        )

    def num_examples(self, epoch: int) -> int:
        """The same for every epoch."""
        return len(self._others) + self._nulls_an_epoch

    def take(self, indices: Sequence[int], epoch: int) -> Sequence[AnsweringExample]:
        """Some windows of an epoch; its null ones follow those of the epoch before."""
        return [self._at(index, epoch) for index in indices]

    def num_tokens(self, index: int) -> int:
        """Tokens of window `index` of the first epoch."""
        return self._at(index, 0).num_tokens

    def _at(self, index: int, epoch: int) -> AnsweringExample:
        place = index - len(self._others)
        if place < 0:
            return self._others[index]
        return self._nulls[(epoch * self._nulls_an_epoch + place) % len(self._nulls)]


def read_rows(
    source: str, settings: AnsweringSettings, bad: list[InputError] | None = None
) -> tuple[AnsweringSettings, list[Question]]:
    """Read questions from SQuAD JSON or from rows; find out whether "no answer" is an answer.

    Args:
        bad: gets what is wrong with rows that cannot be used, which are passed over; None: the first is an error.

    Returns:
        The settings with `unanswerable` settled, to read further files with; the questions.

    Raises:
        InputError: no questions, a field that is missing, an answer that is not at its place.
    """
    questions: list[Question] = []
    with collecting(bad):
        if holds_rows(source):
            for where, values in iter_records(source, bad=bad):
                with collecting(bad):
                    questions.append(row_of(values, settings, where, labelled=True))
        else:
            questions.extend(read_squad(source, lenient=settings.lenient, bad=bad))
    if not questions:
        raise nothing_read(source, "questions", bad)
    if settings.unanswerable is None:
        settings = replace(settings, unanswerable=any(not question.answers for question in questions))
    return settings, questions


def scored_in(language: Literal["en", "zh"] | None, questions: Iterable[Question]) -> Literal["en", "zh"]:
    """Whose rules score the answers to some questions: those of `language`, or else of their contexts' script."""
    if language is not None:
        return language
    contexts = dict.fromkeys(question.context for question in questions)
    return "zh" if script_shares(contexts).get("Chinese characters", 0.0) > _CHINESE_SHARE else "en"


def row_of(values: Mapping[str, Any], settings: AnsweringSettings, where: str, *, labelled: bool) -> Question:
    """A question from a row. `question` and `context` are understood where the columns' own names are missing."""
    return question_row(
        values,
        where,
        question_field=understood_column(settings.question_column, "question", values, where),
        context_field=understood_column(settings.context_column, "context", values, where),
        answers_field=settings.answers_column if labelled else None,
        lenient=settings.lenient,
    )


def encode_questions(
    rows: Sequence[Question], tokenizer: Tokenizer, settings: AnsweringSettings
) -> Iterator[AnsweringExample]:
    """One example a question, in order, with all windows of its context and no targets.

    A context is tokenized once, however many questions are asked about it.
    """
    contexts: dict[str, int] = {}
    places = [contexts.setdefault(row.context, len(contexts)) for row in rows]
    encodings = tokenizer.encode_batch(list(contexts))
    questions = tokenizer.encode_batch([row.question for row in rows])
    for row, place, question in zip(rows, places, questions, strict=True):
        ids, context = question.ids[: settings.max_query_length], encodings[place]
        num_separators = len(tokenizer.separator_ids)
        room = settings.max_length - 2 - num_separators - len(ids)
        parts = tuple(windows(len(context.ids), room, settings.doc_stride))
        cut_tokens = len(question.ids) - len(ids)
        yield AnsweringExample(row, ids, context, parts, num_separators=num_separators, cut_tokens=cut_tokens)


def training_examples(example: AnsweringExample) -> list[AnsweringExample]:
    """One example a window, with its target; none if the place of the answer is not known.

    A window that does not hold the whole answer says so by pointing at [CLS], as does every window of a question
    without an answer. The first answer that has a place is learnt.
    """
    span = None
    if example.row.answers:
        spans = (locate(example.context, one.start, len(one.text)) for one in example.row.answers)
        span = next((found for found in spans if found is not None), None)
        if span is None:
            return []
    examples = []
    for window in example.windows:
        target = NULL_TARGET
        if span is not None and window.start <= span[0] and span[1] < window.end:
            shift = example.first_context_token - window.start
            target = (span[0] + shift, span[1] + shift)
        examples.append(replace(example, windows=(window,), targets=(target,)))
    return examples


def locate(context: Encoding, start: int | None, length: int) -> tuple[int, int] | None:
    """First and last token that share a character with code points [start, start + length).

    So an answer that begins inside a word begins at the piece that holds its first character.
    """
    if start is None:
        return None
    first = int(np.searchsorted(context.offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(context.offsets[:, 0], start + length, side="left")) - 1
    return (first, last) if first <= last else None
