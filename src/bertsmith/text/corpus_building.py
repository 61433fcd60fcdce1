"""Documents to a token store: in parallel, restartable, and the same for any number of workers.

The parent reads documents in order, decides by a hash of its text on which side of the held-out
split each one falls (so copies of a document are always on the same side), and cuts both streams
into shards of about `shard_bytes`. Workers turn a shard's text into arrays; `build_shard` is a pure
function. Only as many shards as there are workers are in memory.

Where documents are left out (copies, or by filters), a pass before that decides which; see `selection.py`.

A build happens in the hidden folder `.NAME.building` beside the store. What finished there before
an interruption is used again if its text, tokenizer and options are the same.
"""

import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bertsmith.errors import CorpusError, SettingsError, did_you_mean
from bertsmith.files import atomic_folder, refuse_replacing, sealed, sha256, write_json
from bertsmith.limits import usable_cores
from bertsmith.locks import only_writer
from bertsmith.text.corpus import STORE_VERSION, Manifest, SelectionRecord, ShardRecord, Split, SplitRecord
from bertsmith.text.daft_engine import load_daft, make_on_daft
from bertsmith.text.selection import Decision, SelectionSettings, decide, describe
from bertsmith.text.sentences import language_code
from bertsmith.text.shards import ShardText, Workshop, make_in_worker, start_worker, token_dtype
from bertsmith.text.shingles import text_hash
from bertsmith.text.sources import Document, DocumentSeparator, find_sources, iter_documents
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.words import WordSegmenter, load_segmenter

Engine = Literal["processes", "daft"]

