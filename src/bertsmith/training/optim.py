"""The optimizers by name, with what their authors set, and which parameters they decay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bertsmith.errors import SettingsError, did_you_mean
from bertsmith.model.crf import Crf
from bertsmith.model.encoder import Encoder, Layer
from bertsmith.training.optimizers import BertAdam, Combined, Lamb, MatrixMuon, StableAdamW

OptimizerName = Literal["adamw", "bert-original", "stable-adamw", "lamb", "muon"]
ScheduleName = Literal["linear", "bert-original", "cosine", "wsd", "constant"]

_CRF_RATE = 100.0
"""What the learning rate is multiplied by for the scores between labels: they start from nothing, and have to grow to
one or two in as many steps as an encoder, which is only moved a little, takes at its own rate."""
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d)


@dataclass(frozen=True)
class Preset:
    """What a name stands for, wherever the settings say nothing else."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    schedule: ScheduleName = "linear"


PRESETS: Mapping[OptimizerName, Preset] = MappingProxyType(
    {
        # Loshchilov & Hutter 2017 (arXiv 1711.05101), with BERT's epsilon instead of 1e-8.
        "adamw": Preset(),
        # google-research/bert, optimization.py.
        "bert-original": Preset(schedule="bert-original"),
        # Wortsman et al. 2023 (arXiv 2304.13013), the authors' code.
        "stable-adamw": Preset(beta2=0.99),
        # You et al. 2019 (arXiv 1904.00962).
        "lamb": Preset(),
        # Liu et al. 2025 (arXiv 2502.16982), the authors' code; these are AdamW's, for what is not a hidden matrix.
        "muon": Preset(beta2=0.95, epsilon=1e-8),
    }
)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, clipping, and the shape of the learning rate."""

    learning_rate: float = 5e-5
    """Peak, reached at the end of the warm-up."""
    optimizer: OptimizerName = "adamw"
    """adamw (Loshchilov & Hutter 2017); bert-original, without bias correction (google-research/bert); stable-adamw,
    with update clipping (Wortsman et al. 2023); lamb, for large batches (You et al. 2019); or muon for the hidden
    matrices with AdamW for the rest (Jordan et al. 2024)."""
    schedule: ScheduleName | None = None
    """After the warm-up: linear or cosine (as in transformers) to 0; bert-original (google-research/bert); wsd, which
    is constant and then falls (Hu et al. 2024); or constant. By default bert-original for that optimizer, else
    linear."""
    decay_share: float = 0.2
    """Share of the budget over which the rate of wsd falls."""
    weight_decay: float = 0.01
    """Decoupled; not applied to norms and biases, applied to embeddings (as google-research/bert)."""
    beta1: float | None = None
    """Decay of the mean of the gradients; None, here and below: the optimizer's own, of PRESETS."""
    beta2: float | None = None
    epsilon: float | None = None
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 never scales."""
    warmup_share: float = 0.1
    """Share of the budget over which the rate rises from 0; used when warmup_steps is not given."""
    warmup_steps: int | None = None
    """Steps over which the rate rises from 0."""
    layer_decay: float | None = None
    """What the rate of a layer is multiplied by for the layer below it (Clark et al. 2020, arXiv 2003.10555): the head
    has the whole rate, the embeddings have the lowest. By default all have the same."""

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OptimizerName), ("schedule", ScheduleName)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise SettingsError(f'{name} "{value}" is not known. {did_you_mean(value, get_args(choices))}')
        for name, low, high in (
            ("learning_rate", 0.0, float("inf")),
            ("weight_decay", 0.0, float("inf")),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("max_grad_norm", 0.0, float("inf")),
            ("warmup_share", 0.0, 1.0),
            ("warmup_steps", 0.0, float("inf")),
            ("decay_share", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                raise SettingsError(f"{name} is {value}; it must be at least {low:g} and below {high:g}.")
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise SettingsError(f"epsilon is {self.epsilon}; it must be above 0.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise SettingsError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1.")
        if self.decay_share != OptimizerSettings.decay_share and self.preset.schedule != "wsd":
            raise SettingsError(
                f"decay_share is of the schedule wsd, and this one is {self.preset.schedule}: say schedule wsd, or "
                "leave decay_share out."
            )

    @property
    def preset(self) -> Preset:
        """The optimizer's preset, with what is given here in its place."""
        given = {name: getattr(self, name) for name in ("beta1", "beta2", "epsilon", "schedule")}
        return replace(PRESETS[self.optimizer], **{name: value for name, value in given.items() if value is not None})


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of the settings, over all parameters that are trained.

    What decays is decided by the module that owns a parameter and by its number of dimensions, never
    by its name: a pattern that expects "LayerNorm" misses a module called `norm1`. A tied parameter is
    in one group, once. A group's `lr_scale` is what the run's learning rate is multiplied by for it.

    Raises:
        SettingsError: muon, for a model without encoder layers to train.
    """
    decayed, undecayed = _split(model)
    scales = _rate_scales(model, settings.layer_decay)
    preset = settings.preset
    values: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (preset.beta1, preset.beta2),
        "eps": preset.epsilon,
    }
    match settings.optimizer:
        case "adamw":
            return AdamW(_groups(decayed, undecayed, scales, settings), fused=True, **values)
        case "bert-original":
            return BertAdam(_groups(decayed, undecayed, scales, settings), **values)
        case "stable-adamw":
            return StableAdamW(_groups(decayed, undecayed, scales, settings), **values)
        case "lamb":
            return Lamb(_groups(decayed, undecayed, scales, settings), **values)
        case "muon":
            num_parts = _hidden_matrices(model)
            matrices = [parameter for parameter in decayed if parameter in num_parts]
            others = [parameter for parameter in decayed if parameter not in num_parts]
            if not matrices:
                raise SettingsError("optimizer muon trains the matrices of encoder layers, and this model trains none.")
            by_parts = [
                {**group, "num_parts": number}
                for number in sorted({num_parts[matrix] for matrix in matrices})
                for group in _by_rate([one for one in matrices if num_parts[one] == number], scales, settings)
            ]
            muon = MatrixMuon(by_parts, lr=settings.learning_rate, weight_decay=settings.weight_decay)
            groups = _groups(others, undecayed, scales, settings)
            return Combined(muon, *([AdamW(groups, fused=True, **values)] if groups else []))


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that decay, and those that do not; each once, without frozen ones."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_exempt = isinstance(module, _NORMS) or parameter.ndim < 2
            (undecayed if is_exempt else decayed).append(parameter)
    return decayed, undecayed


def _groups(
    decayed: Sequence[nn.Parameter],
    undecayed: Sequence[nn.Parameter],
    scales: Mapping[Tensor, float],
    settings: OptimizerSettings,
) -> list[dict[str, Any]]:
    """The parameters as torch's optimizers take them; no group is empty."""
    return [
        {**group, "weight_decay": decay}
        for parameters, decay in ((decayed, settings.weight_decay), (undecayed, 0.0))
        for group in _by_rate(parameters, scales, settings)
    ]


