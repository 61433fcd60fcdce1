"""The token store: a corpus as arrays of tokens that are memory-mapped, and read only where a sample needs them.

Where sentences and documents begin is read whole when a store is opened, 8 bytes each, since every sample is
looked up there: memory and time to open grow with their number, not with the tokens.

    STORE/
      manifest.json            versions, counts, sizes and SHA-256 of every file, itself included
      tokenizer/               the tokenizer that made it (a Hugging Face folder)
      train/00000/             one folder a shard; documents never cross shards
        tokens.npy             uint16 or uint32 [T], by the size of the vocabulary
        word_starts.npy        uint8, T bits packed (numpy.packbits), 1 on the first token of a word
        sentences.npy          int64 [S + 1], token offsets of the shard's sentences
        documents.npy          int64 [D + 1], sentence offsets of the shard's documents
      heldout/00000/           the same, for documents kept away from training

`corpus_building.py` writes it. Here it is described and read.
"""

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import numpy as np

from bertsmith.errors import BertsmithError, CorpusError, InputError, SettingsError, did_you_mean
from bertsmith.files import is_unchanged, read_json, sha256
from bertsmith.settings import from_mapping
from bertsmith.text.tokenizer import load_tokenizer

STORE_VERSION = 1
ARRAYS = ("tokens", "word_starts", "sentences", "documents")

Split = Literal["train", "heldout"]

_TOKEN_DTYPES = ("uint16", "uint32")


@dataclass(frozen=True)
class ShardRecord:
    """One shard as the manifest knows it."""

    name: str
    input_sha256: str  # of the documents, the tokenizer and the options it was made from
    num_documents: int
    num_sentences: int
    num_tokens: int
    text_bytes: int  # UTF-8, of the documents it was made from
    sizes: Mapping[str, int]  # array name -> bytes of its file
    sha256: Mapping[str, str]
    unknown_bytes: int | None = None  # of text_bytes, what became the unknown token; earlier versions did not count it


@dataclass(frozen=True)
class SplitRecord:
    """The shards of one split and their totals."""

    num_documents: int
    num_sentences: int
    num_tokens: int
    text_bytes: int
    unigram_entropy: float  # nats a token
    shards: Sequence[ShardRecord]


