"""How much of a document is not prose: the measures that quality filters look at.

Repetition is measured as for Gopher (Rae et al. 2021, "Scaling Language Models", arXiv 2112.11446, appendix A.1.1),
whose limits are 0.30 for repeated lines and 0.15 for repeated 5-grams of English words. All are shares from 0 to 1.
"""

import numpy as np

from bertsmith.text.shingles import SHINGLE_WORDS, SPACE, SYMBOL, HashedWords, characters


def symbol_share(text: str) -> float:
    """Of the characters that are no white space, those that are neither letters, marks, digits nor usual punctuation.

    >>> symbol_share("a + b = c"), symbol_share("北京,你好!")
    (0.4, 0.0)
    """
    kinds = np.bincount(characters(text)[1], minlength=SYMBOL + 1)
    return float(kinds[SYMBOL] / max(1, kinds.sum() - kinds[SPACE]))


def repeated_line_share(text: str) -> float:
    """Of the lines that are not blank, those that stood there before, without the white space around them.

    >>> repeated_line_share("Home\\nNews\\n\\n Home\\nHome")
    0.5
    """
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def repeated_ngram_share(words: HashedWords) -> float:
    """Of the characters of all words, those in 5-grams of words that stood there before, each counted once.

    The first time that a 5-gram is there does not count. In scripts without spaces a word is a character.
    """
    if len(words.hashes) < SHINGLE_WORDS:
        return 0.0
    shingles = words.shingles()
    is_repeated = np.ones(len(shingles), dtype=bool)
    is_repeated[np.unique(shingles, return_index=True)[1]] = False
    is_covered = np.zeros(len(words.hashes), dtype=bool)
    for place in range(SHINGLE_WORDS):
        is_covered[place : place + len(shingles)] |= is_repeated
    return float(words.lengths[is_covered].sum() / words.lengths.sum())
