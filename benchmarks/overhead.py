"""What safety costs: the training loop beside a bare loop that makes the same updates and watches over nothing.

    python benchmarks/overhead.py --corpus STORE --out runs/overhead [--size mini] [--batch-size 64] [--rounds 3]

In each round the two take turns with the same model, batches, dropout masks and clipping. The loop is that of every
run, with its defaults: loss and gradient of each step looked at before the update, skipped steps and spikes accounted
for, metrics, progress. Seconds of a step are from the start of its first loss to that of the next one's. Printed is how
much longer the median step is, with the smallest and largest ratio of the rounds, and each part of it as it is timed
within the run: of small parts that is the better figure, as the ratio is as uncertain as the steps are uneven. A
checkpoint is saved in a run every ten minutes unless said otherwise, so each costs its seconds in 600. Nothing else
should run on the machine. Writes `overhead.json` and `overhead.md`.
"""

import argparse
import io
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bertsmith import randomness
from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus import open_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training import loop
from bertsmith.training.device import autocast, resolve_device, resolve_precision
from bertsmith.training.faults import Guard
from bertsmith.training.loader import Loader
from bertsmith.training.loop import Stage, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings, build_optimizer
from bertsmith.training.progress import Reporter
from bertsmith.training.task import Batch, Task, TaskAround

RATE = 1e-4
UNCOUNTED_STEPS = 2
SAVE_SECONDS = 600
WANTED_SHARE = 0.02
CHECK, GUARD, METRICS, SAVE = "loss and gradient finite", "skipped steps and spikes", "metrics, progress", "checkpoint"


