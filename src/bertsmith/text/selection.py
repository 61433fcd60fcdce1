"""Which documents go into a store: quality filters first, then copies of earlier documents are left out.

Whether a document stays may depend on all before it, and shards are made in any order. So one pass over the text
decides it for every document before the first shard is made, and the decision is a folder that appears whole or not
at all. A second pass then reads the same text again, and sees that it is the same.

    selection/
      decision.json     what was decided about: settings, sources, versions; SHA-256 of the arrays
      hashes.npy        uint64 [D], of the documents as they were read
      reasons.npy       uint8 [D], 0 for one that stays, else the place in REASONS plus 1

In memory a document takes 17 bytes in this pass, with `deduplicate` near 33, and two or three times as much while it is
decided. Near-duplicates also take 128 bytes on the disk and 4 for each 5-gram, of up to 1,024; and those that share a
band with another document 32 bytes in memory for each shared band, of which there are 21 at the default similarity.
"""

import math
import platform
import shutil
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bertsmith.errors import CorpusError, InputError, SettingsError, did_you_mean
from bertsmith.files import atomic_file, atomic_folder, clear_leftovers, read_json, sha256, write_json
from bertsmith.settings import to_mapping
from bertsmith.text.corpus import SelectionRecord
from bertsmith.text.languages import Languages, load_languages
from bertsmith.text.near_duplicates import LEAST_SIMILARITY, NUM_HASHES, find_near_duplicates, signature, sketch
from bertsmith.text.quality import repeated_line_share, repeated_ngram_share, symbol_share
from bertsmith.text.shingles import HashedWords, text_hash

Deduplicate = Literal["none", "exact", "near"]

REASONS = (
    "too short",
    "too long",
    "symbols",
    "repeated lines",
    "repeated n-grams",
    "other languages",
    "exact duplicates",
    "near duplicates",
)
"""Why a document is left out, in the order in which it is asked; the first that applies is counted."""

# Raised when other documents would be left out, so that a build that was interrupted before decides anew.
_RULES_VERSION = 3
_ARRAYS = ("hashes", "reasons")
_EXACT, _NEAR = (REASONS.index(reason) + 1 for reason in ("exact duplicates", "near duplicates"))


