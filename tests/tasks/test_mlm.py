"""Masking: exact counts, shares, and what may never be hidden."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bertsmith import randomness
from bertsmith.errors import SettingsError
from bertsmith.tasks.mlm import MaskedLanguageModel, Masker, Masking

CLS, SEP, MASK, VOCABULARY = 2, 3, 4, 1000


@dataclass
class Vocabulary:
    """The part of a tokenizer that masking looks at."""

    vocab_size: int = VOCABULARY
    mask_id: int = MASK
    special_ids: frozenset[int] = frozenset(range(5))


def sequence(length: int, seed: int = 0) -> np.ndarray:
    middle = np.random.default_rng(seed).integers(5, VOCABULARY, size=length - 3)
    return np.concatenate([[CLS], middle[: length // 2], [SEP], middle[length // 2 :], [SEP]]).astype(np.int64)


@given(st.integers(4, 512), st.integers(0, 2**31), st.sampled_from([0.15, 0.3, 0.4]))
@settings(max_examples=60, deadline=None)
def test_exact_count_and_specials(length: int, seed: int, probability: float) -> None:
    ids = sequence(length, seed)
    masker = Masker(Vocabulary(), Masking(probability=probability, max_predictions=80))
    masked = masker.mask(ids, randomness.generator(seed, "mask", 0, 0))
    assert len(masked.positions) == min(80, max(1, round(length * probability)), length - 3)
    assert (np.diff(masked.positions) > 0).all()
    assert not np.isin(ids[masked.positions], [CLS, SEP]).any()
    np.testing.assert_array_equal(masked.labels, ids[masked.positions])
    untouched = np.setdiff1d(np.arange(length), masked.positions)
    np.testing.assert_array_equal(masked.token_ids[untouched], ids[untouched])


def test_thirty_tokens_hide_four_as_python_3_rounds() -> None:
    masked = Masker(Vocabulary(), Masking()).mask(sequence(30), randomness.generator(0, "mask"))
    assert len(masked.positions) == 4


@pytest.mark.parametrize("random_specials", [False, True])
def test_eighty_ten_ten(random_specials: bool) -> None:
    masker = Masker(Vocabulary(), Masking(random_specials=random_specials))
    ids = sequence(512)
    shown, labels, positions = [], [], []
    for sample in range(600):
        masked = masker.mask(ids, randomness.generator(1, "mask", 0, sample))
        shown.append(masked.token_ids[masked.positions])
        labels.append(masked.labels)
        positions.append(masked.positions)
    shown_ids, label_ids = np.concatenate(shown), np.concatenate(labels)
    is_mask, is_same = shown_ids == MASK, shown_ids == label_ids
    observed = [is_mask.sum(), is_same.sum(), (~is_mask & ~is_same).sum()]
    # A random token is now and then the original, or (when specials are allowed) [MASK] itself.
    size = VOCABULARY if random_specials else VOCABULARY - 5
    stray = 1 / size
    expected = np.array(
        [0.8 + 0.1 * stray * random_specials, 0.1 + 0.1 * stray, 0.1 * (1 - stray * (1 + random_specials))]
    )
    assert stats.chisquare(observed, expected * sum(observed)).pvalue > 1e-4
    drawn = shown_ids[~is_mask & ~is_same]
    assert (drawn < 5).any() == random_specials
    # Every maskable position is chosen equally often.
    counts = np.bincount(np.concatenate(positions), minlength=512)
    maskable = np.flatnonzero(~np.isin(ids, [CLS, SEP]))
    assert counts[np.setdiff1d(np.arange(512), maskable)].sum() == 0
    assert stats.chisquare(counts[maskable]).pvalue > 1e-4


def test_masks_are_new_in_every_epoch_and_the_same_when_asked_again() -> None:
    masker, ids = Masker(Vocabulary(), Masking()), sequence(128)
    first, second = (masker.mask(ids, randomness.generator(0, "mask", epoch, 7)).positions for epoch in (0, 1))
    again = masker.mask(ids, randomness.generator(0, "mask", 0, 7)).positions
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def test_bernoulli_has_the_right_mean_and_may_be_empty() -> None:
    masker = Masker(Vocabulary(), Masking(count="bernoulli"))
    counts = [len(masker.mask(sequence(20), randomness.generator(0, "m", s)).positions) for s in range(2000)]
    assert np.mean(counts) == pytest.approx(17 * 0.15, abs=4 * np.sqrt(17 * 0.15 * 0.85 / 2000))
    assert 0 in counts


def test_loss_is_the_sum_of_cross_entropies_and_zero_on_nothing() -> None:
    objective = MaskedLanguageModel()
    masker = Masker(Vocabulary(), Masking())
    masked = [masker.mask(sequence(40, seed), randomness.generator(0, "mask", 0, seed)) for seed in (1, 2)]
    labels, count = objective.labels(masked)
    assert count == 12
    flat = np.concatenate([one.token_ids for one in masked])
    originals = np.concatenate([sequence(40, 1), sequence(40, 2)])
    np.testing.assert_array_equal(originals[labels["masked_positions"]], labels["masked_labels"])
    assert len(flat) == 80
    logits = torch.randn(12, VOCABULARY)
    expected = sum(
        -torch.log_softmax(row, 0)[label] for row, label in zip(logits, labels["masked_labels"], strict=True)
    )
    torch.testing.assert_close(objective.loss(logits, labels), expected)
    nothing, none = objective.labels([masker.mask(np.array([CLS, SEP]), randomness.generator(0, "mask"))])
    assert none == 0
    assert objective.loss(torch.randn(0, VOCABULARY), nothing) == 0


def test_a_probability_outside_its_range_is_refused() -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        Masking(probability=1.5)
