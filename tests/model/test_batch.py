import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.model.batch import pack, split


def test_a_batch_worked_by_hand() -> None:
    batch = pack([np.array([2, 9, 3]), np.array([2, 3])], [np.array([0, 0, 1]), np.array([0, 1])])
    assert batch.token_ids.tolist() == [2, 9, 3, 2, 3]
    assert batch.segment_ids.tolist() == [0, 0, 1, 0, 1]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.offsets.tolist() == [0, 3, 5]
    assert batch.lengths == (3, 2)
    assert batch.first_tokens.tolist() == [0, 3]
    assert {tensor.dtype for tensor in (batch.token_ids, batch.segment_ids, batch.position_ids)} == {torch.int64}


def test_small_integers_are_widened_and_segments_default_to_zero() -> None:
    batch = pack([np.array([60000], dtype=np.uint16), np.array([1, 2], dtype=np.int32)])
    assert batch.token_ids.tolist() == [60000, 1, 2]
    assert batch.segment_ids.tolist() == [0, 0, 0]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=10))
def test_split_undoes_pack(rows: list[list[int]]) -> None:
    batch = pack([np.array(row) for row in rows])
    assert [part.tolist() for part in split(batch.token_ids, batch.lengths)] == rows
    assert [part.tolist() for part in split(batch.position_ids, batch.lengths)] == [list(range(len(r))) for r in rows]


def test_moving_keeps_everything() -> None:
    batch = pack([np.array([2, 3]), np.array([5])])
    moved = batch.to(torch.device("meta"))
    assert moved.token_ids.device.type == moved.offsets.device.type == "meta"
    assert moved.lengths == batch.lengths
    same = batch.to(torch.device("cpu"))
    assert torch.equal(same.position_ids, batch.position_ids)


@pytest.mark.parametrize("rows", [[[1], [2, 3]], [[4, 5, 6]]])
def test_offsets_end_at_the_number_of_tokens(rows: list[list[int]]) -> None:
    batch = pack([np.array(row) for row in rows])
    assert int(batch.offsets[-1]) == len(batch.token_ids) == sum(batch.lengths)
