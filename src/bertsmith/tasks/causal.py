"""Causal language model: every token is predicted from those before it (Radford et al. 2018, section 3.1).

With the one-way encoder of a causal family this is GPT's objective. It hides nothing: the label of a
position is the token that follows, so it takes the place of a `Masker` and shares all the rest.
Shape letters: L tokens of a sequence.
"""

import numpy as np

from bertsmith.tasks.masking import Masked


class NextTokens:
    """All positions but the last, each with the next token as its label; special tokens count as any other."""

    needs_word_starts = False

    def mask(self, token_ids: np.ndarray, random: np.random.Generator, word_starts: np.ndarray | None = None) -> Masked:
        """Int64 [L] -> the same tokens, positions [L - 1], labels [L - 1]. Draws nothing."""
        return Masked(token_ids, np.arange(len(token_ids) - 1), token_ids[1:])