@dataclass(frozen=True)
class SelectionRecord:
    """Which documents were left out of a store."""

    settings: Mapping[str, Any]  # of `SelectionSettings`
    num_documents: int  # that were read
    removed: Mapping[str, int]  # reason -> documents

    def summary(self) -> str:
        """For people: how many, and how many for each reason."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.removed.items())
        return f"{sum(self.removed.values()):,} of {self.num_documents:,} documents left out: {reasons}."


@dataclass(frozen=True)
class Manifest:
    """What a store is. Two stores with the same fingerprint hold the same tokens."""

    version: int
    tokenizer_fingerprint: str
    vocab_size: int
    dtype: str
    language: str
    heldout_share: float
    splits: Mapping[str, SplitRecord]
    word_segmenter: str = "none"  # its name and version
    tokenizer_sha256: Mapping[str, str] = field(default_factory=dict)  # of each file in tokenizer/; for `verify`
    selection: SelectionRecord | None = None  # where documents may have been left out

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest: of all shards' hashes, the tokenizer and the options."""
        content = asdict(self)
        del content["tokenizer_sha256"]  # the tokenizer's own fingerprint says what it does, whatever its files
        del content["selection"]  # what is not in a store does not change it
        for split in content["splits"].values():
            for shard in split["shards"]:
                del shard["unknown_bytes"]  # follows from the others
        if self.word_segmenter == "none":
            del content["word_segmenter"]  # stores from before there was a choice keep their fingerprint
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@final
class Corpus:
    """One split of a store. Offsets count from the start of the split, over all its shards.

    Attributes:
        sentence_offsets: int64 [num_sentences + 1], the token where each sentence starts.
        document_offsets: int64 [num_documents + 1], the sentence where each document starts.
        unknown_bytes: of its text, what became the unknown token; None in a store that does not know.
        unigram_entropy: nats a token of the split's own token frequencies; the MLM loss of a model
            that knows nothing but these.
        fingerprint: of the whole store.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split) -> None:
        """Map the tokens and read the offsets of a store whose files are there; use `open_corpus`.

        Raises:
            CorpusError: a file does not hold what the manifest says.
        """
        record = manifest.splits[split]
        self.folder = folder
        self.split: Split = split
        self.num_tokens = record.num_tokens
        self.num_sentences = record.num_sentences
        self.num_documents = record.num_documents
        self.text_bytes = record.text_bytes
        unknown = [shard.unknown_bytes for shard in record.shards]
        self.unknown_bytes = None if None in unknown else sum(filter(None, unknown))
        self.unigram_entropy = record.unigram_entropy
        self.fingerprint = manifest.fingerprint
        self.language = manifest.language
        self.word_segmenter = manifest.word_segmenter
        self.vocab_size = manifest.vocab_size
        self.tokens_dtype: np.dtype[Any] = np.dtype(manifest.dtype)
        self.tokenizer_path = folder / "tokenizer"
        self.tokenizer_fingerprint = manifest.tokenizer_fingerprint

        self._tokens: list[np.ndarray] = []
        self._word_starts: list[np.ndarray] = []
        first_tokens = [0]
        sentences, documents = [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
        for shard in record.shards:
            place = folder / split / shard.name
            # A view of the plain array class: slicing a memmap object costs several times as much.
            self._tokens.append(np.asarray(_array(place / "tokens.npy", manifest.dtype, shard.num_tokens, "r")))
            num_bytes = -(-shard.num_tokens // 8)
            self._word_starts.append(np.asarray(_array(place / "word_starts.npy", "uint8", num_bytes, "r")))
            own_sentences = _offsets(place / "sentences.npy", shard.num_sentences, shard.num_tokens)
            own_documents = _offsets(place / "documents.npy", shard.num_documents, shard.num_sentences)
            sentences.append(own_sentences[1:] + sentences[-1][-1])
            documents.append(own_documents[1:] + documents[-1][-1])
            first_tokens.append(first_tokens[-1] + shard.num_tokens)
        self._first_tokens = np.array(first_tokens, dtype=np.int64)
        self.sentence_offsets: np.ndarray = np.concatenate(sentences)
        self.document_offsets: np.ndarray = np.concatenate(documents)

    def tokens(self, start: int, end: int) -> np.ndarray:
        """Tokens start to end (exclusive), both within one document: a read-only view, nothing is copied."""
        shard, first = self._shard(start, end)
        return self._tokens[shard][start - first : end - first]

    def tokens_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The tokens of P ranges end to end, copied: int64 [P] starts and ends, each as for `tokens`."""
        shards, first = self._shards(starts, ends)
        return _join(self._tokens, shards, starts - first, ends - first)

    def word_starts_of(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """bool, true on the first token of a word, for P ranges end to end as for `tokens_of`."""
        shards, first = self._shards(starts, ends)
        begins, lengths = starts - first, ends - starts
        first_bytes, end_bytes = begins // 8, (ends - first + 7) // 8
        bits = np.unpackbits(_join(self._word_starts, shards, first_bytes, end_bytes))
        num_bytes = end_bytes - first_bytes
        first_bits = 8 * (np.cumsum(num_bytes) - num_bytes) + begins % 8
        places = np.repeat(first_bits - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        is_start: np.ndarray = bits[places].view(bool)
        return is_start

    def shards(self) -> Sequence[np.ndarray]:
        """The tokens of each shard [T], in order, for passes over the whole split."""
        return tuple(self._tokens)

    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size], how often each token occurs; reads the whole split."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for tokens in self._tokens:
            counts += np.bincount(tokens, minlength=self.vocab_size)
        return counts

    def num_words(self) -> int:
        """How many words there are; reads an eighth of a byte a token."""
        return sum(int(np.bitwise_count(bits).sum()) for bits in self._word_starts)

    def _shards(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shards that hold token ranges, int64 [P], and their first tokens, int64 [P]."""
        shards = np.minimum(np.searchsorted(self._first_tokens, starts, side="right"), len(self._tokens)) - 1
        is_outside = (starts < 0) | (ends > self._first_tokens[shards + 1])
        if is_outside.any():
            self._shard(int(starts[is_outside][0]), int(ends[is_outside][0]))
        return shards, self._first_tokens[shards]

    def _shard(self, start: int, end: int) -> tuple[int, int]:
        """The shard that holds a token range, and its first token."""
        shard = bisect.bisect_right(self._first_tokens, start, hi=len(self._tokens)) - 1
        if start < 0 or shard < 0 or end > self._first_tokens[shard + 1]:
            raise IndexError(f"tokens {start} to {end} are not in one shard of {self.folder / self.split}")
        return shard, int(self._first_tokens[shard])


def open_corpus(folder: str | Path, split: Split = "train", *, verify: bool = False) -> Corpus:
    """Open one split of a store for reading.

    The size of every file is compared with the manifest; `verify` also reads all files and compares
    their SHA-256, and checks that the tokenizer folder is the one the store was made with.

    Raises:
        CorpusError: no store there, a file is missing, cut short or changed, or the split is empty.
    """
    place = Path(folder)
    if split not in get_args(Split):
        raise CorpusError(f'no split "{split}". {did_you_mean(split, get_args(Split))}')
    manifest = read_manifest(place)
    record = manifest.splits[split]
    if not record.num_documents:
        hint = "It has too few documents for a held-out split." if split == "heldout" else "Build it again."
        raise CorpusError(f"{place}: the {split} split is empty. {hint}")
    for shard in record.shards:
        for array in ARRAYS:
            _check_file(place / split / shard.name / f"{array}.npy", shard.sizes[array], shard.sha256[array], verify)
    if verify:
        try:
            tokenizer = load_tokenizer(place / "tokenizer")
        except BertsmithError as error:
            raise CorpusError(f"{place}: its tokenizer cannot be loaded: {error}") from error
        if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
            raise CorpusError(f"{place / 'tokenizer'} is not the tokenizer this store was made with. Build it again.")
        for name, digest in manifest.tokenizer_sha256.items():
            _check_hash(place / "tokenizer" / name, digest)
    return Corpus(place, manifest, split)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        CorpusError: no store there, or of a version this program does not read.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise CorpusError(f"{folder}: no corpus here (no manifest.json). Make one with `bertsmith corpus build`.")
    try:
        value = read_json(path)
    except InputError as error:
        raise CorpusError(f"{error} So it is not a manifest of a corpus. Build it again.") from error
    version = value.get("version") if isinstance(value, dict) else None
    if version != STORE_VERSION:
        raise CorpusError(f"{path}: store version {version}, this program reads {STORE_VERSION}. Build it again.")
    try:
        manifest = from_mapping(Manifest, {name: value[name] for name in value if name != "sha256"}, str(path))
        _check_manifest(manifest, str(path))
    except SettingsError as error:
        raise CorpusError(f"{error} So it is not a manifest of a corpus. Build it again.") from error
    # Stores of earlier versions have neither.
    if ("sha256" in value or "tokenizer_sha256" in value) and not is_unchanged(path, value):
        raise CorpusError(f"{path} has changed: its SHA-256 is not its own. Build the store again.")
    return manifest


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Raise SettingsError unless the numbers agree, and every name is that of something within the store."""
    if manifest.dtype not in _TOKEN_DTYPES:
        raise SettingsError(f"{where}, dtype: {manifest.dtype!r} is none of {', '.join(_TOKEN_DTYPES)}.")
    if set(manifest.splits) != set(get_args(Split)):
        raise SettingsError(f"{where}, splits: {', '.join(manifest.splits)} instead of {', '.join(get_args(Split))}.")
    if any(Path(name).name != name for name in manifest.tokenizer_sha256):
        raise SettingsError(f"{where}, tokenizer_sha256: names of files in the folder tokenizer are wanted.")
    for split, record in manifest.splits.items():
        for shard in record.shards:
            place = f"{where}, {split}, {shard.name}"
            if Path(shard.name).name != shard.name or {*shard.sizes} != {*ARRAYS} or {*shard.sha256} != {*ARRAYS}:
                raise SettingsError(f"{place}: a shard's folder and its {len(ARRAYS)} files are wanted.")
        for count in ("num_documents", "num_sentences", "num_tokens"):
            parts = [getattr(shard, count) for shard in record.shards]
            if sum(parts) != getattr(record, count) or min(parts, default=0) < 0:
                raise SettingsError(f"{where}, {split}, {count}: not the sum of the shards' numbers.")


def _check_file(path: Path, size: int, digest: str, verify: bool) -> None:
    if not path.is_file():
        raise CorpusError(f"{path} is missing. Build the store again.")
    found = path.stat().st_size
    if found != size:
        raise CorpusError(f"{path} has {found} bytes, the manifest says {size}: damaged. Build the store again.")
    if verify:
        _check_hash(path, digest)


def _check_hash(path: Path, digest: str) -> None:
    if not path.is_file() or sha256(path) != digest:
        raise CorpusError(f"{path} has changed: its SHA-256 is not the manifest's. Build the store again.")


def _join(arrays: Sequence[np.ndarray], numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Ranges of arrays with those numbers, end to end."""
    places = zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return np.concatenate([arrays[number][start:end] for number, start, end in places])


def _array(path: Path, dtype: str, length: int, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """An array of one axis.

    Raises:
        CorpusError: the file holds no such array.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise CorpusError(f"{path} is damaged ({error}). Build the store again.") from error
    if array.dtype != np.dtype(dtype) or array.shape != (length,):
        raise CorpusError(f"{path} does not hold {length} {dtype}, as the manifest says. Build the store again.")
    return array


def _offsets(path: Path, length: int, end: int) -> np.ndarray:
    """int64 [length + 1], from 0 to `end`, each at least as large as the one before."""
    offsets = _array(path, "int64", length + 1)
    if offsets[0] != 0 or offsets[-1] != end or (np.diff(offsets) < 0).any():
        raise CorpusError(f"{path} is damaged: its offsets do not rise from 0 to {end}. Build the store again.")
    return offsets
