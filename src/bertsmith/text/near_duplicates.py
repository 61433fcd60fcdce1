"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing (Indyk & Motwani 1998).

The similarity of two texts is the Jaccard index of their sets of 5-grams. A signature has, for each of 128 random
orders of all 5-grams, 8 bits of the text's first one (b-bit minwise hashing, Li & König 2010). Two texts agree in as
large a share of places as they are similar, give or take 0.035 (one standard deviation at 0.8), and by chance in one of
256 of the others. Texts that agree in a whole band of places are candidates; how wide bands are follows from the
similarity that is looked for. Of the pages of a template all agree in some bands, so in each band only the last few are
candidates; a page with a copy shares other bands with it. The best of the candidates are compared by the 5-grams
themselves: among many an estimate alone would find some too similar by chance.

Not datasketch, which is the usual library: of Wikipedia articles it took 4.2 MB in a second of processor time where
this took 8.4 to 9.0 (Zen 3), and its index is made of Python's dictionaries and objects, where sorted arrays take
some tens of bytes a document beside a signature of 128 on the disk. So it is no optional extra either.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from bertsmith.text.shingles import mix

NUM_HASHES = 128
LEAST_SIMILARITY = 0.5
"""Below it, bands are so narrow that half of all pairs are compared."""

_MULTIPLIERS = mix(np.arange(NUM_HASHES, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)
_ADDENDS = mix(np.arange(NUM_HASHES, 2 * NUM_HASHES, dtype=np.uint64)).astype(np.uint32)
# So many that what is computed at once, half a megabyte, stays in a core's cache.
_SHINGLES_A_TIME = 1 << 10
_ROWS_A_TIME = 1 << 16
_WIDEST_BAND = 8  # bytes of a uint64
_RECALL = 0.99
MOST_SHINGLES = 1 << 10
"""Of a text's 5-grams, so many are kept to compare it by."""
_MOST_IN_GROUP = 16
_MOST_COMPARED = 8


def signature(shingles: np.ndarray) -> np.ndarray:
    """uint8 [128], of hashed shingles, uint64 [at least 1]."""
    values = (shingles >> np.uint64(32)).astype(np.uint32)
    least = np.full(NUM_HASHES, 2**32 - 1, dtype=np.uint32)
    for first in range(0, len(values), _SHINGLES_A_TIME):
        # Multiplication by an odd number and addition, modulo 2**32: another order of all values for each pair.
        ordered = _MULTIPLIERS[:, None] * values[first : first + _SHINGLES_A_TIME] + _ADDENDS[:, None]
        np.minimum(least, ordered.min(axis=1), out=least)
    # The least values are small; mixed, all bits are as good as each other.
    return (mix(least.astype(np.uint64)) >> np.uint64(56)).astype(np.uint8)


def sketch(shingles: np.ndarray) -> np.ndarray:
    """uint32 [at most 1024], of hashed shingles, uint64 [at least 1]: the least ones, sorted, each once."""
    return np.unique(shingles.astype(np.uint32))[:MOST_SHINGLES]


def sketch_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard index of two texts by their sketches: exact for texts of up to 1,023 different 5-grams.

    Of longer ones it is that of the least 1,024 5-grams of both together (Broder 1997), right to within 0.013 (one
    standard deviation at 0.8).

    >>> sketch_similarity(np.array([1, 2, 3]), np.array([2, 3, 4]))
    0.5
    """
    both, counts = np.unique(np.concatenate([one, other]), return_counts=True)
    if max(len(one), len(other)) == MOST_SHINGLES:
        both, counts = both[:MOST_SHINGLES], counts[:MOST_SHINGLES]
    return float((counts == 2).sum() / len(both))


def band_width(similarity: float) -> int:
    """The widest band with which 99 % of the pairs that are just so similar are compared.

    >>> band_width(0.8), band_width(0.5)
    (6, 3)
    """
    widths = range(1, _WIDEST_BAND + 1)
    return max(rows for rows in widths if rows == 1 or 1 - (1 - similarity**rows) ** (NUM_HASHES // rows) >= _RECALL)


def find_near_duplicates(
    signatures: np.ndarray, texts: np.ndarray, similarity: float, sketch_of: Callable[[int], np.ndarray]
) -> np.ndarray:
    """bool [N], true for each of N texts that is at least so similar to an earlier one which itself is not marked.

    Nothing is removed for being like something that was removed: similarity is not handed on along a chain.

    Args:
        signatures: uint8 [rows, 128]; may be memory-mapped.
        texts: int64 [N], their rows, in the order in which they are asked.
        similarity: from 0.5 to 1.
        sketch_of: the sketch of a row.
    """
    # Who may be so similar: three standard deviations below it. Of 128 places, half a one agrees by chance.
    least = similarity - 3 * float(np.sqrt(similarity * (1 - similarity) / NUM_HASHES))
    enough = int(np.ceil(NUM_HASHES * (least + (1 - least) / 256)))
    is_near = np.zeros(len(texts), dtype=bool)
    kept: dict[int, list[int]] = {}  # the last ones of each group that are not marked
    for number, groups in _in_groups(signatures, texts, band_width(similarity)):
        row = int(texts[number])
        earlier = np.array(sorted({other for group in groups for other in kept.get(group, ())}), dtype=np.int64)
        agreeing = (signatures[earlier] == signatures[row]).sum(axis=1)
        best = np.argsort(-agreeing, kind="stable")[:_MOST_COMPARED]
        others = earlier[best[agreeing[best] >= enough]].tolist()
        if any(sketch_similarity(sketch_of(row), sketch_of(other)) >= similarity for other in others):
            is_near[number] = True
            continue
        for group in groups:
            members = kept.setdefault(group, [])
            members.append(row)
            del members[:-_MOST_IN_GROUP]
    return is_near


def _in_groups(signatures: np.ndarray, texts: np.ndarray, width: int) -> Iterator[tuple[int, list[int]]]:
    """Each text that agrees in a band with another, in order, and its groups: a number for what stands in each band."""
    number = len(texts)
    if number < 2:
        return
    members, groups = [], []
    for band in range(NUM_HASHES // width):
        keys = _keys(signatures, band * width, width)[texts]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        is_first = np.ones(number + 1, dtype=bool)
        is_first[1:-1] = keys[1:] != keys[:-1]
        is_shared = ~(is_first[:-1] & is_first[1:])
        members.append(order[is_shared])
        groups.append(np.cumsum(is_first[:-1])[is_shared] + band * number)
    member, group = np.concatenate(members), np.concatenate(groups)
    order = np.argsort(member, kind="stable")
    member, group = member[order], group[order]
    borders = np.flatnonzero(np.diff(member, prepend=-1, append=number))
    for begin, end in pairwise(borders.tolist()):
        yield int(member[begin]), group[begin:end].tolist()


def _keys(signatures: np.ndarray, first: int, width: int) -> np.ndarray:
    """uint64 [rows], the bytes of one band."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for begin in range(0, len(signatures), _ROWS_A_TIME):
        for column in signatures[begin : begin + _ROWS_A_TIME, first : first + width].T:
            keys[begin : begin + _ROWS_A_TIME] = keys[begin : begin + _ROWS_A_TIME] << np.uint64(8) | column
    return keys
