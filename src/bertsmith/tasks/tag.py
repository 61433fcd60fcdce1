"""Task: the words of a sentence to entities, or to one label a word (Devlin et al. 2018, section 5.3).

The label of a word is learnt and predicted at its first piece, and in Chinese learnt at each part that raw text has of
it. A sentence that is too long is read in overlapping windows, where each word is learnt and predicted once, in the one
that sees the most text around it. A shorter one may be shown with what stands around it in its document, whose words
are learnt with their own sentences. With crf the labels of a sentence are one answer: see `model/crf.py`.
Shape letters: T tokens, S sequences, W words of the batch (or their parts), C labels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.errors import SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.crf import Crf
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import TokenHead
from bertsmith.model.initial_weights import initialise_new_output
from bertsmith.tasks.cross_entropy import weighted_cross_entropy
from bertsmith.tasks.entities import (
    Span,
    allowed_neighbours,
    detect_scheme,
    further_labels,
    in_words_of,
    over_parts,
    read_spans,
    score_by_length,
    score_entities,
)
from bertsmith.tasks.rows import ListExamples, check_max_length, class_weights, label_id, sub_batches
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings, in_documents, row_of
from bertsmith.tasks.tag_words import TaggingExample, Words, around, words_of
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import max_context, overlap, windows
from bertsmith.training.report import LARGEST_MATRIX, Matrix, Section, Table, no_matrix
from bertsmith.training.task import Batch

_NUM_SPECIAL_TOKENS = 2  # [CLS] sentence [SEP]
_SHOWN_SENTENCES = 15
_SHOWN_CHARACTERS = 400
_LONGEST_ENTITY = 4  # words; longer ones are counted together


@dataclass(frozen=True)
class Entity:
    """Words [start_word, end_word) and code points [start, end) of the text."""

    label: str
    start: int
    end: int
    text: str
    start_word: int
    end_word: int
    score: float
    """Mean probability of its words' labels."""


@dataclass(frozen=True)
class TaggingAnswer:
    """One label and its probability a word; the entities they make, where labels are of entities."""

    words: tuple[str, ...]
    word_spans: np.ndarray  # int64 [words, 2] code points
    labels: tuple[str, ...]
    scores: np.ndarray  # float32 [words]
    entities: tuple[Entity, ...]


