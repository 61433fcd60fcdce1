"""How many tokens a second one core makes into training batches, beside the collator of transformers.

    python benchmarks/builder.py --corpus STORE [--data-mode MODE] [--mask-unit UNIT] [--rounds 5] [--out FILE]

Ours cuts the samples from the store, pairs, masks and packs them. `DataCollatorForLanguageModeling` is given
sequences that are cut and paired already, the same ones, as lists of ids with their `special_tokens_mask` (without it
it is slower still), and masks and pads them. The two take turns, each on one core. Seconds are those of the
process on that core, so that other work on the machine counts as little as it can; the median of the rounds is printed.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from bertsmith import randomness
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pairs import PairClassification
from bertsmith.tasks.pretrain_examples import FlatExamples, PretrainExamples
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.text.corpus import open_corpus
from bertsmith.text.tokenizer import load_tokenizer


def main() -> None:
    """Measure both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument(
        "--data-mode", default="clean", choices=("clean", "original", "full-sentences", "doc-sentences")
    )
    parser.add_argument("--mask-unit", default="piece", choices=("piece", "word", "span", "ngram"))
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="of each, in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the figures go as JSON, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    corpus = open_corpus(arguments.corpus)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=arguments.max_length,
        mode=arguments.data_mode,
        hiding=Masker(tokenizer, Masking(unit=arguments.mask_unit)),
        short_sequence_probability=0.1,
        seed=0,
    )
    pair = PairClassification("nsp") if arguments.data_mode in ("clean", "original") else None
    task = PretrainTask({"train": examples}, None, masked_language_model=MaskedLanguageModel(), pair=pair)
    size = examples.num_examples(0)
    order = randomness.shuffled(np.arange(size), size, 0, "order", 0, 0).tolist()
    places = itertools.cycle(range(0, max(1, size - arguments.batch_size), arguments.batch_size))
    collator = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(corpus.tokenizer_path))

    rates: dict[str, list[float]] = {"bertsmith": [], "transformers": []}
    for _ in range(arguments.rounds):
        chosen = [order[first : first + arguments.batch_size] for first in itertools.islice(places, arguments.batches)]
        whole = [examples.take(indices, 0) for indices in chosen]
        num_tokens = sum(len(batch.segment_ids) for batch in whole)
        features = [features_of(batch, tokenizer.special_ids) for batch in whole]
        rates["bertsmith"].append(
            num_tokens / seconds_for(lambda indices: task.collate(examples.take(indices, 0)), chosen)
        )
        rates["transformers"].append(num_tokens / seconds_for(collator, features))
    figures = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, Any] = {
        "tokens_per_core_second": figures,
        "ratio": figures["bertsmith"] / figures["transformers"],
        "rounds": rates,
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("corpus", "out")},
        "versions": {"numpy": np.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    for name, rate in figures.items():
        print(f"{name:13s}{rate:>14,.0f} tokens/s a core")
    print(json.dumps(result))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def features_of(batch: FlatExamples, special_ids: frozenset[int]) -> list[dict[str, list[int]]]:
    """The same sequences with nothing hidden, as a dataset of transformers holds them."""
    features = []
    for one in batch:
        ids = one.masked.token_ids.copy()
        ids[one.masked.positions] = one.masked.labels
        special = np.isin(ids, sorted(special_ids)).astype(int)
        features.append({"input_ids": ids.tolist(), "special_tokens_mask": special.tolist()})
    return features


def seconds_for(work: Callable[[Any], object], batches: list[Any]) -> float:
    """Processor seconds for all batches, after one that does not count."""
    work(batches[0])
    start = time.process_time()
    for batch in batches:
        work(batch)
    return time.process_time() - start


if __name__ == "__main__":
    main()
