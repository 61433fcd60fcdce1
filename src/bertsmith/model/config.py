"""The shape of an encoder, in the words of Hugging Face's `config.json`, and the named sizes of BERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bertsmith.errors import ModelError, did_you_mean

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
"""Values of `hidden_act`. "gelu" is the erf form; "gelu_new" and "gelu_pytorch_tanh" are one tanh approximation."""


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides an encoder's tensors and arithmetic. The defaults are BERT-base's.

    The checks raise ModelError and name the field, so a config that exists can be built.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    """After the embeddings and after both halves of every layer."""
    attention_probs_dropout_prob: float = 0.1
    """On the attention weights after the softmax."""
    max_position_embeddings: int = 512
    """The longest sequence, special tokens included."""
    type_vocab_size: int = 2
    """How many segments there are."""
    initializer_range: float = 0.02
    """Standard deviation of the normal from which weights are drawn, before it is cut at two deviations."""
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    """Kept for others who read the folder: packed batches hold no padding."""
    classifier_dropout: float | None = None
    """Before a task's last linear layer; None means `hidden_dropout_prob`."""
    model_type: str = "bert"

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, field) < 1:
                raise ModelError(f"{field} must be at least 1, not {getattr(self, field)}")
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            probability = getattr(self, field)
            if probability is not None and not 0 <= probability < 1:
                raise ModelError(f"{field} must be in [0, 1), not {probability}")
        for field in ("initializer_range", "layer_norm_eps"):
            if getattr(self, field) <= 0:
                raise ModelError(f"{field} must be positive, not {getattr(self, field)}")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be shared out among {self.num_attention_heads} heads: "
                "num_attention_heads must divide it"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ModelError(f'hidden_act "{self.hidden_act}" is unknown. {did_you_mean(self.hidden_act, ACTIVATIONS)}')
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ModelError(f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}")

    @property
    def head_dropout(self) -> float:
        """The dropout before a task's last linear layer."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


def _size(layers: int, width: int) -> Mapping[str, int]:
    """BERT's proportions: one head for 64 channels, a feed-forward layer four times as wide."""
    return MappingProxyType(
        {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
        }
    )


SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "tiny": _size(2, 128),
        "mini": _size(4, 256),
        "small": _size(4, 512),
        "medium": _size(8, 512),
        "base": _size(12, 768),
        "large": _size(24, 1024),
    }
)
"""The sizes of Devlin et al. 2018 (base, large) and Turc et al. 2019, arXiv 1908.08962 (the others)."""


def named_size(
    name: str,
    vocab_size: int,
    *,
    max_position_embeddings: int = 512,
    hidden_act: str = "gelu",
    hidden_dropout_prob: float = 0.1,
    attention_probs_dropout_prob: float = 0.1,
) -> EncoderConfig:
    """The config of one of SIZES.

    Raises:
        ModelError: the name is unknown; the message suggests the nearest one.
    """
    if name not in SIZES:
        raise ModelError(f'no model size "{name}". {did_you_mean(name, SIZES)}')
    size = SIZES[name]
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["num_hidden_layers"],
        num_attention_heads=size["num_attention_heads"],
        intermediate_size=size["intermediate_size"],
        hidden_act=hidden_act,
        hidden_dropout_prob=hidden_dropout_prob,
        attention_probs_dropout_prob=attention_probs_dropout_prob,
        max_position_embeddings=max_position_embeddings,
    )
