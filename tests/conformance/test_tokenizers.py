"""Our tokenizers against transformers' on text that breaks tokenizers, in folders from both sides.

By design we differ in two ways: special tokens written out in a text stay text, which is what
transformers does with `split_special_tokens`, and lone surrogates, which transformers refuses, are
read as U+FFFD. Google's published cases are in `tests/text/test_tokenizer.py`.
"""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertTokenizer, AutoTokenizer, RobertaTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

pytestmark = pytest.mark.conformance

NASTY = {
    "empty": "",
    "white space": " \t\n\r\n \u00a0\u2003\u3000 ",
    "spaces around": "  the  king\u00a0and\u2003his\u3000queen \n\n",
    "line ends": "one\ntwo\r\nthree\rfour\u2028five\u0085six\u000bseven\u000ceight",
    "CJK": "博推他说：“你好”。東京 tower 3號",
    "rare CJK": "\u3400\u4dbf\U00020000\U0002a6d6\uf900\U0002f800 㐀x𠀀",
    "kana": "ひらがなカタカナ ｶﾀｶﾅ ガか\u3099",
    "hangul": "한국어 조선말 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "accents composed": "The Café naïve façade Ångström Ǆungla ǅ Ĳssel Ḍ̇",
    "accents decomposed": "Cafe\u0301 nai\u0308ve A\u030angstro\u0308m e\u0301\u0327 \u0301alone",
    "folding": "İstanbul ıldız STRASSE ẞß ﬁne ﬄ ŉ Σίσυφος σας",
    "final sigma": "ΣΑΣ ὈΔΥΣΣΕΎΣ",
    "signs for letters": "20 \u212a 5 \u2126",
    "compatibility": "① ⅷ ½ x² 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ＡＢＣ　１２３ ㎏ ™ …",
    "controls": "a\x01b\x07c\x1bd\x7fe\x9ff\tg\u00adh",
    "NUL": "\x00nul\x00in\x00 the \x00middle\x00",
    "replacement": "bad \ufffd bytes\ufffd",
    "zero width": "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffmark",
    "emoji": "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 1️⃣ ☺️ ❤ 🧑🏿‍🚀",
    "special tokens": "a [MASK] b[SEP]c </s> [CLS][PAD] [UNK] <s> <mask> <pad> <unk>",
    "nearly special": "[mask] [ MASK ] [MASK [MASK]] [[MASK] </s <s > ##ing ▁under Ġspace ### ▁▁ ĠĠ",
    "full-width special": "［MASK］ [ＭＡＳＫ] ＜/s＞",
    "long words": "x" * 99 + " " + "x" * 100 + " " + "x" * 101 + " " + "supercalifragilistic" * 60,
    "long unspaced": "博" * 300 + "ก" * 300 + "." * 300,
    "mixed scripts": "abcабвαβγאבג漢字かなカナ한글ไทยहिन्दी123",
    "right to left": "السَّلامُ عليكم שָׁלוֹם abc \u202eright\u202c \u2067iso\u2069 ١٢٣",
    "Indic and Thai": "हिन्दी क्षत्रिय தமிழ் ภาษาไทย ພາສາລາວ မြန်မာ ខ្មែរ",
    "private use": "a\ue000b\uf8ffc\U000f0000d\U0010fffde",
    "unassigned": "a\u0378b\U000e0080c\ufdd0d\uffffe",
    "numbers": "3.14 1,000,000.00 -5% $9.99 1e-10 0x1F 2024-11-24 12:34:56 No.5 1st",
    "punctuation": "!!! ... --- ??!? «x» “y” ‘z’ —–‐ ^`~|<>=+ $€£ §¶ ¿¡ ·•",
    "words": "don't I'll we've U.S.A. e-mail user@example.org https://x.org/a?b=c#d C++ _under_score_",
    "math": "∀x∈ℝ: ∑ x² ≤ ∞ ⇒ ∂f/∂x ≠ 0",
    "marks first": "\u0300\u0301\u0302 \u20e3 \ufe0f \u3099",
    "tags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f \U000e0001",
}
TEXT = (
    "The old king sat by the river, and a small cat saw the blue bird. [Stop], she said: don't go (at 12.50)! "
    "Ein naïver Café-Gast; 博学之，审问之。 ひらがな と カタカナ 한국어 слово λόγος 1 2 3 4 5 6 7 8 9 0 MASK mask "
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
ROBERTA = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
ALBERT = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
UNFINDABLE = ("no pad", "<unk>", "no cls", "no sep", "no mask")  # words never hold a space

TRAINED = [f"{kind} {case}" for kind in ("wordpiece", "bpe", "unigram") for case in ("cased", "uncased")]
NAMES = [*TRAINED, "roberta", "albert cased", "albert uncased", "minilm"]


@dataclass(frozen=True)
class Both:
    """Ours and theirs from one folder, and theirs without a way to find special tokens in text."""

    ours: Tokenizer
    theirs: Any
    reference: Any

    def expected(self, text: str) -> Any:
        return self.reference(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Both]:
    """Tokenizers that we train, those that transformers makes of the same pieces and saves, and a real one."""
    root = tmp_path_factory.mktemp("tokenizers")
    source = root / "text.txt"
    source.write_text(TEXT * 60, encoding="utf-8")

    def model(name: str) -> Any:
        """The model of a trained tokenizer, whose first five pieces are the special ones."""
        return json.loads((folder(name) / "tokenizer.json").read_text(encoding="utf-8"))["model"]

    def albert(case: str, special: tuple[str, ...]) -> Any:
        pieces = [(piece, score) for piece, score in model(f"unigram {case}")["vocab"][len(special) :]]
        vocabulary = [*((name, 0.0) for name in special), *pieces]
        is_cased = case == "cased"
        roles = dict(zip(ROLES, special, strict=True))
        return AlbertTokenizer(vocab=vocabulary, do_lower_case=not is_cased, keep_accents=is_cased, **roles)

    def roberta() -> Any:
        bpe, names = model("bpe cased"), dict(zip(SPECIAL, ROBERTA, strict=True))
        vocabulary = {names.get(token, token): token_id for token, token_id in bpe["vocab"].items()}
        return RobertaTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in bpe["merges"]])

    def folder(name: str) -> Path:
        out = root / name
        kind, _, case = name.partition(" ")
        if name == "minilm":
            return request.getfixturevalue("minilm")  # type: ignore[no-any-return]
        if not out.exists():
            if kind == "roberta":
                roberta().save_pretrained(out)
            elif kind == "albert":
                albert(case, ALBERT).save_pretrained(out)
            else:
                lowercase = case == "uncased"
                trained = train_tokenizer([str(source)], out, kind=kind, vocab_size=500, lowercase=lowercase)  # type: ignore[arg-type]
                assert load_tokenizer(out).fingerprint == trained.fingerprint
        return out

    @lru_cache
    def both(name: str) -> Both:
        theirs = AutoTokenizer.from_pretrained(folder(name))
        # Unigram finds the pieces of special tokens, whatever it is told.
        reference = albert(name.split()[1], UNFINDABLE) if name.startswith("albert") else theirs
        return Both(load_tokenizer(folder(name)), theirs, reference)

    return both


