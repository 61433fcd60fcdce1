"""Task: a text to a vector, so that texts which belong together have a large cosine.

Pairs are learnt against all other second texts of the batch (van den Oord et al. 2018, arXiv 1807.03748; as
sentence embeddings Reimers and Gurevych 2019, arXiv 1908.10084), pairs with scores by their order alone (CoSENT, Su
2022, https://kexue.fm/archives/8847), so that scores may be on any scale. The losses are those of
sentence-transformers' MultipleNegativesRankingLoss and CoSENTLoss; unlike there, neither a row's own first text nor a
text that is also a partner of it is a negative. The negatives of a row are those of its micro-batch.
Shape letters: S sequences (two or more an example to learn from), D width, P pairs, C candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import SettingsError
from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import mean_of_tokens
from bertsmith.tasks.embed_data import EmbeddingRow, EmbeddingSettings, row_of
from bertsmith.tasks.pairs import assemble
from bertsmith.tasks.rows import ListExamples, check_max_length, sub_batches
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training.report import Section, Table
from bertsmith.training.task import Batch

_RANKED_AT_ONCE = 1024
_SHOWN = 20
_SHOWN_CHARACTERS = 300


class SentenceEncoder(nn.Module):
    """The encoder, and a vector for each sequence."""

    def __init__(self, encoder: Encoder, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling = pooling

    def forward(self, inputs: PackedBatch) -> Tensor:
        """float32 [S, D]"""
        if self._pooling == "cls":
            first_SD: Tensor = self.encoder(inputs, inputs.first_tokens).float()
            return first_SD
        return mean_of_tokens(self.encoder(inputs), inputs).float()


@dataclass(frozen=True)
class EmbeddingExample:
    """A row as the model gets it: int64 [L] token ids of its text, its pair and its negatives, as far as there are."""

    row: EmbeddingRow
    token_ids: tuple[np.ndarray, ...]
    cut_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences."""
        return sum(map(len, self.token_ids))


@dataclass(frozen=True)
class EmbeddingAnswer:
    """float32 [D] vectors: of the text, of its pair, of its negatives; of length 1, unless the settings say no."""

    vectors: tuple[np.ndarray, ...]

    @property
    def similarity(self) -> float:
        """The cosine of text and pair."""
        first, second = of_length_1(np.stack(self.vectors[:2]))
        return float(first @ second)


