"""Building stores: what is in them, and that workers, interruptions and restarts change nothing."""

import errno
import json
import os
import subprocess
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.errors import CorpusError, InputError, SettingsError
from bertsmith.locks import LOCK, only_writer
from bertsmith.text import corpus_building, shards
from bertsmith.text.corpus import open_corpus, read_manifest
from bertsmith.text.corpus_building import BuildProgress, build_corpus
from bertsmith.text.selection import SelectionSettings
from bertsmith.text.sentences import SentenceALine, split_sentences
from bertsmith.text.shards import build_shard, token_dtype
from bertsmith.text.sources import Document, iter_documents
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

MakeFiles = Callable[[dict[str, str | bytes]], Path]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A JSON Lines file of 200 different documents, about 80 KB."""
    rows = []
    for number in range(200):
        sentences = [f"The {LETTERS[number % 26]} cat {number} saw day {i}." for i in range(5 + number % 17)]
        rows.append(json.dumps({"text": " ".join(sentences), "id": number}))
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def read_documents(store: Path, split: Any) -> list[list[list[int]]]:
    """Every document of a split as sentences of token ids, through the public reader."""
    corpus = open_corpus(store, split)
    documents = []
    for first, last in pairwise(corpus.document_offsets.tolist()):
        offsets = corpus.sentence_offsets[first : last + 1].tolist()
        documents.append([corpus.tokens(a, b).tolist() for a, b in pairwise(offsets)])
    return documents


def expected_documents(source: Path, tokenizer_folder: Path) -> Iterator[list[list[int]]]:
    """The same made the plain way, a sentence at a time."""
    tokenizer = load_tokenizer(tokenizer_folder)
    for document in iter_documents([str(source)]):
        yield [tokenizer.encode(sentence).ids.tolist() for sentence in split_sentences(document.text)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_store_holds_every_sentence(many: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    manifest = build_corpus(
        [str(many)], tiny_tokenizer, tmp_path / "store", heldout_share=0.1, shard_bytes=9000, num_workers=1
    )
    assert len(manifest.splits["train"].shards) > 3
    train, heldout = (read_documents(tmp_path / "store", split) for split in ("train", "heldout"))
    expected = list(expected_documents(many, tiny_tokenizer))
    assert sorted(train + heldout) == sorted(expected)
    assert 5 <= len(heldout) <= 40
    assert not (tmp_path / ".store.building").exists()
    assert read_manifest(tmp_path / "store") == manifest


def test_word_starts_and_entropy(many: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    build_corpus([str(many)], tiny_tokenizer, tmp_path / "store", shard_bytes=9000, num_workers=1)
    corpus = open_corpus(tmp_path / "store")
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    counts: Counter[int] = Counter()
    num_words = 0
    for first, last in pairwise(corpus.document_offsets.tolist()):
        start, end = corpus.sentence_offsets[[first, last]].tolist()
        ids = corpus.tokens(start, end)
        continuing = np.array([piece.startswith("##") for piece in tokenizer.tokens(ids)])
        assert (corpus.word_starts_of(np.array([start]), np.array([end])) == ~continuing).all()
        assert (corpus.word_starts_of(np.array([start + 1]), np.array([end - 2])) == ~continuing[1:-2]).all()
        num_words += int((~continuing).sum())
        counts.update(ids.tolist())
    assert (corpus.num_words(), corpus.num_tokens) == (num_words, counts.total())
    shares = np.array([count / corpus.num_tokens for count in counts.values()])
    assert corpus.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert corpus.token_counts().tolist() == [counts[i] for i in range(tokenizer.vocab_size)]


LINES = ['He said: "Go! Now." She left.', "One. Two.", "The end"]


def test_lines_stay_sentences_in_the_store(make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Rows beside them are cut as ever, by one worker, by several, and from a build that read the file otherwise."""
    folder = make_files({"a.txt": "\n".join(LINES) + "\n\nThe king. The cat.\n", "b.jsonl": '{"text": "One. Two."}\n'})
    options: dict[str, Any] = {"document_separator": "blank-lines", "heldout_share": 0.0, "shard_bytes": 9}
    for num_workers in (1, 2):
        build_corpus([str(folder)], tiny_tokenizer, tmp_path / f"{num_workers}", num_workers=num_workers, **options)
    counts = [len(document) for document in read_documents(tmp_path / "1", "train")]
    assert counts == [3, 1, 2]
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    workshop = shards.Workshop(tmp_path, "", "en")
    known, plain = SentenceALine("One. Two."), "One. Two."
    hashes = [workshop.input_sha256(shards.ShardText("train", "0", [text], 9)) for text in (known, plain)]
    assert hashes[0] != hashes[1]


