"""One shard of a token store: text in, a folder of arrays out. This is what worker processes run.

Nothing here reads sources, so a worker starts without their libraries.
"""

import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.errors import InputError
from bertsmith.files import atomic_folder, read_json, sha256, write_json
from bertsmith.text.corpus import ARRAYS, STORE_VERSION, ShardRecord, Split
from bertsmith.text.sentences import SentenceALine, split_sentences
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.words import Jieba, WordSegmenter, encode_words, load_segmenter

_SENTENCES_A_CALL = 4096
_CHARACTERS_A_CALL = 1 << 18
# Raised when `build_shard` makes other arrays of the same documents, so that a build that was interrupted before
# does not go on with the old ones.
_RULES_VERSION = 3


@dataclass(frozen=True)
class ShardText:
    """One shard's work."""

    split: Split
    name: str
    documents: Sequence[str]
    text_bytes: int


@dataclass(frozen=True)
class ShardArrays:
    """The arrays of one shard, as described in `corpus.py`; word_starts not yet packed."""

    tokens: np.ndarray  # [T] uint16 or uint32
    word_starts: np.ndarray  # [T] bool
    sentences: np.ndarray  # [S + 1] int64
    documents: np.ndarray  # [D + 1] int64
    unknown_bytes: int


def build_shard(
    documents: Sequence[str], tokenizer: Tokenizer, language: str, segmenter: Jieba | None = None
) -> ShardArrays:
    """Turn documents into arrays. Sentences and documents without any token are left out."""
    sentences: list[str] = []
    goes_on: list[bool] = []
    counts = []
    for document in documents:
        found = _sentences(document, language, tokenizer)
        sentences += [text for text, _ in found]
        goes_on += [is_joined for _, is_joined in found]
        counts.append(len(found))
    dtype = token_dtype(tokenizer.vocab_size)
    # Those that go on without a space are another tokenizer's: all in one go, and then put back in their places.
    order = np.argsort(np.array(goes_on, dtype=bool), kind="stable")
    num_apart = len(sentences) - sum(goes_on)
    calls = []
    for coder, numbers in ((tokenizer, order[:num_apart]), (tokenizer.joining, order[num_apart:])):
        for some in _calls([sentences[number] for number in numbers.tolist()]):
            call = encode_words(coder, some, segmenter)
            calls.append(replace(call, ids=call.ids.astype(dtype)))
    empty = np.zeros(0, dtype=np.int64)
    lengths = np.concatenate([empty, *(call.lengths for call in calls)])
    tokens = np.concatenate([empty.astype(dtype), *(call.ids for call in calls)])
    starts = np.concatenate([empty.astype(bool), *(call.word_starts for call in calls)])
    if any(goes_on):
        lengths, places = _reordered(lengths, np.argsort(order))
        tokens, starts = tokens[places], starts[places]
    document_of = np.repeat(np.arange(len(documents)), np.array(counts, dtype=np.int64))[lengths > 0]
    sizes = np.bincount(document_of, minlength=len(documents))
    return ShardArrays(
        tokens=tokens,
        word_starts=starts,
        sentences=_offsets(lengths[lengths > 0]),
        documents=_offsets(sizes[sizes > 0]),
        unknown_bytes=sum(call.unknown_bytes for call in calls),
    )


