"""Pre-training: weighted objectives over one packed batch of a token store.

A sample is cut from the store (`pairs`), some of its tokens are hidden (`mlm`), and the sum of the
objectives' losses is minimised: MLM over all masked tokens of the step plus NSP over its sequences
(Devlin et al. 2018, appendix A.2). Sample (index, epoch) is a pure function, so the whole state of
the data is two integers.
Shape letters: T tokens, S sequences, M masked positions, D hidden width, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bertsmith.model.encoder import Encoder
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pairs import IS_RANDOM, PairClassification
from bertsmith.tasks.pretrain_examples import PretrainExample, PretrainExamples, flat_examples
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.rows import ListExamples
from bertsmith.text.corpus import Corpus
from bertsmith.training.task import Batch, Examples


@dataclass(frozen=True)
class UnigramBaseline:
    """What a model that knows only how frequent each token is reaches on the held-out split."""

    nats: float
    accuracy: float


def unigram_baseline(train: Corpus, heldout: Corpus, never_masked: Sequence[int] = ()) -> UnigramBaseline:
    """Cross-entropy of held-out tokens under the training frequencies, with one added to each count.

    Args:
        never_masked: ids that are not predicted, and not counted.
    """
    train_counts, heldout_counts = train.token_counts(), heldout.token_counts()
    for counts in (train_counts, heldout_counts):
        counts[list(never_masked)] = 0
    log_probabilities = np.log((train_counts + 1) / (train_counts.sum() + len(train_counts)))
    shares = heldout_counts / max(1, heldout_counts.sum())
    return UnigramBaseline(float(-(shares * log_probabilities).sum()), float(shares[int(train_counts.argmax())]))


@dataclass(frozen=True)
class PretrainLogits:
    """What the model makes of a batch, each in the dtype it is computed in.

    There is no `pairs_S2` without a head for them, and no `hidden_TD` of all tokens unless the task keeps it.
    """

    masked_MV: Tensor
    pairs_S2: Tensor | None
    hidden_TD: Tensor | None


@dataclass(frozen=True)
class PretrainOutput:
    """Per masked token and per sequence, what the held-out figures are made of."""

    token_nats_M: Tensor
    token_hits_M: Tensor
    pair_nats_S: Tensor | None
    pair_hits_S: Tensor | None


@dataclass(frozen=True)
class PretrainAnswer:
    """Held-out sums of one sample. `pair_nats` and `pair_hit` are None where the pair has no label."""

    nats: float
    num_masked: int
    hits: int
    pair_nats: float | None
    pair_hit: bool | None


class PretrainTask:
    """MLM, and an objective on pairs where one is given, as one task for the training loop."""

    name = "pretraining"
    greater_is_better = False

    def __init__(
        self,
        splits: Mapping[str, PretrainExamples],
        baseline: UnigramBaseline | None,
        *,
        masked_language_model: MaskedLanguageModel,
        pair: PairClassification | None,
        keeps_hidden: bool = False,
    ) -> None:
        """`keeps_hidden`: the logits come with the hidden states of all tokens, which a teacher's are compared with."""
        self._splits = splits
        self._keeps_hidden = keeps_hidden
        self.baseline = baseline
        self._mlm = masked_language_model
        self._pair = pair
        self.loss_weights: Mapping[str, float] = {
            objective.name: objective.weight for objective in (self._mlm, self._pair) if objective is not None
        }

    def examples(self, split: str) -> Examples:
        """The samples of "train" or "dev" (the store's held-out documents, of which there may be none)."""
        return self._splits.get(split, ListExamples[PretrainExample]([]))

    def collate(self, examples: Sequence[PretrainExample]) -> Batch:
        """Lay S samples flat, with the labels of each objective."""
        flat = flat_examples(examples)
        labels, num_masked = self._mlm.labels(flat.masked)
        counts = {self._mlm.name: num_masked}
        if self._pair is not None:
            pair_labels, counts[self._pair.name] = self._pair.labels(flat.pair_labels)
            labels |= pair_labels
        return Batch(flat.inputs(), labels, counts, flat)

    def build(self, encoder: Encoder) -> PretrainingModel:
        """A `PretrainingModel` whose heads match the objectives."""
        return PretrainingModel(encoder, pairs=self._pair is not None)

    def logits(self, model: nn.Module, batch: Batch) -> PretrainLogits:
        """Logits of the masked tokens and of the pairs."""
        assert isinstance(model, PretrainingModel)
        masked_M = batch.labels["masked_positions"]
        pooled = None if self._pair is None else model.pooled
        pooled_S = None if pooled is None else pooled.positions(batch.inputs)
        assert pooled is None or pooled_S is not None  # families that learn of pairs look at one token of each
        positions = masked_M if pooled_S is None else torch.cat([masked_M, pooled_S])
        if self._keeps_hidden:
            hidden_TD = model.encoder(batch.inputs)
            states = hidden_TD[positions]
        else:
            hidden_TD, states = None, model.encoder(batch.inputs, positions)
        masked_MV = model.vocabulary(states[: len(masked_M)])
        pairs_S2 = None if pooled is None else pooled.of_pooled(states[len(masked_M) :])
        return PretrainLogits(masked_MV, pairs_S2, hidden_TD)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums in nats: "mlm" over masked tokens, "nsp" or "sop" over labelled sequences."""
        return self.loss_from(self.logits(model, batch), batch)

    def loss_from(self, logits: PretrainLogits, batch: Batch) -> dict[str, Tensor]:
        """The same, of `logits`."""
        losses = {self._mlm.name: self._mlm.loss(logits.masked_MV, batch.labels)}
        if self._pair is not None and logits.pairs_S2 is not None:
            losses[self._pair.name] = self._pair.loss(logits.pairs_S2, batch.labels)
        return losses

    def predict(self, model: nn.Module, batch: Batch) -> PretrainOutput:
        """Losses and hits of every masked token and every pair."""
        logits = self.logits(model, batch)
        logits_MV, logits_S2 = logits.masked_MV, logits.pairs_S2
        labels_M = batch.labels["masked_labels"]
        nats_M = nn.functional.cross_entropy(logits_MV.float(), labels_M, reduction="none")
        hits_M = logits_MV.argmax(-1) == labels_M
        if logits_S2 is None:
            return PretrainOutput(nats_M.cpu(), hits_M.cpu(), None, None)
        labels_S = batch.labels["pair_labels"]
        pair_nats_S = nn.functional.cross_entropy(logits_S2, labels_S, ignore_index=NO_PAIR, reduction="none")
        return PretrainOutput(nats_M.cpu(), hits_M.cpu(), pair_nats_S.cpu(), (logits_S2.argmax(-1) == labels_S).cpu())

    def decode(self, output: PretrainOutput, batch: Batch) -> list[PretrainAnswer]:
        """One `PretrainAnswer` a sample."""
        examples: Sequence[PretrainExample] = batch.examples
        counts = [len(one.masked.positions) for one in examples]
        answers = []
        pieces = zip(torch.split(output.token_nats_M, counts), torch.split(output.token_hits_M, counts), strict=True)
        for number, (nats, hits) in enumerate(pieces):
            pair_nats = pair_hit = None
            if output.pair_nats_S is not None and output.pair_hits_S is not None:
                if examples[number].pair_label != NO_PAIR:
                    pair_nats, pair_hit = float(output.pair_nats_S[number]), bool(output.pair_hits_S[number])
            answers.append(PretrainAnswer(float(nats.sum()), counts[number], int(hits.sum()), pair_nats, pair_hit))
        return answers

    def score(self, answers: Sequence[PretrainAnswer], examples: Sequence[PretrainExample]) -> dict[str, float]:
        """Held-out figures per masked token and per pair, with the unigram baseline beside them.

        Those of tokens are left out where none was predicted, and those of pairs where none has a label.
        """
        num_masked = sum(one.num_masked for one in answers)
        nats = sum(one.nats for one in answers) / max(1, num_masked)
        pairs = [one for one in answers if one.pair_nats is not None]
        metrics = {"loss": nats * self._mlm.weight} if num_masked else {}
        if self._pair is not None and pairs:
            pair_nats = sum(one.pair_nats or 0.0 for one in pairs) / len(pairs)
            random_share = sum(one.pair_label == IS_RANDOM for one in examples) / len(pairs)
            metrics["loss"] = metrics.get("loss", 0.0) + pair_nats * self._pair.weight
            metrics |= {
                f"{self._pair.name}_accuracy": sum(bool(one.pair_hit) for one in pairs) / len(pairs),
                f"{self._pair.name}_accuracy_baseline": max(random_share, 1 - random_share),
                f"{self._pair.name}_loss": pair_nats,
            }
        if not num_masked:
            return metrics
        name = self._mlm.name
        metrics |= {
            f"{name}_loss": nats,
            f"{name}_bits": nats / math.log(2),
            f"{name}_perplexity": math.exp(min(nats, 700.0)),
            f"{name}_accuracy": sum(one.hits for one in answers) / num_masked,
        }
        if self.baseline is not None:
            metrics |= {
                f"{name}_loss_baseline": self.baseline.nats,
                f"{name}_bits_baseline": self.baseline.nats / math.log(2),
                f"{name}_perplexity_baseline": math.exp(self.baseline.nats),
                f"{name}_accuracy_baseline": self.baseline.accuracy,
            }
        return metrics
