"""Words that are added to a tokenizer: which, with what ids, and that all else stays as it was, in transformers too."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, RobertaTokenizer

import bertsmith
from bertsmith.cli import main
from bertsmith.errors import CorpusError, ModelError, SettingsError, StorageError
from bertsmith.text.domain_words import Extension, count_cut_words, extend_tokenizer
from bertsmith.text.tokenizer import FlatEncoding, load_tokenizer
from bertsmith.text.tokenizer_training import Kind, train_tokenizer

KINDS: tuple[Kind | str, ...] = ("wordpiece", "bpe", "unigram", "roberta")
WORDS = ("cardiomyopathy", "thrombosis", "angiography", "fibrillation")
DOMAIN = (
    "The king had a cardiomyopathy, not a thrombosis. After angiography (the angiography of the day) the "
    "cardiomyopathy was seen.\nCardiomyopathy and fibrillation came. \tx2b x2b cov19 don't xyzqj\n"
)
TEXTS = (
    *DOMAIN.split("\n"),
    "cardiomyopathy",
    "Cardiomyopathy! cardiomyopathys uncardiomyopathy cardio-myopathy CARDIOMYOPATHY",
    "The old king sat by the river; a café, naïvely [stop].",
    "你好 thrombosis世界 angiography\u00a0fibrillation\u2028thrombosis",
    "",
    " \t\n",
)

Extended = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("domain") / "domain.txt"
    path.write_text(DOMAIN * 12, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, tiny_documents: Path, domain: Path) -> Extended:
    """The folders of a tokenizer, and of the same with words of the domain; made once each."""
    root = tmp_path_factory.mktemp("extended")

    def folders(kind: str) -> tuple[Path, Path]:
        old, new = root / kind, root / f"{kind}-extended"
        if not old.exists() and kind == "roberta":
            bpe = json.loads((folders("bpe")[0] / "tokenizer.json").read_text(encoding="utf-8"))["model"]
            names = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
            vocabulary = {names.get(token, token): token_id for token, token_id in bpe["vocab"].items()}
            RobertaTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in bpe["merges"]]).save_pretrained(old)
        elif not old.exists():
            train_tokenizer([str(tiny_documents)], old, kind=kind, vocab_size=420)  # type: ignore[arg-type]
        if not new.exists():
            extend_tokenizer([str(domain)], old, new, num_words=8, min_count=12)
        return old, new

    return folders


# Which words


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_words_that_save_most_tokens(extended: Extended, domain: Path, tmp_path: Path, kind: str) -> None:
    """Counted again with regular expressions, and cut by transformers."""
    old, _ = extended(kind)
    theirs = AutoTokenizer.from_pretrained(old)
    counts = Counter(re.findall(r"[a-z0-9]+", domain.read_text(encoding="utf-8").lower()))
    pieces = {word: theirs.tokenize(f"a {word}")[len(theirs.tokenize("a")) :] for word in counts}
    candidates = [word for word, count in counts.items() if word.isalpha() and count >= 12 and len(pieces[word]) >= 3]
    saved = {word: counts[word] * (len(pieces[word]) - 1) for word in candidates}
    expected = sorted(saved, key=lambda word: (-saved[word], word))
    assert len(expected) > 4 and set(WORDS) <= set(expected)

    extension = extend_tokenizer([str(domain)], old, tmp_path / "out", num_words=4, min_count=12)
    assert [word.token.strip("Ġ▁") for word in extension.words] == expected[:4]
    assert [word.num_saved for word in extension.words] == [saved[word] for word in expected[:4]]
    assert [list(word.pieces) for word in extension.words] == [pieces[word] for word in expected[:4]]
    record = json.loads((tmp_path / "out" / "extension.json").read_text(encoding="utf-8"))
    assert [word["count"] for word in record["words"]] == [counts[word] for word in expected[:4]]

    again = extend_tokenizer([str(domain)], old, tmp_path / "again", num_words=4, min_count=12)
    assert again.tokenizer.fingerprint == extension.tokenizer.fingerprint
    once = extend_tokenizer([str(domain)], old, tmp_path / "often", num_words=99, min_count=13)
    assert {counts[word.token.strip("Ġ▁")] for word in once.words} == {24, 36}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_texts_need_is_measured(extended: Extended, domain: Path, tmp_path: Path, kind: str) -> None:
    old, _ = extended(kind)
    extension = extend_tokenizer([str(domain)], old, tmp_path / "out", num_words=3, min_count=12)
    lines = domain.read_text(encoding="utf-8").splitlines()
    for folder, usage in ((old, extension.before), (tmp_path / "out", extension.after)):
        theirs = AutoTokenizer.from_pretrained(folder)
        encoded = [theirs(line.strip(), add_special_tokens=False) for line in lines]
        assert usage.num_tokens == sum(len(one["input_ids"]) for one in encoded)
        assert usage.num_words == sum(len(set(one.word_ids())) for one in encoded)
    assert extension.before.num_words == extension.after.num_words
    fewer = extension.before.num_tokens - extension.after.num_tokens
    assert fewer == sum(word.num_saved for word in extension.words) > 0
    assert extension.after.tokens_per_word < extension.before.tokens_per_word


def test_only_letters_and_known_pieces(tiny_tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("abc123 abc-def ωωω wordish don't 12345 été " * 30, encoding="utf-8")
    extension = extend_tokenizer([str(source)], tiny_tokenizer, tmp_path / "out")
    assert {word.token for word in extension.words} == {"abc", "def", "wordish", "don", "ete"}, "in normal form"


def test_marks_belong_to_letters(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("हिन्दी में लिखा है " * 30, encoding="utf-8")
    characters = sorted(set(source.read_text(encoding="utf-8")) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{char}" for char in characters)]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    extension = extend_tokenizer([str(source)], tmp_path / "vocab.txt", tmp_path / "out")
    assert "हिन्दी" in {word.token for word in extension.words} and not "हिन्दी".isalpha()


@given(
    texts=st.lists(st.lists(st.integers(0, 40), max_size=40), min_size=1, max_size=30), most_words=st.integers(2, 12)
)
def test_counts_in_bounded_memory(texts: list[list[int]], most_words: int) -> None:
    """Words of 1 to 5 tokens, the ids of which say which word it is."""

    def encodings() -> Iterator[FlatEncoding]:
        for words in texts:
            sizes = [1 + word % 5 for word in words]
            ids = np.repeat(np.array(words, dtype=np.int32), sizes)
            starts = np.concatenate([np.arange(size) == 0 for size in sizes] or [np.zeros(0, dtype=bool)])
            yield FlatEncoding(ids, starts, np.array([len(ids)]), 0)

    usage, counts, most_missed = count_cut_words(encodings(), 3, 7, most_words)
    truth = Counter(word for words in texts for word in words if word % 5 >= 2)
    found = {int(np.frombuffer(key, dtype=np.int32)[0]): count for key, count in counts.items()}
    assert all(0 <= count - found.get(word, 0) <= most_missed for word, count in truth.items())
    assert found.keys() <= truth.keys() and len(found) <= most_words
    assert usage.num_words == sum(map(len, texts))
    assert usage.num_tokens == sum(1 + word % 5 for words in texts for word in words)
    assert usage.num_unknown == 3 * sum(words.count(7) for words in texts)
    assert most_missed == 0 or len(truth) > most_words


# What becomes of them


@pytest.mark.parametrize("kind", KINDS)
def test_old_tokens_keep_their_ids(extended: Extended, kind: str) -> None:
    old_folder, new_folder = extended(kind)
    old, new = load_tokenizer(old_folder), load_tokenizer(new_folder)
    assert new.vocab_size == old.vocab_size + 8
    assert new.tokens(range(old.vocab_size)) == old.tokens(range(old.vocab_size))
    assert new.special_ids == old.special_ids and new.fingerprint != old.fingerprint
    theirs, before = AutoTokenizer.from_pretrained(new_folder), AutoTokenizer.from_pretrained(old_folder)
    assert before.get_vocab().items() <= theirs.get_vocab().items()
    assert sorted(theirs.get_vocab().values()) == list(range(new.vocab_size))


@pytest.mark.conformance
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same(extended: Extended, kind: str) -> None:
    """Ids, words and offsets, with the new words and without."""
    _, folder = extended(kind)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        found, expected = ours.encode(text), theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        assert found.ids.tolist() == expected["input_ids"], text
        words = expected.word_ids()
        assert found.word_starts.tolist() == [True, *(a != b for a, b in pairwise(words))][: len(words)], text
        for (start, end), (their_start, their_end) in zip(
            found.offsets.tolist(), expected["offset_mapping"], strict=True
        ):
            assert end == their_end and not text[their_start:start].strip(), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_is_one_token_wherever_it_stands(extended: Extended, kind: str) -> None:
    """And what is around it stays what it was: a full stop behind it does not become the beginning of a text."""
    old, new = (load_tokenizer(folder) for folder in extended(kind))
    text = "the cardiomyopathy, the (old) cardiomyopathy. cardiomyopathy"
    before, after = old.encode(text), new.encode(text)
    is_new = after.ids >= old.vocab_size
    assert is_new.sum() == 3 and after.word_starts[is_new].all()
    assert {text[start:end] for start, end in after.offsets[is_new].tolist()} == {"cardiomyopathy"}
    spans = [found.span() for found in re.finditer("cardiomyopathy", text)]
    inside = [any(first <= start and end <= last for first, last in spans) for start, end in before.offsets.tolist()]
    assert after.ids[~is_new].tolist() == before.ids[~np.array(inside)].tolist()
    assert new.decode(after.ids) == old.decode(before.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_stay_as_they_were(extended: Extended, tiny_documents: Path, kind: str) -> None:
    old, new = (load_tokenizer(folder) for folder in extended(kind))
    words = tuple(token.strip("Ġ▁").lower() for token in new.tokens(range(old.vocab_size, new.vocab_size)))
    for text in [*tiny_documents.read_text(encoding="utf-8").splitlines(), *TEXTS]:
        line = re.sub(r"\w+", lambda found: "" if found[0].lower().startswith(words) else found[0], text)
        assert new.encode(line).ids.tolist() == old.encode(line).ids.tolist()
        flat = new.encode_flat([line, line])
        assert flat.ids.tolist() == old.encode(line).ids.tolist() * 2


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_were_split_before(extended: Extended, kind: str) -> None:
    """As tagging needs: in running text, so with the space before them."""
    _, folder = extended(kind)
    ids, index = load_tokenizer(folder).encode_words(["the", "cardiomyopathy", ",", "thrombosis"])
    assert index.tolist().count(1) == index.tolist().count(3) == 1
    assert (ids[index == 1] >= load_tokenizer(extended(kind)[0]).vocab_size).all()


def test_the_word_behind_a_space_is_another_to_roberta(extended: Extended) -> None:
    _, folder = extended("roberta")
    tokenizer = load_tokenizer(folder)
    assert {"Cardiomyopathy", "Ġcardiomyopathy"} <= set(tokenizer.tokens(range(tokenizer.vocab_size)))
    tokens = tokenizer.tokens(tokenizer.encode("thrombosis thrombosis").ids)
    assert len(tokens) > 4 and tokens[-1] == "Ġthrombosis"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tokens_that_others_have_added_keep_their_ids(
    extended: Extended, domain: Path, tmp_path: Path, kind: str
) -> None:
    """Tokens that only the library's list knows, not the model, as a chat or a domain adds them."""
    theirs = AutoTokenizer.from_pretrained(extended(kind)[0])
    theirs.add_tokens(["<place>", "zebrafish"])
    theirs.add_tokens(["<user>"], special_tokens=True)
    theirs.save_pretrained(tmp_path / "old")
    extend_tokenizer([str(domain)], tmp_path / "old", tmp_path / "new", num_words=3, min_count=12)
    old, new = load_tokenizer(tmp_path / "old"), load_tokenizer(tmp_path / "new")
    assert new.tokens(range(old.vocab_size)) == old.tokens(range(old.vocab_size))
    assert new.special_ids == old.special_ids
    again = AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in ("the zebrafish, <place> zebrafishes <user>", "a cardiomyopathy <place>cardiomyopathy zebra"):
        assert (
            again(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            == new.encode(text).ids.tolist()
        )
    assert new.encode("<place> zebrafish").ids.tolist() == old.encode("<place> zebrafish").ids.tolist()
    assert again.convert_tokens_to_ids("<user>") == theirs.convert_tokens_to_ids("<user>")


def test_a_published_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("Echocardiography showed a dilated cardiomyopathy and thrombocytopenia.\n" * 20)
    old = load_tokenizer(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    extension = extend_tokenizer([str(source)], shared_data / "vocab" / "bert-base-uncased-vocab.txt", tmp_path / "out")
    pieces = {word.token: word.pieces for word in extension.words}
    assert pieces.keys() == {"thrombocytopenia", "cardiomyopathy", "echocardiography"}
    assert pieces["cardiomyopathy"] == ("card", "##iom", "##yo", "##pathy")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids("thrombocytopenia") == old.vocab_size == 30522
    assert theirs.tokenize("Cardiomyopathy, unaffable") == ["cardiomyopathy", ",", "una", "##ffa", "##ble"]


# What is refused, and what is said


def test_refusals(tiny_tokenizer: Path, domain: Path, tmp_path: Path) -> None:
    def extend(source: Path = domain, tokenizer: Path = tiny_tokenizer, **options: int) -> Extension:
        return extend_tokenizer([str(source)], tokenizer, tmp_path / "out", **options)

    with pytest.raises(CorpusError, match=r'"cardiomyopathy", is seen 36 times.*min_count'):
        extend(min_count=1000)
    with pytest.raises(CorpusError, match=r"none is cut into 30 pieces or more and seen 20 times. Give"):
        extend(min_pieces=30)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(CorpusError, match="no text"):
        extend(tmp_path / "empty.txt")
    for wrong in ({"num_words": 0}, {"min_count": 0}, {"min_pieces": 1}):
        with pytest.raises(SettingsError, match="at least"):
            extend(**wrong)
    assert not (tmp_path / "out").exists()
    extend(num_words=1)
    with pytest.raises(StorageError, match="already exists"):
        extend(num_words=1)


def test_other_kinds_are_refused(domain: Path, tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    vocabulary = {name: i for i, name in enumerate(names)}
    for model, message in (
        (models.WordLevel(vocabulary, unk_token="[UNK]"), "this tokenizer is WordLevel"),
        (models.BPE(vocabulary, []), "BPE that does not work on bytes"),
    ):
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ModelError, match=message):
            extend_tokenizer([str(domain)], tmp_path / "tokenizer.json", tmp_path / "out")


def test_the_command_says_what_was_added(
    tiny_tokenizer: Path, domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tokenizer", str(tiny_tokenizer), "--out", str(tmp_path / "out"), "--min-count", "12"]
    assert main(["tokenizer", "extend", str(domain), *arguments]) == 0
    shown = capsys.readouterr().out
    first, second, third, *_ = shown.splitlines()
    size = load_tokenizer(tiny_tokenizer).vocab_size
    assert re.fullmatch(rf"\d+ words added: {size} -> \d+ tokens\.", first)
    assert re.fullmatch(r"Tokens a word in these texts: \d\.\d+ -> \d\.\d+\.", second)
    assert third.startswith("  cardiomyopathy: 36 times c ##a ##r ##d") and third.endswith(", 468 tokens saved")
    assert "!" not in shown
    assert main(["tokenizer", "extend", str(domain), *arguments]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_command_warns_of_new_unknown_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """WordPiece takes the longest beginning of a word; here nothing can follow "foo"."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fo", "##o", "##obar"])
    )
    (tmp_path / "a.txt").write_text("foo " * 30 + "foobar " * 7)
    arguments = ["--tokenizer", str(tmp_path / "vocab.txt"), "--out", str(tmp_path / "out"), "--min-pieces", "2"]
    assert main(["tokenizer", "extend", str(tmp_path / "a.txt"), *arguments]) == 0
    assert "! 7 words became the unknown token" in capsys.readouterr().out


def test_it_is_part_of_the_package() -> None:
    assert bertsmith.extend_tokenizer is extend_tokenizer