def assert_agree(both: Both, text: str) -> None:
    """Ids, offsets and words of one text."""
    found, expected = both.ours.encode(text), both.expected(text)
    assert found.ids.tolist() == expected["input_ids"], text
    words = expected.word_ids()
    assert found.word_starts.tolist() == [i == 0 or word != words[i - 1] for i, word in enumerate(words)], text
    for (start, end), (their_start, their_end) in zip(found.offsets.tolist(), expected["offset_mapping"], strict=True):
        assert start >= their_start, text
        left = text[their_end:end]
        assert all(unicodedata.category(char)[0] == "M" or "\u1160" <= char <= "\u11ff" for char in left), "marks alone"
        assert end >= their_end, text
        assert not text[their_start:start].strip(), "all that a token leaves out is the space before it"
        assert not text[start:end][:1].isspace(), text


@pytest.mark.parametrize("name", NAMES)
def test_nasty_text(load: Callable[[str], Both], name: str) -> None:
    both = load(name)
    assert both.ours.vocab_size == len(both.theirs)
    for text in NASTY.values():
        assert_agree(both, text)
    flat = both.ours.encode_flat([*NASTY.values()])
    expected = [both.expected(text)["input_ids"] for text in NASTY.values()]
    assert flat.lengths.tolist() == [*map(len, expected)]
    assert flat.ids.tolist() == [token_id for ids in expected for token_id in ids]


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_text_stay_text(load: Callable[[str], Both], name: str) -> None:
    """Where transformers reads a special token, by itself or though it was told to split it, we read its letters."""
    both = load(name)
    ours = both.ours
    special_ids = ours.special_ids - {ours.unk_id}
    for role in (ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id):
        text = f"the {ours.tokens([role])[0]} king"
        assert role in both.theirs(text, add_special_tokens=False)["input_ids"]
        ids = ours.encode(text).ids.tolist()
        assert ids == both.expected(text)["input_ids"] and not special_ids & {*ids}
        words, index = ours.encode_words(text.split())
        assert not special_ids & {*words.tolist()} and {*index.tolist()} == {0, 1, 2}


