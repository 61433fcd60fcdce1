"""Loading and using tokenizers, against Google's published cases and against transformers."""

import json
import pickle
import unicodedata
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, RobertaTokenizer

from bertsmith.errors import InputError, ModelError
from bertsmith.text import tokenizer as tokenizer_module
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import Kind, train_tokenizer

KINDS: tuple[Kind, ...] = ("wordpiece", "bpe", "unigram")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NASTY = (
    "",
    " \t\n",
    "The café, naïvely—don't [stop]; U.S. 3.5% e-mail@x.org",
    "a\u0301bc İstanbul ẞß ﬁne ① 𝔘𝔫𝔦 \u200b\u200d\ufeff \x00\x05 \ufffd",
    "博推 zz 他说：“你好”。ひらがな 한국어 ภาษาไทย हिन्दी العربية 👩‍👩‍👧",
    "x" * 150 + " " + "." * 300,
    "word\u2028line\u0085sep\u00a0nbsp\r\ntab\tend ",
    "##ing ▁under Ġspace <s> [unk]",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_documents: Path) -> Callable[[Kind, bool], Path]:
    """Folders of tokenizers trained on a few hundred words, made once each."""
    root = tmp_path_factory.mktemp("trained")

    def folder(kind: Kind, lowercase: bool) -> Path:
        out = root / f"{kind}-{lowercase}"
        if not out.exists():
            train_tokenizer([str(tiny_documents)], out, kind=kind, vocab_size=400, lowercase=lowercase)
        return out

    return folder


def write_vocab(path: Path, tokens: list[str]) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    return path


# Google's cases


def google_cases(shared_data: Path, kind: str) -> list[dict[str, Any]]:
    path = shared_data / "tokenization" / "google-bert-cases.json"
    cases = [case for case in json.loads(path.read_text(encoding="utf-8"))["cases"] if case["kind"] == kind]
    assert cases
    return cases


def test_google_full_cases(shared_data: Path, tmp_path: Path) -> None:
    for case in google_cases(shared_data, "full"):
        if "vocab" in case:
            tokens = [*case["vocab"], "[PAD]", "[MASK]"]
            tokenizer = load_tokenizer(write_vocab(tmp_path / "vocab.txt", tokens))
        else:
            tokenizer = load_tokenizer(shared_data / "vocab" / case["vocab_file"])
        ids = tokenizer.encode(case["text"]).ids
        assert tokenizer.tokens(ids) == case["tokens"]
        assert ids.tolist() == case.get("ids", ids.tolist())
        if "words" in case:
            _, index = tokenizer.encode_words(case["words"])
            with_cls = [1 + int(np.flatnonzero(index == word)[0]) for word in range(len(case["words"]))]
            assert with_cls == case["first_token_of_word_with_cls"]


@pytest.mark.parametrize("kind", ["basic", "wordpiece"])
def test_google_parts(shared_data: Path, tmp_path: Path, kind: str) -> None:
    for case in google_cases(shared_data, kind):
        tokens = [*SPECIAL, *(token for token in case.get("vocab", case["tokens"]) if token not in SPECIAL)]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": case.get("lower", False)}))
        tokenizer = load_tokenizer(write_vocab(tmp_path / "vocab.txt", tokens))
        assert tokenizer.tokens(tokenizer.encode(case["text"]).ids) == case["tokens"], case["text"]


@pytest.mark.parametrize(
    ("name", "size", "lowercase"),
    [("bert-base-uncased", 30522, True), ("bert-base-cased", 28996, False), ("bert-base-chinese", 21128, True)],
)
def test_published_vocabularies(shared_data: Path, name: str, size: int, lowercase: bool) -> None:
    tokenizer = load_tokenizer(shared_data / "vocab" / f"{name}-vocab.txt")
    assert (tokenizer.vocab_size, tokenizer.lowercase) == (size, lowercase)
    assert tokenizer.tokens([tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]) == [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]


# Against transformers


