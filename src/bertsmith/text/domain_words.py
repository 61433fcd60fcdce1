"""Words of a domain for a tokenizer that cuts them to pieces: those that save the most tokens, at the end of its ids.

A new word becomes an entry of the tokenizer's own model, for three kinds of it:

- WordPiece: a piece that begins words. Longer words that begin with it are cut anew behind it.
- Byte-level BPE: a whole word that is looked up before anything is merged (`ignore_merges`); no other word
  changes. The word behind a space and the one that begins a text are two entries, as they are two words to BPE.
- Unigram: a piece with the score of its rarest old piece, which is more than theirs taken together.

None is an `AddedToken` of the library, which would cut the text before words are told apart: what follows it
counts as the beginning of a text, and byte-level BPE reads "word," as "word ,".

Words are counted in bounded memory: of more than `_MOST_WORDS` different ones the half seen least is forgotten.
A word that comes back after that is counted from 0, so a count may be too low, never too high; by how much at most
is known (the idea of lossy counting, Manku & Motwani 2002).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders

from bertsmith.errors import CorpusError, ModelError, SettingsError
from bertsmith.files import atomic_folder, refuse_replacing, write_json
from bertsmith.text.definition import OF_A_TOKENIZER, read_definition
from bertsmith.text.sources import Document, DocumentSeparator, find_sources, iter_documents
from bertsmith.text.tokenizer import FlatEncoding, Tokenizer, load_tokenizer

_MOST_WORDS = 1 << 19
_MOST_PIECES = 32
"""What is cut into more is no word."""
_BATCH_CHARACTERS = 1 << 20
# A line, or what fits in a block of it up to the end of a word; or of a run without a space.
_BLOCK = re.compile(r"\S[^\n]{0,65535}(?!\S)|\S{1,65536}")


@dataclass(frozen=True)
class Usage:
    """What a tokenizer needs for a text."""

    num_words: int
    num_tokens: int
    num_unknown: int

    @property
    def tokens_per_word(self) -> float:
        """1 where no word is cut."""
        return self.num_tokens / max(1, self.num_words)


@dataclass(frozen=True)
class AddedWord:
    """A new token: as the vocabulary writes it, how often it was counted, and the pieces it was cut into before."""

    token: str
    count: int
    pieces: tuple[str, ...]

    @property
    def num_saved(self) -> int:
        """How many tokens fewer the text has."""
        return self.count * (len(self.pieces) - 1)


@dataclass(frozen=True)
class Extension:
    """A tokenizer with its new words, in the order of their ids, and what it needs for the sources.

    `most_missed` is how often at most a word may have been seen beyond its count.
    """

    tokenizer: Tokenizer
    words: tuple[AddedWord, ...]
    before: Usage
    after: Usage
    most_missed: int


def extend_tokenizer(
    sources: Sequence[str],
    tokenizer: str | Path,
    out: str | Path,
    *,
    num_words: int = 500,
    min_count: int = 20,
    min_pieces: int = 3,
    text_column: str = "text",
    document_separator: DocumentSeparator = "file",
    delimiter: str | None = None,
    quoting: bool | None = None,
    overwrite: bool = False,
) -> Extension:
    """Add the words of a domain to a tokenizer, and save it as a folder that transformers loads.

    The ids of the tokens there are do not change, so `pretrain --from` can go on from a model with the old
    tokenizer. The sources are read twice: to count, and to measure. The words are listed in `extension.json`.

    Args:
        sources: files, folders, patterns, hub:ORG/NAME[/CONFIG][:SPLIT] or python-docs; see docs/guide.md.
        tokenizer: WordPiece, byte-level BPE or Unigram: a folder, vocab.txt, tokenizer.json or Hub name.
        out: the folder to write.
        num_words: how many words to add at most: those that save the most tokens.
        min_count: how often a word must occur.
        min_pieces: how many pieces it must be cut into. Words are of letters alone, in the tokenizer's own
            spelling (lower-cased, without accents), and none of the pieces may be the unknown token.
        text_column: where rows keep their text.
        document_separator: whether a text file is a document, or blank lines part its documents.
        delimiter: what parts the fields of tables: one character, or tab. By default what a first line `sep=;` says,
            else a comma in .csv and a tab in .tsv.
        quoting: whether fields of tables may stand in quotes; by default in .csv and not in .tsv.
        overwrite: replace what is in `out`.

    Raises:
        SettingsError: a number is out of range; `overwrite` would remove what is no tokenizer, or is read.
        ModelError: no tokenizer, or one of another kind.
        CorpusError: the sources have no text, or no such word.
        StorageError: `out` exists and `overwrite` is false.
    """
    if num_words < 1 or min_count < 1 or min_pieces < 2:
        raise SettingsError("num_words and min_count must be at least 1, min_pieces at least 2")
    if overwrite:
        refuse_replacing(Path(out), OF_A_TOKENIZER, "a tokenizer", sources)
    old = load_tokenizer(tokenizer)
    definition, special = read_definition(tokenizer)
    parts: dict[str, Any] = json.loads(tokenizers.Tokenizer.from_str(definition).to_str())
    _check_kind(parts, tokenizer)

    files = find_sources(sources)
    how: Any = {"text_column": text_column, "document_separator": document_separator}
    how |= {"delimiter": delimiter, "quoting": quoting}

    def encodings(by: Tokenizer) -> Iterator[FlatEncoding]:
        return (by.encode_flat(texts) for texts in _batches(iter_documents(files, **how)))

    with atomic_folder(Path(out), replace=overwrite) as folder:
        before, counts, most_missed = count_cut_words(encodings(old), min_pieces, old.unk_id)
        if not before.num_words:
            raise CorpusError(f"no text to find words for a tokenizer in {', '.join(sources)}")
        found = _words(counts, old, parts)
        words = [word for word in found if word.count >= min_count][:num_words]
        if not words:
            raise _no_words(found, f"of {before.num_words:,} words in {', '.join(sources)}", min_pieces, min_count)
        extended = Tokenizer(_with_words(parts, words, old.vocab_size), special)
        extended.save(folder)
        after = _usage(encodings(extended), extended.unk_id)
        record = {
            "from": old.fingerprint,
            "min_count": min_count,
            "min_pieces": min_pieces,
            "before": asdict(before),
            "after": asdict(after),
            "most_missed": most_missed,
            "words": [asdict(word) for word in words],
        }
        write_json(folder / "extension.json", record)
    return Extension(extended, tuple(words), before, after, most_missed)


def _no_words(found: Sequence[AddedWord], of: str, min_pieces: int, min_count: int) -> CorpusError:
    most = max(found, key=lambda word: word.count, default=None)
    nearest = "" if most is None else f' The most frequent, "{most.token}", is seen {most.count} times.'
    return CorpusError(
        f"{of} none is cut into {min_pieces} pieces or more and seen {min_count} times.{nearest} Give more text, or a "
        "lower min_count or min_pieces."
    )


def count_cut_words(
    encodings: Iterator[FlatEncoding], min_pieces: int, unk_id: int | None, most_words: int = _MOST_WORDS
) -> tuple[Usage, Counter[bytes], int]:
    """Count the words of at least `min_pieces` pieces by their ids.

    Returns:
        what the text needs; the bytes of each word's ids (int32) -> how often it was counted, at most
        `most_words` and a batch's of them; how often at most a word was seen beyond that.
    """
    counts: Counter[bytes] = Counter()
    most_missed = num_words = num_tokens = num_unknown = 0
    for encoding in encodings:
        begins = np.flatnonzero(encoding.word_starts)
        sizes = np.diff(begins, append=len(encoding.ids))
        num_words += len(begins)
        num_tokens += len(encoding.ids)
        num_unknown += int(np.count_nonzero(encoding.ids == unk_id))
        cut = (sizes >= min_pieces) & (sizes <= _MOST_PIECES)
        content, width = encoding.ids.tobytes(), encoding.ids.itemsize
        spans = zip((begins[cut] * width).tolist(), (sizes[cut] * width).tolist(), strict=True)
        counts.update(content[begin : begin + size] for begin, size in spans)
        if len(counts) > most_words:
            counts = Counter(dict(counts.most_common(most_words // 2)))
            most_missed += min(counts.values())
    return Usage(num_words, num_tokens, num_unknown), counts, most_missed


def _usage(encodings: Iterator[FlatEncoding], unk_id: int | None) -> Usage:
    return count_cut_words(encodings, _MOST_PIECES + 1, unk_id)[0]


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Lines, and blocks of long ones, about a million characters at a time."""
    batch: list[str] = []
    size = 0
    for document in documents:
        for block in _BLOCK.finditer(document.text):
            batch.append(block.group())
            size += len(batch[-1])
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _check_kind(parts: dict[str, Any], where: str | Path) -> None:
    """Refuse a model that a word cannot be put into."""
    model, kind = parts["model"], parts["model"]["type"]
    is_plain = not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix")
    is_bytes = '"ByteLevel"' in json.dumps(parts["pre_tokenizer"])
    if kind not in ("WordPiece", "Unigram") and not (kind == "BPE" and is_plain and is_bytes):
        raise ModelError(
            f"{where}: words can be added to WordPiece, byte-level BPE and Unigram; this tokenizer is {kind}"
            f"{'' if kind != 'BPE' else ' that does not work on bytes'}."
        )


