"""How many floating-point operations a model takes, by formula: those of its matrix products.

A multiplication and an addition are two operations. Norms, activations, softmax and look-ups are left out, as
`torch.utils.flop_counter` leaves them out: a few in a hundred of a large model. Training takes three forward passes:
each product comes back as one for the gradient of its input and one for that of its matrix. For N weights in matrices
this is the usual 6 N a token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), plus attention, which grows with the
squares of the sequences' lengths, less what nobody asks of the last layer.
"""

from dataclasses import dataclass

from bertsmith.model.config import EncoderConfig
from bertsmith.model.families import family

TRAINING_PASSES = 3
"""Operations of a forward and a backward pass, in forward passes."""


@dataclass(frozen=True)
class TextShape:
    """How much text goes through a model; means over many batches need not be whole numbers."""

    sequences: float
    tokens: float
    token_pairs: float
    """The sum of the squares of the sequences' lengths: what attention compares."""


def encoder_operations(config: EncoderConfig, text: TextShape, num_asked: float | None = None) -> float:
    """Of a forward pass. Local attention counts as if it were global, which is how it is computed on a CPU.

    Args:
        num_asked: tokens whose hidden states are asked for, as the encoder is given them; None: all.
    """
    structure = family(config.model_type).structure
    width, narrow, layers = config.hidden_size, config.embedding_width, config.num_hidden_layers
    feed_forward = (3 if structure.is_gated else 2) * width * config.intermediate_size
    of_attention = text.tokens * 3 * width**2 + text.token_pairs * 2 * width
    behind_attention = width**2 + feed_forward
    in_last_layer = text.tokens if num_asked is None else num_asked
    products = layers * of_attention + behind_attention * (text.tokens * (layers - 1) + in_last_layer)
    if structure.always_projects_embeddings or narrow != width:
        products += text.tokens * narrow * width
    return 2 * products


def vocabulary_operations(config: EncoderConfig, num_positions: float) -> float:
    """Of a forward pass of the vocabulary head, at so many positions."""
    is_bare = family(config.model_type).structure.vocabulary_is_bare
    transform = 0 if is_bare else config.hidden_size * config.embedding_width
    return 2 * num_positions * (transform + config.embedding_width * config.vocab_size)


def pooled_operations(config: EncoderConfig, num_sequences: float, num_outputs: int) -> float:
    """Of a forward pass of the head on whole sequences."""
    has_dense = family(config.model_type).structure.pooled_activation is not None
    return 2 * num_sequences * config.hidden_size * ((config.hidden_size if has_dense else 0) + num_outputs)


def detection_operations(config: EncoderConfig, num_tokens: float) -> float:
    """Of a forward pass of the head that tells replaced tokens."""
    return 2 * num_tokens * config.hidden_size * (config.hidden_size + 1)
