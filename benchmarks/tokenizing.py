"""A corpus and its vocabulary beside `tokenizers` alone: what reading, sentences, hashes and writing cost.

    python benchmarks/tokenizing.py TEXT --out runs/tokenizing [--vocab-size 8192] [--rounds 3]

In turns, on all cores: `encode_batch` of `tokenizers` on the same documents, already read, a thousand at a time, with
its own threads; `bertsmith corpus build`, which reads, splits sentences, tokenizes and writes a store. Likewise the
trainer of `tokenizers` on the same documents, already read, and `bertsmith tokenizer train`. Printed are the medians of
bytes of text a second, and the ratios. Nothing else should run on the machine. Writes `tokenizing.json`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.sources import iter_documents
from bertsmith.text.tokenizer_training import train_tokenizer

AT_ONCE = 1000


def main() -> None:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = [document.text for document in iter_documents([arguments.text])]
    size = sum(len(text.encode()) for text in texts)
    folder, store = arguments.out / "tokenizer", arguments.out / "store"

    def train_ours() -> None:
        train_tokenizer([arguments.text], folder, vocab_size=arguments.vocab_size, overwrite=True)

    def train_theirs() -> None:
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=arguments.vocab_size, show_progress=False)
        backend.train_from_iterator(texts, trainer, length=len(texts))

    def encode_ours() -> None:
        build_corpus([arguments.text], folder, store, overwrite=True)

    def encode_theirs() -> None:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for start in range(0, len(texts), AT_ONCE):
            backend.encode_batch(texts[start : start + AT_ONCE], add_special_tokens=False)

    works: dict[str, dict[str, Callable[[], None]]] = {
        "tokenizer train": {"ours": train_ours, "theirs": train_theirs},
        "corpus build": {"ours": encode_ours, "theirs": encode_theirs},
    }
    found = {}
    for name, sides in works.items():
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, work in sides.items():
                began = time.perf_counter()
                work()
                speeds[side].append(size / (time.perf_counter() - began))
        ours, theirs = (statistics.median(speeds[side]) for side in ("ours", "theirs"))
        found[name] = {"bytes_per_second": speeds, "ratio": ours / theirs}
        print(
            f"{name}: ours {ours / 1e6:.2f}, tokenizers alone {theirs / 1e6:.2f} MB/s: {ours / theirs:.0%}", flush=True
        )
    about = {"text_bytes": size, "cores": os.cpu_count(), "tokenizers": tokenizers.__version__, "works": found}
    (arguments.out / "tokenizing.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
