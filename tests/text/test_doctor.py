"""The check of a store: every figure against a plain count, every warning on a corpus that deserves it."""

import io
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bertsmith.files import sealed, write_json
from bertsmith.text import doctor
from bertsmith.text.corpus import open_corpus, read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.doctor import CorpusReport, check_corpus, render, sentence_hashes

Build = Callable[[list[str]], Path]

DOCUMENTS = [
    "The old king sat by the river. The cat sat.",
    "The cat sat.",
    "The dog runs. The cat sat. The tree is old. Is it the red house?",
    "The old king sat by the river. The cat sat.",
    "博 the queen. It was blue.",
    "She reads. She writes. She sleeps.",
]


@pytest.fixture
def build(tiny_tokenizer: Path, tmp_path: Path) -> Build:
    """Builds a store of the given documents, nothing held out, in shards of two or three documents."""

    def make(documents: list[str]) -> Path:
        source = tmp_path / "source.jsonl"
        source.write_text("\n".join(json.dumps({"text": text}) for text in documents), encoding="utf-8")
        store = tmp_path / "store"
        options = {"heldout_share": 0.0, "shard_bytes": 90, "num_workers": 1, "overwrite": True}
        build_corpus([str(source)], tiny_tokenizer, store, **options)  # type: ignore[arg-type]
        return store

    return make


def printed(report: CorpusReport) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(render(report))
    return stream.getvalue()


def test_figures(build: Build) -> None:
    report = check_corpus(build(DOCUMENTS), verify=True).splits["train"]
    # Counted by hand: words and punctuation, all in the vocabulary but the Chinese character.
    sentence_lengths = [8, 4, 4, 4, 4, 5, 6, 8, 4, 4, 4, 3, 3, 3]
    document_lengths = [2, 1, 4, 2, 2, 3]
    assert (report.num_documents, report.num_sentences, report.num_tokens) == (6, 14, sum(sentence_lengths))
    assert report.tokens_per_sentence.mean == pytest.approx(statistics.mean(sentence_lengths))
    assert report.tokens_per_sentence.median == statistics.median(sentence_lengths)
    assert report.tokens_per_sentence.longest == 8
    assert report.tokens_per_sentence.counts[:5] == (0, 3, 9, 2, 0)
    assert report.sentences_per_document.mean == pytest.approx(statistics.mean(document_lengths))
    assert report.sentences_per_document.counts[:4] == (1, 4, 1, 0)
    assert report.unknown_share == pytest.approx(1 / sum(sentence_lengths))
    assert report.unknown_text_share == pytest.approx(
        len("博".encode()) / sum(len(text.encode()) for text in DOCUMENTS)
    )
    assert report.duplicate_sentence_share == pytest.approx(4 / 14)
    assert report.duplicate_document_share == pytest.approx(1 / 6)
    assert report.single_sentence_share == pytest.approx(1 / 6)
    assert report.long_sentence_share == 0
    assert report.most_repeated == (("the cat sat.", 4), ("the old king sat by the river.", 2))
    assert report.tokens_per_word == 1
    assert report.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in DOCUMENTS) / report.num_tokens)