def _words(counts: Counter[bytes], tokenizer: Tokenizer, parts: dict[str, Any]) -> list[AddedWord]:
    """What is made of letters and has no token yet, the most saving first, ties in the order of the alphabet."""
    prefix = parts["model"].get("continuing_subword_prefix") or ""
    found = []
    for content, count in counts.items():
        ids = np.frombuffer(content, dtype=np.int32).tolist()
        pieces = tuple(tokenizer.tokens(ids))
        token = pieces[0] + "".join(piece.removeprefix(prefix) for piece in pieces[1:])
        if tokenizer.unk_id not in ids and tokenizer.token_to_id(token) is None and _is_letters(_text(token, parts)):
            found.append(AddedWord(token, count, pieces))
    return sorted(found, key=lambda word: (-word.num_saved, word.token))


def _text(token: str, parts: dict[str, Any]) -> str:
    """The characters that a token stands for, without the space before them."""
    kind = parts["model"]["type"]
    if kind == "BPE":
        return str(decoders.ByteLevel().decode([token])).removeprefix(" ")
    return token.removeprefix("▁") if kind == "Unigram" else token


def _is_letters(text: str) -> bool:
    """Letters, and the marks on them that are vowels in many scripts of India; `str.isalpha` takes no marks."""
    categories = [unicodedata.category(char)[0] for char in text]
    return bool(categories) and categories[0] == "L" and set(categories) <= {"L", "M"}


def _with_words(parts: dict[str, Any], words: Sequence[AddedWord], first_id: int) -> str:
    """The `tokenizer.json` with the words as tokens `first_id`, `first_id` + 1, ...

    The library counts the ids of tokens that its model does not know on from the model's, so those are
    written into the model as well: they keep their ids.
    """
    model, vocabulary = parts["model"], parts["model"]["vocab"]
    known = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    new = {token["content"]: token["id"] for token in parts["added_tokens"] if token["content"] not in known}
    new |= {word.token: token_id for token_id, word in enumerate(words, start=first_id)}
    if isinstance(vocabulary, list):
        scores = dict(vocabulary)
        lowest = min(scores.values())
        rarest = {word.token: min(scores[piece] for piece in word.pieces) for word in words}
        vocabulary += [[token, rarest.get(token, lowest)] for token in sorted(new, key=new.__getitem__)]
    else:
        vocabulary |= new
    if model["type"] == "BPE":
        model["ignore_merges"] = True
    return json.dumps(parts)
