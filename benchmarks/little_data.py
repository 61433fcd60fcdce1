"""What helps where there is little labelled data: each regulariser, change of examples and choice of what is trained,
against none of them.

    python benchmarks/little_data.py --model FOLDER --train FILE --test FILE --out runs/little [--rows 500] [--seeds 5]
        [--task classification] [--options '{"text_column": "content"}'] [--words FOLDER] [--only NAME ...]

Fine-tunes on the same rows of the training data, for the same number of epochs and to the last weights, with no dev:
all rows are learnt. A gain is the difference of two runs of one seed, which begin with the same weights and read the
rows in the same order; shown are the mean and the sample standard deviation over the seeds. A run that is there already
is not run again, so the table can be filled bit by bit, and a run that was stopped goes on. Writes `little_data.md` and
`little_data.json` beside the runs.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bertsmith.settings import from_mapping
from bertsmith.tasks.distill import source_name
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.saved import task_kind

NONE = "none"
ROWS: dict[str, dict[str, Any]] = {
    NONE: {},
    "r-drop": {"r_drop": 1.0},
    "adversarial": {"adversarial": 0.01},
    "adversarial 3 steps": {"adversarial": 0.01, "adversarial_steps": 3},
    "mixup": {"mixup": 0.2},
    "label smoothing": {"label_smoothing": 0.1},
    "ema": {"ema_decay": 0.99},
    "augment delete": {"augment_delete": 0.1},
    "augment swap": {"augment_swap": 0.1},
    "augment delete and swap": {"augment_delete": 0.1, "augment_swap": 0.1},
    "augment model": {"augment_replace": 0.1},
    "adapt": {"adapt": "3 epochs"},
    "layer decay": {"layer_decay": 0.9},
    "freeze embeddings": {"freeze": 0},
    "freeze 3 layers": {"freeze": 3},
    "reinit 1 layer": {"reinit_layers": 1},
    "no bias correction": {"optimizer": "bert-original", "schedule": "linear"},
    "no dropout": {"dropout": 0.0},
}
OF_THE_TASK = {"label_smoothing"}
"""Settings that are the task's own."""
UNFIT = {"tagging": {"mixup"}, "answering": {"mixup", "label smoothing"}}
"""Rows that a task does not have."""


def main() -> None:
    """Run what is not there yet and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="classification", choices=("classification", "tagging", "answering"))
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the task, as JSON")
    parser.add_argument("--tokenizer")
    parser.add_argument("--words", help="a model with masks, for the row augment model; without it there is none")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    unfit = UNFIT.get(arguments.task, set()) | (set() if arguments.words else {"augment model"})
    for seed in range(arguments.seeds):  # all rows of a seed first: a table of few seeds is worth reading, too
        for name in [one for one in arguments.only if one not in unfit]:
            run_one(arguments, name, seed)
    write_table(arguments)


def run_one(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """One row with one seed, unless it is there."""
    folder = arguments.out / name.replace(" ", "-") / f"seed-{seed}"
    result = folder / "result.json"
    if result.exists():
        return
    changes = {key: value for key, value in ROWS[name].items() if key not in OF_THE_TASK}
    if name == "augment model":
        changes["augment_model"] = arguments.words
    own = {key: value for key, value in ROWS[name].items() if key in OF_THE_TASK}
    settings = FinetuneSettings(
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        train=arguments.train,
        test=arguments.test,
        out=folder,
        dev_share=0.0,
        max_train_examples=arguments.rows,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=seed,
        resume=folder.exists(),
        **changes,
    )
    options = from_mapping(task_kind(arguments.task).settings, {**arguments.options, **own}, "--options")
    run = finetune(arguments.task, settings, options)
    for part in [one for one in folder.iterdir() if one.is_dir()]:
        shutil.rmtree(part)  # weights: those of fifty runs would be tens of gigabytes
    figures = {"name": name, "seed": seed, "seconds": run.training.seconds, "metrics": run.metrics["test"]}
    result.write_text(json.dumps({**figures, "num_threads": torch.get_num_threads()}, indent=1) + "\n")


def write_table(arguments: argparse.Namespace) -> None:
    """All runs there are so far, as Markdown and JSON."""
    runs = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*/seed-*/result.json"))]
    values = {(run["name"], run["seed"]): next(iter(run["metrics"].values())) for run in runs}
    metric = next(iter(runs[0]["metrics"]))
    rows = []
    for name in ROWS:
        own = [run for run in runs if run["name"] == name]
        seeds = [run["seed"] for run in own if (NONE, run["seed"]) in values]
        if own:
            rows.append(
                {
                    "name": name,
                    "seeds": len(own),
                    metric: spread([values[name, run["seed"]] for run in own]),
                    "gain": spread([values[name, seed] - values[NONE, seed] for seed in seeds]),
                    "better": sum(values[name, seed] > values[NONE, seed] for seed in seeds),
                    "compared": len(seeds),
                    "seconds": statistics.mean(run["seconds"] for run in own),
                }
            )
    lines = [f"| | {metric} | gain | better | seconds |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        cells = [shown(row[metric]), "", ""] if row["name"] == NONE else [shown(row[metric]), shown(row["gain"], "+")]
        if row["name"] != NONE:
            cells.append(f"{row['better']} of {row['compared']}")
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['seconds']:,.0f} |")
    note = f"{source_name(arguments.model)}, {arguments.rows} rows of {Path(arguments.train).name}, "
    note += f"{arguments.epochs:g} epochs, {runs[0]['num_threads']} threads, torch {torch.__version__}. "
    note += f"{metric} on {Path(arguments.test).name} and its gain over none, mean ± sample standard deviation."
    (arguments.out / "little_data.md").write_text(note + "\n\n" + "\n".join(lines) + "\n")
    (arguments.out / "little_data.json").write_text(json.dumps({"note": note, "rows": rows, "runs": runs}, indent=1))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and sample standard deviation, which is 0 of one value; None of none."""
    if not values:
        return None
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}


def shown(one: dict[str, float] | None, sign: str = "-") -> str:
    """A cell of the table."""
    return "" if one is None else f"{one['mean']:{sign}.4f} ± {one['deviation']:.4f}"


if __name__ == "__main__":
    main()
