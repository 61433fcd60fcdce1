"""What each option of a pre-training is worth in the same time: held-out loss beside that of the recipe without it.

    python benchmarks/options.py --corpus STORE --recipe recipes/novels.yaml --out runs/options [--budget 10m]
        [--only NAME ...]

All rows learn from the same text, for the same time, from the same seed, and guess the same hidden 15 % of the
held-out text (`quality.py`). A run that is there already is not run again, so the table can be filled bit by bit, also
by several processes at once, each with its own cores. Writes `options.md` and `options.json` beside the runs. Nothing
else should run on the machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from quality import judge

from bertsmith.model.sizes import named_size
from bertsmith.settings import from_mapping, read_config
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.tokenizer import load_tokenizer

ROWS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "batches of one size": {"initial_batch_size": None},
    "128 tokens all along": {"max_length": 128, "long_length": None, "batch_size": 64},
    "15 % hidden": {"mask_probability": 0.15},
    "30 % hidden": {"mask_probability": 0.3},
    "dropout 0.1": {"dropout": 0.1},
    "adamw": {"optimizer": "adamw"},
    "stable-adamw": {"optimizer": "stable-adamw"},
    "a rate that falls all along": {"schedule": "linear"},
    "sinusoidal positions": {"position_init": "sinusoidal"},
}


def main() -> None:
    """Run the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    recipe = read_config(arguments.recipe)["pretrain"]
    for name in arguments.only:
        folder = arguments.out / name.replace(" ", "-").replace("%", "percent")
        if not (folder / "option.json").exists():
            run_one(arguments, {**recipe, **ROWS[name]}, name, folder)
    write_table(arguments.out, arguments.budget)


def run_one(arguments: argparse.Namespace, options: dict[str, Any], name: str, folder: Path) -> None:
    """Learn, then guess."""
    where = {"corpus": str(arguments.corpus), "out": str(folder), "budget": arguments.budget}
    settings = from_mapping(PretrainSettings, {**options, **where, "overwrite": folder.exists()}, name)
    run = pretrain(settings)
    config = named_size(settings.size, load_tokenizer(arguments.corpus / "tokenizer").vocab_size)
    figures = judge(settings, config, folder / "model")
    result = {"name": name, "tokens": run.training.tokens, "seconds": run.training.seconds, **figures}
    (folder / "option.json").write_text(json.dumps({**result, "num_threads": torch.get_num_threads()}, indent=1) + "\n")


def write_table(out: Path, budget: str) -> None:
    """All rows there are so far, as Markdown and JSON."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/option.json"))]
    rows.sort(key=lambda row: list(ROWS).index(row["name"]))
    lines = ["| | tokens seen | held-out loss, nats | predicted right |", "|---|---:|---:|---:|"]
    lines += [
        f"| {row['name']} | {row['tokens'] / 1e6:.2f} M | {row['mlm_loss']:.2f} | {row['mlm_accuracy']:.1%} |"
        for row in rows
    ]
    note = f"{budget} each, {rows[0]['num_threads']} threads, torch {torch.__version__}."
    (out / "options.md").write_text(note + "\n\n" + "\n".join(lines) + "\n")
    (out / "options.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
