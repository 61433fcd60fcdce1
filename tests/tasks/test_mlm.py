"""The objective: where the hidden tokens lie in a flat batch, and the loss on them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.mlm import MaskedLanguageModel, encode_masked, strips_before_mask
from bertsmith.tasks.pretrain_examples import PretrainExample, flat_examples
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

VOCABULARY = 50


def masked(token_ids: list[int], positions: list[int], labels: list[int]) -> Masked:
    return Masked(*(np.array(values, dtype=np.int64) for values in (token_ids, positions, labels)))


def test_positions_count_over_the_batch() -> None:
    parts = [masked([2, 4, 7, 3], [1], [9]), masked([2, 3], [], []), masked([2, 8, 4, 5, 3], [1, 3], [8, 6])]
    samples = [PretrainExample(part, np.zeros_like(part.token_ids), NO_PAIR) for part in parts]
    labels, count = MaskedLanguageModel().labels(flat_examples(samples).masked)
    assert count == 3
    assert labels["masked_positions"].tolist() == [1, 7, 9]
    assert labels["masked_labels"].tolist() == [9, 8, 6]


def test_loss_is_the_sum_of_cross_entropies_and_zero_on_nothing() -> None:
    objective = MaskedLanguageModel()
    labels, _ = objective.labels(masked([2, 4, 4, 3], [1, 2], [9, 11]))
    logits = torch.randn(2, VOCABULARY)
    expected = -(torch.log_softmax(logits[0], 0)[9] + torch.log_softmax(logits[1], 0)[11])
    torch.testing.assert_close(objective.loss(logits, labels), expected)
    nothing, none = objective.labels(masked([2, 3], [], []))
    assert none == 0
    assert objective.loss(torch.randn(0, VOCABULARY), nothing) == 0


@pytest.mark.conformance
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("strips", [False, True])
def test_texts_with_masks_are_those_of_transformers(
    tiny_documents: Path, tmp_path: Path, kind: str, strips: bool
) -> None:
    """With the mask token as we make it, and as RoBERTa's tokenizer has it: together with the space before it."""
    folder = tmp_path / "tokenizer"
    train_tokenizer([str(tiny_documents)], folder, kind=kind, vocab_size=400)  # type: ignore[arg-type]
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in definition["added_tokens"]:
        token["lstrip"] = strips and token["content"] == "[MASK]"
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    assert strips_before_mask(folder) == strips
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in (
        "The old [MASK] sat by the river.",
        "[MASK] sat",
        "the [MASK] [MASK]",
        "The[MASK], or  [MASK]  the\n[MASK]king",
        "[MASK]",
    ):
        ids, masks = encode_masked(ours, text, strips_before=strips)
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
        assert ids[masks].tolist() == [ours.mask_id] * text.count("[MASK]")
