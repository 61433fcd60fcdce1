"""What a large corpus takes to build, and whether copies that were planted in it are found.

    python benchmarks/scale.py TEXT... --out runs/scale [--size 1GB] [--shares 0.1 0.5 1] [--deduplicate near]
    python benchmarks/scale.py TEXT... --out runs/engines --shares 0.2 --engines processes daft --rounds 3

A corpus of the given size is made of the documents of the sources, cut to about 300 words, over and over. Each time
three words in ten are replaced by others of the same text, so that no two repetitions are alike by 5-grams. A share of
what is written are copies of earlier documents: exact ones, with other white space, and near ones, with one word in a
hundred replaced. Each document says its number first, so that the finished store tells which ones it holds.

`bertsmith corpus build` then runs in a process of its own over the first tenth, the first half, and all of it
(--shares). Printed are its speed and CPU time, what it removed beside what was planted, the originals that are missing,
and the most memory that it and its workers had at a time: of each process what it has alone, and its share of what
several have (Pss of Linux), looked at four times a second. Several engines build in turns, --rounds times each, and
must give the same store. Writes `scale.json`, `scale.md`, and for the last build of each size and engine
`memory-SHARE-ENGINE.csv`, of seconds and bytes. The text and the stores stay in --out until they are removed; a text
that is there is used again.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.files import atomic_file
from bertsmith.settings import read_size
from bertsmith.text.corpus import open_corpus, read_manifest
from bertsmith.text.sources import iter_documents
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

DOCUMENT_WORDS = 300
REPLACED_SHARE, NEAR_REPLACED_SHARE = 0.3, 0.01
REMEMBERED = 4096  # documents of which copies are made
SAMPLE_SECONDS = 0.25
MARK = re.compile(r"^(original|near) ([0-9]+)")
MARK_TOKENS = 24


@dataclass(frozen=True)
class Planted:
    """How many of each kind stand in a part of the text."""

    documents: int
    exact: int
    near: int
    text_bytes: int


def main() -> None:
    """Make the text, build, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="as for corpus build")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="1GB", help="of the text, in UTF-8")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.5, 1.0], help="of the text, for each build")
    parser.add_argument("--engines", choices=("processes", "daft"), nargs="+", default=["processes"], help="in turns")
    parser.add_argument("--rounds", type=int, default=1, help="how often each engine builds each part")
    parser.add_argument("--deduplicate", choices=("none", "exact", "near"), default="near")
    parser.add_argument("--exact-share", type=float, default=0.05, help="of the documents")
    parser.add_argument("--near-share", type=float, default=0.05, help="of the documents")
    parser.add_argument("--tokenizer", type=Path, help="by default one of 8,192 tokens is trained on the sources")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = arguments.tokenizer or arguments.out / "tokenizer"
    if not tokenizer.exists():
        train_tokenizer(arguments.sources, tokenizer, vocab_size=8192)
    rows = []
    for share in sorted(arguments.shares):
        text = arguments.out / f"text-{share:g}.jsonl"
        began = time.perf_counter()
        size = int(read_size(arguments.size, "size") * share)
        planted = read_planted(text) if text.exists() else write_text(text, size, arguments)
        print(f"{text}: {planted} ({time.perf_counter() - began:.0f} s)", flush=True)
        rows += [
            measure(arguments, share, text, planted, tokenizer, engine)
            for _ in range(arguments.rounds)
            for engine in arguments.engines
        ]
        prints = {
            read_manifest(arguments.out / f"store-{share:g}-{engine}").fingerprint for engine in arguments.engines
        }
        if len(prints) > 1:
            sys.exit(f"the stores of {', '.join(arguments.engines)} differ")
    report(arguments, rows)


def measure(
    arguments: argparse.Namespace, share: float, text: Path, planted: Planted, tokenizer: Path, engine: str
) -> dict[str, Any]:
    """One build, and what came of it."""
    store = arguments.out / f"store-{share:g}-{engine}"
    command = [sys.executable, "-m", "bertsmith", "corpus", "build", str(text), "--out", str(store), "--overwrite"]
    command += ["--tokenizer", str(tokenizer), "--num-workers", str(arguments.num_workers), "--engine", engine]
    began, cpu_began = time.perf_counter(), cpu_seconds()
    child = subprocess.Popen([*command, "--deduplicate", arguments.deduplicate], stderr=subprocess.DEVNULL)
    samples = []
    while child.poll() is None:
        samples.append((time.perf_counter() - began, memory_bytes(child.pid)))
        time.sleep(SAMPLE_SECONDS)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
    if child.returncode:
        sys.exit(f"corpus build ended with {child.returncode}")
    lines = [f"{at:.2f},{used}\n" for at, used in samples]
    (arguments.out / f"memory-{share:g}-{engine}.csv").write_text("seconds,bytes\n" + "".join(lines))
    selection = read_manifest(store).selection
    removed = dict(selection.removed) if selection is not None else {}
    kept = kept_marks(store)
    originals = planted.documents - planted.exact - planted.near
    print(f"{engine}: {planted.text_bytes / 1e6 / seconds:.2f} MB/s, {cpu:.0f} s of CPU time", flush=True)
    return {
        "share": share,
        "engine": engine,
        "text_bytes": planted.text_bytes,
        "documents": planted.documents,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "mb_per_second": planted.text_bytes / 1e6 / seconds,
        "peak_bytes": max((used for _, used in samples), default=0),
        "exact_planted": planted.exact,
        "exact_removed": removed.get("exact duplicates", 0),
        "exact_left": kept["exact"],
        "near_planted": planted.near,
        "near_removed": removed.get("near duplicates", 0),
        "near_left": kept["near"],
        "originals": originals,
        "originals_missing": originals - kept["original"],
    }