def test_transformers_cannot_split_special_tokens_of_unigram(load: Callable[[str], Both]) -> None:
    """Why the reference for ALBERT is not the tokenizer itself."""
    both = load("albert cased")
    found = both.theirs("the [MASK]", add_special_tokens=False, split_special_tokens=True)
    assert both.ours.mask_id in found["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_lone_surrogates_are_replacement_characters(load: Callable[[str], Both], name: str) -> None:
    both, text = load(name), "the \ud800king\udfff sat"
    with pytest.raises(TypeError):
        both.expected(text)
    expected = both.expected("the \ufffdking\ufffd sat")["input_ids"]
    assert both.ours.encode(text).ids.tolist() == expected
    assert both.ours.encode_flat([text]).ids.tolist() == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name != "roberta"])
def test_words_that_were_split_before(load: Callable[[str], Both], name: str) -> None:
    """`is_split_into_words`; a word of which nothing is left is unknown here and missing there."""
    both = load(name)
    for text in NASTY.values():
        words = text.split()
        ids, index = both.ours.encode_words(words)
        if not words:
            assert len(ids) == len(index) == 0
            continue
        expected = both.reference(
            words, is_split_into_words=True, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        theirs = {word: [both.ours.unk_id] for word in range(len(words))}
        theirs |= {word: [] for word in expected.word_ids()}
        for token_id, word in zip(expected["input_ids"], expected.word_ids(), strict=True):
            theirs[word].append(token_id)
        assert ids.tolist() == [token_id for word in sorted(theirs) for token_id in theirs[word]], text
        assert index.tolist() == [word for word in sorted(theirs) for _ in theirs[word]], text


def test_words_for_roberta_begin_with_a_space(load: Callable[[str], Both]) -> None:
    """Its model knows nearly all words with the space before them; transformers needs to be told."""
    both = load("roberta")
    theirs = AutoTokenizer.from_pretrained(both.theirs.name_or_path, add_prefix_space=True)
    for text in NASTY.values():
        words = text.split()
        expected = theirs(words, is_split_into_words=True, add_special_tokens=False, split_special_tokens=True)
        ids, index = both.ours.encode_words(words)
        assert ids.tolist() == expected["input_ids"] and index.tolist() == expected.word_ids(), text


any_text = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.text(alphabet=st.characters(categories=("Mn", "Cf", "Cc", "Co", "Zs", "So")), max_size=6),
        st.sampled_from([word for text in NASTY.values() for word in text.split(" ") if len(word) < 30]),
        st.sampled_from([*SPECIAL, *ROBERTA, " ", "  ", "\n", "the", "##s", "▁", "Ġ", "\x00", "\ufeff"]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(text=any_text)
@settings(max_examples=150)
def test_any_text(load: Callable[[str], Both], name: str, text: str) -> None:
    assert_agree(load(name), text)


# An implementation that shares no code with ours: transformers' WordPiece in Python.

NOT_AS_IN_PYTHON = {
    "special tokens": "only a token that stands alone is special there, whatever it is told",
    "unassigned": "Python's version of Unicode decides, and what it does not know is dropped",
    "final sigma": "Python lower-cases a sigma by its place in the word",
}
NOT_AS_IN_PYTHON_CASED = {
    "accents decomposed": "composed there first, as google-research/bert does not",
    "signs for letters": "composed, too: into K and omega",
}


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-cased", "bert-base-chinese"])
def test_wordpiece_as_in_python(shared_data: Path, name: str) -> None:
    vocabulary = shared_data / "vocab" / f"{name}-vocab.txt"
    is_cased = name.endswith("-cased")
    theirs, ours = BertTokenizerLegacy(str(vocabulary), do_lower_case=not is_cased), load_tokenizer(vocabulary)
    differing = {
        key
        for key, text in NASTY.items()
        if ours.tokens(ours.encode(text).ids) != theirs.tokenize(text, split_special_tokens=True)
    }
    known = {*NOT_AS_IN_PYTHON, *(NOT_AS_IN_PYTHON_CASED if is_cased else ())}
    assert differing <= known
    assert {"special tokens", "unassigned"} <= differing
