"""Several seeds of a fine-tuning: one after the other, some at the same time (`--jobs`), and Hugging Face's Trainer.

    pip install accelerate
    python benchmarks/jobs.py --model FOLDER --train FILE --out runs/jobs [--options '{"max_length": 64}'] [--seeds 4]
        [--jobs 2] [--epochs 2] [--rounds 2]

Ours are whole commands, as a user types them: with the start of Python, reading, tokenizing, scoring and writing. The
Trainer's time is that of training alone, one seed's times the number of seeds, on rows that our tokenization made. In
each round all three, in turn; printed are the medians of seconds and their ratios. Nothing else should run on the
machine. Writes `jobs.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from finetuning import features
from peer import padded, trainer_seconds

from bertsmith.settings import from_mapping
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import split_rows
from bertsmith.tasks.saved import TASKS
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision

RATE, BATCH_SIZE = 1e-4, 32


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    rows, num_labels = peer_rows(arguments)
    seconds: dict[str, list[float]] = {"one after the other": [], f"--jobs {arguments.jobs}": [], "Trainer": []}
    for number in range(arguments.rounds):
        seconds["one after the other"].append(command(arguments, 1))
        seconds[f"--jobs {arguments.jobs}"].append(command(arguments, arguments.jobs))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=num_labels)
        one = trainer_seconds(
            model,
            rows,
            partial(padded, fillers={"input_ids": 0, "token_type_ids": 0}),
            batch_size=BATCH_SIZE,
            learning_rate=RATE,
            precision=resolve_precision("auto", resolve_device()),
            order="random",
            epochs=arguments.epochs,
            warmup_share=0.1,
        )
        seconds["Trainer"].append(arguments.seeds * one)
        print(
            f"round {number + 1}: {', '.join(f'{name} {all[-1]:.1f} s' for name, all in seconds.items())}", flush=True
        )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.1f} s, {value / medians['Trainer']:.2f} of the Trainer's")
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": len(rows), "seconds": seconds}
    options = {name: str(value) for name, value in vars(arguments).items()}
    (arguments.out / "jobs.json").write_text(json.dumps({**options, **facts}, indent=1) + "\n")


def command(arguments: argparse.Namespace, jobs: int) -> float:
    """Seconds of the whole command."""
    words = [sys.executable, "-m", "bertsmith", "finetune", "classification", "--overwrite"]
    given: dict[str, Any] = {"model": arguments.model, "train": arguments.train, "out": arguments.out / "run"}
    given |= {"seeds": arguments.seeds, "jobs": jobs, "epochs": arguments.epochs, "evaluate_every": "100%"}
    given |= {"batch_size": BATCH_SIZE, "learning_rate": RATE, **arguments.options}
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def peer_rows(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """The training rows as the peer takes them, and the number of labels."""
    kind = TASKS["classification"]
    options, found = kind.read_rows(arguments.train, from_mapping(kind.settings, arguments.options, "options"))
    labels = kind.find_labels(found, options)
    learnt, _ = split_rows(found, FinetuneSettings.dev_share)  # as ours does
    task = kind.make(load_tokenizer(arguments.model), labels, options, {"train": learnt})
    examples = task.examples("train")
    return features(task.collate(examples.take(range(examples.num_examples(0)), 0))), len(labels)


if __name__ == "__main__":
    main()
