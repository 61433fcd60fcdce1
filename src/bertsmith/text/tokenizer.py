"""Text to token ids and back: one final class around Hugging Face `tokenizers`, and loading it.

What is added to the library:

- Literal special tokens in running text stay text. A raw corpus that mentions "[MASK]" must not
  teach the model that position (huggingface/tokenizers#722), so an encoder here never gives the id
  of a special token, except the unknown token's.
- Every token knows where its word starts, for whole-word masking and tagging. A word is what the
  pre-tokenizer makes: for WordPiece a piece with its `##` pieces, as in google-research/bert.
- Offsets count code points of the given text and never include the space before a word. A combining mark that a
  normalizer drops or composes is part of the token before it, so that spans never end inside a character.
"""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import tokenizers
from tokenizers import processors

from bertsmith.errors import ModelError, is_panic
from bertsmith.files import atomic_write, write_json
from bertsmith.text.definition import SpecialTokens, lowers, pair_template, read_definition, types_in, without_space
from bertsmith.text.sentences import replace_surrogates

_LARGEST_VOCABULARY = 1 << 24  # tables are made of this size
_ENCODED_AT_ONCE = 500_000  # characters: what the library returns takes some 20 bytes for each, ours some 3


@dataclass(frozen=True)
class Encoding:
    """One text of n tokens."""

    ids: np.ndarray  # [n] int32
    offsets: np.ndarray  # [n, 2] int32, start and end in code points of the text
    word_starts: np.ndarray  # [n] bool, true on the first token of each word


@dataclass(frozen=True)
class FlatEncoding:
    """S texts laid end to end, without offsets: what a corpus keeps."""

    ids: np.ndarray  # [T] int32
    word_starts: np.ndarray  # [T] bool
    lengths: np.ndarray  # [S] int64, tokens of each text
    unknown_bytes: int  # UTF-8, of what became the unknown token


