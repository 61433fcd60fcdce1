"""Words of Chinese: the store's word starts follow jieba's own cut, and nothing else changes."""

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.errors import MissingExtraError, SettingsError
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.pretrain_examples import PretrainExamples
from bertsmith.text import words as text_words
from bertsmith.text.corpus import open_corpus, read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.shards import ShardText, Workshop
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import Kind, train_tokenizer
from bertsmith.text.words import Jieba, encode_words, load_segmenter, word_starts

SENTENCES = (
    "我爱北京天安门。",
    "小明硕士毕业于中国科学院计算所，后在日本京都大学深造。",
    "他来到了网易杭研大厦！",
    "这是一个伸手不见五指的黑夜。",
    "今天天气很好，我们去公园散步吧？",
    "工信处女干事每月经过下属科室都要亲口交代工作。",
    "乒乓球拍卖完了，南京市长江大桥通车。",
    "研究生命的起源是科学家的工作。",
)


@pytest.fixture(scope="module")
def segmenter() -> Jieba:
    """jieba as the corpus uses it, or a skip."""
    if importlib.util.find_spec("jieba") is None:
        pytest.skip('jieba is not installed: pip install "bertsmith[chinese]"')
    loaded = load_segmenter("jieba")
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def cutter(segmenter: Jieba, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """jieba as anybody else uses it, started by itself."""
    import jieba

    jieba.setLogLevel("ERROR")
    theirs = jieba.Tokenizer()
    theirs.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    return theirs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents of the sentences above in different orders."""
    documents = ["".join(SENTENCES[(i * 3 + j * (1 + i % 5)) % 8] for j in range(6)) + f"第{i}章。" for i in range(40)]
    path = tmp_path_factory.mktemp("chinese") / "documents.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Each kind, learnt from the sentences."""
    kind: Kind = request.param
    return train_tokenizer([str(source)], tmp_path_factory.mktemp(kind) / "tokenizer", kind=kind, vocab_size=420)


@pytest.fixture(scope="module")
def characters(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer's folder, in which every Chinese character is a token."""
    folder = tmp_path_factory.mktemp("characters") / "tokenizer"
    train_tokenizer([str(source)], folder, vocab_size=420)
    return folder


def build(source: Path, tokenizer: Path, store: Path, **options: Any) -> Path:
    """A store of Chinese documents."""
    options = {"language": "zh", "document_separator": "blank-lines", "num_workers": 1, **options}
    build_corpus([str(source)], tokenizer, store, **options)
    return store


def units(text: str, tokenizer: Tokenizer, starts: np.ndarray) -> list[str]:
    """The text from each word start to the next."""
    places = tokenizer.encode(text).offsets[starts, 0].tolist()
    return [text[begin:end] for begin, end in pairwise([*places, len(text)])]


# Against jieba's own cut


@pytest.mark.parametrize("text", SENTENCES)
def test_words_are_as_jieba_cuts_them(text: str, segmenter: Jieba, cutter: Any, tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode(text)
    found = units(text, tokenizer, word_starts(text, encoding, segmenter))
    # A token that holds several words joins them.
    expected, begin = [], 0
    borders = set(np.cumsum([0, *map(len, cutter.cut(text))]).tolist())
    for place in range(1, len(text) + 1):
        is_inside = any(start < place < end for start, end in encoding.offsets.tolist())
        if place in borders and not is_inside:
            expected.append(text[begin:place])
            begin = place
    assert found == expected
    assert len(found) < len(text), "some words have several characters"


@pytest.mark.parametrize("text", SENTENCES)
def test_characters_are_joined_to_jiebas_words(text: str, segmenter: Jieba, cutter: Any, characters: Path) -> None:
    tokenizer = load_tokenizer(characters)
    encoding = tokenizer.encode(text)
    assert encoding.word_starts.all(), "BERT's pre-tokenizer takes each character for a word"
    assert units(text, tokenizer, word_starts(text, encoding, segmenter)) == list(cutter.cut(text))


def test_only_chinese_is_changed(segmenter: Jieba, tokenizer: Tokenizer) -> None:
    for text in ("Don't stop: 3.14 words.", "ひらがな カタカナ 한국어", "", " "):
        encoding = tokenizer.encode(text)
        np.testing.assert_array_equal(word_starts(text, encoding, segmenter), encoding.word_starts)
    # Where both meet, what is not Chinese keeps the words of its pre-tokenizer.
    text = "It's 北京大学 2.50 don't"
    encoding = tokenizer.encode(text)
    starts = word_starts(text, encoding, segmenter)
    is_chinese = (encoding.offsets[:, 0] >= 5) & (encoding.offsets[:, 0] < 9)
    np.testing.assert_array_equal(starts[~is_chinese], encoding.word_starts[~is_chinese])
    assert "北京大学" in {unit.strip() for unit in units(text, tokenizer, starts)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("买了3件T恤。", ["买", "了", "3", "件", "T恤", "。"]),  # a word with a letter in it
        ("abc北京", ["abc", "北京"]),
        ("卡拉OK很好听", ["卡拉", "OK", "很", "好听"]),
        ("天\n安门", ["天\n", "安门"]),
    ],
)
def test_mixed_text(segmenter: Jieba, characters: Path, text: str, words: list[str]) -> None:
    tokenizer = load_tokenizer(characters)
    starts = word_starts(text, tokenizer.encode(text), segmenter)
    assert units(text, tokenizer, starts) == words


def test_letters_beside_chinese_are_words_for_every_tokenizer(segmenter: Jieba, tokenizer: Tokenizer) -> None:
    text = "xyz北京abc天"
    assert units(text, tokenizer, word_starts(text, tokenizer.encode(text), segmenter)) == ["xyz", "北京", "abc", "天"]


@given(text=st.text(st.sampled_from("我们在北京大学学习了，。 aB1.%-\n㐀𠀀ひ한é\u200b\ud800"), max_size=40))
def test_any_text(segmenter: Jieba, cutter: Any, tokenizer: Tokenizer, text: str) -> None:
    borders = segmenter.borders(text)
    assert borders.shape == (len(text) + 1,) and borders[0] and borders[-1]
    assert [text[a:b] for a, b in pairwise(np.flatnonzero(borders).tolist())] == list(cutter.cut(text))
    encoding = tokenizer.encode(text)
    starts = word_starts(text, encoding, segmenter)
    assert starts.shape == encoding.word_starts.shape and starts[:1].all()
    for place in range(1, len(starts)):
        begin = encoding.offsets[place, 0]
        if "\u3400" <= text[begin : begin + 1] <= "\u9fff":
            assert not starts[place] or (borders[begin] and begin > encoding.offsets[place - 1, 0])


def test_tokens_of_one_character_are_never_parted(segmenter: Jieba, source: Path, tmp_path: Path) -> None:
    """Byte-level BPE writes a rare character as three tokens."""
    tokenizer = train_tokenizer([str(source)], tmp_path / "bytes", kind="bpe", vocab_size=270)
    text = "在鼋鼍饕餮里"
    encoding = tokenizer.encode(text)
    assert len(encoding.ids) > 2 * len(text)
    starts = word_starts(text, encoding, segmenter)
    begins = encoding.offsets[:, 0]
    assert not starts[1:][begins[1:] == begins[:-1]].any()
    assert "".join(units(text, tokenizer, starts)) == text


# In the store


def test_the_store_has_the_same_tokens_and_other_words(
    segmenter: Jieba, source: Path, characters: Path, tmp_path: Path
) -> None:
    plain = build(source, characters, tmp_path / "plain")
    cut = build(source, characters, tmp_path / "cut", word_segmenter="jieba")
    assert read_manifest(plain).word_segmenter == "none"
    assert read_manifest(cut).word_segmenter == segmenter.name
    assert re.fullmatch(r"jieba \d+\.\d+.*", segmenter.name)
    assert read_manifest(plain).fingerprint != read_manifest(cut).fingerprint
    for split in ("train", "heldout"):
        first, second = open_corpus(plain, split), open_corpus(cut, split, verify=True)
        for one, other in zip(first.shards(), second.shards(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert first.num_words() > 0.98 * first.num_tokens, "but for a few numbers"
        assert 0.4 < second.num_words() / second.num_tokens < 0.8


def test_stores_from_before_keep_their_fingerprint(source: Path, characters: Path, tmp_path: Path) -> None:
    manifest = read_manifest(build(source, characters, tmp_path / "store"))
    path = tmp_path / "store" / "manifest.json"
    value = json.loads(path.read_text())
    for name in ("word_segmenter", "tokenizer_sha256", "sha256"):
        del value[name]
    path.write_text(json.dumps(value))
    assert read_manifest(tmp_path / "store").fingerprint == manifest.fingerprint


def test_masks_are_jiebas_words(segmenter: Jieba, cutter: Any, source: Path, characters: Path, tmp_path: Path) -> None:
    """Read off the text: cut by jieba a sentence at a time, one token a character."""
    store = build(source, characters, tmp_path / "store", word_segmenter="jieba", heldout_share=0.0)
    corpus, tokenizer = open_corpus(store), load_tokenizer(store / "tokenizer")
    text = source.read_text(encoding="utf-8").replace("\n\n", "")
    words = [word for sentence in re.findall(r".*?[。！？]", text) for word in cutter.cut(sentence)]
    assert "".join(words) == text and len(text) == corpus.num_tokens
    word_of = np.repeat(np.arange(len(words)), [len(word) for word in words])
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=64,
        mode="clean",
        hiding=Masker(tokenizer, Masking(unit="word")),
        short_sequence_probability=0.0,
        seed=0,
    )
    several = 0
    indices = np.arange(examples.num_examples(0))
    for example, cut in zip(examples.take(indices, 0), examples.pairs.cuts(indices, 0), strict=True):
        masked = example.masked
        first, second = word_of[cut.first_start : cut.first_end], word_of[cut.second_start : cut.second_end]
        behind = (
            [] if cut.label == NO_PAIR else [second + len(text), [-3]]
        )  # of a sentence that is longer than a sample
        shown = np.concatenate([[-1], first, [-2], *behind])
        hidden = np.isin(shown, shown[masked.positions])
        assert np.flatnonzero(hidden).tolist() == masked.positions.tolist(), "whole words and nothing else"
        several += int((np.unique(shown[hidden], return_counts=True)[1] > 1).sum())
    assert several > 20


@pytest.mark.slow
def test_workers_change_nothing(segmenter: Jieba, source: Path, characters: Path, tmp_path: Path) -> None:
    stores = [
        build(source, characters, tmp_path / str(number), word_segmenter="jieba", shard_bytes=3000, num_workers=number)
        for number in (1, 2)
    ]
    assert len(read_manifest(stores[0]).splits["train"].shards) > 1
    contents = [
        {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()} for store in stores
    ]
    assert contents[0] == contents[1]


def test_shards_of_another_segmenter_are_made_again(
    segmenter: Jieba, characters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(characters)
    plain = Workshop(tmp_path, tokenizer.fingerprint, "zh")
    cut = replace(plain, word_segmenter="jieba")
    shard = ShardText("train", "00000", [SENTENCES[0]], len(SENTENCES[0].encode()))
    assert cut.make(shard, tokenizer) == cut.finished(shard)
    assert plain.finished(shard) is None
    monkeypatch.setattr(segmenter, "name", "jieba 9.9")
    assert cut.finished(shard) is None


def test_texts_in_one_call_are_as_one_by_one(segmenter: Jieba, tokenizer: Tokenizer) -> None:
    texts = [*SENTENCES, "", "Plain words.", "[MASK] 北京大学 [MASK]"]
    flat = encode_words(tokenizer, texts, segmenter)
    encodings = [tokenizer.encode(text) for text in texts]
    assert flat.lengths.tolist() == [len(encoding.ids) for encoding in encodings]
    assert flat.ids.tolist() == [token for encoding in encodings for token in encoding.ids.tolist()]
    starts = [word_starts(text, encoding, segmenter) for text, encoding in zip(texts, encodings, strict=True)]
    np.testing.assert_array_equal(flat.word_starts, np.concatenate(starts))


# The library itself


def test_nothing_is_read_from_or_left_in_the_temporary_folder(
    segmenter: Jieba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Jieba().borders("北京大学").tolist() == [True, False, False, False, True]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """No segmenter is kept from earlier tests, or for later ones."""
    text_words._jieba.cache_clear()
    yield
    text_words._jieba.cache_clear()


def test_without_jieba_the_extra_is_named(
    nothing_loaded: None, source: Path, characters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match=r'pip install "bertsmith\[chinese\]"'):
        build(source, characters, tmp_path / "store", word_segmenter="jieba")
    assert not list(tmp_path.iterdir()), "nothing half-written"
    build(source, characters, tmp_path / "store")


def test_unknown_segmenters_are_refused(source: Path, characters: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='Did you mean "jieba"'):
        build(source, characters, tmp_path / "store", word_segmenter="jeiba")
