"""Replaced token detection (Clark et al. 2020, ELECTRA, arXiv 2003.10555).

A small generator, a masked language model, fills the masks by drawing from what it thinks likely; the
discriminator says of every token whether it is the one that stood there. Both learn at once and share
their embeddings; what remains after pre-training is the discriminator.
Shape letters: T tokens, M masked positions, D hidden width, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.model.batch import split
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.heads import DetectionHead, VocabularyHead
from bertsmith.model.resize import load_resized
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pretrain_examples import PretrainExample, PretrainExamples, flat_examples
from bertsmith.tasks.pretrain_task import UnigramBaseline
from bertsmith.tasks.rows import ListExamples
from bertsmith.training.task import Batch, Examples

MASK_SHARE, RANDOM_SHARE = 0.85, 0.0
"""Of the chosen positions, as `pretrain_helpers.mask` of google-research/electra has it; the rest stay."""
_EVALUATION_SEED = 0


GENERATOR = "generator"
"""The folder of a generator, beside its discriminator's."""


def generator_config(config: EncoderConfig, share: float) -> EncoderConfig:
    """The generator of a discriminator: as deep, `share` of its width, with embeddings of the same width."""
    num_heads = max(1, round(config.num_attention_heads * share))
    head_size = max(8, round(config.hidden_size * share / num_heads / 8) * 8)
    return replace(
        config,
        embedding_size=config.embedding_width,
        hidden_size=num_heads * head_size,
        num_attention_heads=num_heads,
        intermediate_size=4 * num_heads * head_size,
    )


