"""Long text into overlapping windows, and positions back to windows. The only place that cuts text.

The rules are those of google-research/bert: `run_squad.py` for windows (where `doc_stride` is the
STEP from one window to the next; the `stride` of Hugging Face tokenizers is the OVERLAP, so the same
number makes other windows) and `run_classifier.py` for pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bertsmith.errors import SettingsError

Kept = Literal["head", "tail", "head-tail"]
"""Which part of a text that is too long is kept."""

_LENGTH_WEIGHT = 0.01  # run_squad.py _check_is_max_context: a tie goes to the longer window
_HEAD_SHARE = 0.25  # Sun et al. 2019 keep the first 128 and the last 382 of 510


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) of a longer text."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def windows(length: int, size: int, step: int) -> list[Window]:
    """Cover `length` tokens by windows of at most `size`, the next one `step` tokens further on.

    Only the last window may be shorter. A step larger than the window is cut to it, so no token is
    ever left out. A text without tokens has one empty window: every example has a sequence.

    >>> windows(10, size=6, step=3)
    [Window(start=0, end=6), Window(start=3, end=9), Window(start=6, end=10)]

    Raises:
        SettingsError: size or step below 1.
    """
    if size < 1:
        raise SettingsError(f"No room for any text: windows of {size} tokens. Raise max_length.")
    if step < 1:
        raise SettingsError(f"doc_stride is {step}; windows must move forward by at least 1 token.")
    step = min(step, size)
    number = 1 + -(-max(0, length - size) // step)
    starts = range(0, number * step, step)
    return [Window(start, min(start + size, length)) for start in starts]


def spread(parts: Sequence[Window], most: int | None) -> list[Window]:
    """At most `most` of the windows, as far apart as they can be; None: all.

    >>> spread(windows(10, size=2, step=2), most=3)
    [Window(start=0, end=2), Window(start=4, end=6), Window(start=8, end=10)]
    """
    if most is None or len(parts) <= most:
        return list(parts)
    return [parts[int(place)] for place in np.linspace(0, len(parts) - 1, most)]


def keep(length: int, room: int, part: Kept) -> list[Window]:
    """What stays of `length` tokens where there is room for fewer: one range, or with "head-tail" two.

    The three ways, and how much of "head-tail" is head, are those of Sun et al. 2019 (arXiv 1905.05583, section 5.3.1).

    >>> keep(10, room=4, part="tail"), keep(10, room=4, part="head-tail")
    ([Window(start=6, end=10)], [Window(start=0, end=1), Window(start=7, end=10)])
    """
    if length <= room:
        return [Window(0, length)]
    head = {"head": room, "tail": 0, "head-tail": round(_HEAD_SHARE * room)}[part]
    ranges = [Window(0, head), Window(length - (room - head), length)]
    return [one for one in ranges if len(one)] or ranges[:1]


def overlap(size: int, step: int) -> int:
    """Tokens that two neighbouring windows share: what Hugging Face tokenizers call `stride`."""
    return max(0, size - step)


def max_context(parts: Sequence[Window], positions: np.ndarray | int) -> np.ndarray:
    """Which window sees the most text around each position.

    A position's score in a window is min(tokens to its left, tokens to its right) + 0.01 x length of
    the window; of equal scores the first window wins (run_squad.py `_check_is_max_context`).

    Args:
        parts: windows as `windows` makes them.
        positions: int [P] token positions, each inside at least one window; or one integer.

    Returns:
        int64 [P] (or [] for one position): the index of the best window.
    """
    starts = np.array([part.start for part in parts], dtype=np.int64)
    ends = np.array([part.end for part in parts], dtype=np.int64)
    left = np.asarray(positions, dtype=np.int64)[..., None] - starts
    right = ends - 1 - np.asarray(positions, dtype=np.int64)[..., None]
    nearest = np.minimum(left, right)
    scores = np.where(nearest >= 0, nearest + _LENGTH_WEIGHT * (ends - starts), -np.inf)
    return np.asarray(scores.argmax(axis=-1))


def surround(before: int, after: int, room: int) -> tuple[int, int]:
    """How many tokens of what stands before and after a text are shown with it, those nearest to it.

    Half of the room is for each side, the odd token for what stands before; what one side leaves is for the other.

    >>> surround(9, 9, room=5), surround(1, 9, room=5), surround(9, 1, room=5)
    ((3, 2), (1, 4), (4, 1))
    """
    left = min(before, room - min(after, room // 2))
    return left, min(after, room - left)


def truncate_pair(length_a: int, length_b: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair to keep, counted from its start.

    One token at a time is dropped from the end of the longer text, on a tie from the second
    (run_classifier.py `_truncate_seq_pair`), here in closed form.

    >>> truncate_pair(8, 3, room=7), truncate_pair(8, 8, room=7)
    ((4, 3), (4, 3))

    Raises:
        SettingsError: room below 0.
    """
    if room < 0:
        raise SettingsError(f"No room for any text: {room} tokens are left for the pair. Raise max_length.")
    excess = max(0, length_a + length_b - room)
    from_longer = min(excess, abs(length_a - length_b))
    if length_a > length_b:
        length_a -= from_longer
    else:
        length_b -= from_longer
    rest = excess - from_longer
    return length_a - rest // 2, length_b - (rest - rest // 2)