def _reordered(lengths: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of pieces in another order, and where their elements are, int64, if the pieces lie end to end."""
    begins = np.cumsum(lengths) - lengths
    moved = lengths[order]
    return moved, np.arange(lengths.sum()) + np.repeat(begins[order] - (np.cumsum(moved) - moved), moved)


def _calls(sentences: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of sentences for the tokenizer. Text without an end of a sentence comes in pieces of thousands of
    characters, and the tokenizer takes some hundred bytes a token for what it gives back."""
    begin = num_characters = 0
    for end, sentence in enumerate(sentences):
        if end - begin == _SENTENCES_A_CALL or num_characters > _CHARACTERS_A_CALL:
            yield sentences[begin:end]
            begin, num_characters = end, 0
        num_characters += len(sentence)
    if begin < len(sentences):
        yield sentences[begin:]


def _sentences(document: str, language: str, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Each without the white space around it, or with one space for what stands between it and the one before, where
    the vocabulary does not add it; and whether it goes on without a space, where the tokenizer would put one.

    Without its space a sentence would begin as it does in no running text ("A" for "ĠA" in byte-level vocabularies),
    and so would a Chinese one with a space that is not there ("▁他" for "他").
    """
    found: list[tuple[str, bool]] = []
    before = ""
    for part in split_sentences(document, language):
        is_apart = before[-1:].isspace() or part[0].isspace()
        if stripped := part.strip():
            text = " " + stripped if found and is_apart and tokenizer.space_before_words else stripped
            found.append((text, bool(found) and not is_apart and tokenizer.adds_space))
        before = part
    return found


@dataclass(frozen=True)
class Workshop:
    """Where shards are made, and the options that a shard depends on; goes to the workers."""

    folder: Path
    tokenizer_fingerprint: str
    language: str
    word_segmenter: WordSegmenter = "none"

    @property
    def tokenizer_folder(self) -> Path:
        """A copy of the tokenizer, for the workers and for the store."""
        return self.folder / "tokenizer"

    @property
    def segmenter_name(self) -> str:
        """With the version, since another one may find other words; "none" for none."""
        segmenter = load_segmenter(self.word_segmenter)
        return "none" if segmenter is None else segmenter.name

    def input_sha256(self, shard: ShardText) -> str:
        """SHA-256 of everything that a shard's arrays depend on."""
        options = f"{STORE_VERSION} {_RULES_VERSION} {self.tokenizer_fingerprint} {self.language} {self.segmenter_name}"
        digest = hashlib.sha256(options.encode())
        for document in shard.documents:
            content = document.encode()
            kind = "lines " if isinstance(document, SentenceALine) else ""
            digest.update(f" {kind}{len(content)} ".encode())
            digest.update(content)
        return digest.hexdigest()

    def finished(self, shard: ShardText) -> ShardRecord | None:
        """The record of a shard that an interrupted build has left, if it is the same and whole."""
        record = self.whole(shard.split, shard.name)
        return record if record is not None and record.input_sha256 == self.input_sha256(shard) else None

    def whole(self, split: Split, name: str) -> ShardRecord | None:
        """The record of the shard of that name, of whatever text, if all its files are there."""
        folder = self.folder / split / name
        try:
            record = ShardRecord(**read_json(folder / "shard.json"))
            sizes = {array: (folder / f"{array}.npy").stat().st_size for array in ARRAYS}
        except (InputError, TypeError, OSError):
            return None
        return record if sizes == record.sizes else None

    def make(self, shard: ShardText, tokenizer: Tokenizer) -> ShardRecord:
        """Build a shard and write its folder."""
        arrays = build_shard(shard.documents, tokenizer, self.language, load_segmenter(self.word_segmenter))
        columns = {**vars(arrays), "word_starts": np.packbits(arrays.word_starts)}
        with atomic_folder(self.folder / shard.split / shard.name, replace=True) as folder:
            for array in ARRAYS:
                # Through memory: numpy's own writing to a file loses the reason when the disk is full.
                content = io.BytesIO()
                np.save(content, columns[array], allow_pickle=False)
                (folder / f"{array}.npy").write_bytes(content.getbuffer())
            record = ShardRecord(
                name=shard.name,
                input_sha256=self.input_sha256(shard),
                num_documents=len(arrays.documents) - 1,
                num_sentences=len(arrays.sentences) - 1,
                num_tokens=len(arrays.tokens),
                text_bytes=shard.text_bytes,
                sizes={array: (folder / f"{array}.npy").stat().st_size for array in ARRAYS},
                sha256={array: sha256(folder / f"{array}.npy") for array in ARRAYS},
                unknown_bytes=arrays.unknown_bytes,
            )
            write_json(folder / "shard.json", asdict(record))
        return record


def start_worker() -> None:
    """Set up a worker process: one thread, deaf to Ctrl-C, and gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """A killed parent cannot tell its workers to stop; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(maxsize=1)
def _worker_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def make_in_worker(shard: ShardText, workshop: Workshop) -> ShardRecord:
    """`Workshop.make` with a tokenizer that each worker loads once."""
    return workshop.make(shard, _worker_tokenizer(workshop.tokenizer_folder))


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds all ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """int64 [n + 1], from 0 to the sum."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
