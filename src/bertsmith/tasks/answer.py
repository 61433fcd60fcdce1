"""Task: a question and a context to the span of the context that answers it, or to "no answer".

Two numbers a token say how well an answer starts and ends there (Devlin et al. 2018, sections 4.2
and 4.3). The loss is that of google-research/bert `run_squad.py`, but for its softmax, which is over
a sequence's own tokens: there is no padding here.
Shape letters: T tokens, S sequences (one a window), L tokens of the longest one, Q questions.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.errors import InputError
from bertsmith.model.batch import PackedBatch, pack, split
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import TokenHead
from bertsmith.model.initial_weights import initialise_new_output
from bertsmith.tasks.answer_data import (
    AnsweringExample,
    AnsweringSettings,
    TrainingWindows,
    encode_questions,
    row_of,
    scored_in,
    training_examples,
)
from bertsmith.tasks.answer_spans import QuestionAnswer, choose_answer, decide
from bertsmith.tasks.pairs import assemble
from bertsmith.tasks.rows import ListExamples, check_max_length, given_as, sub_batches
from bertsmith.tasks.squad_metrics import Metric, Rules, best_over_references, best_threshold, exact_match, f1
from bertsmith.text.labelled import Question
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training.report import Section, Table
from bertsmith.training.task import Batch

_SHOWN_ANSWERS = 12
_SHOWN_CHARACTERS = 160  # of the context on either side of an answer
_MANY_LONG = 0.01  # of the answers, from which on it is said
_LENGTH_BOUNDS = (1, 2, 4, 8, 16)  # words of the first reference answer, for the report


class QuestionAnsweringModel(nn.Module):
    """The encoder with a head of two outputs a token: start and end."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = TokenHead(encoder.config, 2)
        initialise_new_output(self.tokens.out)
        self.tokens.dropout = 0.0  # run_squad.py has none before its last layer


