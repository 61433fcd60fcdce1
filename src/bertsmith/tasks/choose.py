"""Task: the right one of several answers to a question about a text (Devlin et al. 2018, section 4.4).

Each choice is a sequence of its own, [CLS] text [SEP] question and choice [SEP], that becomes one number; the softmax
over a row's numbers is learnt. What is too long is cut token by token from the end of its longer part.
Shape letters: S sequences (one a choice), E examples, C the most choices of an example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import InputError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.choice_data import ChoiceRow, ChoiceSettings, row_of
from bertsmith.tasks.classify import SequenceClassifier, sequence_logits
from bertsmith.tasks.classify_targets import calibration
from bertsmith.tasks.pairs import assemble, num_pair_specials
from bertsmith.tasks.rows import ListExamples, check_max_length, given_as, sub_batches
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.windows import truncate_pair
from bertsmith.training.report import Section, Table
from bertsmith.training.task import Batch

_SHOWN_MISTAKES = 20
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class ChoiceExample:
    """A row as the model gets it: int64 token and segment ids of a sequence a choice."""

    row: ChoiceRow
    token_ids: tuple[np.ndarray, ...]
    segment_ids: tuple[np.ndarray, ...]
    cut_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(map(len, self.token_ids))


@dataclass(frozen=True)
class ChoiceAnswer:
    """The number of the likeliest choice, and the probability of each, float32."""

    index: int
    scores: np.ndarray


class Choosing:
    """A text, a question and choices to the right choice."""

    name = "choice"
    architecture = "ForMultipleChoice"
    num_neighbours = 0
    greater_is_better = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        settings: ChoiceSettings,
        splits: Mapping[str, Sequence[ChoiceRow]],
    ) -> None:
        """There are no `labels`; `splits` may be empty to predict."""
        self.tokenizer = tokenizer
        self.labels: tuple[str, ...] = ()
        self.settings = settings
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self._splits = {name: ListExamples(self.encode(rows)) for name, rows in splits.items()}

    def row(self, value: str | Mapping[str, Any], where: str) -> ChoiceRow:
        """A row to predict: a mapping with `text`, `question` or both, and `choices`.

        Raises:
            InputError: something of it is missing.
        """
        if isinstance(value, str) or given_as(value) != "row":
            raise InputError('this model chooses; give a row with "text", "question" and "choices".', where)
        return row_of(value, self.settings, where)

    def encode(self, rows: Sequence[ChoiceRow]) -> list[ChoiceExample]:
        """Tokenize rows, one example each, in order."""
        return [self._encode(row) for row in rows]

    def _encode(self, row: ChoiceRow) -> ChoiceExample:
        seconds = [f"{row.question} {choice}" if row.question and row.text else choice for choice in row.choices]
        first, *others = (one.ids for one in self.tokenizer.encode_batch([row.text or row.question, *seconds]))
        room = self.settings.max_length - num_pair_specials(self.tokenizer)
        sequences, cut_tokens = [], 0
        for second in others:
            first_length, second_length = truncate_pair(len(first), len(second), room)
            cut_tokens += len(first) + len(second) - first_length - second_length
            sequences.append(assemble(self.tokenizer, first[:first_length], second[:second_length]))
        token_ids, segment_ids = zip(*sequences, strict=True)
        return ChoiceExample(row, token_ids, segment_ids, cut_tokens)

    def examples(self, split: str) -> ListExamples[ChoiceExample]:
        """The tokenized rows of one split."""
        return self._splits[split]

    def collate(self, examples: Sequence[ChoiceExample]) -> Batch:
        """Lay all sequences flat.

        Labels are `rows` and `columns`, int64 [S], where each sequence's number stands in [E, C]; and `targets`,
        int64 [E], unless one is not known.
        """
        inputs = pack(
            [ids for item in examples for ids in item.token_ids], [ids for item in examples for ids in item.segment_ids]
        )
        counts = torch.tensor([len(item.token_ids) for item in examples])
        starts = torch.cumsum(counts, 0) - counts
        columns = torch.arange(len(inputs.lengths)) - torch.repeat_interleave(starts, counts)
        labels = {"rows": torch.repeat_interleave(counts), "columns": columns}
        targets = [item.row.label for item in examples]
        if any(target is None for target in targets):
            return Batch(inputs, labels, {self.name: 0.0}, examples)
        labels["targets"] = torch.tensor(targets)
        return Batch(inputs, labels, {self.name: float(len(examples))}, examples)

    def build(self, encoder: Encoder) -> SequenceClassifier:
        """The encoder with a fresh head of one output.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table, or leaves no room for text.
        """
        check_max_length(self.settings.max_length, encoder, fewest=8)
        return SequenceClassifier(encoder, 1, of_choices=True)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [E, C], -inf behind an example's last choice."""
        return self._by_example(sequence_logits(model, batch.inputs), batch)

    def _by_example(self, logits_S1: Tensor, batch: Batch) -> Tensor:
        rows_S, columns_S = batch.labels["rows"], batch.labels["columns"]
        most = max(len(item.token_ids) for item in batch.examples)
        empty_EC = logits_S1.new_full((len(batch.examples), most), -torch.inf)
        return empty_EC.index_put((rows_S, columns_S), logits_S1[:, 0])

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of the cross-entropy of the right choices, in nats."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits_EC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        return {self.name: F.cross_entropy(logits_EC, batch.labels["targets"], reduction="sum")}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [E, C] probabilities, on the CPU."""
        logits_S1 = torch.cat([sequence_logits(model, inputs) for _, inputs in sub_batches(batch.inputs)])
        return self._by_example(logits_S1, batch).softmax(-1).cpu()

    def decode(self, output: Tensor, batch: Batch) -> list[ChoiceAnswer]:
        """One answer an example."""
        counts = [len(item.token_ids) for item in batch.examples]
        rows = [scores_C[:count].numpy() for scores_C, count in zip(output, counts, strict=True)]
        return [ChoiceAnswer(int(scores.argmax()), scores) for scores in rows]

    def score(self, answers: Sequence[ChoiceAnswer], examples: Sequence[ChoiceExample]) -> dict[str, float]:
        """Accuracy."""
        from sklearn import metrics

        gold = [item.row.label for item in examples]
        return {"accuracy": float(metrics.accuracy_score(gold, [answer.index for answer in answers]))}

    def notes(self) -> list[str]:
        """How much of each split was cut at `max_length`."""
        notes = []
        for split, examples in self._splits.items():
            cut_tokens = [item.cut_tokens for item in examples.items if item.cut_tokens]
            if cut_tokens:
                notes.append(
                    f"{len(cut_tokens):,} of {len(examples.items):,} {split} rows are longer than max_length "
                    f"{self.settings.max_length} and lose {sum(cut_tokens):,} tokens over all their choices."
                )
        return notes

    def to_json(self, answer: ChoiceAnswer) -> dict[str, Any]:
        """`{"index", "score", "scores"}`: the number of the choice from 0, and the probabilities in the row's order."""
        scores = [float(score) for score in answer.scores]
        return {"index": answer.index, "score": scores[answer.index], "scores": scores}

    def sections(self, answers: Sequence[ChoiceAnswer], examples: Sequence[ChoiceExample]) -> list[Section]:
        """For the report: calibration, and the mistakes the model was surest of."""
        is_right = np.array([a.index == e.row.label for a, e in zip(answers, examples, strict=True)])
        scores = [float(answer.scores[answer.index]) for answer in answers]
        wrong = [(a, e) for a, e, right in zip(answers, examples, is_right, strict=True) if not right]
        wrong.sort(key=lambda pair: -pair[0].scores[pair[0].index])
        rows = []
        for answer, example in wrong[:_SHOWN_MISTAKES]:
            row, score = example.row, float(answer.scores[answer.index])
            rows.append((row.choices[row.label or 0], row.choices[answer.index], score, _shown(row), row.where))
        note = f"{len(wrong)} of {len(examples)} rows are wrong; the surest first. Some may be wrongly labelled."
        mistakes = Table("Mistakes", ("right", "chosen", "probability", "text and question", "row"), rows, note)
        return [calibration(scores, is_right), mistakes]


def _shown(row: ChoiceRow) -> str:
    text = " | ".join(part for part in (row.question, row.text) if part)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
