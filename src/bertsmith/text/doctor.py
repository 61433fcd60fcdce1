"""What anyone should know about a token store before a night of training is spent on it.

Everything is counted on token ids, in passes over one shard at a time. Sentences are compared by a
64-bit hash of their ids; among a billion sentences that confuses about one pair in forty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bertsmith.text.corpus import Corpus, SelectionRecord, Split, open_corpus, read_manifest
from bertsmith.text.shingles import mix
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer

_EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CHUNK_TOKENS = 1 << 20
_NUM_REPEATED = 3
_LONGEST_SEQUENCE = 512

# From these shares on, something is said.
_MANY_UNKNOWN = 0.01
_MANY_DUPLICATE_SENTENCES = 0.10
_MANY_DUPLICATE_DOCUMENTS = 0.01
_MANY_SINGLE = 0.50
_MANY_LONG = 0.01
_MANY_SHARED = 0.20
_FEW_TOKENS = 1_000_000


@dataclass(frozen=True)
class Lengths:
    """How long things are. `counts[i]` are from `edges[i]` to under `edges[i + 1]`, the last without end."""

    mean: float
    median: float
    percentile_95: float
    longest: int
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class SplitReport:
    """One split. Shares are from 0 to 1; a duplicate is a copy of an earlier one, the first not counted."""

    num_documents: int
    num_sentences: int
    num_tokens: int
    bytes_per_token: float
    tokens_per_word: float
    tokens_per_sentence: Lengths
    sentences_per_document: Lengths
    unknown_share: float  # of tokens
    unknown_text_share: float | None  # of the text's bytes, which one token can hold many of; None: nobody counted
    duplicate_sentence_share: float
    duplicate_document_share: float
    single_sentence_share: float  # of documents
    long_sentence_share: float  # of sentences, over 512 tokens
    unused_vocabulary_share: float
    unigram_entropy: float  # nats
    most_repeated: tuple[tuple[str, int], ...]  # sentences that occur more than once, and how often


@dataclass(frozen=True)
class CorpusReport:
    """Both splits, what they share, and what to think about, in sentences."""

    splits: Mapping[Split, SplitReport]
    heldout_sentences_in_train_share: float
    warnings: tuple[str, ...]
    selection: SelectionRecord | None = None  # which documents the build left out


def check_corpus(store: str | Path, *, verify: bool = False) -> CorpusReport:
    """Look at a whole store.

    Args:
        verify: also compare the SHA-256 of every file with the manifest.

    Raises:
        CorpusError: as `corpus.open_corpus`.
    """
    folder = Path(store)
    manifest = read_manifest(folder)
    train = open_corpus(folder, "train", verify=verify)
    tokenizer = load_tokenizer(train.tokenizer_path)
    hashes = {"train": sentence_hashes(train)}
    splits: dict[Split, SplitReport] = {"train": _check_split(train, hashes["train"], tokenizer)}
    shared = 0.0
    if manifest.splits["heldout"].num_documents:
        heldout = open_corpus(folder, "heldout", verify=verify)
        hashes["heldout"] = sentence_hashes(heldout)
        splits["heldout"] = _check_split(heldout, hashes["heldout"], tokenizer)
        shared = float(np.isin(hashes["heldout"], hashes["train"]).mean())
    return CorpusReport(splits, shared, tuple(_warnings(splits, shared)), manifest.selection)


def sentence_hashes(corpus: Corpus) -> np.ndarray:
    """uint64 [num_sentences], equal for sentences of equal ids.

    The sum over a sentence of a mix of id and position, modulo 2**64.
    """
    hashes = [np.zeros(0, dtype=np.uint64)]
    for tokens, lengths in _chunks(corpus):
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(len(tokens)) - np.repeat(starts, lengths)
        mixed = mix(tokens.astype(np.uint64) | (positions.astype(np.uint64) << np.uint64(32)))
        hashes.append(np.add.reduceat(mixed, starts))
    return np.concatenate(hashes)


def render(report: CorpusReport) -> RenderableType:
    """Tables for a terminal, or for a file through a rich Console."""
    table = Table("", *report.splits, title="Corpus")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, values in _rows(list(report.splits.values())):
        table.add_row(label, *values)
    parts: list[RenderableType] = [table]
    if report.selection is not None:
        parts.append(Text(report.selection.summary()))
    train = report.splits["train"]
    parts.append(_histogram("Tokens per sentence (train)", train.tokens_per_sentence))
    parts.append(_histogram("Sentences per document (train)", train.sentences_per_document))
    if train.most_repeated:
        repeated = Table("Most repeated sentences (train)", "times")
        for sentence, times in train.most_repeated:
            repeated.add_row(Text(sentence[:100]), f"{times:,}")
        parts.append(repeated)
    parts += [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    if not report.warnings:
        parts.append(Text("Nothing suspicious was found.", style="green"))
    return Group(*parts)


def _check_split(corpus: Corpus, hashes: np.ndarray, tokenizer: Tokenizer) -> SplitReport:
    counts = corpus.token_counts()
    sentence_lengths = np.diff(corpus.sentence_offsets)
    document_lengths = np.diff(corpus.document_offsets)
    order = np.arange(len(hashes)) - np.repeat(corpus.document_offsets[:-1], document_lengths)
    document_hashes = np.add.reduceat(mix(hashes ^ mix(order.astype(np.uint64))), corpus.document_offsets[:-1])
    num_ordinary = corpus.vocab_size - len(tokenizer.special_ids)
    num_used = np.count_nonzero(np.delete(counts, list(tokenizer.special_ids)))
    return SplitReport(
        num_documents=corpus.num_documents,
        num_sentences=corpus.num_sentences,
        num_tokens=corpus.num_tokens,
        bytes_per_token=corpus.text_bytes / corpus.num_tokens,
        tokens_per_word=corpus.num_tokens / corpus.num_words(),
        tokens_per_sentence=_lengths(sentence_lengths),
        sentences_per_document=_lengths(document_lengths),
        unknown_share=0.0 if tokenizer.unk_id is None else float(counts[tokenizer.unk_id] / corpus.num_tokens),
        unknown_text_share=None if corpus.unknown_bytes is None else corpus.unknown_bytes / corpus.text_bytes,
        duplicate_sentence_share=1 - len(np.unique(hashes)) / len(hashes),
        duplicate_document_share=1 - len(np.unique(document_hashes)) / len(document_hashes),
        single_sentence_share=float((document_lengths == 1).mean()),
        long_sentence_share=float((sentence_lengths > _LONGEST_SEQUENCE).mean()),
        unused_vocabulary_share=1 - num_used / max(1, num_ordinary),
        unigram_entropy=corpus.unigram_entropy,
        most_repeated=_most_repeated(corpus, hashes, tokenizer),
    )


def _most_repeated(corpus: Corpus, hashes: np.ndarray, tokenizer: Tokenizer) -> tuple[tuple[str, int], ...]:
    _, first, times = np.unique(hashes, return_index=True, return_counts=True)
    found = []
    for place in np.lexsort((first, -times))[:_NUM_REPEATED]:
        if times[place] > 1:
            start, end = corpus.sentence_offsets[first[place] : first[place] + 2].tolist()
            found.append((tokenizer.decode(corpus.tokens(start, end)), int(times[place])))
    return tuple(found)


def _warnings(splits: Mapping[Split, SplitReport], shared: float) -> Iterator[str]:
    train = splits["train"]
    if train.num_documents == 1:
        yield (
            "There is one document: next sentence prediction is impossible, since a wrong second sentence has to "
            "come from another document. Use sentence order or masked words only, or say where documents end."
        )
    elif train.single_sentence_share >= _MANY_SINGLE:
        yield (
            f"{train.single_sentence_share:.0%} of the documents have a single sentence, which no other follows: "
            "next sentence prediction will learn little. Are rows of one document read as documents?"
        )
    if "heldout" not in splits:
        yield "Nothing is held out, so training cannot be evaluated. Build with more documents or a larger share."
    elif splits["heldout"].num_documents == 1:
        yield "One document is held out: next sentence prediction cannot be evaluated on it."
    if train.num_tokens < _FEW_TOKENS:
        yield f"{train.num_tokens:,} tokens are very few to pre-train on; expect a demonstration, not a useful model."
    if train.unknown_share >= _MANY_UNKNOWN:
        yield (
            f"{train.unknown_share:.1%} of the tokens are unknown: the vocabulary does not fit this text. "
            "Train a tokenizer on it, or use another one."
        )
    elif (train.unknown_text_share or 0) >= _MANY_UNKNOWN:
        yield (
            f"{train.unknown_text_share:.1%} of the text is unknown, in few tokens: WordPiece has none for a word of "
            "more than 100 characters. Text without spaces (Thai, Lao, Khmer, Burmese) wants a tokenizer of --kind "
            "unigram."
        )
    if train.duplicate_sentence_share >= _MANY_DUPLICATE_SENTENCES:
        yield f"{train.duplicate_sentence_share:.0%} of the sentences are copies: headers, menus, licences?"
    if train.duplicate_document_share >= _MANY_DUPLICATE_DOCUMENTS:
        yield f"{train.duplicate_document_share:.0%} of the documents are copies of others. Build with --deduplicate."
    if train.long_sentence_share >= _MANY_LONG:
        yield (
            f"{train.long_sentence_share:.1%} of the sentences have over {_LONGEST_SEQUENCE} tokens: they are learnt "
            "stretch by stretch and make few pairs, and data_mode original never shows most of them. Is the language "
            "of the sentence splitter right, is this prose?"
        )
    if shared >= _MANY_SHARED:
        yield f"{shared:.0%} of the held-out sentences also occur in training: held-out results will look too good."


def _rows(splits: Sequence[SplitReport]) -> Iterator[tuple[str, list[str]]]:
    yield "documents", [f"{split.num_documents:,}" for split in splits]
    yield "sentences", [f"{split.num_sentences:,}" for split in splits]
    yield "tokens", [f"{split.num_tokens:,}" for split in splits]
    yield "bytes per token", [f"{split.bytes_per_token:.2f}" for split in splits]
    yield "tokens per word", [f"{split.tokens_per_word:.2f}" for split in splits]
    yield "tokens per sentence: mean", [f"{split.tokens_per_sentence.mean:.1f}" for split in splits]
    yield "    median", [f"{split.tokens_per_sentence.median:.0f}" for split in splits]
    yield "    95 % are under", [f"{split.tokens_per_sentence.percentile_95:.0f}" for split in splits]
    yield "    longest", [f"{split.tokens_per_sentence.longest:,}" for split in splits]
    yield "sentences per document: mean", [f"{split.sentences_per_document.mean:.1f}" for split in splits]
    yield "    median", [f"{split.sentences_per_document.median:.0f}" for split in splits]
    yield "unknown tokens", [f"{split.unknown_share:.3%}" for split in splits]
    if all(split.unknown_text_share is not None for split in splits):
        yield "unknown text (bytes)", [f"{split.unknown_text_share:.3%}" for split in splits]
    yield "duplicate sentences", [f"{split.duplicate_sentence_share:.2%}" for split in splits]
    yield "duplicate documents", [f"{split.duplicate_document_share:.2%}" for split in splits]
    yield "one-sentence documents", [f"{split.single_sentence_share:.2%}" for split in splits]
    yield "vocabulary never used", [f"{split.unused_vocabulary_share:.1%}" for split in splits]
    yield "unigram entropy (nats)", [f"{split.unigram_entropy:.3f}" for split in splits]


def _histogram(title: str, lengths: Lengths) -> Table:
    table = Table(title, "count", "share", "")
    total = sum(lengths.counts)
    for i, count in enumerate(lengths.counts):
        last = i + 1 == len(lengths.edges)
        low, high = lengths.edges[i], None if last else lengths.edges[i + 1] - 1
        label = f"{low} and more" if high is None else f"{low}" if high == low else f"{low} to {high}"
        table.add_row(label, f"{count:,}", f"{count / total:.1%}", "█" * round(40 * count / max(lengths.counts)))
    return table


def _lengths(values: np.ndarray) -> Lengths:
    counts, _ = np.histogram(values, bins=[*_EDGES, np.inf])
    median, percentile_95 = np.percentile(values, [50, 95])
    longest = int(values.max())
    return Lengths(
        float(values.mean()),
        float(median),
        float(percentile_95),
        longest,
        _EDGES,
        tuple(int(count) for count in counts),
    )


def _chunks(corpus: Corpus) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole sentences of about a million tokens: their ids [T] and their lengths [S], from one shard each."""
    offsets = corpus.sentence_offsets
    first_tokens = np.cumsum([0, *(len(shard) for shard in corpus.shards())])
    for shard, first in zip(corpus.shards(), first_tokens, strict=False):
        begin = int(np.searchsorted(offsets, first))
        stop = int(np.searchsorted(offsets, first + len(shard)))
        while begin < stop:
            end = int(np.searchsorted(offsets, offsets[begin] + _CHUNK_TOKENS, side="right")) - 1
            end = min(max(end, begin + 1), stop)
            yield shard[offsets[begin] - first : offsets[end] - first], np.diff(offsets[begin : end + 1])
            begin = end
