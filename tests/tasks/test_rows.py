"""Columns, labels, weights and the split by hash, shared by the fine-tuning tasks."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from bertsmith.errors import InputError, ModelError, SettingsError
from bertsmith.model.batch import pack
from bertsmith.tasks.rows import (
    choose_rows,
    class_weights,
    config_labels,
    detect_column,
    label_id,
    sorted_labels,
    split_rows,
    sub_batches,
    usual_column,
    value_of,
)


@dataclass(frozen=True)
class TextRow:
    group: str
    where: str = "file:1"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60), st.floats(0.05, 0.6), st.randoms())
def test_split_is_by_text_whatever_the_order(numbers: list[int], share: float, random: object) -> None:
    rows = [TextRow(f"text {number}") for number in [*numbers, *range(41)]]
    train, dev = split_rows(rows, share)
    assert sorted(row.group for row in [*train, *dev]) == sorted(row.group for row in rows)
    assert not {row.group for row in train} & {row.group for row in dev}
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert {row.group for row in split_rows(rows, share)[1]} == {row.group for row in dev}


def test_split_holds_about_the_share_that_was_asked_for() -> None:
    _, dev = split_rows([TextRow(str(number)) for number in range(10_000)], 0.2)
    assert 1800 < len(dev) < 2200  # five standard deviations of a binomial draw


def test_a_small_share_still_holds_one_text_back() -> None:
    train, dev = split_rows([TextRow("a"), TextRow("b"), TextRow("c")], 1e-9)
    assert len(train) == 2 and len(dev) == 1


def test_a_number_of_rows_is_chosen_by_hash_in_their_order() -> None:
    rows = [TextRow(f"text {number % 50}", f"file:{number}") for number in range(200)]
    chosen = choose_rows(rows, 60)
    assert len(chosen) == len(set(chosen)) == 60
    assert chosen == sorted(chosen, key=rows.index)
    assert set(choose_rows(rows[::-1], 60)) == set(chosen), "whatever the order"
    assert set(choose_rows(rows, 20)) < set(chosen), "fewer are a part of more"
    assert {row.group for row in chosen} != {row.group for row in rows[:60]}, "not the first ones"
    assert choose_rows(rows, 500) == rows
    moved = [TextRow(row.group, f"C:/there/{row.where}") for row in rows]
    assert [row.where for row in choose_rows(moved, 60)] == [f"C:/there/{row.where}" for row in chosen]


@pytest.mark.parametrize("table", [{"neg": 0, "pos": 1}, ["neg", "pos"], "neg"])
def test_a_table_of_labels_that_is_none_is_refused(table: object) -> None:
    with pytest.raises(ModelError, match=r'config\.json: "id2label" has to say the label of each number'):
        config_labels({"id2label": table})


def test_a_label_of_two_numbers_is_refused() -> None:
    with pytest.raises(ModelError, match=r'"id2label" has the label "neg" twice'):
        config_labels({"id2label": {"0": "neg", "1": "pos", "2": "neg"}})


def test_labels_that_nobody_named_are_said_to_be_so() -> None:
    with pytest.raises(InputError, match=r'the label "0" does not occur.* Nobody has named these: .*"id2label"'):
        label_id("0", {"LABEL_0": 0, "LABEL_1": 1}, "a.csv:2")
    with pytest.raises(InputError, match=r"Choices: a, b\.$"):
        label_id("0", {"a": 0, "b": 1}, "a.csv:2")


def test_rows_of_one_text_cannot_be_split() -> None:
    with pytest.raises(SettingsError, match=r"3 training rows with 1 different texts"):
        split_rows([TextRow("a")] * 3, 0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_auto_weights_are_scikit_learns_balanced(counts: list[int]) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=targets)
    np.testing.assert_allclose(class_weights("auto", [str(i) for i in range(len(counts))], counts), expected, rtol=1e-6)


def test_given_weights_by_label() -> None:
    assert class_weights("spam=5, a=b=0.5", ["a=b", "ham", "spam"], [1, 1, 1]).tolist() == [0.5, 1.0, 5.0]
    assert class_weights("yes, sir=2,no=3", ["no", "yes, sir"], [1, 1]).tolist() == [3.0, 2.0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("spma=5", 'no label "spma".*Did you mean "spam"'),
        ("automatic", 'no label "automatic".*Write none, auto'),
        ("spam=2,ham", 'the weight of "ham" must be a number above 0'),
        ("spam=2,,ham=1", 'no label ",ham"'),
        ("spam=0", "must be a number above 0 that float32 can hold, not '0'"),
        ("spam=much", "must be a number above 0 that float32 can hold, not 'much'"),
        ("spam=nan", "must be a number above 0 that float32 can hold, not 'nan'"),
        ("spam=1e39", "must be a number above 0 that float32 can hold, not '1e39'"),
    ],
)
def test_weights_that_cannot_be_read(setting: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        class_weights(setting, ["ham", "spam"], [1, 1])


def test_labels_have_the_order_of_their_ids() -> None:
    assert sorted_labels(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_labels(["b", "10", "9"]) == ("10", "9", "b")
    assert sorted_labels(["9", "1" + 5000 * "0"]) == ("1" + 5000 * "0", "9")


def test_an_unknown_label_names_place_and_nearest() -> None:
    with pytest.raises(InputError, match=r'^dev\.csv:7: the label "spma" .*Did you mean "spam"'):
        label_id("spma", {"ham": 0, "spam": 1}, "dev.csv:7")


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r'^a\.csv:2: there is no column "sentense".*Did you mean "sentence"'):
        value_of({"sentence": "x", "label": "1"}, "sentense", "a.csv:2")
    with pytest.raises(InputError, match=r"^a\.csv:2, label: nothing here"):
        value_of({"label": None}, "label", "a.csv:2")


def test_columns_are_detected_only_without_doubt() -> None:
    known = ("text", "review")
    assert detect_column(["Review", "stars"], known) == "Review"
    assert detect_column(["text", "review"], known) is None
    assert detect_column(["text", "review"], known, taken=("text",)) == "review"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_sub_batches_are_the_sequences_in_order(lengths: list[int], budget: int) -> None:
    ids = [np.arange(length) + 100 * number for number, length in enumerate(lengths)]
    whole = pack(ids)
    found, begin = [], 0
    for start, inputs in sub_batches(whole, budget):
        assert start == begin and (len(inputs.lengths) == 1 or len(inputs.token_ids) <= budget)
        expected = pack(ids[len(found) : len(found) + len(inputs.lengths)])
        for name in ("token_ids", "segment_ids", "position_ids", "offsets"):
            assert getattr(inputs, name).tolist() == getattr(expected, name).tolist()
        assert inputs.lengths == expected.lengths
        found += inputs.lengths
        begin += len(inputs.token_ids)
    assert found == lengths


def test_another_usual_name_stands_in_for_a_usual_name_alone() -> None:
    known = ("sentence", "content", "review")
    assert usual_column("sentence", ["content", "id"], known) == "content"
    assert usual_column("Sentence", ["content", "id"], known) == "content"
    assert usual_column("sentence", ["sentence", "content"], known) == "sentence"
    assert usual_column("sentence", ["content", "review"], known) == "sentence", "which of both is for the user to say"
    assert usual_column("phrase", ["content", "id"], known) == "phrase", "no usual name: it was meant"
    assert usual_column(None, ["content", "review"], known, taken=("review",)) == "content"