def assert_same_as_transformers(tokenizer: Tokenizer, folder: Path, texts: tuple[str, ...]) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == tokenizer.vocab_size
    for text in texts:
        encoded = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        ours = tokenizer.encode(text)
        assert ours.ids.tolist() == encoded["input_ids"], text
        for (start, end), (their_start, their_end) in zip(
            ours.offsets.tolist(), encoded["offset_mapping"], strict=True
        ):
            assert start >= their_start and not text[their_start:start].strip()
            assert end == their_end or all(is_mark(char) for char in text[their_end:end])


def is_mark(char: str) -> bool:
    """Of a character that begins before it, though the normalizer drops it or makes one of both."""
    return unicodedata.category(char).startswith("M") or "\u1160" <= char <= "\u11ff"


@pytest.mark.conformance
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_trained_folder_in_transformers(trained: Callable[[Kind, bool], Path], kind: Kind, lowercase: bool) -> None:
    folder = trained(kind, lowercase)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.lowercase is lowercase
    assert tokenizer.tokens(range(5)) == SPECIAL
    assert_same_as_transformers(tokenizer, folder, NASTY)


@pytest.mark.conformance
@pytest.mark.parametrize("kind", KINDS)
def test_pair_in_transformers(trained: Callable[[Kind, bool], Path], kind: Kind) -> None:
    folder = trained(kind, True)
    tokenizer = load_tokenizer(folder)
    pair = AutoTokenizer.from_pretrained(folder)("the old king", "a small cat")
    first, second = tokenizer.encode("the old king").ids.tolist(), tokenizer.encode("a small cat").ids.tolist()
    assert pair["input_ids"] == [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


@pytest.mark.conformance
def test_segments_of_a_template_outlive_saving(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """BERT's own pipeline, with segment 0 on both sides: transformers would give a BertTokenizer BERT's template."""
    load_tokenizer(tiny_tokenizer).save(tmp_path / "bert")
    load_tokenizer(tiny_tokenizer).save(tmp_path / "flat")
    parts = json.loads((tmp_path / "flat" / "tokenizer.json").read_text(encoding="utf-8"))
    for piece in parts["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 0
    (tmp_path / "flat" / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    for name, segment in (("bert", 1), ("flat", 0)):
        tokenizer = load_tokenizer(tmp_path / name)
        assert tokenizer.second_segment == segment
        tokenizer.save(tmp_path / "copy")
        assert load_tokenizer(tmp_path / "copy").second_segment == segment
        theirs = AutoTokenizer.from_pretrained(tmp_path / "copy")("the king", "a dog")
        assert theirs["token_type_ids"][-1] == segment
        first, second = tokenizer.encode("the king").ids, tokenizer.encode("a dog").ids
        assert theirs["input_ids"] == [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]


@pytest.mark.conformance
def test_real_folder_and_its_copy_in_transformers(minilm: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    assert tokenizer.encode("a " * 400).ids.shape == (400,), "truncation and padding of the file are off"
    assert_same_as_transformers(tokenizer, minilm, NASTY)
    tokenizer.save(tmp_path, model_max_length=128)
    assert_same_as_transformers(tokenizer, tmp_path, NASTY)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 128
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(minilm / "vocab.txt").fingerprint == tokenizer.fingerprint
    assert load_tokenizer(minilm / "tokenizer.json").fingerprint == tokenizer.fingerprint


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["bert-base-cased", "bert-base-chinese"])
def test_vocab_file_saved_for_transformers(shared_data: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared_data / "vocab" / f"{name}-vocab.txt")
    tokenizer.save(tmp_path)
    assert_same_as_transformers(tokenizer, tmp_path, NASTY)
    assert load_tokenizer(tmp_path / "vocab.txt").fingerprint == tokenizer.fingerprint


@pytest.mark.conformance
def test_words_as_roberta_sees_them(published: Callable[[str], Path]) -> None:
    ours = load_tokenizer(published("roberta"))
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id) == (1, 0, 2, 3)

    model = json.loads((published("roberta") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    theirs = RobertaTokenizer(vocab=model["vocab"], merges=merges, add_prefix_space=True)
    words = ["Hello", "New York", "isn't", "naïve", "😀", ","]
    ids, index = ours.encode_words(words)
    encoded = theirs(words, is_split_into_words=True, add_special_tokens=False)
    assert ids.tolist() == encoded["input_ids"]
    assert index.tolist() == encoded.word_ids()
    text = "Hello  world, <mask> naïve"
    assert ours.mask_id not in ours.encode(text).ids
    for (start, end), starts in zip(ours.encode(text).offsets.tolist(), ours.encode(text).word_starts, strict=True):
        assert not starts or not text[start:end].startswith(" ")


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_special_tokens_of_byte_level_folders_in_transformers(
    published: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """GPT-2's own file adds none; its `ByteLevel`, which trims offsets or not, stays."""
    tokenizer = load_tokenizer(published(name))
    tokenizer.save(tmp_path)
    assert_same_as_transformers(tokenizer, tmp_path, NASTY[:-1])  # the last has a special token of RoBERTa's in it
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    first, second = tokenizer.encode("The king").ids.tolist(), tokenizer.encode(" a cat").ids.tolist()
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert theirs("The king")["input_ids"] == [cls, *first, sep]
    assert theirs("The king", " a cat")["input_ids"] == [cls, *first, *tokenizer.separator_ids, *second, sep]
    types = [part["type"] for part in _post_processors(tmp_path)]
    assert types == (["ByteLevel", "TemplateProcessing"] if name == "gpt2" else ["RobertaProcessing"])
    load_tokenizer(tmp_path).save(tmp_path / "again")
    assert _post_processors(tmp_path / "again") == _post_processors(tmp_path), "and is added once"


def test_a_template_that_uses_what_it_does_not_define_is_refused(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The library panics, with an exception that is none."""
    whole = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    part = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    whole["post_processor"] = {"type": "TemplateProcessing", "single": [part, text], "pair": [part, text]}
    whole["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ModelError, match="cannot"):
        load_tokenizer(tmp_path)


def _post_processors(folder: Path) -> list[dict[str, Any]]:
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["post_processor"]
    parts: list[dict[str, Any]] = whole.get("processors", [whole])
    return parts


def test_the_library_never_holds_more_than_a_part_of_the_texts(
    trained: Callable[[Kind, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its encodings are many times as large as ours, and a process does not give back what they took."""
    tokenizer = load_tokenizer(trained("wordpiece", False))
    texts = [f"the king {'saw the river ' * (number % 5)}{number}" for number in range(50)]
    texts[7] *= 40  # alone more than a part
    whole = tokenizer.encode_batch(texts)
    seen: list[list[str]] = []
    encode = Tokenizer._encode

    def noting(self: Tokenizer, part: list[str]) -> Any:
        seen.append(part)
        return encode(self, part)

    monkeypatch.setattr(Tokenizer, "_encode", noting)
    monkeypatch.setattr(tokenizer_module, "_ENCODED_AT_ONCE", 200)
    for ours, theirs in zip(tokenizer.encode_batch(texts), whole, strict=True):
        assert all(map(np.array_equal, astuple(ours), astuple(theirs)))
    assert [text for part in seen for text in part] == texts
    assert [texts[7]] in seen and all(sum(map(len, part)) <= 200 for part in seen if part != [texts[7]])
    assert len(seen) < 30


# Properties


@given(st.lists(st.text(max_size=60), max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_can_be_encoded(trained: Callable[[Kind, bool], Path], kind: Kind, texts: list[str]) -> None:
    tokenizer = load_tokenizer(trained(kind, False))
    encodings = tokenizer.encode_batch(texts)
    flat = tokenizer.encode_flat(texts)
    assert flat.lengths.tolist() == [len(encoding.ids) for encoding in encodings]
    assert flat.ids.tolist() == [i for encoding in encodings for i in encoding.ids.tolist()]
    assert flat.word_starts.tolist() == [i for encoding in encodings for i in encoding.word_starts.tolist()]
    for text, encoding in zip(texts, encodings, strict=True):
        assert not set(encoding.ids.tolist()) & (tokenizer.special_ids - {tokenizer.unk_id})
        assert encoding.ids.dtype == encoding.offsets.dtype == np.int32
        starts, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
        assert (0 <= starts).all() and (starts <= ends).all() and (ends <= len(text)).all()
        assert (np.diff(starts) >= 0).all()
        assert encoding.word_starts[:1].all()
        if kind == "wordpiece":
            pieces = tokenizer.tokens(encoding.ids)
            assert encoding.word_starts.tolist() == [not piece.startswith("##") for piece in pieces]
    ids, index = tokenizer.encode_words(texts)
    assert sorted(set(index.tolist())) == list(range(len(texts)))
    assert (np.diff(index) >= 0).all() and len(ids) == len(index)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_lose_nothing(trained: Callable[[Kind, bool], Path], text: str) -> None:
    tokenizer = load_tokenizer(trained("bpe", False))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.removeprefix(" ")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize(
    "text",
    ["Hu\u1ebf", "caf\u00e9 \u00e0 l\u00e0", "\ud55c\uad6d \uc11c\uc6b8", "\u0939\u093f\u0928\u094d\u0926\u0940"],
)
def test_a_word_ends_behind_its_marks(trained: Callable[[Kind, bool], Path], kind: Kind, text: str) -> None:
    """Whichever way they are written, and whether the normalizer drops, composes or keeps them."""
    tokenizer = load_tokenizer(trained(kind, True))
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, text)
        offsets = tokenizer.encode(written).offsets
        covered = {place for start, end in offsets.tolist() for place in range(start, end)}
        assert covered == {place for place, char in enumerate(written) if not char.isspace()}


def test_offsets_point_into_the_text(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    text = "  Zoë's\u00a0 CAFE\u0301s, 東京\u200b tower!"
    encoding = tokenizer.encode(text)
    for piece, (start, end) in zip(tokenizer.tokens(encoding.ids), encoding.offsets.tolist(), strict=True):
        plain = unicodedata.normalize("NFD", text[start:end].lower())
        assert piece.removeprefix("##") == "".join(char for char in plain if unicodedata.category(char) != "Mn")


@pytest.mark.parametrize("kind", KINDS)
def test_literal_special_tokens_are_text(trained: Callable[[Kind, bool], Path], kind: Kind) -> None:
    tokenizer = load_tokenizer(trained(kind, False))
    text = "the [MASK] cat [SEP][PAD] sat [MASK"
    encoding = tokenizer.encode(text)
    assert not set(encoding.ids.tolist()) & (tokenizer.special_ids - {tokenizer.unk_id})
    assert encoding.offsets[-1, 1] == len(text)
    if kind == "bpe":
        assert tokenizer.decode(encoding.ids) == text, "and not cut in two either"
    assert tokenizer.encode_flat(["a", text, "b"]).lengths.tolist() == [
        len(tokenizer.encode(part).ids) for part in ("a", text, "b")
    ]
    ids, index = tokenizer.encode_words(["[MASK]", "cat"])
    assert tokenizer.mask_id not in ids and set(index.tolist()) == {0, 1}
    wide = tokenizer.encode("［MASK］")
    assert tokenizer.mask_id not in wide.ids


@pytest.fixture
def eager(tmp_path: Path) -> Tokenizer:
    """A Unigram model with no cut before "[", which finds "[MASK]" in any text, as ALBERT's does."""
    pieces = [(name, 0.0) for name in SPECIAL] + [(char, -5.0) for char in "▁[]MASKthecat"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    backend.encode_special_tokens = True
    assert backend.encode("the [MASK]").tokens[-1] == "[MASK]", "the library alone does not keep it apart"
    backend.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


def test_literals_that_the_model_itself_would_find(eager: Tokenizer) -> None:
    text = "the [MASK] cat"
    encoding = eager.encode(text)
    pieces = zip(eager.tokens(encoding.ids), encoding.offsets.tolist(), strict=True)
    letters = [text[start:end] for piece, (start, end) in pieces if piece != "▁"]
    assert "".join(letters) == "the[MASK]cat"
    assert not set(encoding.ids.tolist()) & eager.special_ids
    flat = eager.encode_flat(["cat", text, "", "the"])
    alone = [eager.encode(part) for part in ("cat", text, "", "the")]
    assert flat.ids.tolist() == [i for part in alone for i in part.ids.tolist()]
    assert flat.word_starts.tolist() == [i for part in alone for i in part.word_starts.tolist()]
    assert flat.lengths.tolist() == [len(part.ids) for part in alone]
    ids, index = eager.encode_words(["the", "[MASK]", "", "cat"])
    assert eager.mask_id not in ids
    assert sorted(set(index.tolist())) == [0, 1, 2, 3]


def test_literals_made_by_normalization_are_text_too(eager: Tokenizer) -> None:
    text = "the ［MASK］"
    encoding = eager.encode(text)
    assert eager.tokens(encoding.ids)[-6:] == [*"[MASK]"]
    assert encoding.offsets[-6:].tolist() == [[i, i + 1] for i in range(4, 10)]


def test_words_without_a_piece_are_unknown(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    ids, index = tokenizer.encode_words(["", "unaffable", "\u200b", "New York", " "])
    assert tokenizer.tokens(ids) == ["[UNK]", "una", "##ffa", "##ble", "[UNK]", "new", "york", "[UNK]"]
    assert index.tolist() == [0, 1, 1, 1, 2, 3, 3, 4]
    nothing, no_index = tokenizer.encode_words([])
    assert len(nothing) == len(no_index) == 0


def test_lone_surrogates_keep_the_offsets(tiny_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    assert tokenizer.encode("the \ud800 cat").offsets.tolist() == [[0, 3], [6, 9]]
    assert tokenizer.encode_words(["cat", "\udfff"])[1].tolist() == [0, 1]


def test_pickle_keeps_everything(tiny_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("[MASK] cat").ids.tolist() == tokenizer.encode("[MASK] cat").ids.tolist()


def test_fingerprint_follows_what_decides_ids(tmp_path: Path, tiny_tokenizer: Path) -> None:
    vocab = (tiny_tokenizer / "vocab.txt").read_text(encoding="utf-8")
    (tmp_path / "vocab.txt").write_text(vocab, encoding="utf-8")
    same = load_tokenizer(tmp_path)
    assert same.fingerprint == load_tokenizer(tiny_tokenizer).fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(tmp_path)
    assert cased.lowercase is False and cased.fingerprint != same.fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenize_chinese_chars": false}')
    assert load_tokenizer(tmp_path).fingerprint not in (same.fingerprint, cased.fingerprint)


def test_decode_and_look_up(tiny_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer)
    ids = [tokenizer.cls_id, *tokenizer.encode("The catx").ids, tokenizer.sep_id]
    assert tokenizer.decode(ids) == "[CLS] the catx [SEP]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the catx"
    assert tokenizer.token_to_id("cat") == ids[2]
    assert tokenizer.token_to_id("no such token") is None


# Files


def test_vocab_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    tokens = [*SPECIAL, "a", "\u0085", "\u2028", "b"]
    assert load_tokenizer(write_vocab(tmp_path / "vocab.txt", tokens)).vocab_size == len(tokens)
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SPECIAL, "a", "b"]).encode() + b"\r\n")
    windows = load_tokenizer(tmp_path)
    assert windows.tokens(windows.encode("a b").ids) == ["a", "b"]


ADDED_WORDS = ["the", "king", "##s", "bert", "##smith", "e", "##1", "[", "]"]
ADDED_IDS = {"[E1]": 14, "bertsmith": 15, "New York": 16}


def write_with_added(folder: Path, written: str) -> Path:
    """A vocab.txt with tokens beside it, as transformers before and since version 4.34 wrote them."""
    folder.mkdir()
    write_vocab(folder / "vocab.txt", [*SPECIAL, *ADDED_WORDS])
    config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if written == "added_tokens.json":
        (folder / written).write_text(json.dumps(ADDED_IDS))
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E1]"]}))
    else:
        config["added_tokens_decoder"] = {
            str(token_id): {
                "content": token,
                "single_word": token == "bertsmith",
                "lstrip": False,
                "rstrip": False,
                "normalized": token_id > 14,
                "special": token_id <= 14,
            }
            for token, token_id in {**ADDED_IDS, **{name: place for place, name in enumerate(SPECIAL)}}.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.conformance
@pytest.mark.parametrize("written", ["added_tokens.json", "added_tokens_decoder"])
def test_tokens_beside_a_vocab_file_are_those_of_transformers(tmp_path: Path, written: str) -> None:
    folder = write_with_added(tmp_path / "model", written)
    tokenizer, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.vocab_size == len(theirs) == 17
    for text in ("the Bertsmith kings", "bertsmiths in new york", "New York"):
        ids = tokenizer.encode(text).ids.tolist()
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert {15, 16} & {*ids} or text == "bertsmiths in new york"
    assert 14 in tokenizer.special_ids and not {15, 16} & tokenizer.special_ids
    assert 14 not in tokenizer.encode("[E1] the king").ids, "a special token in a text is text"
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_added_tokens_that_cannot_have_their_ids_are_refused(tmp_path: Path) -> None:
    folder = write_with_added(tmp_path / "model", "added_tokens.json")
    for content, message in (
        ({"bertsmith": 20}, '"bertsmith" has the id 20, and 14 by its place'),
        ({"king": 14}, '"king" has the id 14, and 6 by its place'),
        (["bertsmith"], "must give each token its id, and is a list"),
        ({"bertsmith": "last"}, "must be whole numbers, not last"),
    ):
        (folder / "added_tokens.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match=message):
            load_tokenizer(folder)
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"14": "bertsmith"}}')
    with pytest.raises(ModelError, match="must give each id its token"):
        load_tokenizer(folder)


def test_a_vocab_file_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_vocab(tmp_path / "vocab.txt", [*SPECIAL, *ADDED_WORDS])
    for name in ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert load_tokenizer(tmp_path).encode("the kings").ids.tolist() == [5, 6, 7]
    for name in ("BertJapaneseTokenizer", "RoFormerTokenizerFast", "BertweetTokenizer"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        with pytest.raises(ModelError, match=f"tokenizer_class in tokenizer_config.json is {name}, .* tokenizer.json"):
            load_tokenizer(tmp_path)


def test_settings_beside_the_file_win(tmp_path: Path, minilm: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "cls_token": {"content": "[unused0]"}}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lowercase is False
    assert tokenizer.tokens([tokenizer.cls_id]) == ["[unused0]"]


@pytest.mark.parametrize("written", ["<end>", {"__type": "AddedToken", "content": "<end>", "lstrip": False}])
def test_one_token_for_everything(tmp_path: Path, written: Any) -> None:
    """As in GPT-2's folder, where older versions of transformers wrote the token out."""
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "<end>": 1}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": written}))
    tokenizer = load_tokenizer(tmp_path)
    assert {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id} == {1}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json or vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no such file or folder"):
        load_tokenizer("nowhere")
    with pytest.raises(ModelError, match=r"no/where.*Hugging Face Hub"):
        load_tokenizer("no/where")


def test_unusable_files_say_why(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    write_vocab(path, ["[PAD]", "[UNK]", "[CLS]", "a"])
    with pytest.raises(ModelError, match=r"vocab\.txt.*\[SEP\], \[MASK\]"):
        load_tokenizer(path)
    write_vocab(path, ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"])
    with pytest.raises(ModelError, match=r"\[UNK\]"):
        load_tokenizer(path)
    path.write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(InputError, match=r"vocab\.txt: not UTF-8.*byte 6"):
        load_tokenizer(path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json:1: not JSON"):
        load_tokenizer(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match='no "model" section'):
        load_tokenizer(path)
    added = [{"content": name} for name in SPECIAL]
    path.write_text(json.dumps({"model": {"type": "Magic"}, "added_tokens": added}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json.*not a tokenizer\.json that this version"):
        load_tokenizer(path)
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="not a JSON object"):
        load_tokenizer(tmp_path)


def test_special_token_that_the_vocabulary_lacks(tmp_path: Path, tiny_tokenizer: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "<gone>"}')
    with pytest.raises(ModelError, match="<gone>"):
        load_tokenizer(tmp_path)