def test_what_is_passed_over_is_said_once(
    make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = make_files({"a.txt": "The king sat.", "b.csv": "text;n\nThe cat, too.;1\n"})
    load_tokenizer(tiny_tokenizer).save(folder / "made" / "tokenizer")
    (folder / "made" / "c.txt").write_text("The queen sat.")
    options: dict[str, Any] = {"selection": SelectionSettings("exact"), "delimiter": ";", "heldout_share": 0.0}
    manifest = build_corpus([str(folder)], tiny_tokenizer, tmp_path / "store", **options)
    assert manifest.splits["train"].num_documents == 3
    assert capsys.readouterr().err == f"{folder}/made/tokenizer is passed over: it is a tokenizer.\n"


def test_workers_change_nothing(many: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    for num_workers in (1, 2):
        build_corpus(
            [str(many)], tiny_tokenizer, tmp_path / str(num_workers), shard_bytes=9000, num_workers=num_workers
        )
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_interrupted_build_goes_on(
    many: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str) -> None:
        build_corpus([str(many)], tiny_tokenizer, tmp_path / name, shard_bytes=9000, num_workers=1)

    made = []

    def counted(documents: Any, *rest: Any) -> shards.ShardArrays:
        made.append(len(documents))
        return build_shard(documents, *rest)

    def stopping(*args: Any, **options: Any) -> Iterator[Document]:
        for number, document in enumerate(iter_documents(*args, **options)):
            if number == 100:
                raise KeyboardInterrupt
            yield document

    monkeypatch.setattr(shards, "build_shard", counted)
    build("whole")
    num_shards = len(made)
    monkeypatch.setattr(corpus_building, "iter_documents", stopping)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        build("store")
    assert not (tmp_path / "store").exists()
    num_before = len(made)
    assert 0 < num_before < num_shards
    # One finished shard is damaged: it is made again, as are those of another text.
    (tmp_path / ".store.building" / "train" / "00000" / "tokens.npy").write_bytes(b"")
    monkeypatch.setattr(corpus_building, "iter_documents", iter_documents)
    made.clear()
    build("store")
    assert len(made) == num_shards - num_before + 1
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")


@pytest.mark.parametrize("change", ["text", "tokenizer", "language", "rules"])
def test_shards_of_other_input_are_not_used(
    many: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def stopping(*args: Any, **options: Any) -> Iterator[Document]:
        yield from iter_documents(*args, **options)
        raise KeyboardInterrupt

    options: dict[str, Any] = {"shard_bytes": 9000, "num_workers": 1, "language": "en"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_building, "iter_documents", stopping)
        if change == "rules":
            patch.setattr(shards, "_RULES_VERSION", 1)
            patch.setattr(shards, "_sentences", lambda document, *_: [(document, False)])
        build_corpus([str(many)], tiny_tokenizer, tmp_path / "store", **options)
    tokenizer = tiny_tokenizer
    if change == "text":
        many.write_text(many.read_text().replace("cat", "dog"))
    elif change == "tokenizer":
        tokenizer = tmp_path / "vocab.txt"
        tokenizer.write_text((tiny_tokenizer / "vocab.txt").read_text().replace("cat\n", "dogs\n"))
    elif change == "language":
        options["language"] = "zh"
        monkeypatch.setattr(shards, "split_sentences", lambda text, language: [text])
    for name in ("store", "fresh"):
        build_corpus([str(many)], tokenizer, tmp_path / name, **options)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("has_links", [True, False])
def test_interrupted_while_the_store_is_gathered(
    many: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Nothing is tokenized twice, though every shard was in the new folder already."""

    def build(name: str) -> None:
        build_corpus([str(many)], tiny_tokenizer, tmp_path / name, shard_bytes=9000, num_workers=1)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    build("whole")
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_building, "write_json", interrupt)
        build("store")
    assert not (tmp_path / "store").exists()
    monkeypatch.setattr(shards, "build_shard", lambda *args: pytest.fail("a shard is made again"))
    build("store")
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
    assert not list(tmp_path.glob(".store*"))


def test_progress_counts_up(many: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    seen: list[BuildProgress] = []
    manifest = build_corpus(
        [str(many)], tiny_tokenizer, tmp_path / "store", shard_bytes=9000, num_workers=1, progress=seen.append
    )
    assert [progress.num_shards for progress in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].num_documents == 200
    assert seen[-1].num_tokens == sum(split.num_tokens for split in manifest.splits.values())


# The held-out side


@given(
    st.lists(st.integers(0, 40), max_size=60),
    st.sampled_from([0.0, 1e-9, 0.05, 0.5, 0.99]),
)
@settings(max_examples=200, deadline=None)
def test_sides(numbers: list[int], share: float) -> None:
    documents = [f"document {number}" for number in numbers]
    sided = list(corpus_building._sides(documents, share))
    assert sorted(document for _, document in sided) == sorted(documents)
    sides: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split, document in sided:
        sides[split].add(document)
    assert not sides["train"] & sides["heldout"], "copies are on one side"
    if documents:
        assert sides["train"], "there is always something to train on"
    if share == 0:
        assert not sides["heldout"]
    elif len(set(documents)) >= 10 and share < 0.5:
        assert len(sides["heldout"]) >= 2


@given(st.permutations(range(15)))
@settings(max_examples=50, deadline=None)
def test_those_nearest_are_held_out_in_any_order(numbers: list[int]) -> None:
    def heldout(order: list[int]) -> set[str]:
        sided = corpus_building._sides([f"document {number}" for number in order], 1e-9)
        return {document for split, document in sided if split == "heldout"}

    assert heldout(numbers) == heldout(sorted(numbers))


def test_share_of_documents_held_out() -> None:
    sided = [split for split, _ in corpus_building._sides((f"text {i}" for i in range(20_000)), 0.03)]
    assert sided.count("heldout") == pytest.approx(600, abs=100)


def test_sides_do_not_depend_on_other_documents() -> None:
    def heldout(count: int) -> set[str]:
        sided = corpus_building._sides((f"text {i}" for i in range(count)), 0.1)
        return {document for split, document in sided if split == "heldout"}

    assert heldout(500) < heldout(900)


# Odd corpora


def test_text_without_tokens_is_left_out(make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path) -> None:
    rows = ["The cat sat.", "\u200b\u200b", "One. \x05\n\nTwo.", ""]
    source = make_files({"a.jsonl": "\n".join(json.dumps({"text": row}) for row in rows)}) / "a.jsonl"
    build_corpus([str(source)], tiny_tokenizer, tmp_path / "store")
    corpus = open_corpus(tmp_path / "store", verify=True)
    assert (corpus.num_documents, corpus.num_sentences) == (2, 3)
    assert sorted(np.diff(corpus.document_offsets).tolist()) == [1, 2]
    assert (np.diff(corpus.sentence_offsets) > 0).all()


def test_empty_corpus(make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = make_files({"blank.txt": " \n", "silent.txt": "\u200b"})
    for name in ("blank.txt", "silent.txt"):
        with pytest.raises(CorpusError, match=f"no text in .*{name}"):
            build_corpus([str(folder / name)], tiny_tokenizer, tmp_path / "store")
    assert not list(tmp_path.glob("*store*"))


def test_bad_input_leaves_nothing(make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = make_files({"bad.jsonl": b'{"text": "The cat."}\n{"text": "\xff"}\n'})
    with pytest.raises(InputError, match=r"bad\.jsonl"):
        build_corpus([str(folder / "bad.jsonl")], tiny_tokenizer, tmp_path / "store")
    assert not list(tmp_path.glob("*store*"))


def test_only_a_store_is_replaced_and_nothing_that_is_read(
    make_files: MakeFiles, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_files({"texts/a.txt": "The king sat.", "texts/letter.pdf": "years", "more/b.txt": "The queen sat."})
    options: dict[str, Any] = {"overwrite": True, "heldout_share": 0.0}
    monkeypatch.chdir(folder / "texts")
    for out in (".", "", folder / "texts", folder):
        with pytest.raises(SettingsError, match="texts is read, and lies in what --overwrite replaces"):
            build_corpus([str(folder / "texts")], tiny_tokenizer, out, **options)
    monkeypatch.chdir(folder)
    with pytest.raises(SettingsError, match=r"holds a\.txt and 1 more, which is not of a store"):
        build_corpus([str(folder / "more")], tiny_tokenizer, "texts", **options)
    assert {path.name for path in (folder / "texts").iterdir()} == {"a.txt", "letter.pdf"}
    assert [path.name for path in folder.parent.iterdir() if path.name.endswith(".building")] == []
    for _ in range(2):  # what was made in a folder of texts is none of them
        manifest = build_corpus(["texts"], tiny_tokenizer, "texts/store", **options)
        load_tokenizer(tiny_tokenizer).save(folder / "texts" / "tokenizer")
        assert manifest.splits["train"].num_documents == 1


def test_another_process_that_builds_it_is_left_alone(many: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Both would gather their shards in the same folder, and the first to end would remove it."""
    with only_writer(tmp_path / ".store.building"):
        with pytest.raises(SettingsError, match=r"another process writes to .*\.store\.building \(process "):
            build_corpus([str(many)], tiny_tokenizer, tmp_path / "store")
        assert [path.name for path in (tmp_path / ".store.building").iterdir()] == [LOCK]
    build_corpus([str(many)], tiny_tokenizer, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".store")] == []
    assert not list((tmp_path / "store").rglob(".*"))


def test_existing_store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    first = build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "store")
    with pytest.raises(CorpusError, match="--overwrite"):
        build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "store")
    options: dict[str, Any] = {"document_separator": "blank-lines", "overwrite": True}
    second = build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "store", **options)
    assert first.splits["train"].num_documents == 1
    assert sum(split.num_documents for split in second.splits.values()) == 40
    assert second.splits["heldout"].num_documents == 2
    assert open_corpus(tmp_path / "store").num_documents == 38


