"""Fixtures of the tests of text."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors


@pytest.fixture(scope="session")
def published(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with the `tokenizer.json` of "gpt2" and "roberta" as published: no space before the first word."""
    folder = shared_data / "vocab"
    lines = (folder / "gpt2-merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]

    @cache
    def make(name: str) -> Path:
        file, special, post_processor = {
            "gpt2": ("gpt2-vocab.json", ["<|endoftext|>"], processors.ByteLevel(trim_offsets=False)),
            "roberta": (
                "roberta-base-vocab.json",
                ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
                processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False),
            ),
        }[name]
        backend = Tokenizer(models.BPE(json.loads((folder / file).read_text(encoding="utf-8")), merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.post_processor = post_processor
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
        out: Path = tmp_path_factory.mktemp(name)
        backend.save(str(out / "tokenizer.json"))
        return out

    return make
