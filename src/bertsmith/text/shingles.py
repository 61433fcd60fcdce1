"""A text as hashed words and 5-grams of words ("shingles", Broder 1997), on flat arrays.

Words are runs of letters, marks and digits, in small letters, after NFKC; punctuation is left out. In scripts that are
written without spaces every character is a word, so that 5-grams of Chinese are five characters. Hashes are the same on
every machine and in every process.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHINGLE_WORDS = 5

SPACE, PUNCTUATION, SYMBOL, IN_WORD, WHOLE_WORD = range(5)
"""Kinds of characters; one of the last kind is a word of its own."""

_KINDS_OF_CATEGORIES = {"L": IN_WORD, "M": IN_WORD, "N": IN_WORD, "Z": SPACE, "P": PUNCTUATION, "S": SYMBOL}
# Of Unicode's punctuation, what prose seldom has and code, tables and decoration are full of.
_UNUSUAL_PUNCTUATION = "#*@\\_•†‡§¶※"
# Chinese characters and kana with their extensions, Thai, Lao, Tibetan, Burmese, Khmer. Korean has spaces.
_WITHOUT_SPACES = (
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
)
_WORDS_A_TIME = 1 << 16
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class HashedWords:
    """The W words of a text."""

    hashes: np.ndarray  # uint64 [W]
    lengths: np.ndarray  # int64 [W], characters

    @classmethod
    def of(cls, text: str) -> "HashedWords":
        """Those of any text; none where there are neither letters nor digits."""
        codes, kinds = characters(text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower())
        is_in_word = kinds >= IN_WORD
        codes, kinds = codes[is_in_word], kinds[is_in_word]
        is_start = kinds == WHOLE_WORD
        is_start[1:] |= is_start[:-1]
        # A word also starts where something else stood before it.
        places = np.flatnonzero(is_in_word)
        is_start[1:] |= np.diff(places) > 1
        is_start[:1] = True
        borders = np.append(np.flatnonzero(is_start), len(codes))
        hashes = [np.zeros(0, dtype=np.uint64)]
        for first in range(0, len(borders) - 1, _WORDS_A_TIME):
            some = borders[first : first + _WORDS_A_TIME + 1]
            starts, lengths = some[:-1] - some[0], np.diff(some)
            inside = np.arange(some[-1] - some[0]) - np.repeat(starts, lengths)
            mixed = mix(codes[some[0] : some[-1]].astype(np.uint64) | (inside.astype(np.uint64) << np.uint64(32)))
            hashes.append(np.add.reduceat(mixed, starts))
        return cls(np.concatenate(hashes), np.diff(borders))

    def shingles(self) -> np.ndarray:
        """uint64 [W - 4], a hash of each 5 words in a row; of fewer words [1], of all together; of none [0]."""
        width = min(SHINGLE_WORDS, len(self.hashes))
        number = len(self.hashes) - width + 1 if width else 0
        shingles = np.zeros(number, dtype=np.uint64)
        for place in range(width):
            shingles = shingles * _ODD + self.hashes[place : place + number]
        return mix(shingles)


def characters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code points, uint32 [C], and their kinds, uint8 [C]."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return codes, _kinds()[codes]


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b. That any two of a billion texts have the same by chance has a probability of 3 %."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) on uint64, which wraps around."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """uint8 [1,114,112], the kind of every code point, by its Unicode category."""
    kinds = np.fromiter(map(_kind, map(chr, range(0x110000))), dtype=np.uint8, count=0x110000)
    for first, last in _WITHOUT_SPACES:
        part = kinds[first : last + 1]
        part[part == IN_WORD] = WHOLE_WORD
    return kinds


def _kind(character: str) -> int:
    if character.isspace():
        return SPACE
    if character in _UNUSUAL_PUNCTUATION:
        return SYMBOL
    category = unicodedata.category(character)
    # Joiners and soft hyphens (Cf) stand inside words; other control characters, and unassigned ones, in no text.
    return IN_WORD if category == "Cf" else _KINDS_OF_CATEGORIES.get(category[0], SYMBOL)
