"""Memory at the peak of pre-training steps, ours beside Hugging Face's Trainer, each in a process of its own.

    pip install accelerate
    python benchmarks/memory.py --corpus STORE --out runs/speed [--size base] [--batch-size 16] [--max-length 128]

The same samples for some steps, MLM + NSP, dropout 0.1, as in pretraining.py, and again with gradient checkpointing on
both sides. Counted is what a process has resident at its peak (Linux; on a GPU what torch has allocated there), less
what it had before the model was made. Writes `memory.json`; `ratio` is that of the first two.
"""

import argparse
import json
import subprocess
import sys
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import transformers
from peer import our_steps, padded, trainer_seconds
from pretraining import FILLERS, RATE, build, features

from bertsmith.model.encoder import recompute_layers
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.loader import Loader
from bertsmith.training.memory import forget_peak_memory, peak_memory_bytes
from bertsmith.training.optim import OptimizerSettings, build_optimizer

SIDES = ("ours", "theirs", "ours, checkpointing", "theirs, checkpointing")


def main() -> None:
    """Run both sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="this side alone, in this process")
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(*measured(arguments))
        return
    peaks, seconds = {}, {}
    for side in SIDES:
        output = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--side", side], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        peak, took = output.split()[-2:]
        peaks[side], seconds[side] = int(peak), float(took)
        print(
            f"{side}: {peaks[side] / 2**30:.2f} GiB, {peaks[side] / peaks['ours']:.2f} times ours; {took} s", flush=True
        )
    result = {
        **{name: getattr(arguments, name) for name in ("size", "batch_size", "max_length", "dropout", "steps")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak_bytes": peaks,
        "seconds": seconds,
        "ratio": peaks["ours"] / peaks["theirs"],
    }
    (arguments.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")


def measured(arguments: argparse.Namespace) -> tuple[int, float]:
    """Bytes of one side at its peak, above what there was before, and the seconds of its timed steps."""
    device = resolve_device()
    precision = resolve_precision("auto", device)
    idle = resident()
    task, model, theirs = build(arguments)
    if arguments.side.endswith("checkpointing"):
        recompute_layers(model)
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # since 5.23, and before
        next(getattr(theirs, name) for name in names if hasattr(theirs, name))()
    if arguments.side.startswith("ours"):
        del theirs
        forget()
        optimizer = build_optimizer(model.to(device), OptimizerSettings(learning_rate=RATE))
        steps = our_steps(
            model,
            task,
            optimizer,
            batch_size=arguments.batch_size,
            num_steps=arguments.steps,
            learning_rate=RATE,
            precision=precision,
            seed=0,
        )
        seconds = sum(step_seconds for _, step_seconds in steps)
    else:
        del model
        forget()
        loader = Loader(task.examples("train"), task.collate, batch_size=arguments.batch_size, seed=0)
        with closing(loader.steps()) as steps:
            rows = [row for step in islice(steps, arguments.steps) for row in features(step.micro_batches[0])]
        seconds = trainer_seconds(
            theirs,
            rows,
            partial(padded, fillers=FILLERS),
            batch_size=arguments.batch_size,
            learning_rate=RATE,
            precision=precision,
            order="sequential",
        )
    return resident() - idle, round(seconds, 2)


def resident() -> int:
    """Bytes at the peak so far, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory_bytes()


def forget() -> None:
    """Let the peak begin again with what is there now: making the models took some, too."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak_memory()


if __name__ == "__main__":
    main()