def write_text(path: Path, size: int, arguments: argparse.Namespace) -> Planted:
    """Write documents until there are `size` bytes of text; the same seed gives the same beginning for any size."""
    draws = np.random.default_rng(arguments.seed)
    remembered: list[tuple[str, np.ndarray]] = []
    counts = {"original": 0, "exact": 0, "near": 0}
    text_bytes = number = 0
    with atomic_file(path) as file:
        for words in repeated(arguments.sources):
            draw = draws.random()
            kind = "original"
            if len(remembered) > 10 and draw < arguments.exact_share + arguments.near_share:
                kind = "exact" if draw < arguments.exact_share else "near"
            if kind == "original":
                changed = replaced(words, REPLACED_SHARE, draws)
                text = f"original {number}. {' '.join(changed)}"
                place = len(remembered) if len(remembered) < REMEMBERED else int(draws.integers(REMEMBERED))
                remembered[place : place + 1] = [(text, changed)]
            else:
                text, changed = remembered[int(draws.integers(len(remembered)))]
                if kind == "exact":
                    text = f"\n{text.replace(' ', '  ', 3)}\n"  # its number is the original's: see kept_marks
                else:
                    text = f"near {number}. {' '.join(replaced(changed, NEAR_REPLACED_SHARE, draws))}"
            file.write(json.dumps({"text": text, "kind": kind}, ensure_ascii=False).encode() + b"\n")
            counts[kind] += 1
            number += 1
            text_bytes += len(text.encode())
            if text_bytes >= size:
                break
    return Planted(number, counts["exact"], counts["near"], text_bytes)


def read_planted(path: Path) -> Planted:
    """What `write_text` has said of a text that is there already."""
    counts = {"original": 0, "exact": 0, "near": 0}
    text_bytes = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            counts[row["kind"]] += 1
            text_bytes += len(row["text"].encode())
    return Planted(sum(counts.values()), counts["exact"], counts["near"], text_bytes)


def repeated(sources: Sequence[str]) -> Iterator[np.ndarray]:
    """Documents of about as many words each, without end; text without spaces is cut into characters."""
    while True:
        found = False
        for document in iter_documents(sources):
            words = np.array(document.text.split() if " " in document.text else list(document.text), dtype=object)
            for first in range(0, len(words) - DOCUMENT_WORDS // 2, DOCUMENT_WORDS):
                found = True
                yield words[first : first + DOCUMENT_WORDS]
        if not found:
            sys.exit(f"no document of the sources has {DOCUMENT_WORDS // 2} words")


def replaced(words: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """A copy in which some words are others of the same text."""
    changed = words.copy()
    number = max(1, round(share * len(words)))
    changed[draws.choice(len(words), size=number, replace=False)] = words[draws.integers(len(words), size=number)]
    return changed


def kept_marks(store: Path) -> dict[str, int]:
    """How many documents of each kind a store holds, by what they begin with; a second original is an exact copy."""
    counts = {"original": 0, "exact": 0, "near": 0}
    originals: set[int] = set()
    for split, record in read_manifest(store).splits.items():
        if not record.num_documents:
            continue
        corpus = open_corpus(store, "train" if split == "train" else "heldout")
        tokenizer = load_tokenizer(corpus.tokenizer_path)
        for start in corpus.sentence_offsets[corpus.document_offsets[:-1]].tolist():
            mark = MARK.match(tokenizer.decode(corpus.tokens(start, start + MARK_TOKENS)).lower())
            if mark is None:
                sys.exit(f"{store}: a document does not begin with its number. The vocabulary must have all letters.")
            kind, number = mark[1], int(mark[2])
            counts["exact" if kind == "original" and number in originals else kind] += 1
            if kind == "original":
                originals.add(number)
    return counts


def cpu_seconds() -> float:
    """Of all processes that have ended below this one: a machine that does other work shows in it less than in time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_bytes(pid: int) -> int:
    """What a process and those that it has started have in memory; 0 when it has just ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        # By every thread of its own: Daft starts its workers from others than the first.
        lists = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return 0
    found = re.search(r"^Pss:\s*([0-9]+) kB$", rollup, re.M)
    return (int(found[1]) * 1024 if found else 0) + sum(memory_bytes(int(child)) for child in " ".join(lists).split())


def report(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """On the screen, as Markdown and as JSON."""
    lines = [
        f"`--deduplicate {arguments.deduplicate}`, {arguments.num_workers} workers:",
        "",
        "| text | documents | engine | MB/s | CPU time | peak memory | exact copies gone | near copies gone "
        "| originals missing |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        exact, near = (
            f"{row[f'{kind}_planted'] - row[f'{kind}_left']:,} of {row[f'{kind}_planted']:,}"
            for kind in ("exact", "near")
        )
        lines.append(
            f"| {row['text_bytes'] / 1e6:,.0f} MB | {row['documents']:,} | {row['engine']} "
            f"| {row['mb_per_second']:.2f} | {row['cpu_seconds']:.0f} s "
            f"| {row['peak_bytes'] / 2**20:,.0f} MiB | {exact} | {near} | {row['originals_missing']:,} |"
        )
    (arguments.out / "scale.md").write_text("\n".join(lines) + "\n")
    settings = {name: str(value) for name, value in vars(arguments).items()}
    (arguments.out / "scale.json").write_text(json.dumps({"settings": settings, "builds": rows}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