def test_hashes_are_equal_where_sentences_are(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The cat sat.", "Cat the sat.", "The cat sat. The cat.", "The the. The the the.", "Sat. Sat the."]
    corpus = open_corpus(build([f"{text} {texts[i % 3]}" for i, text in enumerate(texts * 3)]))
    sentences = [
        tuple(corpus.tokens(start, end).tolist())
        for start, end in zip(corpus.sentence_offsets[:-1].tolist(), corpus.sentence_offsets[1:].tolist(), strict=True)
    ]
    hashes = sentence_hashes(corpus).tolist()
    assert len(set(sentences)) == len(set(hashes)) == len(set(zip(sentences, hashes, strict=True)))
    # However the passes are cut.
    for size in (1, 5, 17):
        monkeypatch.setattr(doctor, "_CHUNK_TOKENS", size)
        assert sentence_hashes(corpus).tolist() == hashes


def test_order_counts_in_documents(build: Build) -> None:
    store = build(["The cat. The dog. A king.", "The dog. The cat. A king.", "The cat. The cat. A king."])
    assert check_corpus(store).splits["train"].duplicate_document_share == 0


def test_heldout_side(tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    options = {"document_separator": "blank-lines", "num_workers": 1, "heldout_share": 0.1}
    build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "store", **options)  # type: ignore[arg-type]
    report = check_corpus(tmp_path / "store")
    sentences: dict[str, list[bytes]] = {}
    for split in ("train", "heldout"):
        corpus = open_corpus(tmp_path / "store", split)  # type: ignore[arg-type]
        tokens = np.concatenate(corpus.shards())
        sentences[split] = [part.tobytes() for part in np.split(tokens, corpus.sentence_offsets[1:-1])]
    share = statistics.mean(sentence in sentences["train"] for sentence in sentences["heldout"])
    assert report.heldout_sentences_in_train_share == pytest.approx(share) and share > 0.2
    assert any("held-out sentences also occur in training" in warning for warning in report.warnings)
    assert "heldout" in printed(report)


@pytest.mark.parametrize(
    ("documents", "warning"),
    [
        (["The cat sat. The dog runs."], "one document: next sentence prediction is impossible"),
        (["The cat sat.", "The dog runs.", "She reads. She writes."], "67% of the documents have a single sentence"),
        (["博 the cat. 推 the dog.", "The tree."], "unknown: the vocabulary does not fit"),
        (["The cat. The cat. The cat.", "The dog. A fish."], "40% of the sentences are copies"),
        (["The cat. The dog.", "The cat. The dog.", "The fish. A fish."], "33% of the documents are copies"),
        (["the cat " * 300 + ".", "The dog."], "over 512 tokens: they are learnt stretch by stretch"),
        (["The cat. The dog.", "A fish. A bird."], "Nothing is held out"),
        (["The cat. The dog.", "A fish. A bird."], "11 tokens|12 tokens are very few"),
    ],
)
def test_warnings(build: Build, documents: list[str], warning: str) -> None:
    report = check_corpus(build(documents))
    assert any(part in found for found in report.warnings for part in warning.split("|")), report.warnings
    assert "!" in printed(report)


def test_one_unknown_token_may_hold_much_text(build: Build) -> None:
    """As WordPiece does with text that is written without spaces, of which each token in a hundred is one."""
    report = check_corpus(build(["The cat sat by the river. " * 40, "กขค" * 50, "The dog runs."]))
    train = report.splits["train"]
    assert train.unknown_share < 0.01 < 0.2 < (train.unknown_text_share or 0)
    assert any("of the text is unknown, in few tokens" in warning for warning in report.warnings)
    assert "unknown text" in printed(report)


def test_a_store_of_an_earlier_version_does_not_know_how_much_text_is_unknown(build: Build) -> None:
    store = build(DOCUMENTS)
    manifest = json.loads((store / "manifest.json").read_text())
    fingerprint = read_manifest(store).fingerprint
    for shard in manifest["splits"]["train"]["shards"]:
        del shard["unknown_bytes"]
    del manifest["sha256"]
    write_json(store / "manifest.json", sealed(manifest))
    report = check_corpus(store)
    assert report.splits["train"].unknown_text_share is None and "unknown text" not in printed(report)
    assert read_manifest(store).fingerprint == fingerprint


def test_healthy_corpus_has_no_warnings(build: Build) -> None:
    """Small is the only thing that is wrong with these."""
    names = ["king", "queen", "cat", "dog", "bird", "fish", "tree"]
    report = check_corpus(build([f"The {name} sat by {i}. A {name} sleeps." for i, name in enumerate(names)]))
    assert [warning.split()[0] for warning in report.warnings] == ["Nothing", "70"]
    text = printed(report)
    for label in (
        "documents",
        "unknown tokens",
        "duplicate sentences",
        "one-sentence documents",
        "Tokens per sentence",
    ):
        assert label in text
    assert "Nothing suspicious" in printed(CorpusReport(report.splits, 0.0, ()))
