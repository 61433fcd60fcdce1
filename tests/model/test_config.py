from typing import Any

import pytest

from bertsmith.errors import ModelError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.sizes import SIZES, named_size


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [  # google-research/bert, README: "the number of layers, hidden size", with hidden size / 64 heads
        ("tiny", 2, 128, 2),
        ("mini", 4, 256, 4),
        ("small", 4, 512, 8),
        ("medium", 8, 512, 8),
        ("base", 12, 768, 12),
        ("large", 24, 1024, 16),
    ],
)
def test_named_sizes(name: str, layers: int, width: int, heads: int) -> None:
    config = named_size(name, 1000)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, width, heads)
    assert config.intermediate_size == 4 * width
    assert (config.vocab_size, config.layer_norm_eps, config.hidden_act) == (1000, 1e-12, "gelu")


def test_named_size_takes_the_rest_of_the_config() -> None:
    config = named_size("tiny", 100, max_length=128, pad_token_id=7)
    assert (config.max_position_embeddings, config.pad_token_id, config.hidden_dropout_prob) == (128, 7, 0.1)
    assert config.attention_probs_dropout_prob == 0.1


def test_an_unknown_size_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match=r'no model size "midium".*Did you mean "medium"'):
        named_size("midium", 100)
    assert set(SIZES) == {"tiny", "mini", "small", "medium", "base", "large"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 0, "vocab_size must be at least 1"),
        ("num_hidden_layers", -1, "num_hidden_layers must be at least 1"),
        ("hidden_dropout_prob", 1.0, r"hidden_dropout_prob must be in \[0, 1\)"),
        ("classifier_dropout", -0.1, "classifier_dropout"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must be positive"),
        ("num_attention_heads", 7, "hidden_size 64 cannot be shared out among 7 heads"),
        ("hidden_act", "gelu_tanh", 'hidden_act "gelu_tanh" is unknown.*gelu_pytorch_tanh'),
        ("pad_token_id", 100, "pad_token_id 100 is outside the vocabulary of 100"),
    ],
)
def test_what_cannot_be_built_is_refused_by_field(field: str, value: Any, message: str) -> None:
    values: dict[str, Any] = {"vocab_size": 100, "hidden_size": 64, "num_attention_heads": 8, field: value}
    with pytest.raises(ModelError, match=message):
        EncoderConfig(**values)


def test_the_dropout_of_heads() -> None:
    assert EncoderConfig(10, hidden_dropout_prob=0.2).head_dropout == 0.2
    assert EncoderConfig(10, hidden_dropout_prob=0.2, classifier_dropout=0.0).head_dropout == 0.0