def _by_rate(
    parameters: Sequence[nn.Parameter], scales: Mapping[Tensor, float], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """Parameters in groups of equal learning rate, the highest first."""
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return [
        {"params": by_scale[scale], "lr": settings.learning_rate * scale, "lr_scale": scale}
        for scale in sorted(by_scale, reverse=True)
    ]


def _rate_scales(model: nn.Module, layer_decay: float | None) -> dict[Tensor, float]:
    """What the learning rate is multiplied by, for all parameters that do not have it as it is.

    The highest of L layers is one step below the head, the lowest L, the embeddings L + 1. A layer whose weights are
    shared counts once. The norm behind the layers goes with the head.
    """
    found: dict[Tensor, float] = {}
    for module in model.modules():
        if isinstance(module, Crf):
            found |= dict.fromkeys(module.parameters(), _CRF_RATE)
        if isinstance(module, Encoder) and layer_decay is not None:
            for below, part in enumerate(reversed(list(module.layers)), start=1):
                found |= dict.fromkeys(part.parameters(), layer_decay**below)
            found |= dict.fromkeys(module.embedding_parameters(), layer_decay ** (len(module.layers) + 1))
    return found


def _hidden_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights of all encoder layers, with how many matrices stand in each one above the other."""
    found: dict[Tensor, int] = {}
    for layer in model.modules():
        if isinstance(layer, Layer):
            found[layer.qkv.weight] = 3
            found[layer.attention_out.weight] = 1
            found[layer.up.weight] = 2 if layer.is_gated else 1
            found[layer.down.weight] = 1
    return found
