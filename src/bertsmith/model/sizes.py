"""The named sizes, for every family: tiny to large."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from bertsmith.errors import ModelError, did_you_mean
from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family


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


USUAL_POSITIONS = 512
"""BERT's; a new model has more where it is taught longer sequences."""


def named_size(
    name: str, vocab_size: int, *, model_type: str = "bert", max_length: int = USUAL_POSITIONS, pad_token_id: int = 0
) -> EncoderConfig:
    """The config of one of SIZES in a family, which adds its own conventions (`Family.new`).

    A gated feed-forward network is two thirds as wide, so that it has as many weights.

    Args:
        max_length: tokens of the longest sequence.

    Raises:
        ModelError: the size or the family is unknown; the message suggests the nearest one.
    """
    if name not in SIZES:
        raise ModelError(f'no model size "{name}". {did_you_mean(name, SIZES)}')
    row = family(model_type)
    config = EncoderConfig(
        vocab_size=vocab_size,
        model_type=model_type,
        max_position_embeddings=max_length,
        pad_token_id=pad_token_id,
        **{**SIZES[name], **row.new},
    )
    if row.structure.is_gated:
        config = replace(config, intermediate_size=-(-2 * config.intermediate_size // 3 // 8) * 8)
    if row.offsets_positions:
        offset = pad_token_id + 1
        config = replace(config, max_position_embeddings=max_length + offset, position_offset=offset)
    return config