@dataclass(frozen=True)
class SelectionSettings:
    """Which documents are left out; by default none is."""

    deduplicate: Deduplicate = "none"
    """Leave out copies of earlier documents. exact: the same text but for white space and Unicode's composition (NFC);
    case counts. near: also those with nearly the same 5-grams of words (of characters in Chinese), by MinHash."""
    similarity: float = 0.8
    """From which Jaccard index of their 5-grams on two documents are near-duplicates, 0.5 to 1."""
    min_characters: int | None = None
    """Leave out documents of fewer characters, without white space around them."""
    max_characters: int | None = None
    """Leave out documents of more characters, without white space around them."""
    max_symbol_share: float | None = None
    """Leave out documents with a larger share of characters that are neither letters, digits nor usual punctuation."""
    max_repeated_line_share: float | None = None
    """Leave out documents with a larger share of lines that stood there before; Gopher: 0.3."""
    max_repeated_ngram_share: float | None = None
    """Leave out documents with a larger share of characters in 5-grams that stood there before; Gopher: 0.15."""
    keep_languages: tuple[str, ...] = ()
    """Leave out documents in other languages than these (en, zh, ...; one option each), by their first 1,000
    characters. Those without letters stay."""

    def __post_init__(self) -> None:
        """Raises SettingsError for a value out of range."""
        if self.deduplicate not in get_args(Deduplicate):
            choices = did_you_mean(self.deduplicate, get_args(Deduplicate))
            raise SettingsError(f'deduplicate: there is no way called "{self.deduplicate}". {choices}')
        if not LEAST_SIMILARITY <= self.similarity <= 1:
            raise SettingsError(f"similarity must be from {LEAST_SIMILARITY} to 1, not {self.similarity}.")
        if self.deduplicate != "near" and self.similarity != type(self).similarity:
            raise SettingsError('similarity is of near copies: say deduplicate "near", or leave it out.')
        for name in ("min_characters", "max_characters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, not {value}.")
        if (self.min_characters or 0) > (self.max_characters or math.inf):
            raise SettingsError(
                f"min_characters {self.min_characters} is more than max_characters {self.max_characters}: nothing "
                "would be left."
            )
        for name in ("max_symbol_share", "max_repeated_line_share", "max_repeated_ngram_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SettingsError(f"{name} must be at least 0 and under 1, not {value}.")

    @property
    def active_reasons(self) -> Sequence[str]:
        """Those of REASONS that these settings can give."""
        filters = (
            self.min_characters,
            self.max_characters,
            self.max_symbol_share,
            self.max_repeated_line_share,
            self.max_repeated_ngram_share,
        )
        is_active = [*(value is not None for value in filters), bool(self.keep_languages)]
        is_active += [self.deduplicate != "none", self.deduplicate == "near"]
        return [reason for reason, active in zip(REASONS, is_active, strict=True) if active]


@dataclass(frozen=True)
class Decision:
    """What a pass has decided about D documents."""

    folder: Path
    settings: SelectionSettings
    hashes: np.ndarray  # uint64 [D], of the texts
    reasons: np.ndarray  # uint8 [D]

    def kept(self, documents: Iterable[str]) -> Iterator[str]:
        """Those of the same documents that stay.

        Raises:
            CorpusError: they are not the same. The decision is forgotten.
        """
        number = 0
        for number, document in enumerate(documents, start=1):
            if number > len(self.hashes) or int(self.hashes[number - 1]) != text_hash(document):
                raise self._changed(number)
            if not self.reasons[number - 1]:
                yield document
        if number < len(self.hashes):
            raise self._changed(number + 1)

    def record(self) -> SelectionRecord:
        """For the manifest."""
        counts = np.bincount(self.reasons, minlength=len(REASONS) + 1)[1:].tolist()
        counted = dict(zip(REASONS, counts, strict=True))
        removed = {reason: counted[reason] for reason in self.settings.active_reasons}
        return SelectionRecord(to_mapping(self.settings), len(self.reasons), removed)

    def _changed(self, number: int) -> CorpusError:
        shutil.rmtree(self.folder, ignore_errors=True)
        return CorpusError(
            f"document {number:,} is not what it was when it was decided which documents stay: the text changes while "
            "it is read, or has changed since a build was interrupted. Run the command again."
        )


def decide(
    read: Callable[[], Iterable[str]], sources: Sequence[str], settings: SelectionSettings, folder: Path
) -> Decision:
    """Decide which documents stay, or find it decided in `folder` by a build that was interrupted.

    Args:
        read: gives all documents, in the same order every time.
        sources: what they are read from, as the text of each depends on it: see `describe`.

    Raises:
        MissingExtraError: languages are to be told, and what does so is not installed.
        SettingsError: there is no such language.
    """
    languages = _languages(settings)
    rules = [str(_RULES_VERSION), unicodedata.unidata_version, *([languages.name] if languages is not None else [])]
    about = {
        "rules": " ".join(rules),
        "settings": to_mapping(settings),
        "sources": list(sources),
    }
    found = _finished(folder, about, settings)
    if found is not None:
        return found
    clear_leftovers(folder.parent)
    signatures, sketches = folder.with_name("signatures"), folder.with_name("sketches")
    try:
        hashes, reasons = _pass(read(), settings, signatures, sketches)
    finally:
        signatures.unlink(missing_ok=True)
        sketches.unlink(missing_ok=True)
    decision = Decision(folder, settings, hashes, reasons)
    with atomic_folder(folder, replace=True) as place:
        for name in _ARRAYS:
            np.save(place / f"{name}.npy", getattr(decision, name), allow_pickle=False)
        write_json(place / "decision.json", {**about, "sha256": _sha256(place)})
    return decision


def describe(sources: Iterable[str], reading: Mapping[str, object]) -> list[str]:
    """What tells whether sources, as `expand_sources` gives them, still hold what they held.

    Of files that is their size and time; what neither shows is seen when the text is read.

    Args:
        reading: the options that say how they are read.
    """
    described = [f"{name}: {value}" for name, value in reading.items()]
    for source in sources:
        path = Path(source)
        if path.is_file():
            status = path.stat()
            described.append(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}")
        else:
            described.append(f"{source} {platform.python_version()}")
    return described


def _finished(folder: Path, about: Mapping[str, Any], settings: SelectionSettings) -> Decision | None:
    try:
        if read_json(folder / "decision.json") != {**about, "sha256": _sha256(folder)}:
            return None
        hashes, reasons = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS)
    except (InputError, OSError, ValueError):
        return None
    return Decision(folder, settings, hashes, reasons)


