"""Fine-tuning speed beside Hugging Face's Trainer: the same encoder, rows and batch size, round after round.

    pip install accelerate
    python benchmarks/finetuning.py --model FOLDER --train FILE --out runs/speed [--text-column sentence]

Each round trains ours on classes of single texts for a number of steps, then `BertForSequenceClassification` in
`Trainer` (see peer.py) on the same rows, padded dynamically and grouped by length, which is its best. Printed are the
medians of rows a second over the rounds and their ratio. Nothing else should run on the machine. Writes
`finetuning.json`.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch
import transformers
from peer import UNCOUNTED_STEPS, our_steps, padded, trainer_seconds

from bertsmith.model.encoder import Encoder, compile_layers
from bertsmith.model.folder import load_weights, read_config
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.saved import TASKS
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.optim import OptimizerSettings, build_optimizer

RATE = 5e-5


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-column")
    parser.add_argument("--label-column")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--compile", action="store_true", help="ours; the peer's batches have too many shapes for it")
    parser.add_argument("--steps", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = resolve_device()
    precision = resolve_precision("auto", device)
    kind = TASKS["classification"]
    options = ClassificationSettings(
        text_column=arguments.text_column, label_column=arguments.label_column, max_length=arguments.max_length
    )
    options, data = kind.read_rows(arguments.train, options)
    labels = kind.find_labels(data, options)
    task = kind.make(load_tokenizer(arguments.model), labels, options, {"train": data, "dev": [], "test": []})
    model = task.build(Encoder(read_config(arguments.model)[0]))
    load_weights(arguments.model, model, strict=False)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=len(labels))
    optimizer = build_optimizer(model.to(device), OptimizerSettings(learning_rate=RATE))
    if arguments.compile:
        compile_layers(model)
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
            batch = step.micro_batches[0]
            pieces = torch.split(batch.inputs.token_ids, list(batch.inputs.lengths))
            targets = batch.labels["targets"].tolist()
            rows += [{"input_ids": ids.tolist(), "labels": label} for ids, label in zip(pieces, targets, strict=True)]
        speeds["ours"].append(num_rows / seconds)
        seconds = trainer_seconds(
            theirs,
            rows,
            partial(padded, fillers={"input_ids": 0}),
            batch_size=arguments.batch_size,
            learning_rate=RATE,
            precision=precision,
            groups_lengths=True,
        )
        speeds["theirs"].append(num_rows / seconds)
        print(f"round {number + 1}: ours {speeds['ours'][-1]:,.1f}, theirs {speeds['theirs'][-1]:,.1f} rows/s")
    ours, theirs_median = (statistics.median(speeds[name]) for name in ("ours", "theirs"))
    result = {
        **{name: getattr(arguments, name) for name in ("batch_size", "max_length", "compile", "steps")},
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


if __name__ == "__main__":
    main()