class Embedding:
    """Texts to vectors; learnt from pairs, with or without scores."""

    name = "embedding"
    architecture = "Model"
    num_neighbours = 0
    greater_is_better = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        settings: EmbeddingSettings,
        splits: Mapping[str, Sequence[EmbeddingRow]],
    ) -> None:
        """There are no `labels`; `splits` may be empty to predict."""
        self.tokenizer = tokenizer
        self.labels: tuple[str, ...] = ()
        self.settings = settings
        self.loss_weights: Mapping[str, float] = {self.name: 1.0}
        self._splits = {name: ListExamples(self.encode(rows)) for name, rows in splits.items()}

    def row(self, value: str | Mapping[str, Any], where: str) -> EmbeddingRow:
        """A row to predict: a text for its vector, or `text` and `pair` for how alike they are.

        Raises:
            InputError: there is no text, or a question.
        """
        return row_of(value, self.settings, where)

    def encode(self, rows: Sequence[EmbeddingRow]) -> list[EmbeddingExample]:
        """Tokenize rows, one example each, in order."""
        first, other = self.settings.text_prompt or "", self.settings.pair_prompt or ""
        texts = [[first + row.text, *(other + text for text in row.texts[1:])] for row in rows]
        encodings = iter(self.tokenizer.encode_batch([text for several in texts for text in several]))
        examples = []
        for row, several in zip(rows, texts, strict=True):
            ids = [encoding.ids for encoding in islice(encodings, len(several))]
            room = self.settings.max_length - 2
            cut_tokens = sum(max(0, len(one) - room) for one in ids)
            sequences = tuple(assemble(self.tokenizer, one[:room], None)[0] for one in ids)
            examples.append(EmbeddingExample(row, sequences, cut_tokens))
        return examples

    def examples(self, split: str) -> ListExamples[EmbeddingExample]:
        """The tokenized rows of one split."""
        return self._splits[split]

    def collate(self, examples: Sequence[EmbeddingExample]) -> Batch:
        """Lay all sequences flat: those of the first example, those of the second, ...

        Labels are `firsts` and `seconds`, int64 [P], the sequences of each pair; with scores `targets`, int64 [P], the
        places of these in their order, equal ones at the same; without them `candidates`, int64 [C], the second texts
        and the negatives, `targets`, int64 [P], which candidate is a row's own, and `excluded`, bool [P, C], which are
        as right or say the same.
        """
        inputs = pack([ids for item in examples for ids in item.token_ids])
        starts = np.cumsum([0, *(len(item.token_ids) for item in examples)])[:-1]
        rows = [item.row for item in examples]
        if any(row.pair is None for row in rows):
            return Batch(inputs, {}, {self.name: 0.0}, examples)
        labels = {"firsts": torch.from_numpy(starts), "seconds": torch.from_numpy(starts + 1)}
        if self.settings.score_column is not None:
            if any(row.score is None for row in rows):  # to be predicted
                return Batch(inputs, labels, {self.name: 0.0}, examples)
            # Places in their order: float32 would make large scores that differ by little the same.
            labels["targets"] = torch.from_numpy(np.unique([row.score for row in rows], return_inverse=True)[1])
        else:
            negatives = [
                start + 2 + i for start, row in zip(starts, rows, strict=True) for i in range(len(row.negatives))
            ]
            labels["candidates"] = torch.from_numpy(np.concatenate([starts + 1, negatives]).astype(np.int64))
            labels["targets"] = torch.arange(len(rows))
            labels["excluded"] = torch.from_numpy(_excluded(rows))
        return Batch(inputs, labels, {self.name: float(len(rows))}, examples)

    def build(self, encoder: Encoder) -> SentenceEncoder:
        """The encoder with its pooling, which has no weights.

        Raises:
            SettingsError: `max_length` is longer than the encoder's position table, or leaves no room for text.
        """
        check_max_length(self.settings.max_length, encoder, fewest=3)
        return SentenceEncoder(encoder, self.settings.pools)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [P, C], cosines over the temperature, -inf where excluded; with scores [P, 1]."""
        vectors_SD, labels = F.normalize(model(batch.inputs), dim=-1), batch.labels
        first_PD = vectors_SD[labels["firsts"]] / self.settings.similarity_temperature
        if "candidates" not in labels:
            return (first_PD * vectors_SD[labels["seconds"]]).sum(-1, keepdim=True)
        with torch.autocast(vectors_SD.device.type, enabled=False):  # between 16 and 20 bf16 has steps of 0.125
            logits_PC = first_PD @ vectors_SD[labels["candidates"]].T
        return logits_PC.masked_fill(labels["excluded"], -torch.inf)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum over the pairs, in nats."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        targets = batch.labels["targets"]
        if "candidates" in batch.labels:
            return {self.name: F.cross_entropy(logits, targets, reduction="sum")}
        # log(1 + sum of exp(cosine - cosine') over all pairs of pairs of which the first should be the smaller)
        gaps_PP = logits - logits.T
        gaps_PP = gaps_PP.masked_fill(targets[:, None] >= targets[None, :], -torch.inf)
        return {self.name: torch.cat([gaps_PP.new_zeros(1), gaps_PP.flatten()]).logsumexp(0) * len(targets)}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [S, D], on the CPU."""
        vectors_SD = torch.cat([model(inputs).cpu() for _, inputs in sub_batches(batch.inputs)])
        return F.normalize(vectors_SD, dim=-1) if self.settings.normalizes else vectors_SD

    def decode(self, output: Tensor, batch: Batch) -> list[EmbeddingAnswer]:
        """The vectors of each example."""
        vectors = iter(output.numpy())
        return [EmbeddingAnswer(tuple(islice(vectors, len(item.token_ids)))) for item in batch.examples]

    def score(self, answers: Sequence[EmbeddingAnswer], examples: Sequence[EmbeddingExample]) -> dict[str, float]:
        """Correlation of cosine and score; without scores, how well each text finds its own among all second texts."""
        if self.settings.score_column is None:
            results = ranking_metrics(self._ranks(answers, examples)[0])
        else:
            results = _correlations(*_both(answers, examples))
        objective = self.settings.objective
        return {objective: results[objective], **results}

    def notes(self) -> list[str]:
        """What is put before texts, and how much of each split was cut at `max_length`."""
        notes = []
        for what, prompt in (("first texts", self.settings.text_prompt), ("others", self.settings.pair_prompt)):
            if prompt:
                notes.append(f"Before {what} the model reads {prompt!r}.")
        for split, examples in self._splits.items():
            cut_tokens = [item.cut_tokens for item in examples.items if item.cut_tokens]
            if cut_tokens:
                notes.append(
                    f"{len(cut_tokens):,} of {len(examples.items):,} {split} rows have a text that is longer than "
                    f"max_length {self.settings.max_length}; they lose {sum(cut_tokens):,} tokens."
                )
        return notes

    def to_json(self, answer: EmbeddingAnswer) -> dict[str, Any]:
        """`{"embedding": [...]}` of a text, `{"similarity"}` of a pair."""
        if len(answer.vectors) == 1:
            return {"embedding": [round(float(value), 7) for value in answer.vectors[0]]}
        return {"similarity": answer.similarity}

    def sections(self, answers: Sequence[EmbeddingAnswer], examples: Sequence[EmbeddingExample]) -> list[Section]:
        """What is farthest from where it belongs."""
        from scipy import stats

        rows = [item.row for item in examples]
        if self.settings.score_column is not None:
            columns = [stats.rankdata(values) for values in _both(answers, examples)]
            farthest = np.argsort(-np.abs(columns[0] - columns[1]), kind="stable")[:_SHOWN]
            wrong = [(rows[i].score, answers[i].similarity, *_shown(rows[i]), rows[i].where) for i in farthest]
            return [Table("Largest disagreements", ("score", "cosine", "text", "pair", "row"), wrong)]
        ranks, nearest = self._ranks(answers, examples)
        order = [i for i in np.argsort(-ranks, kind="stable")[:_SHOWN] if ranks[i] > 1]
        lost = [(int(ranks[i]), *_shown(rows[i]), nearest[i][:_SHOWN_CHARACTERS], rows[i].where) for i in order]
        note = f"{int((ranks > 1).sum())} of {len(ranks)} texts have another second text nearer than their own."
        return [Table("Not found", ("rank", "text", "its own", "found instead", "row"), lost, note)]

    def _ranks(
        self, answers: Sequence[EmbeddingAnswer], examples: Sequence[EmbeddingExample]
    ) -> tuple[np.ndarray, list[str]]:
        """Each row's place of its own second text among all, from 1, int64 [P]; and the text that came first.

        Equal texts are one candidate; the first text itself and its other partners are passed over. Of equal cosines
        the row's own comes last.
        """
        places: dict[str, int] = {}
        vectors: list[np.ndarray] = []
        partners: dict[str, set[int]] = {}
        for answer, item in zip(answers, examples, strict=True):
            for text, vector in zip(item.row.texts[1:], answer.vectors[1:], strict=True):
                if places.setdefault(text, len(vectors)) == len(vectors):
                    vectors.append(vector)
            partners.setdefault(item.row.text, set()).add(places[str(item.row.pair)])
        for text in partners.keys() & places.keys():
            partners[text].add(places[text])
        texts, candidates_CD = list(places), of_length_1(np.stack(vectors))
        ranks, nearest = [], []
        for first in range(0, len(answers), _RANKED_AT_ONCE):
            part = slice(first, first + _RANKED_AT_ONCE)
            cosines_PC = of_length_1(np.stack([answer.vectors[0] for answer in answers[part]])) @ candidates_CD.T
            for cosines_C, item in zip(cosines_PC, examples[part], strict=True):
                own = places[str(item.row.pair)]
                own_cosine = cosines_C[own]
                cosines_C[list(partners[item.row.text])] = -np.inf
                ranks.append(1 + int((~(cosines_C < own_cosine)).sum()))  # a cosine that is no number finds nothing
                nearest.append(texts[int(cosines_C.argmax())] if ranks[-1] > 1 else texts[own])
        return np.array(ranks), nearest


