"""The model of pre-training: which of its parts are noisy while it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.tasks.pretrain_model import PretrainingModel


@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_pairs_are_judged_without_dropout(model_type: str) -> None:
    """As in `get_next_sentence_output` and `get_sentence_order_output` of Google's run_pretraining.py."""
    config = replace(named_size("tiny", 60, model_type=model_type), classifier_dropout=0.5)
    model = PretrainingModel(Encoder(config), pairs=True).train()
    batch, hidden_TD = pack([np.arange(4), np.arange(3)]), torch.randn(7, config.hidden_size)
    assert torch.equal(model.pair_logits(hidden_TD, batch), model.pair_logits(hidden_TD, batch))
