"""Random decisions: the same forever, independent of each other, and shuffles that are permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, spearmanr

from bertsmith.randomness import Streams, below, generator, integer, key, shuffled, uniform

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


@given(
    seed=SEEDS,
    epoch=st.integers(0, 2**40),
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_draw_is_a_function_of_its_sample_and_its_number(
    seed: int, epoch: int, samples: list[int], data: st.DataObject
) -> None:
    streams = Streams(seed, "mask", epoch, np.array(samples))
    grid = streams.grid(12)
    assert grid.shape == (len(samples), 12)
    rows = np.array(data.draw(st.lists(st.integers(0, len(samples) - 1), min_size=1, max_size=20)))
    numbers = np.array([data.draw(st.integers(0, 11)) for _ in rows])
    assert streams.at(rows, numbers).tolist() == grid[rows, numbers].tolist()
    for row, sample in enumerate(samples):
        alone = Streams(seed, "mask", epoch, np.array([sample]))
        assert alone.grid(3).tolist() == grid[row : row + 1, :3].tolist()
    for other in (Streams(seed, "pair", epoch, np.array(samples)), Streams(seed, "mask", epoch + 1, np.array(samples))):
        assert not (other.grid(12) == grid).any()


def test_draws_are_uniform_and_independent() -> None:
    """Over neighbouring samples and over neighbouring draws of one, whose inputs differ in few bits."""
    grid = Streams(0, "mask", 0, np.arange(1000)).grid(128)
    assert len(np.unique(grid)) == grid.size
    for table in (grid, Streams(1, "mask", 0, np.arange(1000) << 20).grid(128)):
        values = uniform(table)
        assert 0 <= values.min() and values.max() < 1
        assert kstest(values.ravel(), "uniform").pvalue > 1e-3
        # Every bit by itself, the low ones, which order what is equal, and pairs of neighbours.
        bits = [int((table >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
        assert np.abs(np.array(bits) - table.size / 2).max() < 4.5 * np.sqrt(table.size) / 2
        for first, second in ((values[:-1], values[1:]), (values[:, :-1], values[:, 1:])):
            cells = (first * 16).astype(int) * 16 + (second * 16).astype(int)
            assert chisquare(np.bincount(cells.ravel(), minlength=256)).pvalue > 1e-3
            assert spearmanr(first.ravel(), second.ravel()).pvalue > 1e-3
        assert kstest(values.mean(1) * np.sqrt(12 * 128) - np.sqrt(12 * 128) / 2, "norm").pvalue > 1e-3
        assert kstest(values.mean(0) * np.sqrt(12 * 1000) - np.sqrt(12 * 1000) / 2, "norm").pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_integers_below_a_size_are_even(size: int) -> None:
    drawn = below(Streams(0, "pair", 3, np.arange(20_000)).grid(2), size)
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn.ravel(), minlength=size)
    assert len(counts) == size and (size == 1 or chisquare(counts).pvalue > 1e-3)
    most = np.array([2**64 - 1], dtype=np.uint64)
    for large in (size, 2**31 - 1, 10**15):
        assert below(most, large).tolist() == [large - 1]
    assert below(np.zeros(2, dtype=np.uint64), np.array([5, size])).tolist() == [0, 0]


def test_draws_are_the_same_in_every_version() -> None:
    """A run must be resumable after an upgrade: these numbers may never change."""
    assert key(42, "order", 0, 1) == (8706109738554524647, 15238521648756122305)
    assert shuffled(np.arange(8), 8, 42, "order", 0, 1).tolist() == [4, 1, 7, 2, 6, 3, 5, 0]
    assert generator(42, "mask", 0, 1).integers(0, 1000, 4).tolist() == [698, 66, 957, 338]
    assert Streams(42, "mask", 0, np.array([1, 2])).grid(2).tolist() == [
        [101845162789397867, 15311415922113484713],
        [14519867340139169959, 1967911245950480291],
    ]