def smallest_micro_batch(task: Embedding) -> int:
    """Pairs that are learnt at once at least: two, unless there are negatives to tell each one from."""
    return 1 if any(item.row.negatives for item in task.examples("train").items) else 2


def check_batches(task: Embedding, micro_batch_size: int) -> None:
    """Refuse to learn pairs one by one, where there is nothing to tell them from.

    Raises:
        SettingsError: micro-batches of one pair, which has no negative either.
    """
    if micro_batch_size < smallest_micro_batch(task):
        raise SettingsError(
            "a pair is told from the others of its micro-batch, and here each has one: give a larger batch_size (32 is "
            "usual) or micro_batch_size."
        )


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """nDCG and MRR among the first ten, recall among the first and the first ten.

    Args:
        ranks: the place of each text's one hit, from 1.
    """
    is_found = ranks <= 10
    return {
        "ndcg_at_10": float(np.where(is_found, 1 / np.log2(ranks + 1), 0).mean()),
        "mrr_at_10": float(np.where(is_found, 1 / ranks, 0).mean()),
        "recall_at_1": float((ranks == 1).mean()),
        "recall_at_10": float(is_found.mean()),
    }


def _excluded(rows: Sequence[EmbeddingRow]) -> np.ndarray:
    """bool [P, C]: candidates that are, for a row, one of its own texts again or another partner of its first text."""
    texts = [*(row.pair for row in rows), *(negative for row in rows for negative in row.negatives)]
    partners: dict[str, set[str]] = {}
    for row in rows:
        partners.setdefault(row.text, {row.text}).add(str(row.pair))
    excluded = np.array([[text in partners[row.text] for text in texts] for row in rows])
    np.fill_diagonal(excluded, False)
    return excluded


