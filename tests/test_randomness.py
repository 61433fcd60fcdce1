"""Random decisions: the same forever, independent of each other, and shuffles that are permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from bertsmith.randomness import generator, integer, key, shuffled

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(size=st.integers(0, 3000), seed=SEEDS, epoch=st.integers(0, 2**40))
def test_a_shuffle_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    result = shuffled(np.arange(size), size, seed, "order", epoch)
    assert sorted(result.tolist()) == list(range(size))


@given(size=st.integers(1, 10**12), seed=SEEDS, data=st.data())
def test_a_part_of_a_shuffle_is_that_part_of_the_whole(size: int, seed: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    together = shuffled(places, size, seed, "order")
    assert together.min() >= 0
    assert together.max() < size
    assert len(set(together.tolist())) == len(places)
    for place, expected in zip(places, together, strict=True):
        assert shuffled(np.array([place]), size, seed, "order").tolist() == [expected]


def test_every_place_is_reached_equally_often_from_every_place() -> None:
    size, draws = 10, 4000
    counts = np.zeros((size, size))
    for seed in range(draws):
        counts[np.arange(size), shuffled(np.arange(size), size, seed, "order")] += 1
    # 100 cells with 81 degrees of freedom; the seeds are fixed, so this cannot fail by chance.
    assert chisquare(counts.ravel(), ddof=18).pvalue > 0.001


def test_neighbours_do_not_stay_neighbours() -> None:
    size = 2000
    shuffle = shuffled(np.arange(size), size, 7, "order", 0)
    # In a uniform permutation the mean number of successors next to each other is 2 (size - 1) / size.
    assert (np.abs(np.diff(shuffle)) == 1).sum() <= 10
    assert abs(np.corrcoef(np.arange(size), shuffle)[0, 1]) < 0.1


@pytest.mark.parametrize(
    "other", [(8, "mask", 0, 1), (7, "pair", 0, 1), (7, "mask", 1, 0), (7, "mask", 0), (7, "mask", 0, 1, 0)]
)
def test_every_argument_counts(other: tuple[int, str, int]) -> None:
    seed, purpose, *ids = other
    assert key(7, "mask", 0, 1) == key(7, "mask", 0, 1)
    assert key(seed, purpose, *ids) != key(7, "mask", 0, 1)
    assert integer(seed, purpose, *ids) != integer(7, "mask", 0, 1)


@given(seed=SEEDS, sample=st.integers(0, 2**40))
def test_integers_are_seeds_for_torch_and_numpy(seed: int, sample: int) -> None:
    assert 0 <= integer(seed, "dropout", sample) < 2**63


def test_generators_start_anew_each_time() -> None:
    first, second = generator(7, "mask", 0, 3), generator(7, "mask", 0, 3)
    assert first.random(5).tolist() == second.random(5).tolist()
    assert generator(7, "mask", 0, 4).random(5).tolist() != generator(7, "mask", 0, 3).random(5).tolist()


def test_draws_are_the_same_in_every_version() -> None:
    """A run must be resumable after an upgrade: these numbers may never change."""
    assert key(42, "order", 0, 1) == (8706109738554524647, 15238521648756122305)
    assert shuffled(np.arange(8), 8, 42, "order", 0, 1).tolist() == [4, 1, 7, 2, 6, 3, 5, 0]
    assert generator(42, "mask", 0, 1).integers(0, 1000, 4).tolist() == [698, 66, 957, 338]
