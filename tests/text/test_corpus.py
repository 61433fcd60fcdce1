"""Reading stores: offsets over shards, and every kind of damage named."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bertsmith.errors import CorpusError
from bertsmith.text.corpus import Corpus, open_corpus, read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def built(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 documents in several shards; tests must not change it."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_corpus(
        [str(tiny_documents)],
        tiny_tokenizer,
        store,
        document_separator="blank-lines",
        heldout_share=0.1,
        shard_bytes=1500,
        num_workers=1,
    )
    return store


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "store"
    for path in built.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(built)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(built)).write_bytes(path.read_bytes())
    return copy


def shard_arrays(corpus: Corpus, array: str) -> list[np.ndarray]:
    return [np.load(path / f"{array}.npy") for path in sorted((corpus.folder / corpus.split).iterdir())]


def test_offsets_count_over_all_shards(built: Path) -> None:
    corpus = open_corpus(built, verify=True)
    tokens = shard_arrays(corpus, "tokens")
    assert len(tokens) > 2
    whole = np.concatenate(tokens)
    assert corpus.num_tokens == len(whole) == corpus.sentence_offsets[-1]
    assert corpus.num_sentences == len(corpus.sentence_offsets) - 1 == corpus.document_offsets[-1]
    assert corpus.num_documents == len(corpus.document_offsets) - 1
    assert corpus.tokens_dtype == whole.dtype == np.uint16
    packed = shard_arrays(corpus, "word_starts")
    bits = np.concatenate([np.unpackbits(row)[: len(part)] for row, part in zip(packed, tokens, strict=True)])
    for first, last in pairwise(corpus.document_offsets.tolist()):
        for start, end in pairwise(corpus.sentence_offsets[first : last + 1].tolist()):
            assert corpus.tokens(start, end).tolist() == whole[start:end].tolist()
    assert [part.tolist() for part in corpus.shards()] == [part.tolist() for part in tokens]
    borders = corpus.sentence_offsets[corpus.document_offsets]
    backwards = np.arange(len(borders) - 2, -1, -1)
    expected = np.concatenate([whole[borders[place] : borders[place + 1]] for place in backwards])
    np.testing.assert_array_equal(corpus.tokens_of(borders[backwards], borders[backwards + 1]), expected)
    # Ranges that begin and end inside of bytes; one has no tokens.
    starts, ends = borders[backwards] + np.arange(len(backwards)) % 3, borders[backwards + 1]
    ends[0] = starts[0]
    expected = np.concatenate([bits[start:end] for start, end in zip(starts, ends, strict=True)]).astype(bool)
    np.testing.assert_array_equal(corpus.word_starts_of(starts, ends), expected)


def test_tokens_are_views(built: Path) -> None:
    corpus = open_corpus(built)
    view = corpus.tokens(3, 9)
    assert np.shares_memory(view, corpus.shards()[0])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    assert corpus.tokens(5, 5).tolist() == []
    assert corpus.word_starts_of(np.array([5]), np.array([5])).tolist() == []


def test_ranges_outside_a_shard(built: Path) -> None:
    corpus = open_corpus(built)
    first_shard = len(corpus.shards()[0])
    for start, end in ((-1, 3), (first_shard - 1, first_shard + 1), (corpus.num_tokens - 1, corpus.num_tokens + 1)):
        with pytest.raises(IndexError, match="not in one shard"):
            corpus.tokens(start, end)
        with pytest.raises(IndexError, match=f"{start} to {end} are not in one shard"):
            corpus.tokens_of(np.array([0, start]), np.array([5, end]))
        with pytest.raises(IndexError, match=f"{start} to {end} are not in one shard"):
            corpus.word_starts_of(np.array([0, start]), np.array([5, end]))


def test_fingerprint_is_of_the_content(built: Path, store: Path, tiny_documents: Path, tiny_tokenizer: Path) -> None:
    assert open_corpus(store).fingerprint == open_corpus(built, "heldout").fingerprint
    other = store.parent / "other"
    build_corpus([str(tiny_documents)], tiny_tokenizer, other, num_workers=1)
    assert open_corpus(other).fingerprint != open_corpus(built).fingerprint


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "verify", "message"),
    [
        ("train/00001/tokens.npy", truncate, False, r"train/00001/tokens\.npy has \d+ bytes, the manifest says \d+"),
        ("train/00000/documents.npy", Path.unlink, False, r"train/00000/documents\.npy is missing"),
        ("train/00001/word_starts.npy", flip, True, r"train/00001/word_starts\.npy has changed"),
        ("tokenizer/tokenizer.json", Path.unlink, True, "not the tokenizer|cannot be loaded"),
        ("manifest.json", Path.unlink, False, "no corpus here"),
    ],
)
def test_damage_is_named(store: Path, name: str, damage: Callable[[Path], None], verify: bool, message: str) -> None:
    damage(store / name)
    if name.startswith("tokenizer"):
        (store / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(CorpusError, match=message):
        open_corpus(store, verify=verify)


def test_swapped_tokenizer_is_found(store: Path, minilm: Path) -> None:
    load_tokenizer(minilm).save(store / "tokenizer")
    open_corpus(store)
    with pytest.raises(CorpusError, match="not the tokenizer this store was made with"):
        open_corpus(store, verify=True)


def test_manifest_of_another_kind(store: Path) -> None:
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(CorpusError, match="store version 99"):
        read_manifest(store)
    del manifest["splits"]["train"]["num_tokens"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"num_tokens\" is missing.*not a manifest"):
        read_manifest(store)


def test_splits_that_are_not_there(built: Path, tmp_path: Path, tiny_documents: Path, tiny_tokenizer: Path) -> None:
    with pytest.raises(CorpusError, match='Did you mean "heldout"'):
        open_corpus(built, "held-out")  # type: ignore[arg-type]
    build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "one")
    with pytest.raises(CorpusError, match=r"heldout split is empty.*too few documents"):
        open_corpus(tmp_path / "one", "heldout")