@final
class Tokenizer:
    """A trained tokenizer; safe to call from several threads, and to pickle.

    Attributes:
        vocab_size: the highest id plus one, which is the number of rows an embedding needs.
        special_ids: the ids of all special tokens, the five roles and any others.
        separator_ids: the special tokens between the two texts of a pair: one for BERT, two for RoBERTa.
        second_segment: the segment that its template gives the second text: 1 for BERT, 0 for RoBERTa.
        lowercase: whether the normalizer makes text lower-case.
        space_before_words: whether a word behind another is only itself with its space ("ĠA"), and the
            tokenizer does not add one: byte-level vocabularies as RoBERTa, GPT-2 and ModernBERT publish them.
        adds_space: whether it puts a space before each text ("▁他"), as vocabularies of SentencePiece do.
        fingerprint: SHA-256 of everything that decides the ids of a text.
    """

    def __init__(self, definition: str, special: SpecialTokens) -> None:
        """Build from the content of a `tokenizer.json`.

        Raises:
            ModelError: not a tokenizer, or a special token has no id.
        """
        try:
            self._backend: Any = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception for anything it cannot read
            raise ModelError(f"not a tokenizer.json that this version of tokenizers can read: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._special = special
        parts = json.loads(self._backend.to_str())
        kinds = types_in(parts["pre_tokenizer"])
        self.spaces_in_tokens = bool({"Metaspace", "ByteLevel"} & kinds.keys())
        self.space_before_words: bool = kinds.get("ByteLevel", {}).get("add_prefix_space") is False
        self.adds_space = without_space(parts) != parts
        self._normalizer: dict[str, Any] = parts["normalizer"] or {}

        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        missing = [name for name in special.names() if name not in vocabulary]
        if missing:
            raise ModelError(f"the vocabulary has no {', '.join(missing)}; BERT tasks need these special tokens")
        self._add_template()
        ids = {name: vocabulary[name] for name in special.names()}
        self.vocab_size: int = max(vocabulary.values()) + 1
        if self.vocab_size > _LARGEST_VOCABULARY:
            raise ModelError(f"the largest id is {self.vocab_size - 1:,}; ids below {_LARGEST_VOCABULARY:,} are read")
        self.pad_id: int = ids[special.pad]
        self.unk_id: int | None = None if special.unk is None else ids[special.unk]
        self.cls_id: int = ids[special.cls]
        self.sep_id: int = ids[special.sep]
        self.mask_id: int = ids[special.mask]
        marked = {token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special}
        self._filler_id = self.mask_id if self.unk_id is None else self.unk_id
        self.special_ids: frozenset[int] = frozenset(marked | set(ids.values()))
        self.lowercase: bool = lowers(parts["normalizer"])
        deciding = {key: parts[key] for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        canonical = json.dumps([deciding, asdict(special)], sort_keys=True, ensure_ascii=False)
        self.fingerprint: str = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

        self._is_barred = np.zeros(self.vocab_size, dtype=bool)
        self._is_barred[list(self.special_ids - {self.unk_id})] = True
        separators, self.second_segment = self._second_side()
        self.separator_ids: tuple[int, ...] = separators or (self.sep_id,)
        self._is_bert = _is_bert(parts) and (self.separator_ids, self.second_segment) == ((self.sep_id,), 1)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str, SpecialTokens]]:
        return Tokenizer, (self._backend.to_str(), self._special)

    def encode(self, text: str) -> Encoding:
        """Token ids with offsets; special tokens are never added, and "[MASK]" in the text is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """As `encode`, for many texts in one call, on all cores unless TOKENIZERS_PARALLELISM=false.

        The library gets a part of them at a time: what it returns is large, and would stay with the process.
        """
        results = []
        parts = (zip(part, self._encode(part), strict=True) for part in _parts(texts))
        for text, raw in itertools.chain.from_iterable(parts):
            ids = np.array(raw.ids, dtype=np.int32)
            if self._is_barred[ids].any():
                raw = self._blind_backend.encode(replace_surrogates(text), add_special_tokens=False)
                ids = np.array(raw.ids, dtype=np.int32)
            offsets = np.array(raw.offsets, dtype=np.int32).reshape(-1, 2)
            starts = _changes(np.array(raw.word_ids, dtype=np.int32))
            if self.spaces_in_tokens:
                _trim_spaces(text, offsets)
            if not text.isascii():
                _keep_marks(text, offsets)
            results.append(Encoding(ids, offsets, starts))
        return results

    def encode_flat(self, texts: Sequence[str]) -> FlatEncoding:
        """As `encode_batch`, laid end to end and without offsets, which cost time: for whole corpora."""
        raws = self._encode(texts)
        lengths = np.fromiter((len(raw) for raw in raws), dtype=np.int64, count=len(raws))
        total = int(lengths.sum())
        ids = np.fromiter(itertools.chain.from_iterable(raw.ids for raw in raws), dtype=np.int32, count=total)
        words = np.fromiter(itertools.chain.from_iterable(raw.word_ids for raw in raws), dtype=np.int32, count=total)
        starts = _changes(words)
        ends = np.cumsum(lengths)
        starts[(ends - lengths)[lengths > 0]] = True
        if not self._is_barred[ids].any():
            with_unknown = np.unique(np.searchsorted(ends, np.flatnonzero(ids == self.unk_id), side="right"))
            some = ((texts[place], raws[place].ids, raws[place].offsets) for place in with_unknown.tolist())
            return FlatEncoding(ids, starts, lengths, sum(self.unknown_bytes(*one) for one in some))
        pieces = [(piece.ids, piece.word_starts, piece.offsets) for piece in self.encode_batch(texts)]
        return FlatEncoding(
            np.concatenate([ids for ids, _, _ in pieces]),
            np.concatenate([flags for _, flags, _ in pieces]),
            np.array([len(ids) for ids, _, _ in pieces], dtype=np.int64),
            sum(self.unknown_bytes(text, ids, offsets) for text, (ids, _, offsets) in zip(texts, pieces, strict=True)),
        )

    def unknown_bytes(self, text: str, ids: Iterable[int], offsets: Iterable[Sequence[int]]) -> int:
        """How much of a text became the unknown token, in bytes of UTF-8: a token may stand for a word, or for more."""
        spans = (span for token_id, span in zip(ids, offsets, strict=True) if token_id == self.unk_id)
        return sum(len(replace_surrogates(text[begin:end]).encode()) for begin, end in spans)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode words that someone else has split, as tagging needs.

        Returns:
            ids, int32 [n], and word_index, int32 [n], ascending, in which every word occurs: one
            without any piece (empty, or only control characters) gets the unknown token.
        """
        if not words:
            return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)
        space = " " if self.space_before_words else ""
        spaced = [space + replace_surrogates(word) for word in words]
        raw = self._backend.encode(spaced, is_pretokenized=True, add_special_tokens=False)
        if self._is_barred[raw.ids].any():
            raw = self._blind_backend.encode(spaced, is_pretokenized=True, add_special_tokens=False)
        ids = np.array(raw.ids, dtype=np.int32)
        index = np.array(raw.word_ids, dtype=np.int32)
        silent = np.setdiff1d(np.arange(len(words), dtype=np.int32), index)
        places = np.searchsorted(index, silent)
        return np.insert(ids, places, self._filler_id), np.insert(index, places, silent)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """About the text that gives these ids; lower-cased and re-spaced as the tokenizer works."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        return text.removeprefix(" ")

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The pieces as the vocabulary writes them; an id without a piece gives the unknown token."""
        unknown = self._special.unk or ""
        return [self._backend.id_to_token(int(i)) or unknown for i in ids]

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece, or None."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def save(
        self,
        folder: Path,
        model_max_length: int = 512,
        *,
        truncation_side: Literal["left", "right"] = "right",
        has_segments: bool = True,
    ) -> None:
        """Write a folder that `transformers.AutoTokenizer` loads and that gives it the same ids, special tokens too.

        One difference is by design: transformers reads a literal "[MASK]" in a text as the special
        token, we do not.

        Args:
            model_max_length: the number of positions of the model this tokenizer goes with, in
                tokens; transformers truncates to it when asked to truncate.
            truncation_side: at which end it cuts then.
            has_segments: whether that model takes segments (token_type_ids); not all families do.
        """
        atomic_write(folder / "tokenizer.json", self._backend.to_str(pretty=True))
        named = {f"{role}_token": name for role, name in asdict(self._special).items() if name is not None}
        flags = (
            {
                "do_lower_case": self._normalizer["lowercase"],
                "tokenize_chinese_chars": self._normalizer["handle_chinese_chars"],
                "strip_accents": self._normalizer["strip_accents"],
            }
            if self._is_bert
            else {}
        )
        config = {
            "tokenizer_class": "BertTokenizer" if self._is_bert else "PreTrainedTokenizerFast",
            **flags,
            **named,
            "model_max_length": model_max_length,
            **({"truncation_side": truncation_side} if truncation_side != "right" else {}),
            "model_input_names": ["input_ids", *(["token_type_ids"] if has_segments else []), "attention_mask"],
        }
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", named)
        if self._is_bert:
            pieces = (self._backend.id_to_token(i) or "" for i in range(self.vocab_size))
            atomic_write(folder / "vocab.txt", "".join(f"{piece}\n" for piece in pieces))

    def _add_template(self) -> None:
        """Where the file adds no special tokens, as GPT-2's: transformers adds those that the file says, no others."""
        if self._backend.num_special_tokens_to_add(False):
            return
        template, own = pair_template(self._backend, self._special), self._backend.post_processor
        self._backend.post_processor = template if own is None else processors.Sequence([own, template])

    def _second_side(self) -> tuple[tuple[int, ...], int]:
        """What the tokenizer's own template puts between two texts, and the segment of the second one."""
        try:
            raw = self._backend.encode("a", "a", add_special_tokens=True)
        except BaseException as error:
            if is_panic(error):
                raise ModelError(f"the template of its post_processor cannot be used: {error}") from None
            raise
        sides = list(raw.sequence_ids)
        if 1 not in sides:
            return (), 1
        second = sides.index(1)
        between = (token_id for token_id, side in zip(raw.ids[1:second], sides[1:], strict=False) if side is None)
        return tuple(between), raw.type_ids[second]

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        clean = [replace_surrogates(text) for text in texts]
        raws: list[Any] = self._backend.encode_batch(clean, add_special_tokens=False)
        return raws

    @cached_property
    def joining(self) -> "Tokenizer":
        """The same for text that goes on another, which begins without a space."""
        if not self.adds_space:
            return self
        return Tokenizer(json.dumps(without_space(json.loads(self._backend.to_str()))), self._special)

    @cached_property
    def _blind_backend(self) -> Any:
        """For texts in which the model itself would find literal special tokens, as Unigram does.

        The same pieces with the same ids and scores, but the special ones have names that no text has.
        """
        parts = json.loads(self._backend.to_str())
        barred = np.flatnonzero(self._is_barred).tolist()
        names = {self._backend.id_to_token(i): f"\0{self.fingerprint} {i}" for i in barred}
        model = parts["model"]
        if isinstance(model["vocab"], list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        else:
            model["vocab"] = {names.get(piece, piece): token_id for piece, token_id in model["vocab"].items()}
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if not names.keys() & {*pair, "".join(pair)}]
        for token in parts["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        backend = tokenizers.Tokenizer.from_str(json.dumps({**parts, "post_processor": None}))
        backend.encode_special_tokens = True
        return backend


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load any tokenizer that has BERT's special tokens, under whatever names.

    Args:
        path: a Hugging Face folder (`tokenizer.json`, else `vocab.txt`), that of a run, a `vocab.txt` of
            WordPiece, a `tokenizer.json`, or the name of a repository on the Hub ("org/name").

    For a bare `vocab.txt`, a `tokenizer_config.json` beside it says whether text is lower-cased
    (`do_lower_case`). Without one the vocabulary is asked: it is taken as uncased when lower-casing
    would change none of its tokens, other than bracketed ones such as "[CLS]" and "<S>". That is
    right for bert-base-uncased, -cased and, as google-research/bert uses it, -chinese.

    Raises:
        ModelError: nothing of that kind there, or special tokens are missing.
        InputError: a file that is not JSON or not UTF-8.
    """
    definition, special = read_definition(path)
    try:
        return Tokenizer(definition, special)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, as many at a time as stay below `_ENCODED_AT_ONCE` characters, and at least one."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        if place > first and size + len(text) > _ENCODED_AT_ONCE:
            yield texts[first:place]
            first, size = place, 0
        size += len(text)
    yield texts[first:]


def _is_bert(parts: dict[str, Any]) -> bool:
    """Whether transformers' BertTokenizer, which rebuilds its pipeline from a few flags, is the same."""
    kinds = [(parts[key] or {}).get("type") for key in ("model", "normalizer", "pre_tokenizer")]
    return kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"] and (
        parts["normalizer"]["clean_text"],
        parts["model"]["max_input_chars_per_word"],
        parts["model"]["continuing_subword_prefix"],
    ) == (True, 100, "##")


def _changes(words: np.ndarray) -> np.ndarray:
    """bool [n], true where a value differs from the one before it, and on the first."""
    starts = np.ones(len(words), dtype=bool)
    np.not_equal(words[1:], words[:-1], out=starts[1:])
    return starts


def _keep_marks(text: str, offsets: np.ndarray) -> None:
    """Move ends past the combining marks and joined jamo that no token has, up to the next token; in place."""
    nexts = [*offsets[1:, 0].tolist(), len(text)]
    for row, (end, limit) in enumerate(zip(offsets[:, 1].tolist(), nexts, strict=False)):
        while end < limit and (unicodedata.category(text[end])[0] == "M" or "\u1160" <= text[end] <= "\u11ff"):
            end += 1
        offsets[row, 1] = end


def _trim_spaces(text: str, offsets: np.ndarray) -> None:
    """Move starts past the space that byte-level and Metaspace pieces carry; in place."""
    for row, (begin, end) in enumerate(offsets.tolist()):
        while begin < end and text[begin].isspace():
            begin += 1
        offsets[row, 0] = begin
