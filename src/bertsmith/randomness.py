"""Every random decision of bertsmith, as a pure function of (seed, purpose, ids).

Nothing here keeps state, so a run can be stopped and resumed, or given more loader workers,
without changing a single draw. Keys go through a cryptographic hash: neighbouring seeds or sample
ids never share streams, as they do where a seed is made by adding an index to it.
"""

import hashlib
import struct
from typing import final

import numpy as np

_MASK64 = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 6


def key(seed: int, purpose: str, *ids: int) -> tuple[int, int]:
    """128 bits, as two unsigned 64-bit integers, that depend on every argument."""
    message = struct.pack(f"<{1 + len(ids)}q", seed, *ids) + purpose.encode()
    low, high = struct.unpack("<2Q", hashlib.blake2b(message, digest_size=16).digest())
    return low, high


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A fresh numpy generator for one purpose, for example `generator(7, "mask", epoch, sample)`."""
    return np.random.Generator(np.random.Philox(key=np.array(key(seed, purpose, *ids), dtype=np.uint64)))


def integer(seed: int, purpose: str, *ids: int) -> int:
    """One integer in [0, 2**63): the seed to give to a library that keeps its own stream."""
    return key(seed, purpose, *ids)[0] >> 1


def _mix(values: np.ndarray, salt: int) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014), vectorised over uint64."""
    mixed = values + np.uint64(salt)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@final
class Streams:
    """A stream of numbered draws for each of S samples; a draw is a function of its sample and its number alone.

    splitmix64 used as a counter-based generator: draw n of a sample is the n-th output from a state that is
    hashed from (seed, purpose, epoch, sample). So a sample draws the same in every batch, however many draws
    the others need, and all draws of a batch are made at once.
    """

    def __init__(self, seed: int, purpose: str, epoch: int, samples: np.ndarray) -> None:
        """Streams for int [S] samples."""
        base, step = key(seed, purpose, epoch)
        self._states = _mix(_mix(np.asarray(samples).astype(np.uint64), base), step)

    def grid(self, num_draws: int) -> np.ndarray:
        """uint64 [S, num_draws]: the first draws of every sample, 64 random bits each."""
        return _mix(self._states[:, None] + np.arange(num_draws, dtype=np.uint64) * _GOLDEN, 0)

    def at(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """uint64 [N]: draw numbers[n] of the sample in place rows[n]."""
        return _mix(self._states[rows] + numbers.astype(np.uint64) * _GOLDEN, 0)


def uniform(draws: np.ndarray) -> np.ndarray:
    """Random bits, uint64 of any shape, as float64 in [0, 1)."""
    return (draws >> np.uint64(11)) * 2.0**-53


def below(draws: np.ndarray, sizes: np.ndarray | int) -> np.ndarray:
    """Random bits as int64 in [0, sizes), evenly up to sizes / 2**53."""
    return (uniform(draws) * sizes).astype(np.int64)


def shuffled(positions: np.ndarray, size: int, seed: int, purpose: str, *ids: int) -> np.ndarray:
    """Where a shuffle of range(size) sends the given positions, without making the whole shuffle.

    A Feistel network over the smallest even number of bits that holds `size`, with cycle walking
    (Black & Rogaway 2002), so a corpus of any size is shuffled in constant memory.

    Args:
        positions: int [P], each in [0, size).

    Returns:
        int64 [P]; over all positions a permutation of range(size).
    """
    if size < 2:
        return np.zeros(len(positions), dtype=np.int64)
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    half_mask = np.uint64((1 << half_bits) - 1)
    base, step = key(seed, purpose, *ids)
    salts = [(base + round_number * (step | 1)) & _MASK64 for round_number in range(_FEISTEL_ROUNDS)]
    result = np.asarray(positions).astype(np.uint64)
    pending = np.arange(len(result))
    with np.errstate(over="ignore"):
        while len(pending):
            left, right = result[pending] >> np.uint64(half_bits), result[pending] & half_mask
            for salt in salts:
                left, right = right, left ^ (_mix(right, salt) & half_mask)
            result[pending] = (left << np.uint64(half_bits)) | right
            pending = pending[result[pending] >= size]
    return result.astype(np.int64)