class TokenClassificationModel(nn.Module):
    """The encoder with a head of C outputs a token, and with what labels score behind each other, if they do."""

    def __init__(self, encoder: Encoder, num_outputs: int, crf: Crf | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = TokenHead(encoder.config, num_outputs)
        initialise_new_output(self.tokens.out)
        self.crf = crf


class Tagging:
    """Words to entities or labels."""

    name = "tagging"
    architecture = "ForTokenClassification"
    greater_is_better = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        settings: TaggingSettings,
        splits: Mapping[str, Sequence[TaggingRow]],
    ) -> None:
        """`labels` are in the order of their ids; `splits` may be empty to predict.

        Raises:
            InputError: a tag in `splits` that is not in `labels`.
        """
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self.settings = settings
        # More than these cannot be shown: a sentence has a token or more, unless it has no words.
        self.num_neighbours = settings.max_length if settings.context == "document" else 0
        scheme = settings.scheme if settings.scheme != "auto" else detect_scheme([self.labels])
        self.has_entities = scheme != "none"
        self.metric = settings.metric or ("f1" if self.has_entities else "accuracy")
        if self.metric == ("macro_f1" if self.has_entities else "f1"):
            kind = "entities, whose figure is f1" if self.has_entities else "labels, whose figure is macro_f1"
            raise SettingsError(f'metric: "{self.metric}" does not go with {kind}.')
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self._label_ids = {label: index for index, label in enumerate(self.labels)}
        self._in_labels = partial(in_words_of, self._label_ids) if self.has_entities else tuple[str, ...]
        self._splits = {name: ListExamples(self.encode(rows)) for name, rows in splits.items()}
        targets = [item.targets for item in self._splits["train"].items] if "train" in splits else []
        known = np.concatenate([one for one in targets if one is not None] or [np.zeros(0, dtype=np.int64)])
        counts = np.bincount(known, minlength=len(self.labels)).tolist()
        weights = class_weights(settings.class_weights if len(known) else "none", self.labels, counts)
        self._class_weights_C = torch.from_numpy(weights)

    def row(self, value: str | Mapping[str, Any], where: str) -> TaggingRow:
        """A sentence to tag: raw text, or a mapping with `text` or a list of `words`.

        Raises:
            InputError: neither is there.
        """
        return row_of(value, self.settings, where)

    def encode(self, rows: Sequence[TaggingRow]) -> list[TaggingExample]:
        """Tokenize rows and check their tags; one example a row, in order.

        With context, rows that do not know their documents, as those to predict, are taken to follow each other.
        """
        if self.settings.context == "document" and not all(row.neighbours for row in rows):
            rows = in_documents(rows)
        known: dict[int, Words] = {}  # by the identity of the row, which may be shown with many others

        def words(row: TaggingRow) -> Words:
            if id(row) not in known:
                known[id(row)] = words_of(row, self.tokenizer)
            return known[id(row)]

        return [self._encode(row, words) for row in rows]

    def _encode(self, row: TaggingRow, words: Callable[[TaggingRow], Words]) -> TaggingExample:
        own, size = words(row), self.settings.max_length - _NUM_SPECIAL_TOKENS
        parts = windows(len(own.ids), size, self.settings.doc_stride)
        before, after = around(row, max(0, size - len(own.ids)), self.num_neighbours, lambda other: words(other).ids)
        cls, sep = [self.tokenizer.cls_id], [self.tokenizer.sep_id]
        token_ids = tuple(
            np.concatenate([cls, before, own.ids[part.start : part.end], after, sep]).astype(np.int64) for part in parts
        )
        # From a position in the sentence to the same one in the sequence of a window, behind [CLS] and context.
        shifts = np.cumsum([0, *map(len, token_ids[:-1])]) + 1 + len(before) - [part.start for part in parts]
        positions = own.firsts + shifts[max_context(parts, own.firsts)]
        targets = None
        if row.tags is not None:
            tags = self._in_labels(over_parts(row.tags, own.words.tolist(), has_entities=self.has_entities))
            targets = np.array([label_id(tag, self._label_ids, row.where) for tag in tags], dtype=np.int64)
        return TaggingExample(row, own.text, own.spans, token_ids, positions, own.words, targets)

    def examples(self, split: str) -> ListExamples[TaggingExample]:
        """The tokenized sentences of one split."""
        return self._splits[split]

    def notes(self) -> list[str]:
        """What to know before training: the scheme, how long sentences are cut, and what they are shown with."""
        size = self.settings.max_length - _NUM_SPECIAL_TOKENS
        step = min(self.settings.doc_stride, size)  # as `windows` has it
        items = [item for examples in self._splits.values() for item in examples.items]
        long = sum(len(item.token_ids) > 1 for item in items)
        meaning = f"Entities, read as {self.settings.scheme}." if self.has_entities else "One label a word."
        notes = [
            f"{meaning} {long:,} of {len(items):,} sentences are longer than {size} tokens and are read in windows "
            f"that move {step} tokens at a time (doc_stride as a step; neighbours share {overlap(size, step)})."
        ]
        if self.settings.context == "document":
            counts = {
                split: len({id(item.row.neighbours) for item in examples.items})
                for split, examples in self._splits.items()
                if examples.items
            }
            found = ", ".join(f"{number:,} in {split}" for split, number in counts.items())
            notes.append(f"Shorter ones are shown with what stands around them in their document; documents: {found}.")
        return notes

    def collate(self, examples: Sequence[TaggingExample]) -> Batch:
        """Lay the sequences of all examples flat; W words in all. The count is the sum of their labels' weights."""
        inputs = pack([ids for example in examples for ids in example.token_ids])
        starts = np.cumsum([0, *(example.num_tokens for example in examples[:-1])])
        positions = [example.word_positions + start for example, start in zip(examples, starts, strict=True)]
        labels = {"word_positions": torch.from_numpy(np.concatenate(positions))}
        targets = [example.targets for example in examples if example.targets is not None]
        if len(targets) < len(examples):
            return Batch(inputs, labels, {self.name: 0.0}, examples)
        labels["targets"] = torch.from_numpy(np.concatenate(targets))
        return Batch(inputs, labels, {self.name: float(self._class_weights_C[labels["targets"]].sum())}, examples)

    def build(self, encoder: Encoder) -> TokenClassificationModel:
        """The encoder with a fresh head.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table.
        """
        check_max_length(self.settings.max_length, encoder)
        crf = None
        if self.settings.crf:
            may_start_C, may_follow_CC = allowed_neighbours(self.labels, self.has_entities)
            crf = Crf(may_start_C, may_follow_CC, further_labels(self.labels, has_entities=self.has_entities))
        return TokenClassificationModel(encoder, len(self.labels), crf)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [W, C], at first pieces only."""
        assert isinstance(model, TokenClassificationModel)
        logits_WC: Tensor = model.tokens(model.encoder(batch.inputs, batch.labels["word_positions"]))
        return logits_WC

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of the weighted, smoothed cross-entropy over the words, in nats; with crf of that of the sentences."""
        logits_WC = self.logits(model, batch)
        if isinstance(model.crf, Crf):
            return {self.name: -model.crf.log_likelihood(logits_WC, batch.labels["targets"], _lengths(batch))}
        return self.loss_from(logits_WC, batch)

    def loss_from(self, logits_WC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`, without crf."""
        targets_W, smoothing = batch.labels["targets"], self.settings.label_smoothing
        return {self.name: weighted_cross_entropy(logits_WC, targets_W, self._class_weights_C, smoothing)}

    def predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """float32 [W] probabilities and int64 [W] ids: each word's best label, with crf those of the best sentence."""
        positions_W = batch.labels["word_positions"]
        found_WC = torch.zeros(len(positions_W), len(self.labels))
        for start, inputs in sub_batches(batch.inputs):
            is_here_W = (positions_W >= start) & (positions_W < start + len(inputs.token_ids))
            part = Batch(inputs, {"word_positions": positions_W[is_here_W] - start}, {}, ())
            found_WC[is_here_W.cpu()] = self.logits(model, part).cpu()
        if not isinstance(model.crf, Crf):
            scores_W, ids_W = found_WC.softmax(-1).max(-1)
            return scores_W, ids_W
        found_WC, lengths = found_WC.to(positions_W.device), _lengths(batch)
        is_first_W = torch.from_numpy(np.concatenate([example.is_first for example in batch.examples]))
        is_further_W = ~is_first_W.to(positions_W.device)
        ids_W = model.crf.best(found_WC, lengths, is_further_W)
        scores_W = model.crf.marginals(found_WC, lengths, is_further_W).gather(1, ids_W[:, None])[:, 0]
        return scores_W.cpu(), ids_W.cpu()

    def decode(self, output: tuple[Tensor, Tensor], batch: Batch) -> list[TaggingAnswer]:
        """One answer a sentence."""
        counts = _lengths(batch)
        parts = zip(batch.examples, *(torch.split(values_W, counts) for values_W in output), strict=True)
        return [self._answer(example, scores.numpy(), ids.numpy()) for example, scores, ids in parts]

    def _answer(self, example: TaggingExample, scores: np.ndarray, ids: np.ndarray) -> TaggingAnswer:
        scores, ids = scores[example.is_first], ids[example.is_first]
        labels = tuple(self.labels[index] for index in ids)
        text, places = example.text, example.word_spans.tolist()
        entities = []
        for span in read_spans(labels) if self.has_entities else []:
            start, end = places[span.start][0], places[span.end - 1][1]
            score = float(scores[span.start : span.end].mean())
            entities.append(Entity(span.label, start, end, text[start:end], span.start, span.end, score))
        words = example.row.words or tuple(text[start:end] for start, end in places)
        return TaggingAnswer(words, example.word_spans, labels, scores, tuple(entities))

    def score(self, answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]) -> dict[str, float]:
        """The objective first. Entities: strict precision, recall and F1, over all and by type, as
        conlleval has it; labels: accuracy and macro F1 by scikit-learn. Both: accuracy of words."""
        from sklearn import metrics

        gold = [tag for example in examples for tag in self._in_labels(example.row.tags or ())]
        predicted = [label for answer in answers for label in answer.labels]
        results = {"accuracy": float(metrics.accuracy_score(gold, predicted))}
        if self.has_entities:
            scores = score_entities(*_entities(answers, examples))
            total = scores[""]
            results = {"f1": total.f1, "precision": total.precision, "recall": total.recall, **results}
            results |= {f"f1_{label}": one.f1 for label, one in scores.items() if label}
        else:
            results["macro_f1"] = float(metrics.f1_score(gold, predicted, average="macro", zero_division=0.0))
        return {self.metric: results[self.metric], **results}

    def to_json(self, answer: TaggingAnswer) -> dict[str, Any]:
        """`{"words": [{"text", "label", "score", "start", "end"}], "entities": [...]}`.

        Places are code points of the text; of a list of words, of the words joined by single spaces.
        """
        rows = zip(answer.words, answer.labels, answer.scores.tolist(), answer.word_spans.tolist(), strict=True)
        result: dict[str, Any] = {
            "words": [
                {"text": word, "label": label, "score": score, "start": start, "end": end}
                for word, label, score, (start, end) in rows
            ]
        }
        if self.has_entities:
            result["entities"] = [asdict(entity) for entity in answer.entities]
        return result

    def sections(self, answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]) -> list[Section]:
        """For the report: a row a type of entity and one a length, or the confusion of labels; the worst sentences."""
        sections: list[Section] = []
        if self.has_entities:
            scores = score_entities(*_entities(answers, examples))
            rows = [
                (label or "all", one.precision, one.recall, one.f1, one.wanted, one.found)
                for label, one in [*((name, one) for name, one in scores.items() if name), ("", scores[""])]
            ]
            columns = ("entity", "precision", "recall", "F1", "in the data", "found")
            sections.append(Table("Entities", columns, rows, "An entity is right if all its words and its type are."))
            sections.append(_by_length(answers, examples))
        else:
            sections += self._label_sections(answers, examples)
        return [*sections, self._worst_sentences(answers, examples)]

    def _label_sections(self, answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]) -> list[Section]:
        from sklearn import metrics

        gold = [tag for example in examples for tag in example.row.tags or ()]
        predicted = [label for answer in answers for label in answer.labels]
        numbers = metrics.precision_recall_fscore_support(gold, predicted, labels=self.labels, zero_division=0.0)
        rows = list(zip(self.labels, *(column.tolist() for column in numbers), strict=True))
        names = ("label", "precision", "recall", "F1", "words")
        if len(self.labels) > LARGEST_MATRIX:
            return [Table("By label", names, rows, no_matrix(len(self.labels)))]
        counts = metrics.confusion_matrix(gold, predicted, labels=self.labels)
        return [Table("By label", names, rows), Matrix("Confusion matrix", self.labels, counts.tolist())]

    def _worst_sentences(self, answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]) -> Table:
        wrong = []
        for answer, example in zip(answers, examples, strict=True):
            wanted, found = self._spans(example.row.tags or ()), self._spans(answer.labels)
            if wanted != found:
                wrong.append((max(len(wanted - found), len(found - wanted)), example, wanted - found, found - wanted))
        wrong.sort(key=lambda entry: -entry[0])
        rows = [
            (number, _shown(example, missed), _shown(example, extra), _short(example.text), example.row.where)
            for number, example, missed, extra in wrong[:_SHOWN_SENTENCES]
        ]
        note = f"{len(wrong):,} of {len(examples):,} sentences have a mistake."
        return Table("Worst sentences", ("mistakes", "missed", "wrong", "text", "row"), rows, note)

    def _spans(self, tags: Sequence[str]) -> set[Span]:
        """What can be right or wrong in a sentence: its entities, or each of its words."""
        if self.has_entities:
            return set(read_spans(tags))
        return {Span(word, word + 1, tag) for word, tag in enumerate(tags)}


def _lengths(batch: Batch) -> list[int]:
    """Parts of each sentence, which stand one after the other whatever windows they were read in."""
    return [len(example.word_positions) for example in batch.examples]


def _entities(
    answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]
) -> tuple[list[list[Span]], list[list[Span]]]:
    """Of each sentence those of the data, and those that were found."""
    return [read_spans(one.row.tags or ()) for one in examples], [read_spans(answer.labels) for answer in answers]


def _by_length(answers: Sequence[TaggingAnswer], examples: Sequence[TaggingExample]) -> Table:
    """Entities of one word, of two, ...: those in the data, those found, and those that are both."""
    rows = []
    for length, one in score_by_length(*_entities(answers, examples), _LONGEST_ENTITY).items():
        name = f"{length} and more" if length == _LONGEST_ENTITY else str(length)
        rows.append((name, one.precision, one.recall, one.f1, one.wanted, one.found))
    return Table("Entities by length", ("words", "precision", "recall", "F1", "in the data", "found"), rows)


def _shown(example: TaggingExample, spans: Iterable[Span]) -> str:
    """Spans as text: `Paris (LOC), Ada (PER)`."""
    places = example.word_spans
    parts = [f"{example.text[places[s.start, 0] : places[s.end - 1, 1]]} ({s.label})" for s in sorted(spans)]
    return _short(", ".join(parts))


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