_FEWEST_TO_HOLD_OUT = 10
# Two, because the held-out side needs a second document for next sentence prediction too.
_FEWEST_HELDOUT = 2
_ALL = SelectionSettings()
_SELECTION = "selection"
_OF_A_STORE = ("manifest.json", "tokenizer", "train", "heldout")


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is; counts of finished shards."""

    num_shards: int
    num_documents: int
    num_sentences: int
    num_tokens: int
    text_bytes: int


def build_corpus(
    sources: Sequence[str],
    tokenizer: str | Path,
    out: str | Path,
    *,
    language: str = "en",
    word_segmenter: WordSegmenter = "none",
    text_column: str = "text",
    document_separator: DocumentSeparator = "file",
    delimiter: str | None = None,
    quoting: bool | None = None,
    heldout_share: float = 0.01,
    shard_bytes: int = 8 * 1024**2,
    num_workers: int | None = None,
    engine: Engine = "processes",
    overwrite: bool = False,
    selection: SelectionSettings = _ALL,
    progress: Callable[[BuildProgress], None] | None = None,
) -> Manifest:
    """Build a token store from text.

    Args:
        sources: files, folders, patterns, hub:ORG/NAME[/CONFIG][:SPLIT] or python-docs; see docs/guide.md.
        tokenizer: a tokenizer's folder, vocab.txt, tokenizer.json or Hub name; a copy is kept.
        out: the folder to write.
        language: for the sentence splitter ("en", "zh", ...).
        word_segmenter: "jieba" tells the words of Chinese text, for masking them whole; same tokens.
        text_column: where rows keep their text.
        document_separator: whether a text file is a document, or blank lines part its documents, with a sentence a
            line.
        delimiter: what parts the fields of tables: one character, or tab. By default what a first line `sep=;` says,
            else a comma in .csv and a tab in .tsv.
        quoting: whether fields of tables may stand in quotes; by default in .csv and not in .tsv.
        heldout_share: share of documents, by hash of the text, kept for evaluation. Of 10 or more different documents
            at least two are held out; never all of them.
        shard_bytes: UTF-8 bytes of text in a shard, the unit of parallel work; a worker takes some ten times as much.
        num_workers: processes; by default all cores. They are started only for a text of more than
            `shard_bytes`, by "spawn", so a script needs its `if __name__ == "__main__"`.
        engine: what makes the shards, the same ones: processes of this machine, or Daft, which with DAFT_RUNNER=ray in
            the environment uses a Ray cluster: num_workers of all machines, which must share the folder of `out`.
        overwrite: replace the store in `out`.
        selection: which documents are left out. If any may be, the sources are read twice.
        progress: called in this process after every shard.

    Raises:
        CorpusError: `out` exists, or there is no text, or a worker died.
        SettingsError: a number out of range, no such engine, segmenter or language, no Ray cluster; what `overwrite`
            may not do; another process builds this store.
        MissingExtraError: the word segmenter or the engine is not installed.
    """
    place = Path(out).resolve()
    _check_options(heldout_share, shard_bytes, num_workers, engine, language)
    _check_place(place, sources, overwrite)
    loaded = load_tokenizer(tokenizer)
    scratch = place.parent / f".{place.name}.building"
    load_segmenter(word_segmenter)  # before anything is read: it may not be installed
    workshop = Workshop(scratch, loaded.fingerprint, language, word_segmenter)
    files = find_sources(sources)
    how: dict[str, Any] = {"text_column": text_column, "document_separator": document_separator}
    how |= {"delimiter": delimiter, "quoting": quoting}
    read = partial(iter_documents, files, **how)
    with only_writer(scratch):
        try:
            loaded.save(workshop.tokenizer_folder)
            decision = _decide(read, files, selection, scratch)
            texts = (document.text for document in read())
            shards = _cut(_sides(texts if decision is None else decision.kept(texts), heldout_share), shard_bytes)
            with closing(_make(shards, workshop, loaded, shard_bytes, num_workers, engine)) as made:
                splits = _build_splits(made, workshop, loaded.vocab_size, progress)
            left_out = None if decision is None else decision.record()
            if not splits["train"].num_tokens:
                shutil.rmtree(scratch)
                raise _no_text(sources, left_out)
            manifest = _manifest(workshop, loaded, heldout_share, splits, left_out)
            _move_into_place(workshop, manifest, place, overwrite)
        except BaseException:
            if not any(scratch.glob("*/*/shard.json")) and not (scratch / _SELECTION).exists():
                shutil.rmtree(scratch, ignore_errors=True)
            raise
    return manifest


def _manifest(
    workshop: Workshop,
    tokenizer: Tokenizer,
    heldout_share: float,
    splits: dict[str, SplitRecord],
    left_out: SelectionRecord | None,
) -> Manifest:
    return Manifest(
        STORE_VERSION,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        token_dtype(tokenizer.vocab_size).name,
        workshop.language,
        heldout_share,
        splits,
        workshop.segmenter_name,
        {file.name: sha256(file) for file in sorted(workshop.tokenizer_folder.iterdir())},
        left_out,
    )


def _no_text(sources: Sequence[str], left_out: SelectionRecord | None) -> CorpusError:
    why = f" {left_out.summary()}" if left_out is not None and left_out.num_documents else ""
    return CorpusError(f"there is no text in {', '.join(sources)}: nothing to build a corpus from.{why}")


def _decide(
    read: partial[Iterator[Document]], sources: Sequence[str], selection: SelectionSettings, scratch: Path
) -> Decision | None:
    """Which documents stay; None for all of them."""
    if not selection.active_reasons:
        return None
    described = describe(sources, read.keywords)
    return decide(lambda: (document.text for document in read()), described, selection, scratch / _SELECTION)


def _build_splits(
    made: Iterable[tuple[Split, ShardRecord]],
    workshop: Workshop,
    vocab_size: int,
    progress: Callable[[BuildProgress], None] | None,
) -> dict[str, SplitRecord]:
    """Have all shards made; the records of both splits."""
    records: dict[Split, list[ShardRecord]] = {"train": [], "heldout": []}
    counts = {split: np.zeros(vocab_size, dtype=np.int64) for split in records}
    for split, record in made:
        records[split].append(record)
        tokens = np.load(workshop.folder / split / record.name / "tokens.npy", mmap_mode="r", allow_pickle=False)
        counts[split] += np.bincount(tokens, minlength=vocab_size)
        if progress is not None:
            progress(_progress([*records["train"], *records["heldout"]]))
    return {split: _split_record(records[split], counts[split]) for split in records}


def _check_options(
    heldout_share: float, shard_bytes: int, num_workers: int | None, engine: Engine, language: str
) -> None:
    language_code(language)
    if not 0 <= heldout_share < 1:
        raise SettingsError(f"heldout_share must be at least 0 and under 1, not {heldout_share}")
    if shard_bytes < 1 or (num_workers is not None and num_workers < 1):
        raise SettingsError("shard_bytes and num_workers must be at least 1")
    if engine not in get_args(Engine):
        raise SettingsError(f'engine: there is none called "{engine}". {did_you_mean(engine, get_args(Engine))}')
    if engine == "daft":
        load_daft()  # before anything is read: it may not be installed


def _check_place(place: Path, sources: Sequence[str], overwrite: bool) -> None:
    if overwrite:
        refuse_replacing(place, _OF_A_STORE, "a store", sources)
    elif place.exists():
        raise CorpusError(f"{place} already exists. Choose another folder, or replace it with --overwrite.")


def _sides(documents: Iterable[str], heldout_share: float) -> Iterator[tuple[Split, str]]:
    """Say for each document which split it belongs to; equal documents belong to the same.

    Until enough documents have fallen on the held-out side, those that came nearest are kept back,
    to be held out if the stream ends; and held-out ones wait for the first one to train on.
    """
    limit = int(heldout_share * 2**64)
    held: set[int] = set()  # hashes that fell on the held-out side, as far as they matter
    near: dict[int, list[str]] = {}
    waiting: list[str] = []
    num_documents = num_trained = 0
    for document in documents:
        num_documents += 1
        ready: list[str] = []
        rank = text_hash(document)
        if rank < limit:
            waiting.append(document)
            if len(held) < _FEWEST_HELDOUT:
                held.add(rank)
        elif limit and (len(held) + len(near) < _FEWEST_HELDOUT or rank <= max(near, default=-1)):
            near.setdefault(rank, []).append(document)
        else:
            ready = [document]
        while near and len(held) + len(near) > _FEWEST_HELDOUT:
            ready += near.pop(max(near))
        for one in ready:
            num_trained += 1
            yield "train", one
        while num_trained and waiting:
            yield "heldout", waiting.pop(0)
    last: Split = "heldout" if num_documents >= _FEWEST_TO_HOLD_OUT and num_trained else "train"
    for rank in sorted(near):
        for document in near[rank]:
            yield last, document
    for document in waiting:
        yield ("heldout" if near else "train"), document


def _cut(sided: Iterable[tuple[Split, str]], shard_bytes: int) -> Iterator[ShardText]:
    """Gather each split's documents into shards; all but the last of a split reach `shard_bytes`."""
    held: dict[Split, list[str]] = {"train": [], "heldout": []}
    sizes: dict[Split, int] = {"train": 0, "heldout": 0}
    numbers: dict[Split, int] = {"train": 0, "heldout": 0}

    def take(split: Split) -> ShardText:
        shard = ShardText(split, f"{numbers[split]:05d}", held[split], sizes[split])
        held[split], sizes[split] = [], 0
        numbers[split] += 1
        return shard

    for split, document in sided:
        held[split].append(document)
        sizes[split] += len(document.encode())
        if sizes[split] >= shard_bytes:
            yield take(split)
    for split in held:
        if held[split]:
            yield take(split)


