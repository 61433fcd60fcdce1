"""What the verb `pretrain` can be told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bertsmith.errors import SettingsError
from bertsmith.tasks.masking import MaskUnit
from bertsmith.tasks.pretrain_examples import DataMode
from bertsmith.tasks.run_settings import LearningSettings, RunSettings

ObjectiveName = Literal["mlm+nsp", "mlm+sop", "mlm", "rtd", "clm"]
PositionInit = Literal["neighbours", "sinusoidal", "normal"]

LEARNING_RATES: Mapping[str, float] = {
    "tiny": 2e-3,
    "mini": 1e-3,
    "small": 7e-4,
    "medium": 5e-4,
    "base": 2e-4,
    "large": 1e-4,
}
"""Defaults for batches of 32 to 256 sequences; the paper's 1e-4 is for base and large with 256."""


@dataclass(frozen=True)
class Phase:
    """A part of a run with its own sequences and steps."""

    max_length: int
    batch_size: int
    end: float
    """Of the budget, the share that is used when it ends."""


OF_A_NEW_MODEL = ("family", "size", "initializer_range", "position_init")
"""Settings that say what a model is like which is not there yet."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(LearningSettings):
    """What to build, what it learns, and for how long."""

    family: str = "bert"
    """Of a new model: bert, roberta, xlm-roberta, camembert, distilbert, albert, electra, modernbert or gpt2."""
    size: str = "mini"
    """A named size: tiny, mini, small, medium, base or large."""
    from_model: str | None = None
    """Continue from this BERT-like folder instead of random weights; it also gives the size."""
    layers: int | None = None
    """How many layers: fewer of the model's, spread evenly, or its stack repeated; by default as many as it has."""
    initializer_range: float = 0.02
    """Deviation of the initial weights. BERT's 0.02 is for a width of 768; try 0.06 for tiny."""
    position_init: PositionInit = "neighbours"
    """How a new model starts to know places, before it is trained: sines and cosines and heads that look at the
    neighbours, with which it learns from context much sooner; sines and cosines alone; or all random, BERT's own."""
    objective: ObjectiveName | None = None
    """Masked tokens with next sentence (nsp) or sentence order (sop) or alone (mlm), replaced tokens (rtd),
    or every next token (clm). By default as the family was trained."""
    data_mode: DataMode | None = None
    """Pairs, "clean" or "original" (google-research/bert to the letter); or running text, "full-sentences"
    over the borders of documents or "doc-sentences" within them. By default clean with pairs, else full-sentences."""
    budget: str = "1 epochs"
    """When to stop: 10m, 3h, "50M tokens", "20000 steps" or "2 epochs"."""
    batch_size: int = 64
    """Sequences in an optimizer step; with only 8 or 16 a new model may never get past guessing by frequency."""
    initial_batch_size: int | None = None
    """Sequences in the first steps, doubled again and again up to batch_size; by default batch_size from the first
    step."""
    batch_warmup_share: float = 0.2
    """Share of the budget in which they grow, in equal parts, where there is initial_batch_size."""
    max_length: int = 128
    """Tokens in a sequence, [CLS] and [SEP] included."""
    long_length: int | None = None
    """Length of a second phase (512 in the paper) that ends the run; by default one phase."""
    long_share: float = 0.1
    """Share of the budget that the second phase takes."""
    mask_probability: float = 0.15
    """Share of the tokens to predict."""
    mask_count: Literal["exact", "bernoulli"] = "exact"
    """Exactly that share of each sequence, or each unit drawn by itself."""
    mask_unit: MaskUnit = "piece"
    """What is hidden together: a piece, a whole word, a span of 1 to 10 words, an n-gram of 1 to 3."""
    short_sequence_probability: float = 0.1
    """Share of samples with a random shorter length, so that the model knows short inputs."""
    mlm_weight: float | None = None
    """Weight of the masked language model in the loss; by default 1, or beside a teacher 2, as for DistilBERT."""
    pair_weight: float = 1.0
    """Weight of next sentence prediction, or of sentence order, in the loss."""
    detection_weight: float = 50.0
    """Weight of replaced token detection beside its generator's masked language model."""
    generator_share: float = 0.25
    """Width of that generator as a share of the discriminator's."""
    teacher: str | None = None
    """A pre-trained model with the corpus's tokenizer, which is learnt too; by default the text alone."""
    distill_weight: float = 5.0
    """Weight of the teacher's probabilities of the masked tokens in the loss."""
    cosine_weight: float = 1.0
    """Weight of the direction of the teacher's last hidden states, where the model is as wide."""
    temperature: float = 2.0
    """Softens the probabilities of teacher and student alike, where one learns from the other."""
    learning_rate: float | None = None
    """Peak of the schedule; by default by size."""
    evaluate_every: str | None = None
    """How often the held-out documents are evaluated: "500 steps", "10m", "5%"; by default ten times in a run."""
    evaluation_samples: int = 500
    """Held-out samples in an evaluation, spread evenly over the documents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.long_length is not None and self.long_length <= self.max_length:
            raise SettingsError(f"long_length {self.long_length} must be above max_length {self.max_length}.")
        if not 0 < self.long_share < 1:
            raise SettingsError(f"long_share must lie between 0 and 1, not {self.long_share}.")
        if self.initial_batch_size is not None and not 0 < self.initial_batch_size < self.batch_size:
            raise SettingsError(
                f"initial_batch_size must be at least 1 and below batch_size {self.batch_size}, "
                f"not {self.initial_batch_size}."
            )
        room = 1.0 if self.long_length is None else 1 - self.long_share
        if self.initial_batch_size is not None and not 0 < self.batch_warmup_share < room:
            raise SettingsError(
                f"batch_warmup_share must be above 0 and below {room:g}, not {self.batch_warmup_share}."
            )
        if not 0 < self.generator_share <= 1:
            raise SettingsError(f"generator_share must be in (0, 1], not {self.generator_share}.")
        check_max_length(self.max_length)
        for name in OF_A_NEW_MODEL:
            if self.from_model is not None and self.is_given(name):
                raise SettingsError(f"{name} is of a new model, and from gives one that has it: leave one of them out.")
        if self.long_length is None and self.is_given("long_share"):
            raise SettingsError("long_share is of a phase of longer sequences: give long_length.")
        if self.initial_batch_size is None and self.is_given("batch_warmup_share"):
            raise SettingsError("batch_warmup_share is of batches that grow: give initial_batch_size.")
        if self.layers is not None and self.layers < 1:
            raise SettingsError(f"layers must be at least 1, not {self.layers}.")
        for name in ("mlm_weight", "pair_weight", "detection_weight", "distill_weight", "cosine_weight"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < math.inf:
                raise SettingsError(f"{name} must be a number that is not negative, not {weight}.")
        for name in ("temperature", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 < self.mask_probability < 1:
            raise SettingsError(f"mask_probability must lie between 0 and 1, not {self.mask_probability}.")
        if self.evaluation_samples < 1:
            raise SettingsError(
                f"evaluation_samples must be at least 1, not {self.evaluation_samples}. To evaluate nothing, build the "
                "corpus with --heldout-share 0."
            )
        for name in ("distill_weight", "cosine_weight", "temperature"):
            if self.teacher is None and self.is_given(name):
                raise SettingsError(f"{name} is of what a teacher says: give teacher.")
        if not 0 <= self.short_sequence_probability <= 1:
            raise SettingsError(f"short_sequence_probability must be in [0, 1], not {self.short_sequence_probability}.")

    @property
    def masked_weight(self) -> float:
        """`mlm_weight`, or what it stands for."""
        if self.mlm_weight is not None:
            return self.mlm_weight
        return 1.0 if self.teacher is None else 2.0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of the run: batches that grow, then whole ones, then longer sequences of about as many tokens."""
        sizes = []
        size = self.batch_size if self.initial_batch_size is None else self.initial_batch_size
        while size < self.batch_size:
            sizes.append(size)
            size *= 2
        part = self.batch_warmup_share / max(1, len(sizes))
        phases = [Phase(self.max_length, size, part * number) for number, size in enumerate(sizes, start=1)]
        if self.long_length is None:
            return (*phases, Phase(self.max_length, self.batch_size, 1.0))
        fewer = max(1, round(self.batch_size * self.max_length / self.long_length))
        whole = Phase(self.max_length, self.batch_size, 1 - self.long_share)
        return (*phases, whole, Phase(self.long_length, fewer, 1.0))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the phases, each once."""
        return tuple(dict.fromkeys(phase.max_length for phase in self.phases))


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(PretrainOptions, RunSettings):
    """The same with what is read and where the run goes."""

    corpus: Path
    """The token store made by `bertsmith corpus build`."""


def check_max_length(max_length: int) -> None:
    """Refuse samples too short to hold anything.

    Raises:
        SettingsError: fewer than 8 tokens.
    """
    if max_length < 8:
        raise SettingsError(f"max_length {max_length} leaves no room for a pair; 8 is the least.")