class GeneratorPart(nn.Module):
    """The generator as it is saved: an encoder and the vocabulary head."""

    def __init__(self, encoder: Encoder, vocabulary: VocabularyHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary = vocabulary


class DetectionPart(nn.Module):
    """The discriminator as it is saved: an encoder and the detection head."""

    def __init__(self, encoder: Encoder, detection: DetectionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.detection = detection


def has_generator(folder: Path) -> bool:
    """Whether a discriminator's folder has its generator beside it."""
    return (folder.parent / GENERATOR / "config.json").is_file()


class ReplacedTokensModel(nn.Module):
    """The discriminator (`encoder`, `detection`) and its generator, whose embeddings are the discriminator's."""

    def __init__(self, encoder: Encoder, generator_share: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.detection = DetectionHead(encoder.config)
        self.generator = Encoder(generator_config(encoder.config, generator_share))
        for name in ("token_embedding", "position_embedding", "segment_embedding", "embedding_norm"):
            setattr(self.generator, name, getattr(encoder, name))
        self.vocabulary = VocabularyHead(self.generator.config, encoder.token_embedding)

    def parts(self) -> tuple[tuple[str, nn.Module, EncoderConfig, str], ...]:
        """What is saved: the name of its folder, the module, its config and what kind of architecture it is."""
        return (
            ("model", DetectionPart(self.encoder, self.detection), self.encoder.config, "ForPreTraining"),
            (GENERATOR, GeneratorPart(self.generator, self.vocabulary), self.generator.config, "ForMaskedLM"),
        )

    def load(self, folder: Path, pieces: Mapping[int, Sequence[int]] | None = None) -> list[str]:
        """Fill the discriminator from a folder of any architecture, and the generator from the one beside it, if any.

        Args:
            pieces: of the tokens that the folder does not know, as for `load_resized`.

        Returns:
            The names of the tensors that kept their values; of the generator's "generator." alone.

        Raises:
            ModelError: as `load_resized`.
        """
        (_, discriminator, *_), (_, generator, *_) = self.parts()
        kept = load_resized(
            folder, discriminator, lambda encoder: DetectionPart(encoder, DetectionHead(encoder.config)), pieces
        )
        if not has_generator(folder):
            return [*kept, "generator."]
        load_resized(
            folder.parent / GENERATOR,
            generator,
            lambda encoder: GeneratorPart(encoder, VocabularyHead(encoder.config, encoder.token_embedding)),
            pieces,
        )
        return kept


@dataclass(frozen=True)
class ReplacedTokensAnswer:
    """Held-out figures of one sample: sums over its masked tokens, and all its tokens' logits and truth."""

    nats: float
    num_masked: int
    hits: int
    logits: Tensor  # float32 [L]
    is_replaced: Tensor  # bool [L]


@dataclass(frozen=True)
class _Output:
    token_nats_M: Tensor
    token_hits_M: Tensor
    logits_T: Tensor
    is_replaced_T: Tensor


class ReplacedTokensTask:
    """Generator and discriminator as one task: "mlm" over masked tokens, "rtd" over all tokens."""

    name = "pretraining"
    greater_is_better = False

    def __init__(
        self,
        splits: Mapping[str, PretrainExamples],
        baseline: UnigramBaseline | None,
        *,
        masked_language_model: MaskedLanguageModel,
        detection_weight: float,
        generator_share: float,
    ) -> None:
        self._splits = splits
        self.baseline = baseline
        self._mlm = masked_language_model
        self._generator_share = generator_share
        self.loss_weights: Mapping[str, float] = {self._mlm.name: self._mlm.weight, "rtd": detection_weight}

    def examples(self, split: str) -> Examples:
        """The samples of "train" or "dev"."""
        return self._splits.get(split, ListExamples[PretrainExample]([]))

    def collate(self, examples: Sequence[PretrainExample]) -> Batch:
        """Lay samples flat; every token counts for the discriminator, [CLS] and [SEP] too, as in the original."""
        flat = flat_examples(examples)
        labels, num_masked = self._mlm.labels(flat.masked)
        counts = {self._mlm.name: num_masked, "rtd": float(len(flat.segment_ids))}
        return Batch(flat.inputs(), labels, counts, flat)

    def build(self, encoder: Encoder) -> ReplacedTokensModel:
        """The discriminator's encoder with everything around it."""
        return ReplacedTokensModel(encoder, self._generator_share)

    def _outputs(self, model: nn.Module, batch: Batch, random: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Generator logits [M, V], detection logits [T], and which tokens were replaced, bool [T]."""
        assert isinstance(model, ReplacedTokensModel)
        positions_M, labels_M = batch.labels["masked_positions"], batch.labels["masked_labels"]
        logits_MV = model.vocabulary(model.generator(batch.inputs, positions_M))
        drawn_M = draw(logits_MV.detach(), random)
        original_T = batch.inputs.token_ids.index_copy(0, positions_M, labels_M)
        filled_T = batch.inputs.token_ids.index_copy(0, positions_M, drawn_M)
        filled = replace(batch.inputs, token_ids=filled_T)
        return logits_MV, model.detection(model.encoder(filled)).float(), filled_T != original_T

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums in nats. The draws come from torch's global generator, which the step seeds."""
        logits_MV, logits_T, is_replaced_T = self._outputs(model, batch, None)
        detection = F.binary_cross_entropy_with_logits(logits_T, is_replaced_T.float(), reduction="sum")
        return {self._mlm.name: self._mlm.loss(logits_MV, batch.labels), "rtd": detection}

    def predict(self, model: nn.Module, batch: Batch) -> _Output:
        """Losses and hits of every masked token, logits and truth of every token; the same draws every time."""
        random = torch.Generator(batch.inputs.token_ids.device).manual_seed(_EVALUATION_SEED)
        logits_MV, logits_T, is_replaced_T = self._outputs(model, batch, random)
        labels_M = batch.labels["masked_labels"]
        nats_M = F.cross_entropy(logits_MV.float(), labels_M, reduction="none")
        hits_M = logits_MV.argmax(-1) == labels_M
        return _Output(nats_M.cpu(), hits_M.cpu(), logits_T.cpu(), is_replaced_T.cpu())

    def decode(self, output: _Output, batch: Batch) -> list[ReplacedTokensAnswer]:
        """One answer a sample."""
        counts = [len(one.masked.positions) for one in batch.examples]
        pieces = zip(
            torch.split(output.token_nats_M, counts),
            torch.split(output.token_hits_M, counts),
            split(output.logits_T, batch.inputs.lengths),
            split(output.is_replaced_T, batch.inputs.lengths),
            strict=True,
        )
        return [
            ReplacedTokensAnswer(float(nats.sum()), len(nats), int(hits.sum()), logits, is_replaced)
            for nats, hits, logits, is_replaced in pieces
        ]

    def score(self, answers: Sequence[ReplacedTokensAnswer], examples: Sequence[PretrainExample]) -> dict[str, float]:
        """Held-out figures of both parts. `rtd_auc` is 0.5 by chance; the baseline calls every token original.

        Those of the generator are left out where none of the tokens was masked.
        """
        from sklearn import metrics

        num_masked = sum(one.num_masked for one in answers)
        nats = sum(one.nats for one in answers) / max(1, num_masked)
        logits_T = torch.cat([one.logits for one in answers])
        truth_T = torch.cat([one.is_replaced for one in answers])
        share = float(truth_T.float().mean())
        detection = float(F.binary_cross_entropy_with_logits(logits_T, truth_T.float()))
        figures = {
            "loss": self._mlm.weight * nats + self.loss_weights["rtd"] * detection,
            "rtd_loss": detection,
            "rtd_loss_baseline": -sum(p * math.log(p) for p in (share, 1 - share) if p > 0),
            "rtd_accuracy": float(((logits_T > 0) == truth_T).float().mean()),
            "rtd_accuracy_baseline": max(share, 1 - share),
            "rtd_auc": float(metrics.roc_auc_score(truth_T, logits_T)) if 0 < share < 1 else 0.5,
            "rtd_auc_baseline": 0.5,
        }
        if not num_masked:
            return figures
        figures |= {"mlm_loss": nats, "mlm_accuracy": sum(one.hits for one in answers) / num_masked}
        if self.baseline is not None:
            figures |= {"mlm_loss_baseline": self.baseline.nats, "mlm_accuracy_baseline": self.baseline.accuracy}
        return figures


def draw(logits_MV: Tensor, random: torch.Generator | None) -> Tensor:
    """One token from each row's softmax, int64 [M], by Gumbel's trick as in the original."""
    uniform_MV = torch.rand(logits_MV.shape, generator=random, device=logits_MV.device)
    gumbel_MV = -torch.log(-torch.log(uniform_MV.clamp(1e-9, 1 - 1e-7)))
    return (logits_MV.float() + gumbel_MV).argmax(-1)
