"""The objective: where the hidden tokens lie in a flat batch, and the loss on them."""

import numpy as np
import torch

from bertsmith.tasks.masking import Masked
from bertsmith.tasks.mlm import MaskedLanguageModel

VOCABULARY = 50


def masked(token_ids: list[int], positions: list[int], labels: list[int]) -> Masked:
    return Masked(*(np.array(values, dtype=np.int64) for values in (token_ids, positions, labels)))


def test_positions_count_over_the_batch() -> None:
    parts = [masked([2, 4, 7, 3], [1], [9]), masked([2, 3], [], []), masked([2, 8, 4, 5, 3], [1, 3], [8, 6])]
    labels, count = MaskedLanguageModel().labels(parts)
    assert count == 3
    assert labels["masked_positions"].tolist() == [1, 7, 9]
    assert labels["masked_labels"].tolist() == [9, 8, 6]


def test_loss_is_the_sum_of_cross_entropies_and_zero_on_nothing() -> None:
    objective = MaskedLanguageModel()
    labels, _ = objective.labels([masked([2, 4, 4, 3], [1, 2], [9, 11])])
    logits = torch.randn(2, VOCABULARY)
    expected = -(torch.log_softmax(logits[0], 0)[9] + torch.log_softmax(logits[1], 0)[11])
    torch.testing.assert_close(objective.loss(logits, labels), expected)
    nothing, none = objective.labels([masked([2, 3], [], [])])
    assert none == 0
    assert objective.loss(torch.randn(0, VOCABULARY), nothing) == 0
