"""What to train, for how long, and how: the settings of a run, its stages, where it is, and its result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertsmith.errors import SettingsError, TrainingError
from bertsmith.files import bring_back, clear_leftovers
from bertsmith.training.checkpoint import Kind, newest_checkpoint, read_state, remove_checkpoints
from bertsmith.training.device import Precision, ResolvedPrecision
from bertsmith.training.optim import OptimizerName, OptimizerSettings
from bertsmith.training.schedule import Budget, Spent, is_falling, is_stable
from bertsmith.training.task import Task

_BY_ELEMENT: tuple[OptimizerName, ...] = ("adamw", "bert-original")
"""Optimizers that update each weight by itself."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train, whatever is trained."""

    budget: str = "3 epochs"
    """How long: a time (90s, 10m, 3h), or a number of tokens, steps or epochs (50M tokens, 2 epochs)."""
    batch_size: int = 32
    """Examples a step."""
    micro_batch_size: int | None = None
    """Examples that go through the model at once, to fit its memory; without dropout the update is the same. By default
    the whole batch, divided by the number of ranks."""
    seed: int = 42
    """Decides the order of examples and every dropout mask."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    ema_decay: float | None = None
    """Evaluate and keep an exponential moving average of the weights, with this decay; by default the weights."""
    evaluate_every: str | None = None
    """An interval such as "500 steps", "1 epoch", "10m" or "5%" of the run; without one it is 10%, and
    evaluation takes at most about a tenth of a time budget. The end is always evaluated."""
    early_stopping: int | None = None
    """Stop after this many evaluations in a row that are not better than the best."""
    keep_best: bool = False
    """End with the weights of the best evaluation, not with the last."""
    save_every: str = "10m"
    """An interval, as evaluate_every. Ctrl-C and the end always save."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; without it a line every 1.5 seconds or 50 steps."""
    max_skipped_steps: int = 0
    """How many steps in a row may be skipped because a loss or the gradient is not finite, or is a spike."""
    skip_spikes: float | None = None
    """Skip a gradient whose norm is so many standard deviations above the mean of the last 128; by default use it."""
    auto_batch: bool = False
    """When memory runs out, halve the micro-batch and go on with the same step, whose update stays the same but for
    dropout."""
    smallest_micro_batch: int = 1
    """Where auto_batch ends: of fewer examples, a loss that compares them with each other would teach nothing."""
    compile: bool = False
    """Have torch.compile make kernels of the encoder's layers in the first step, which is reported apart."""
    cuda_graphs: bool = True
    """On CUDA in bf16, launch the layers of a small batch all at once (`model.graphs`), unless they are compiled, in
    pieces, or computed again for their gradient."""
    gradient_checkpointing: bool = False
    """Keep no more of each layer than its input, and compute it again for its gradient: much less memory, the same
    update, some 35 % more time."""
    shard_weights: bool = False
    """With several ranks, each holds a part of the weights, gradients and moments (FSDP2), for models that do not fit
    one device; the update is the same."""
    num_workers: int = 1
    """Threads that make batches ahead; changes nothing but speed."""
    precision: Precision = "auto"
    """bf16 computes matrix products in bfloat16; auto does so where the hardware has it."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto takes CUDA if it is there."""

    @property
    def replays_layers(self) -> bool:
        """Whether layers are launched at once where that can be."""
        return self.cuda_graphs and not (self.compile or self.gradient_checkpointing)

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "early_stopping", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; it must be at least 1.")
        for name in ("num_workers", "max_skipped_steps"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if self.skip_spikes is not None and not self.skip_spikes > 0:
            raise SettingsError(f"skip_spikes is {self.skip_spikes}; it must be above 0.")
        if self.skip_spikes is not None and self.max_skipped_steps == 0:
            raise SettingsError(
                "skip_spikes skips steps, and max_skipped_steps is 0, which allows none: set it to how many in a row "
                "may be, such as 5."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingsError(f"ema_decay is {self.ema_decay}; it must be above 0 and below 1.")
        if self.shard_weights and self.optimizer.optimizer not in _BY_ELEMENT:
            raise SettingsError(
                f"optimizer {self.optimizer.optimizer} computes with whole matrices, of which shard_weights leaves "
                f"each rank a part. Use {' or '.join(_BY_ELEMENT)}."
            )
        if self.shard_weights and self.compile:
            raise SettingsError("compile and shard_weights do not go together: leave one of them out.")
        if Budget.parse(self.budget, "budget").unit == "share":
            raise SettingsError(f'the budget "{self.budget}" is a share of itself; give a time or a number.')
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) is not None:
                Budget.parse(getattr(self, name), name)


@dataclass(frozen=True)
class Stage:
    """A part of a run that has its own task, such as pre-training at length 128 and then at 512."""

    task: Task
    batch_size: int | None = None
    """None is the run's, here and for micro_batch_size."""
    micro_batch_size: int | None = None
    progress_end: float = 1.0
    """The share of the whole run's budget at which the stage ends."""


@dataclass
class State:
    """Where a run is: all that a checkpoint holds besides weights and moments."""

    stage: int = 0
    epoch: int = 0
    position: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epochs: float = 0.0
    epochs_before_stage: float = 0.0
    is_evaluation_due: bool = False
    evaluated_step: int = 0
    evaluation_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best_objective: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    is_stopped_early: bool = False
    is_rate_falling: bool = False
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    grad_norms: list[float] = field(default_factory=list)
    """The last finite ones of the stage, which decide what is a spike; none without `skip_spikes`."""
    micro_batch_limit: int | None = None
    """What fits the memory in this stage, once that has run out."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `metrics` are of the weights that are left in the model."""

    step: int
    tokens: int
    epochs: float
    seconds: float
    metrics: dict[str, float]
    best_step: int | None
    stopped_early: bool
    checkpoint: Path


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise SettingsError unless the stages share out the whole run."""
    ends = [stage.progress_end for stage in stages]
    if not ends or ends[0] <= 0 or ends[-1] != 1.0 or ends != sorted(set(ends)):
        raise SettingsError(f"the stages end at {ends} of the run; these shares must rise, and the last be 1.")


def first_of_task(stages: Sequence[Stage], number: int) -> int:
    """The first stage with the task of this one, which goes on with its examples."""
    return next(first for first, stage in enumerate(stages) if stage.task is stages[number].task)


def fingerprint(stages: Sequence[Stage], settings: TrainSettings, precision: ResolvedPrecision) -> dict[str, Any]:
    """What must not change between the parts of a run that is resumed, by the names that users know.

    Not in it: what cannot change a weight (workers, logging, saving), when to evaluate and to stop
    (`max_skipped_steps` among it), and the device and what fits it (`auto_batch`, `cuda_graphs`,
    `gradient_checkpointing`, `shard_weights`), so that a run may move to another machine.
    """
    optimizer = asdict(settings.optimizer) | asdict(settings.optimizer.preset)
    values: dict[str, Any] = {"budget": settings.budget, "seed": settings.seed, "precision": precision}
    values["compile"] = settings.compile
    values |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    values |= {"ema_decay": settings.ema_decay, "skip_spikes": settings.skip_spikes}
    for index, stage in enumerate(stages):
        values |= {
            f"stages.{index}.task": stage.task.name,
            f"stages.{index}.batch_size": stage.batch_size or settings.batch_size,
            f"stages.{index}.micro_batch_size": stage.micro_batch_size or settings.micro_batch_size,
            f"stages.{index}.progress_end": stage.progress_end,
            f"stages.{index}.num_examples": stage.task.examples("train").num_examples(0),
        }
    return values


def find_start(folder: Path, settings: TrainSettings, *, resume: bool) -> str | None:
    """The name of the checkpoint to go on from; None at the start of a run, with what others have left removed.

    It is the newest, or with another budget the one from before the rate began to fall: so a run that has ended can be
    made longer, and its fall, which came too early for the longer run, is learnt anew.

    Raises:
        SettingsError: there is one, and `resume` is false.
    """
    clear_leftovers(folder.parent)
    bring_back(folder)
    path = _to_resume(folder, settings)
    if path is None:
        leftovers: tuple[Kind, ...] = ("best", "stable")
        for kind in leftovers:
            remove_checkpoints(folder, kind=kind, after_step=-1)
        return None
    if not resume:
        raise SettingsError(f"{folder.parent} already holds a run. Add --resume, or choose another folder.")
    return path.name


def _to_resume(folder: Path, settings: TrainSettings) -> Path | None:
    path = newest_checkpoint(folder)
    if path is not None:
        saved = read_state(path)
        state, budget = State(**saved["state"]), Budget.parse(saved["fingerprint"]["budget"])
        progress = budget.progress(Spent(state.step, state.tokens, state.seconds, state.epochs))
        # The run itself judges a budget of time by what is left of it for its end, too.
        has_fallen = state.is_rate_falling or is_falling(progress, state.step, settings.optimizer)
        if budget == Budget.parse(settings.budget) or not has_fallen:
            return path
    return newest_checkpoint(folder, "stable") or path


def restored(saved: Mapping[str, Any], settings: TrainSettings) -> State:
    """The state of a checkpoint; a run that had stopped early goes on where the patience is greater now."""
    state, patience = State(**saved), settings.early_stopping
    state.is_stopped_early = patience is not None and state.evaluations_without_gain >= patience
    return state


def check_resumable(
    checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any], settings: OptimizerSettings, spent: Spent
) -> None:
    """Compare the fingerprint of a checkpoint with that of the run that would go on from it.

    The budget may be another, as long as the learning rate is at its peak under both: what was learnt
    so far does not depend on it then, but for a warm-up that was a share of it. A `stable-STEP` was
    written when the rate was about to leave its peak, so that only the new budget is asked.

    Raises:
        TrainingError: something differs, with its name and both values.
    """
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        advice = "Use the old value, or start a new run in another folder."
        if name == "budget":
            old, new = Budget.parse(before[name]), Budget.parse(now[name])
            asked = [new] if checkpoint.name.startswith("stable-") else [old, new]
            if old == new or all(is_stable(budget.progress(spent), spent.step, settings) for budget in asked):
                continue
            advice += (
                " (With schedule wsd or constant it may change while the learning rate is at its peak, and to more "
                "than was spent.)"
            )
        raise TrainingError(
            f"cannot resume {checkpoint}: {name} was {before.get(name)} and is now {now.get(name)}. {advice}"
        )