@pytest.mark.parametrize(
    "options",
    [{"heldout_share": 1.0}, {"heldout_share": -0.1}, {"shard_bytes": 0}, {"num_workers": 0}, {"language": "cn"}],
)
def test_wrong_settings(options: dict[str, Any], tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        build_corpus([str(tiny_documents)], tiny_tokenizer, tmp_path / "store", **options)


def test_a_worker_makes_what_the_parent_would(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    text = shards.ShardText("train", "00000", ["The cat sat. The dog.", "A fish."], 28)
    records = []
    for name in ("parent", "worker"):
        workshop = shards.Workshop(tmp_path / name, tokenizer.fingerprint, "en")
        tokenizer.save(workshop.tokenizer_folder)
        records.append(workshop.make(text, tokenizer) if name == "parent" else shards.make_in_worker(text, workshop))
        assert workshop.finished(text) == records[-1]
    assert records[0] == records[1]


def test_dead_worker_is_explained() -> None:
    lost: Future[Any] = Future()
    lost.set_exception(BrokenProcessPool("gone"))
    with pytest.raises(CorpusError, match="fewer --num-workers"):
        corpus_building._first(deque([("train", lost)]))


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_sentences_are_the_running_text(published: Callable[[str], Path], name: str) -> None:
    """Byte-level vocabularies that add no space of their own: "ĠA" behind a full stop, as when a text is encoded."""
    tokenizer = load_tokenizer(published(name))
    texts = ["\n The river. A cat sat\n\n'Why?' 3 days! \n", "你好。再见! Good.Bye", "A dog."]
    arrays = build_shard(texts, tokenizer, "en")
    running = ["The river. A cat sat 'Why?' 3 days!", *texts[1:]]
    expected = tokenizer.encode_flat(running)
    assert arrays.tokens.tolist() == expected.ids.tolist()
    assert arrays.word_starts.tolist() == expected.word_starts.tolist()
    assert arrays.sentences[arrays.documents[1:]].tolist() == np.cumsum(expected.lengths).tolist()
    starts = tokenizer.tokens(arrays.tokens[arrays.sentences[:-1]])
    assert "ĠA" in starts and starts.count("A") == 1, starts


@pytest.mark.parametrize("kind", ["bpe", "unigram", "xlm-roberta"])
def test_a_sentence_without_a_space_before_it_gets_none(tmp_path: Path, make_files: MakeFiles, kind: str) -> None:
    """As running text has it; XLM-R cuts words at their spaces before it marks them."""
    sentences = ["他走了。", "天下雨，他没有伞。", "再见！", "She said 你好。", "He left."]
    folder = make_files({"zh.txt": "\n".join(["".join(sentences), *(" ".join(sentences) for _ in range(30))])})
    trained = "bpe" if kind == "bpe" else "unigram"
    tokenizer = train_tokenizer([str(folder)], tmp_path / "tokenizer", kind=trained, vocab_size=400, min_frequency=1)
    if kind == "xlm-roberta":
        path = tmp_path / "tokenizer" / "tokenizer.json"
        definition = json.loads(path.read_text(encoding="utf-8"))
        marks = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, marks]}
        definition["normalizer"] = {"type": "NFKC"}  # it is not this that makes one space of two
        path.write_text(json.dumps(definition), encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.adds_space and tokenizer.joining.vocab_size == tokenizer.vocab_size
    joined = "".join(sentences[:3])
    said = "She left. " + joined + ("他说  no。" if kind == "xlm-roberta" else "他说 no。")
    arrays = build_shard([joined, said, "再见！ 他走了。"], tokenizer, "zh")
    text = "".join(tokenizer.tokens(arrays.tokens))
    mark = "▁" if kind != "bpe" else "Ġ"
    assert text.count(mark) == 1 + 4 + 2, text
    written = joined if kind == "bpe" else unicodedata.normalize("NFKC", joined)
    assert tokenizer.decode(arrays.tokens[: arrays.sentences[arrays.documents[1]]]) == written
    if kind != "xlm-roberta":  # whose pieces may go across the end of a sentence
        running = tokenizer.encode_flat([joined])
        assert arrays.tokens[: len(running.ids)].tolist() == running.ids.tolist()


def test_no_documents_is_a_shard_too(tiny_tokenizer: Path) -> None:
    arrays = build_shard([], load_tokenizer(tiny_tokenizer), "en")
    assert arrays.tokens.dtype == np.uint16
    assert arrays.sentences.tolist() == arrays.documents.tolist() == [0]


def test_ids_get_the_smallest_type() -> None:
    assert [token_dtype(size).name for size in (5, 65536, 65537)] == ["uint16", "uint16", "uint32"]


def test_workers_do_not_load_sources() -> None:
    """A worker must start fast; data set libraries take seconds."""
    code = "import sys, bertsmith.text.shards; print([m for m in ('torch', 'datasets', 'pandas') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
