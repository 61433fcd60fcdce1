"""Samples for people show what the sample holds."""

import numpy as np
import pytest

from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.pairs import IS_NEXT, IS_RANDOM
from bertsmith.tasks.pretrain_task import PretrainExample
from bertsmith.tasks.samples import describe
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: str) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found = [tokenizer.token_to_id(token) for token in text.split()]
    assert None not in found
    return [token_id for token_id in found if token_id is not None]


@pytest.mark.parametrize(("label", "verdict"), [(IS_NEXT, "B follows A"), (IS_RANDOM, "B is random")])
def test_a_pair(tokenizer: Tokenizer, label: int, verdict: str) -> None:
    shown = ids(tokenizer, "[CLS] the [MASK] sat [SEP] it is cat [SEP]")
    hidden = Masked(np.array(shown), np.array([2, 7]), np.array(ids(tokenizer, "king old")))
    text = describe(PretrainExample(hidden, np.array([0] * 5 + [1] * 4), label), tokenizer)
    assert text.split("\n") == [
        f"{verdict}; 2 of 9 tokens hidden, {{token -> what is shown}}",
        "  A  [CLS] the {king -> [MASK]} sat [SEP]",
        "  B  it is {old -> cat} [SEP]",
    ]


def test_a_single_text(tokenizer: Tokenizer) -> None:
    hidden = Masked(np.array(ids(tokenizer, "[CLS] the [SEP]")), np.array([1]), np.array(ids(tokenizer, "the")))
    lines = describe(PretrainExample(hidden, np.zeros(3, dtype=int), NO_PAIR), tokenizer).split("\n")
    assert lines == ["one text; 1 of 3 tokens hidden, {token -> what is shown}", "  A  [CLS] {the -> the} [SEP]"]
