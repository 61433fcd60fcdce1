"""Windows cover everything, and cut as google-research/bert does, whose loops are written out here."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.errors import SettingsError
from bertsmith.text.windows import Kept, Window, keep, max_context, overlap, spread, surround, truncate_pair, windows

lengths = st.integers(0, 700)
sizes = st.integers(1, 400)
steps = st.integers(1, 450)


def google_windows(length: int, size: int, step: int) -> list[tuple[int, int]]:
    """run_squad.py convert_examples_to_features, the sliding window."""
    spans = []
    start = 0
    while start < length:
        span = min(length - start, size)
        spans.append((start, start + span))
        if start + span == length:
            break
        start += min(span, step)
    return spans


def google_max_context(spans: list[tuple[int, int]], position: int) -> int:
    """run_squad.py _check_is_max_context."""
    best_score, best_index = None, None
    for index, (start, end) in enumerate(spans):
        last = end - 1
        if position < start or position > last:
            continue
        score = min(position - start, last - position) + 0.01 * (end - start)
        if best_score is None or score > best_score:
            best_score, best_index = score, index
    assert best_index is not None
    return best_index


@given(lengths, sizes, steps)
def test_windows_are_those_of_run_squad(length, size, step):
    found = [(window.start, window.end) for window in windows(length, size, step)]
    assert found == (google_windows(length, size, step) or [(0, 0)])


@given(lengths, sizes, steps)
def test_windows_cover_every_token_and_are_never_too_long(length, size, step):
    parts = windows(length, size, step)
    assert sorted({token for part in parts for token in range(part.start, part.end)}) == list(range(length))
    assert all(len(part) <= size for part in parts)
    assert all(len(part) == size for part in parts[:-1])
    assert [part.start for part in parts] == sorted({part.start for part in parts})


@given(lengths, st.integers(1, 30), st.integers(1, 30), st.integers(1, 40))
def test_windows_that_are_too_many_are_spread(length, size, step, most):
    """The first and the last stay, and of those left out between two there are never two more than between others."""
    parts = windows(length, size, step)
    found = [parts.index(one) for one in spread(parts, most)]
    assert len(found) == min(most, len(parts)) and spread(parts, None) == parts
    assert found[0] == 0 and (most == 1 or found[-1] == len(parts) - 1)
    gaps = np.diff(found)
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@given(st.integers(1, 300), st.integers(1, 90), st.integers(1, 90))
def test_every_position_has_the_window_that_run_squad_gives_it(length, size, step):
    parts = windows(length, size, step)
    spans = [(part.start, part.end) for part in parts]
    found = max_context(parts, np.arange(length))
    assert found.tolist() == [google_max_context(spans, position) for position in range(length)]


def test_max_context_of_one_position_and_of_none():
    parts = [Window(0, 6), Window(3, 9)]
    assert int(max_context(parts, 1)) == 0
    assert int(max_context(parts, 8)) == 1
    # In the middle of the overlap both see as much: the first one wins.
    assert max_context(parts, np.array([4, 3, 5])).tolist() == [0, 0, 1]
    assert max_context([Window(0, 0)], np.zeros(0, dtype=np.int64)).shape == (0,)


def test_the_step_is_the_overlap_seen_from_the_other_side():
    first, second = windows(500, size=317, step=128)[:2]
    assert first.end - second.start == overlap(317, 128) == 189
    assert overlap(100, 128) == 0


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 400))
def test_truncate_pair_is_the_loop_of_run_classifier(length_a, length_b, room):
    a, b = list(range(length_a)), list(range(length_b))
    while len(a) + len(b) > room:
        if len(a) > len(b):
            a.pop()
        else:
            b.pop()
    assert truncate_pair(length_a, length_b, room) == (len(a), len(b))


@pytest.mark.parametrize(("size", "step", "named"), [(0, 1, "max_length"), (-5, 1, "max_length"), (8, 0, "doc_stride")])
def test_no_room_is_an_error_that_names_the_setting(size, step, named):
    with pytest.raises(SettingsError, match=named):
        windows(10, size, step)


def test_no_room_for_a_pair_is_an_error():
    with pytest.raises(SettingsError, match="max_length"):
        truncate_pair(3, 3, -1)


@given(lengths, st.integers(0, 600), st.sampled_from(["head", "tail", "head-tail"]))
def test_kept_is_as_much_as_there_is_room_for(length: int, room: int, part: Kept) -> None:
    tokens = list(range(length))
    kept = [token for one in keep(length, room, part) for token in tokens[one.start : one.end]]
    assert len(kept) == min(length, room)
    assert kept == sorted(set(kept))
    if part == "head":
        assert kept == tokens[:room]
    elif part == "tail":
        assert kept == tokens[max(0, length - room) :]
    elif length > room:
        head = round(room / 4)
        assert kept == tokens[:head] + tokens[length - room + head :]


def test_the_paper_keeps_128_and_382_of_510() -> None:
    assert keep(1000, 510, "head-tail") == [Window(0, 128), Window(618, 1000)]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_what_is_shown_around_a_text_is_taken_in_turn_from_both_sides(before, after, room):
    left = right = 0
    while left + right < room and (left < before or right < after):
        if left < before:
            left += 1
        if right < after and left + right < room:
            right += 1
    assert surround(before, after, room) == (left, right)