def of_length_1(vectors_ND: np.ndarray) -> np.ndarray:
    """The same directions; a vector of zeros stays one."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: np.ndarray = vectors_ND / np.maximum(lengths_N1, np.finfo(np.float32).tiny)
    return unit_ND


def _both(answers: Sequence[EmbeddingAnswer], examples: Sequence[EmbeddingExample]) -> tuple[list[float], list[float]]:
    """Cosines and scores."""
    return [answer.similarity for answer in answers], [float(item.row.score or 0) for item in examples]


def _correlations(cosines: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """By SciPy; a correlation with constants is not defined and counts as 0. Of scores that say yes or no also how well
    the cosine tells them, by scikit-learn."""
    from scipy import stats
    from sklearn import metrics

    names = ["spearman", "pearson", *(["average_precision"] if set(scores) <= {0, 1} else [])]
    if len(set(cosines)) < 2 or len(set(scores)) < 2 or not np.isfinite(cosines).all():
        return dict.fromkeys(names, 0.0)
    results = {
        "spearman": float(stats.spearmanr(cosines, scores).statistic),
        "pearson": float(stats.pearsonr(cosines, scores).statistic),
    }
    if "average_precision" in names:
        results["average_precision"] = float(metrics.average_precision_score(scores, cosines))
    return results


def _shown(row: EmbeddingRow) -> tuple[str, str]:
    return row.text[:_SHOWN_CHARACTERS], str(row.pair)[:_SHOWN_CHARACTERS]