class Timed(TaskAround):
    """A task that notes when each loss was asked for."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.starts: list[float] = []

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The task's."""
        self.starts.append(time.perf_counter())
        return super().loss(model, batch)

    def step_seconds(self) -> list[float]:
        """Of each step but the first ones; the list begins anew."""
        starts, self.starts = self.starts[UNCOUNTED_STEPS:], []
        return [later - start for start, later in itertools.pairwise(starts)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="in each of the two runs of a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = ("size", "batch_size", "max_length")
    settings = PretrainSettings(
        corpus=arguments.corpus, out=arguments.out, **{name: getattr(arguments, name) for name in names}
    )
    tokenizer = load_tokenizer(arguments.corpus / "tokenizer")
    corpora = {"train": open_corpus(arguments.corpus, "train")}
    task = Timed(make_task(with_objective(settings, "bert"), arguments.max_length, tokenizer, corpora))
    config = named_size(arguments.size, tokenizer.vocab_size)
    seconds: dict[str, list[float]] = {"loop": [], "bare": []}
    parts: dict[str, list[float]] = {CHECK: [], GUARD: [], METRICS: [], SAVE: []}
    for number in range(arguments.rounds):
        for name in ("loop", "bare") if number % 2 == 0 else ("bare", "loop"):
            model = task.build(Encoder(config))
            if name == "loop":
                with TemporaryDirectory(dir=arguments.out) as folder:
                    found = timed_loop(model, task, arguments, number, Path(folder))
            else:
                found = {CHECK: bare_loop(model, task, arguments, number)}
            for part, value in found.items():
                parts[part].append(value)
            seconds[name].append(statistics.median(task.step_seconds()))
        print(f"round {number + 1}: loop {seconds['loop'][-1]:.4f}, bare {seconds['bare'][-1]:.4f} seconds a step")
    report(arguments, seconds, parts)


def timed_loop(
    model: nn.Module, task: Timed, arguments: argparse.Namespace, seed: int, folder: Path
) -> dict[str, float]:
    """A run; seconds a step of each part, and those of a checkpoint."""
    spent = {GUARD: 0.0, METRICS: 0.0, SAVE: 0.0}

    def timed(owner: Any, name: str, part: str) -> Callable[[], None]:
        """Measure a function from now on; what is returned ends it."""
        function = getattr(owner, name)

        def measured(*values: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*values, **options)
            finally:
                spent[part] += time.perf_counter() - began

        setattr(owner, name, measured)
        return lambda: setattr(owner, name, function)

    undo = [
        timed(Guard, "spike_norm", GUARD),
        timed(Guard, "judge", GUARD),
        timed(loop.Totals, "add", METRICS),
        timed(loop.Totals, "figures", METRICS),
        timed(Reporter, "train", METRICS),
        timed(loop, "save_checkpoint", SAVE),
    ]
    settings = TrainSettings(
        budget=f"{arguments.steps} steps",
        batch_size=arguments.batch_size,
        seed=seed,
        optimizer=OptimizerSettings(learning_rate=RATE, schedule="constant", warmup_share=0.0),
    )
    try:
        train(model, [Stage(task)], settings, folder, console=Console(file=io.StringIO()))
    finally:
        for end in undo:
            end()
    return {part: value / (1 if part == SAVE else arguments.steps) for part, value in spent.items()}


def bare_loop(model: nn.Module, task: Timed, arguments: argparse.Namespace, seed: int) -> float:
    """The same updates and nothing else; but each step's figures are looked at once, to see how long that takes."""
    device = resolve_device()
    precision = resolve_precision("auto", device)
    optimizer = build_optimizer(model.to(device), OptimizerSettings(learning_rate=RATE))
    loader = Loader(task.examples("train"), task.collate, batch_size=arguments.batch_size, seed=seed)
    checking = 0.0
    with closing(loader.steps()) as steps:
        for number in range(arguments.steps):
            step = next(steps)
            model.train()
            optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(randomness.integer(seed, "dropout", number, 0))
            (batch,) = step.micro_batches
            with autocast(device, precision):
                sums = task.loss(model, batch.to(device))
            losses = [total.float() * (task.loss_weights[name] / batch.counts[name]) for name, total in sums.items()]
            torch.stack(losses).sum().backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            began = time.perf_counter()
            all(map(math.isfinite, torch.stack([norm.float(), *(loss.detach() for loss in losses)]).tolist()))
            checking += time.perf_counter() - began
            optimizer.step()
    return checking / arguments.steps


def report(arguments: argparse.Namespace, seconds: dict[str, list[float]], parts: dict[str, list[float]]) -> None:
    """Shares of the bare step; on the screen, as Markdown and as JSON."""
    bare = statistics.median(seconds["bare"])
    ratios = [loop / alone - 1 for loop, alone in zip(seconds["loop"], seconds["bare"], strict=True)]
    shares = {
        part: statistics.median(values) / (SAVE_SECONDS if part == SAVE else bare) for part, values in parts.items()
    }
    total = sum(shares.values())
    lines = [
        f"{arguments.size}, {arguments.batch_size} sequences of up to {arguments.max_length} tokens, "
        f"{arguments.rounds} rounds of {arguments.steps} steps, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}: a bare step takes {bare:.4f} s.",
        "",
        "| part | seconds | share of the time |",
        "|---|---:|---:|",
    ]
    for part, values in parts.items():
        what = f"{part}, every {SAVE_SECONDS} s" if part == SAVE else f"{part}, every step"
        lines.append(f"| {what} | {statistics.median(values):.6f} | {shares[part]:.4%} |")
    lines.append(f"| sum of the parts (wanted: at most {WANTED_SHARE:.0%}) | | {total:.4%} |")
    spread = f"{min(ratios):+.2%} to {max(ratios):+.2%}"
    longer = statistics.median(seconds["loop"]) - bare
    lines.append(
        f"| median step of the loop beside the bare one, without checkpoints ({spread}) | {longer:.6f} "
        f"| {statistics.median(ratios):+.2%} |"
    )
    (arguments.out / "overhead.md").write_text("\n".join(lines) + "\n")
    result = {
        **{name: getattr(arguments, name) for name in ("size", "batch_size", "max_length", "steps", "rounds")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "step_seconds": seconds,
        "part_seconds": parts,
        "shares": shares,
        "share": total,
        "paired_ratios": ratios,
    }
    (arguments.out / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
