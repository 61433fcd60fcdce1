"""The formula of operations beside torch's own counter, in every family, with and without heads."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import FAMILIES
from bertsmith.model.heads import DetectionHead, PooledHead, VocabularyHead
from bertsmith.model.operations import (
    TRAINING_PASSES,
    TextShape,
    detection_operations,
    encoder_operations,
    pooled_operations,
    vocabulary_operations,
)
from bertsmith.model.sizes import named_size

LENGTHS = (32, 32, 32)  # equal, which a CPU computes without padding
TEXT = TextShape(sequences=3, tokens=96, token_pairs=3 * 32**2)
POSITIONS = torch.tensor([0, 3, 24, 30, 48])


def config_of(model_type: str) -> EncoderConfig:
    return named_size("tiny", 100, model_type=model_type).with_dropout(0.0, 0.0, 0.0)


def batch() -> PackedBatch:
    return pack([torch.randint(5, 100, (length,)).numpy() for length in LENGTHS])


@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["all", "some"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_encoder_operations_are_those_that_torch_counts(model_type: str, positions: torch.Tensor | None) -> None:
    config = config_of(model_type)
    encoder = Encoder(config).train()
    expected = encoder_operations(config, TEXT, None if positions is None else len(positions))
    with FlopCounterMode(display=False) as forward:
        hidden = encoder(batch(), positions)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    assert forward.get_total_flops() + backward.get_total_flops() == TRAINING_PASSES * expected


@pytest.mark.parametrize("model_type", FAMILIES)
def test_operations_of_heads_are_those_that_torch_counts(model_type: str) -> None:
    config = config_of(model_type)
    encoder = Encoder(config)
    hidden_TD = torch.randn(96, config.hidden_size)
    heads: list[tuple[nn.Module, tuple[object, ...], float]] = [
        (VocabularyHead(config, encoder.token_embedding), (hidden_TD[POSITIONS],), vocabulary_operations(config, 5)),
        (PooledHead(config, 3), (hidden_TD, batch()), pooled_operations(config, 3, 3)),
        (DetectionHead(config), (hidden_TD,), detection_operations(config, 96)),
    ]
    for head, arguments, expected in heads:
        with FlopCounterMode(display=False) as counter:
            head(*arguments)
        assert counter.get_total_flops() == expected, type(head).__name__


def test_for_large_models_it_is_six_times_the_weights() -> None:
    config = named_size("base", 30522)
    in_matrices = sum(p.numel() for p in Encoder(config).layers.parameters() if p.ndim == 2)
    text = TextShape(sequences=1, tokens=1, token_pairs=0)
    assert TRAINING_PASSES * encoder_operations(config, text) == 6 * in_matrices
