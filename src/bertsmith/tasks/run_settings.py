"""What every verb that trains can be told: steps, optimizer, device, and the run's folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from bertsmith.errors import SettingsError
from bertsmith.settings import settle_types
from bertsmith.training.device import Precision
from bertsmith.training.optim import OptimizerName, OptimizerSettings, ScheduleName
from bertsmith.training.plan import TrainSettings


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """The settings that pre-training and fine-tuning have in common, and so has what only plans them."""

    batch_size: int = 32
    """Examples (sequences, in pre-training) in an optimizer step."""
    micro_batch_size: int | None = None
    """Examples in one forward pass; smaller ones are accumulated to a step. By default the batch, or a rank's share."""
    optimizer: OptimizerName = "adamw"
    """adamw, bert-original (no bias correction), stable-adamw, lamb (large batches), or muon (hidden matrices)."""
    schedule: ScheduleName | None = None
    """The learning rate after the warm-up: linear, cosine, bert-original, wsd or constant; by default the
    optimizer's."""
    decay_share: float = 0.2
    """Share of the run over which the learning rate of wsd falls, at its end."""
    warmup_share: float = 0.1
    """Share of the run over which the learning rate rises; then it goes as the schedule says."""
    warmup_steps: int | None = None
    """The same in steps; overrides warmup_share."""
    weight_decay: float = 0.01
    """Decoupled decay of everything but norms and biases."""
    beta1: float | None = None
    """How slowly the mean of the gradients changes; by default the optimizer's own, 0.9."""
    beta2: float | None = None
    """The same of the mean of their squares; by default the optimizer's own, 0.999 of adamw."""
    epsilon: float | None = None
    """Added to the root of that mean; by default the optimizer's own, 1e-6 of adamw as in BERT (1e-8 in
    transformers)."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down."""
    ema_decay: float | None = None
    """Evaluate and save a moving average of the weights with this decay, such as 0.999; by default the weights."""
    dropout: float | None = None
    """All dropout of the model while it learns; by default as its configuration says (0.1 for the named sizes)."""
    save_every: str = "10m"
    """How often a checkpoint is saved: "500 steps", "10m", "5%"; Ctrl-C and the end always save one."""
    max_skipped_steps: int = 0
    """Steps in a row that are skipped before the run stops, because a loss or gradient is not finite, or is a spike."""
    skip_spikes: float | None = None
    """Skip gradients so many standard deviations above the mean norm of the last 128, such as 6; by default use them
    all."""
    auto_batch: bool = False
    """When memory runs out, halve the micro-batch and go on with the same step."""
    precision: Precision = "auto"
    """bf16 autocast where the hardware has it, unless said otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: bool = False
    """Have torch.compile make kernels of the layers first: some seconds to a minute, then faster steps."""
    cuda_graphs: bool = True
    """On a GPU in bf16, launch the layers of a small step all at once: faster where steps are short."""
    gradient_checkpointing: bool = False
    """Compute each layer again for its gradient instead of keeping it: much less memory, some 35 % more time."""
    shard_weights: bool = False
    """With several ranks, each holds a part of the weights and of what the optimizer remembers (FSDP2)."""
    num_workers: int = 1
    """Threads that prepare batches ahead; the batches do not depend on it."""
    seed: int = 0
    """Fixes initial weights, the order of the data, every other draw and dropout."""

    def __post_init__(self) -> None:
        settle_types(self)
        check_seed(self.seed)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be in [0, 1), not {self.dropout}.")

    def is_given(self, name: str) -> bool:
        """Whether a setting has another value than its default."""
        return bool(getattr(self, name) != getattr(type(self), name))

    def train_settings(
        self,
        *,
        budget: str,
        learning_rate: float,
        evaluate_every: str | None,
        early_stopping: int | None = None,
        keep_best: bool = False,
    ) -> TrainSettings:
        """The loop's settings, from these and what the verb adds.

        Raises:
            SettingsError: a value out of range.
        """
        return TrainSettings(
            budget=budget,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            optimizer=OptimizerSettings(
                learning_rate=learning_rate,
                optimizer=self.optimizer,
                schedule=self.schedule,
                decay_share=self.decay_share,
                weight_decay=self.weight_decay,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon,
                max_grad_norm=self.max_grad_norm,
                warmup_share=self.warmup_share,
                warmup_steps=self.warmup_steps,
            ),
            ema_decay=self.ema_decay,
            evaluate_every=evaluate_every,
            early_stopping=early_stopping,
            keep_best=keep_best,
            save_every=self.save_every,
            max_skipped_steps=self.max_skipped_steps,
            skip_spikes=self.skip_spikes,
            auto_batch=self.auto_batch,
            compile=self.compile,
            cuda_graphs=self.cuda_graphs,
            gradient_checkpointing=self.gradient_checkpointing,
            shard_weights=self.shard_weights,
            num_workers=self.num_workers,
            precision=self.precision,
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class RunSettings(LearningSettings):
    """The same with the run's folder."""

    out: Path
    """The run's folder: configuration, metrics, report, checkpoints and the finished model."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`."""
    overwrite: bool = False
    """Replace the run in `out`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if ".." in self.out.parts:  # of a folder that is not there yet, some writes would find it and some would not
            object.__setattr__(self, "out", Path(os.path.normpath(self.out)))
        try:
            os.fspath(self.out).encode()
        except UnicodeEncodeError:
            raise SettingsError(f"out is {self.out!r}; name a folder in UTF-8, which safetensors can open.") from None
        if self.resume and self.overwrite:
            raise SettingsError("resume goes on with the run in out, overwrite removes it: choose one.")


def check_seed(seed: int) -> None:
    """Refuse what `randomness` cannot make draws of.

    Raises:
        SettingsError: a seed below 0, or of more than 63 bits.
    """
    if not 0 <= seed < 1 << 63:
        raise SettingsError(f"seed must be at least 0 and below 2^63, not {seed}.")