def _sha256(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / f"{name}.npy") for name in _ARRAYS}


def _pass(
    documents: Iterable[str], settings: SelectionSettings, signatures: Path, sketches: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and reasons of all documents; signatures, 128 bytes a document, and sketches are written to two files."""
    hashes, normalized, reasons, signed, ends = array("Q"), array("Q"), array("B"), array("Q"), array("Q", [0])
    languages = _languages(settings)
    finds_near = settings.deduplicate == "near"
    needs_words = finds_near or settings.max_repeated_ngram_share is not None
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_file(place)) for place in (signatures, sketches) if finds_near]
        for number, document in enumerate(documents):
            words = HashedWords.of(document) if needs_words else None
            reason = _reason(document, settings, words, languages)
            hashes.append(text_hash(document))
            reasons.append(reason)
            if settings.deduplicate != "none":
                normalized.append(text_hash(" ".join(unicodedata.normalize("NFC", document).split())))
            if files and words is not None and len(words.hashes) and not reason:
                # A document without a word, all punctuation, is like no other.
                shingles = words.shingles()
                files[0].write(signature(shingles).tobytes())
                ends.append(ends[-1] + files[1].write(sketch(shingles).tobytes()) // 4)
                signed.append(number)
    found = np.frombuffer(reasons, dtype=np.uint8).copy()
    if settings.deduplicate != "none":
        _mark_exact(found, np.frombuffer(normalized, dtype=np.uint64))
    if signed:
        near = np.memmap(signatures, dtype=np.uint8, mode="r", shape=(len(signed), NUM_HASHES))
        kept = np.memmap(sketches, dtype=np.uint32, mode="r")
        rows = np.frombuffer(signed, dtype=np.uint64)
        _mark_near(found, rows, near, lambda row: kept[ends[row] : ends[row + 1]], settings.similarity)
    return np.frombuffer(hashes, dtype=np.uint64), found


def _languages(settings: SelectionSettings) -> Languages | None:
    """What tells languages apart, if that is asked for."""
    if not settings.keep_languages:
        return None
    languages = load_languages()
    languages.check(settings.keep_languages)
    return languages


def _reason(document: str, settings: SelectionSettings, words: HashedWords | None, languages: Languages | None) -> int:
    """The first reason of quality, by its place in REASONS plus 1; 0 for none. The cheapest are asked first."""
    length = len(document.strip())
    if settings.min_characters is not None and length < settings.min_characters:
        return 1
    if settings.max_characters is not None and length > settings.max_characters:
        return 2
    if settings.max_symbol_share is not None and symbol_share(document) > settings.max_symbol_share:
        return 3
    limit = settings.max_repeated_line_share
    if limit is not None and repeated_line_share(document) > limit:
        return 4
    limit = settings.max_repeated_ngram_share
    if limit is not None and words is not None and repeated_ngram_share(words) > limit:
        return 5
    is_other = languages is not None and languages.language(document) not in (None, *settings.keep_languages)
    return 6 if is_other else 0


def _mark_exact(reasons: np.ndarray, normalized: np.ndarray) -> None:
    """Give all but the first of equal texts, of those that stay so far, their reason."""
    staying = np.flatnonzero(reasons == 0)
    is_copy = np.ones(len(staying), dtype=bool)
    is_copy[np.unique(normalized[staying], return_index=True)[1]] = False  # of the first of each
    reasons[staying[is_copy]] = _EXACT


def _mark_near(
    reasons: np.ndarray,
    signed: np.ndarray,
    signatures: np.ndarray,
    sketch_of: Callable[[int], np.ndarray],
    similarity: float,
) -> None:
    """Give near-duplicates of earlier documents, of those that stay so far, their reason.

    Args:
        signed: uint64 [N], the documents whose signatures, uint8 [N, 128], and sketches are at hand.
    """
    rows = np.flatnonzero(reasons[signed] == 0)
    is_near = find_near_duplicates(signatures, rows, similarity, sketch_of)
    reasons[signed[rows[is_near]]] = _NEAR