def _make(
    shards: Iterable[ShardText],
    workshop: Workshop,
    tokenizer: Tokenizer,
    shard_bytes: int,
    num_workers: int | None,
    engine: Engine,
) -> Generator[tuple[Split, ShardRecord], None, None]:
    """Records of all shards, in order, from the engine of that name."""
    if engine == "daft":
        return make_on_daft(shards, workshop, num_workers)
    return _build_all(shards, workshop, tokenizer, shard_bytes, num_workers or usable_cores())


def _build_all(
    shards: Iterable[ShardText], workshop: Workshop, tokenizer: Tokenizer, shard_bytes: int, num_workers: int
) -> Generator[tuple[Split, ShardRecord], None, None]:
    """Records of all shards, in order. Full shards go to worker processes, remainders are made here."""
    pending: deque[tuple[Split, ShardRecord | Future[ShardRecord]]] = deque()
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        for shard in shards:
            record: ShardRecord | Future[ShardRecord] | None = workshop.finished(shard)
            if record is None and num_workers > 1 and shard.text_bytes >= shard_bytes:
                if pool is None:
                    pool = stack.enter_context(_pool(num_workers))
                record = pool.submit(make_in_worker, shard, workshop)
            pending.append((shard.split, record or workshop.make(shard, tokenizer)))
            while len(pending) > num_workers:
                yield _first(pending)
        while pending:
            yield _first(pending)


@contextmanager
def _pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _first(pending: deque[tuple[Split, ShardRecord | Future[ShardRecord]]]) -> tuple[Split, ShardRecord]:
    split, record = pending.popleft()
    try:
        return split, record if isinstance(record, ShardRecord) else record.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "a worker process died. Where memory was short, run the same command with fewer --num-workers: finished "
            'shards are kept. In a script of your own, call build_corpus under `if __name__ == "__main__":`.'
        ) from error


def _split_record(shards: Sequence[ShardRecord], counts: np.ndarray) -> SplitRecord:
    filled = tuple(shard for shard in shards if shard.num_documents)
    shares = counts[counts > 0] / max(1, counts.sum())
    return SplitRecord(
        num_documents=sum(shard.num_documents for shard in filled),
        num_sentences=sum(shard.num_sentences for shard in filled),
        num_tokens=sum(shard.num_tokens for shard in filled),
        text_bytes=sum(shard.text_bytes for shard in filled),
        unigram_entropy=float(-(shares * np.log(shares)).sum()),
        shards=filled,
    )


def _move_into_place(workshop: Workshop, manifest: Manifest, place: Path, overwrite: bool) -> None:
    """Gather what the manifest names into the store's folder, then drop the scratch folder.

    Until the store has its name the scratch folder stays whole: whatever interrupts this, the next build
    starts from the finished shards.
    """
    with atomic_folder(place, replace=overwrite) as folder:
        _link_files(workshop.tokenizer_folder, folder / "tokenizer")
        for split, record in manifest.splits.items():
            (folder / split).mkdir()
            for shard in record.shards:
                _link_files(workshop.folder / split / shard.name, folder / split / shard.name)
                (folder / split / shard.name / "shard.json").unlink()
        content = asdict(manifest)
        if manifest.selection is None:
            del content["selection"]  # a store that nothing was left out of has the bytes that it always had
        write_json(folder / "manifest.json", sealed(content))
    shutil.rmtree(workshop.folder, ignore_errors=True)


def _link_files(source: Path, target: Path) -> None:
    """A folder with the same files under second names; with copies where the file system has no hard links."""
    target.mkdir()
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def _progress(records: Sequence[ShardRecord]) -> BuildProgress:
    return BuildProgress(
        num_shards=len(records),
        num_documents=sum(record.num_documents for record in records),
        num_sentences=sum(record.num_sentences for record in records),
        num_tokens=sum(record.num_tokens for record in records),
        text_bytes=sum(record.text_bytes for record in records),
    )