class Answering:
    """Extractive question answering, with or without "no answer"."""

    name = "answering"
    architecture = "ForQuestionAnswering"
    num_neighbours = 0
    greater_is_better = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        settings: AnsweringSettings,
        splits: Mapping[str, Sequence[Question]],
    ) -> None:
        """`labels` are empty: answers are not chosen from a list. `splits` may be empty to predict.

        Raises:
            InputError: no training question has an answer at a known place, or is without one; or no window holds one.
        """
        self.tokenizer = tokenizer
        self.labels: tuple[str, ...] = tuple(labels)
        self.settings = settings
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self.num_skipped = 0
        """Training questions that are left out because the place of their answer is not known."""
        self._answer_tokens: list[int] = []
        """Of each training question that has an answer at a known place."""
        self._cut_questions: dict[str, int] = {}
        """How many of each split have lost their end."""
        self._splits: dict[str, ListExamples[AnsweringExample] | TrainingWindows] = {}
        for split_name, rows in splits.items():
            encoded = self.encode(rows)
            if number := sum(example.cut_tokens > 0 for example in encoded):
                self._cut_questions[split_name] = number
            if split_name != "train":
                self._splits[split_name] = ListExamples(encoded)
                continue
            by_question = [training_examples(example) for example in encoded]
            self.num_skipped = sum(not windows for windows in by_question)
            targets = [[target for window in windows for target in window.targets] for windows in by_question]
            self._answer_tokens = [max(end - start + 1 for start, end in spans) for spans in targets if spans]
            examples = [example for windows in by_question for example in windows]
            if not examples:
                raise InputError("no question has an answer at a known place: nothing to learn.")
            some = TrainingWindows(examples, settings.null_windows)
            if not some.num_examples(0):
                raise InputError("no window holds a whole answer: nothing to learn. Give longer or nearer windows.")
            self._splits[split_name] = some if some.num_left_out else ListExamples(examples)

    def row(self, value: str | Mapping[str, Any], where: str) -> Question:
        """A question to answer: a mapping with this task's columns, or `question` and `context`.

        Raises:
            InputError: a plain text or pair, or a column is missing.
        """
        columns = (self.settings.question_column, self.settings.context_column)
        if isinstance(value, str) or given_as(value, columns) == "pair":
            raise InputError('this model answers questions; give a row with "question" and "context".', where)
        return row_of(value, self.settings, where, labelled=False)

    def encode(self, rows: Sequence[Question]) -> list[AnsweringExample]:
        """One example a question, with all windows of its context."""
        return list(encode_questions(rows, self.tokenizer, self.settings))

    def notes(self) -> list[str]:
        """What to know before training: how contexts are cut, and what was left out."""
        notes = [self.settings.describe_windows()]
        scored = [(name, one.items) for name, one in self._splits.items() if isinstance(one, ListExamples)]
        if names := [name for name, items in scored if name != "train" and self._language(items) == "zh"]:
            by = "by characters, as CMRC 2018 does (--language en: by words, as SQuAD)."
            notes.append(f"Answers of {' and '.join(names)} are scored {by}")
        train = self._splits.get("train")
        if isinstance(train, TrainingWindows):
            notes.append(train.describe())
        most = self.settings.max_answer_length
        number = sum(length > most for length in self._answer_tokens)
        if number >= _MANY_LONG * max(1, len(self._answer_tokens)):
            notes.append(
                f"{number:,} of {len(self._answer_tokens):,} training questions have an answer of more than {most} "
                f"tokens, the longest of {max(self._answer_tokens):,}: max_answer_length {most} never gives them."
            )
        if self._cut_questions:
            cut = ", ".join(f"{number:,} of {name}" for name, number in self._cut_questions.items())
            notes.append(
                f"Questions longer than max_query_length {self.settings.max_query_length}, which lose their end: {cut}."
            )
        if self.num_skipped:
            notes.append(f"{self.num_skipped:,} training questions are left out: their answers are not where they say.")
        return notes

    def examples(self, split: str) -> ListExamples[AnsweringExample] | TrainingWindows:
        """Windows of "train", one an example; questions of any other split with all their windows."""
        return self._splits[split]

    def collate(self, examples: Sequence[AnsweringExample]) -> Batch:
        """Lay the windows of all examples flat, S in all; `targets` is int64 [S, 2]."""
        token_ids, segment_ids = [], []
        for example in examples:
            for window in example.windows:
                ids, segments = assemble(
                    self.tokenizer, example.question_ids, example.context.ids[window.start : window.end]
                )
                token_ids.append(ids)
                segment_ids.append(segments)
        inputs = pack(token_ids, segment_ids)
        targets = [target for example in examples for target in example.targets]
        if len(targets) < len(token_ids):
            return Batch(inputs, {}, {self.name: 0.0}, examples)
        return Batch(inputs, {"targets": torch.tensor(targets)}, {self.name: float(len(targets))}, examples)

    def build(self, encoder: Encoder) -> QuestionAnsweringModel:
        """The encoder with a fresh head.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table.
        """
        check_max_length(self.settings.max_length, encoder)
        return QuestionAnsweringModel(encoder)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [T, 2] start and end logits, on the CPU."""
        return torch.cat([_token_logits(model, inputs).cpu() for _, inputs in sub_batches(batch.inputs)])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [S, 2, L]: where each sequence's answer starts and ends; -inf behind the end of a sequence."""
        logits_T2, inputs = _token_logits(model, batch.inputs), batch.inputs
        lengths_S = inputs.offsets[1:] - inputs.offsets[:-1]
        sequence_T = torch.repeat_interleave(lengths_S, output_size=len(logits_T2))
        logits_SL2 = logits_T2.new_full((len(inputs.lengths), max(inputs.lengths), 2), -torch.inf)
        logits_SL2 = logits_SL2.index_put((sequence_T, inputs.position_ids), logits_T2)
        return logits_SL2.transpose(1, 2)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum over the sequences of (start + end) / 2, cross-entropies in nats over a sequence's own tokens."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits_S2L: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        logits_SL2, targets_S2 = logits_S2L.transpose(1, 2), batch.labels["targets"]
        return {self.name: nn.functional.cross_entropy(logits_SL2, targets_S2, reduction="sum") / 2}

    def decode(self, output: Tensor, batch: Batch) -> list[QuestionAnswer]:
        """One answer a question, the best over all its windows."""
        windows = iter(split(output, batch.inputs.lengths))
        return [
            choose_answer(example, [next(windows).numpy() for _ in example.windows], self.settings)
            for example in batch.examples
        ]

    def score(self, answers: Sequence[QuestionAnswer], examples: Sequence[AnsweringExample]) -> dict[str, float]:
        """Shares in [0, 1] by the official scripts' rules, the objective first.

        Where some questions have no answer, also the figures of both kinds apart, and the threshold
        that would have been best with the F1 it gives (evaluate-v2.0).
        """
        has_answer = np.array([bool(example.row.answers) for example in examples])
        exact = self._values(exact_match, [answer.text for answer in answers], examples)
        overlap = self._values(f1, [answer.text for answer in answers], examples)
        results = {"f1": float(overlap.mean()), "exact_match": float(exact.mean())}
        results = {self.settings.metric: results[self.settings.metric], **results}
        if has_answer.all():
            return results
        for name, mask in (("has_answer", has_answer), ("no_answer", ~has_answer)):
            if mask.any():
                results[f"{name}_f1"] = float(overlap[mask].mean())
                results[f"{name}_exact_match"] = float(exact[mask].mean())
        best_f1, threshold = self._best_threshold(answers, examples, has_answer)
        return results | {"best_f1": best_f1, "best_f1_threshold": threshold}

    def decided_on(
        self, answers: Sequence[QuestionAnswer], examples: Sequence[AnsweringExample]
    ) -> tuple["Answering", list[QuestionAnswer]]:
        """The task with the threshold that is best on these, and its answers; as it is where there is none to choose.

        There is where the settings leave the threshold open, and some of the questions have an answer and some none.
        """
        has_answer = np.array([bool(example.row.answers) for example in examples], dtype=bool)
        is_open = self.settings.unanswerable is True and self.settings.no_answer_threshold is None
        if not is_open or has_answer.all() or not has_answer.any():
            return self, list(answers)
        _, threshold = self._best_threshold(answers, examples, has_answer)
        decided = copy(self)
        decided.settings = replace(self.settings, no_answer_threshold=threshold)
        return decided, [decide(answer, decided.settings) for answer in answers]

    def _best_threshold(
        self, answers: Sequence[QuestionAnswer], examples: Sequence[AnsweringExample], has_answer: np.ndarray
    ) -> tuple[float, float]:
        """The best F1, and the threshold that gives it."""
        texts = [answer.candidates[0].text if answer.candidates else "" for answer in answers]
        differences = np.array([np.inf if one.null_difference is None else one.null_difference for one in answers])
        return best_threshold(self._values(f1, texts, examples), differences, has_answer)

    def _values(self, metric: Metric, texts: Sequence[str], examples: Sequence[AnsweringExample]) -> np.ndarray:
        """float64 [Q] of one metric."""
        rules: Rules = "squad-1.1"
        if self._language(examples) == "zh":
            rules = "cmrc-2018"
        elif not all(example.row.answers for example in examples):
            rules = "squad-2.0"
        pairs = zip(texts, examples, strict=True)
        return np.array(
            [
                best_over_references(metric, [a.text for a in example.row.answers], text, rules)
                for text, example in pairs
            ]
        )

    def to_json(self, answer: QuestionAnswer) -> dict[str, Any]:
        """`{"answer", "start", "end", "score", "candidates"}`; answer, start and end are null for "no answer".

        Places are code points of the context.
        """
        spans = [
            {"answer": one.text, "start": one.start, "end": one.end, "score": one.probability}
            for one in answer.candidates
        ]
        best = {"answer": None, "start": None, "end": None, "score": answer.probability}
        return {**(spans[0] if answer.best is not None else best), "candidates": spans}

    def sections(self, answers: Sequence[QuestionAnswer], examples: Sequence[AnsweringExample]) -> list[Section]:
        """For the report: figures by the length of the answer, answers that are right and wrong."""
        texts = [answer.text for answer in answers]
        exact, overlap = self._values(exact_match, texts, examples), self._values(f1, texts, examples)
        groups: dict[str, list[int]] = {}
        language = self._language(examples)
        order = [*(_length_name(bound) for bound in (*_LENGTH_BOUNDS, _LENGTH_BOUNDS[-1] + 1)), "no answer"]
        for index, example in enumerate(examples):
            groups.setdefault(_length_group(example, language), []).append(index)
        rows = [
            (name, len(groups[name]), float(exact[groups[name]].mean()), float(overlap[groups[name]].mean()))
            for name in order
            if name in groups
        ]
        unit = "characters" if language == "zh" else "words"
        triples = list(zip(answers, examples, overlap, strict=True))
        right = [(answer, example) for answer, example, value in triples if value == 1.0]
        wrong = sorted(
            ((answer, example) for answer, example, value in triples if value == 0.0),
            key=lambda pair: -pair[0].probability,
        )
        spread = right[:: max(1, len(right) // _SHOWN_ANSWERS)][:_SHOWN_ANSWERS]
        return [
            Table(f"By length of the answer in {unit}", ("length", "questions", "exact match", "F1"), rows),
            _answer_table("Right answers", spread, f"{len(right)} of {len(examples)} questions."),
            _answer_table(
                "Wrong answers", wrong[:_SHOWN_ANSWERS], f"{len(wrong)} of {len(examples)} questions; the surest first."
            ),
        ]

    def _language(self, examples: Iterable[AnsweringExample]) -> Literal["en", "zh"]:
        return scored_in(self.settings.language, (example.row for example in examples))


def find_labels(rows: Sequence[Question], settings: AnsweringSettings) -> tuple[str, ...]:
    """No labels: an answer is a span of the context.

    Raises:
        InputError: no question has an answer.
    """
    if not any(row.answers for row in rows):
        raise InputError("no question of the training data has an answer: nothing to learn.", rows[0].where)
    return ()


def _token_logits(model: nn.Module, inputs: PackedBatch) -> Tensor:
    """float32 [T, 2]."""
    assert isinstance(model, QuestionAnsweringModel)
    logits_T2: Tensor = model.tokens(model.encoder(inputs))
    return logits_T2


def _length_group(example: AnsweringExample, language: str) -> str:
    if not example.row.answers:
        return "no answer"
    text = example.row.answers[0].text
    return _length_name(len(text) if language == "zh" else len(text.split()))


def _length_name(length: int) -> str:
    """The group of answers of this length: "1", "2", "3-4", "5-8", "9-16", "17 or more"."""
    lower = 1
    for bound in _LENGTH_BOUNDS:
        if length <= bound:
            return str(bound) if lower == bound else f"{lower}-{bound}"
        lower = bound + 1
    return f"{lower} or more"


def _answer_table(title: str, pairs: Sequence[tuple[QuestionAnswer, AnsweringExample]], note: str) -> Table:
    rows = [
        (
            example.row.question,
            " | ".join(dict.fromkeys(one.text for one in example.row.answers)) or "(no answer)",
            answer.text or "(no answer)",
            answer.probability,
            _excerpt(example.row.context, answer),
            example.row.where,
        )
        for answer, example in pairs
    ]
    return Table(title, ("question", "references", "answer", "probability", "context", "row"), rows, note)


def _excerpt(context: str, answer: QuestionAnswer) -> str:
    """The answer's surroundings; the beginning of the context for "no answer"."""
    middle = answer.best.start if answer.best is not None else 0
    begin, end = max(0, middle - _SHOWN_CHARACTERS), middle + len(answer.text) + _SHOWN_CHARACTERS
    return f"{'...' if begin else ''}{context[begin:end]}{'...' if end < len(context) else ''}"
