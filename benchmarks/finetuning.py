"""Fine-tuning speed beside Hugging Face's Trainer: the same encoder, rows and batch size, round after round.

    pip install accelerate
    python benchmarks/finetuning.py --model FOLDER --train FILE --out runs/speed [--text-column sentence]
    python benchmarks/finetuning.py --model FOLDER --train SQUAD --task answering --max-length 384 --out runs/speed

Each round trains ours on classes of single texts, or on answers, for a number of steps, then
`BertForSequenceClassification` or `BertForQuestionAnswering` in `Trainer` (see peer.py) on the same rows (or windows),
padded dynamically and grouped by length, which is its best. Printed are the medians of rows a second over the rounds
and their ratio. Nothing else should run on the machine. Writes `finetuning.json`.
"""

import argparse
import json
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peer import UNCOUNTED_STEPS, Row, our_steps, padded, trainer_seconds

from bertsmith.model.encoder import Encoder, compile_layers, replay_layers
from bertsmith.model.folder import load_weights, read_config
from bertsmith.tasks.saved import TASKS
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.optim import OptimizerSettings, build_optimizer

RATE = 5e-5
PEERS = {
    "classification": transformers.AutoModelForSequenceClassification,
    "answering": transformers.AutoModelForQuestionAnswering,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="classification", choices=PEERS)
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="ours; the peer's batches have too many shapes for it")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="ours")
    parser.add_argument("--steps", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = resolve_device()
    precision = resolve_precision("auto", device)
    task, model, theirs = build(arguments)
    optimizer = build_optimizer(model.to(device), OptimizerSettings(learning_rate=RATE))
    if arguments.compile:
        compile_layers(model)
    replay_layers(model, not (arguments.compile or arguments.no_cuda_graphs))
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    num_rows = (arguments.steps - UNCOUNTED_STEPS) * arguments.batch_size
    for number in range(arguments.rounds):
        seconds, rows = 0.0, []
        for step, step_seconds in our_steps(
            model,
            task,
            optimizer,
            batch_size=arguments.batch_size,
            num_steps=arguments.steps,
            learning_rate=RATE,
            precision=precision,
            seed=number,
        ):
            seconds += step_seconds
            rows += features(step.micro_batches[0])
        speeds["ours"].append(num_rows / seconds)
        seconds = trainer_seconds(
            theirs,
            rows,
            partial(padded, fillers={"input_ids": 0, "token_type_ids": 0}),
            batch_size=arguments.batch_size,
            learning_rate=RATE,
            precision=precision,
            order="group_by_length",
        )
        speeds["theirs"].append(num_rows / seconds)
        print(f"round {number + 1}: ours {speeds['ours'][-1]:,.1f}, theirs {speeds['theirs'][-1]:,.1f} rows/s")
    ours, theirs_median = (statistics.median(speeds[name]) for name in ("ours", "theirs"))
    result = {
        **{
            name: getattr(arguments, name)
            for name in ("task", "batch_size", "max_length", "compile", "no_cuda_graphs", "steps")
        },
        "precision": precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows_per_second": speeds,
        "ratio": ours / theirs_median,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "finetuning.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"ours {ours:,.1f}, theirs {theirs_median:,.1f} rows/s: {ours / theirs_median:.2f} times")


def build(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Our task and model, and theirs, with the encoder's weights and heads of their own."""
    kind = TASKS[arguments.task]
    columns = {"text_column": arguments.text_column, "label_column": arguments.label_column}
    options = kind.settings(max_length=arguments.max_length, **(columns if arguments.task == "classification" else {}))
    options, data = kind.read_rows(arguments.train, options)
    labels = kind.find_labels(data, options)
    num_rows = arguments.rounds * arguments.steps * arguments.batch_size
    rows = {"train": random.Random(0).sample(data, min(num_rows, len(data))), "dev": [], "test": []}
    task = kind.make(load_tokenizer(arguments.model), labels, options, rows)
    model = task.build(Encoder(read_config(arguments.model)[0]))
    load_weights(arguments.model, model, strict=False)
    theirs = PEERS[arguments.task].from_pretrained(arguments.model, **({"num_labels": len(labels)} if labels else {}))
    return task, model, theirs


def features(batch: Any) -> list[Row]:
    """The rows of one of our batches as the peer takes them."""
    lengths = list(batch.inputs.lengths)
    ids, segments = (torch.split(each, lengths) for each in (batch.inputs.token_ids, batch.inputs.segment_ids))
    rows = []
    for number, target in enumerate(batch.labels["targets"].tolist()):
        row: Row = {"input_ids": ids[number].tolist(), "token_type_ids": segments[number].tolist()}
        row |= (
            {"start_positions": target[0], "end_positions": target[1]}
            if isinstance(target, list)
            else {"labels": target}
        )
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
