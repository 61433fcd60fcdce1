"""Causal language model: every token is predicted from those before it (Radford et al. 2018, section 3.1).

With the one-way encoder of a causal family this is GPT's objective. It hides nothing: the label of a
position is the token that follows, so it takes the place of a `Masker` and shares all the rest.
Shape letters: T tokens of a batch, S sequences.
"""

import numpy as np

from bertsmith.randomness import Streams
from bertsmith.tasks.masking import Masked


class NextTokens:
    """All positions but each sequence's last, with the next token as label; special tokens count as any other."""

    needs_word_starts = False

    def mask(
        self, token_ids: np.ndarray, offsets: np.ndarray, streams: Streams, word_starts: np.ndarray | None = None
    ) -> Masked:
        """Int64 [T] in S sequences -> the same tokens, positions [T - S], labels [T - S]. Draws nothing."""
        positions = np.delete(np.arange(len(token_ids)), offsets[1:] - 1)
        return Masked(token_ids, positions, token_ids[positions + 1])
