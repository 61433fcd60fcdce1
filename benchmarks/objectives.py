"""Every objective for the same time on the same text, each beside what it would reach without learning.

    python benchmarks/objectives.py --corpus STORE --out runs/objectives [--budget 5m] [--only NAME ...]

A run that is there already is not run again, so the table can be filled bit by bit. Writes `objectives.md`
and `objectives.json` beside the runs. Nothing else should run on the machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings

ROWS: dict[str, dict[str, Any]] = {
    "bert mlm+nsp": {"family": "bert"},
    "albert mlm+sop": {"family": "albert"},
    "bert mlm": {"family": "bert", "objective": "mlm"},
    "electra rtd": {"family": "electra"},
    "gpt2 clm": {"family": "gpt2", "mask_probability": 0.15},  # the default: nothing is hidden
    "bert mlm, whole words": {"family": "bert", "objective": "mlm", "mask_unit": "word"},
    "bert mlm, spans": {"family": "bert", "objective": "mlm", "mask_unit": "span"},
    "bert mlm, n-grams": {"family": "bert", "objective": "mlm", "mask_unit": "ngram"},
    "modernbert mlm": {"family": "modernbert"},
    "bert mlm+sop": {"family": "bert", "objective": "mlm+sop"},
    "albert mlm+sop, original": {"family": "albert", "data_mode": "original"},
    "bert mlm+nsp, original": {"family": "bert", "data_mode": "original"},
    "bert mlm, doc-sentences": {"family": "bert", "objective": "mlm", "data_mode": "doc-sentences"},
    "roberta mlm": {"family": "roberta"},
    "distilbert mlm": {"family": "distilbert"},
}
FIGURES = ("mlm_loss", "clm_loss", "nsp_accuracy", "sop_accuracy", "rtd_accuracy", "rtd_auc")


def main() -> None:
    """Run the rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    arguments = parser.parse_args()
    for name in arguments.only:
        folder = arguments.out / name.replace(" ", "-").replace(",", "").replace("+", "-")
        result = folder / "objective.json"
        if result.exists():
            continue
        settings = PretrainSettings(
            corpus=arguments.corpus,
            out=folder,
            size="mini",
            budget=arguments.budget,
            max_length=64,
            batch_size=32,
            optimizer="muon",
            schedule="wsd",
            decay_share=0.5,
            warmup_share=0.05,
            dropout=0.0,
            evaluate_every="50%",
            evaluation_samples=2000,
            overwrite=folder.exists(),
            **({"mask_probability": 0.2} | ROWS[name]),
        )
        run = pretrain(settings)
        figures = {"name": name, "tokens": run.training.tokens, "seconds": run.training.seconds, **run.metrics}
        result.write_text(json.dumps({**figures, "num_threads": torch.get_num_threads()}, indent=1) + "\n")
    write_table(arguments.out, arguments.budget)


def write_table(out: Path, budget: str) -> None:
    """All rows there are so far, as Markdown and JSON."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/objective.json"))]
    rows.sort(key=lambda row: list(ROWS).index(row["name"]))
    lines = ["| objective | tokens/s | held-out figures (without learning) |", "|---|---:|---|"]
    for row in rows:
        figures = [
            f"{figure} {row[figure]:.3f} ({row[f'{figure}_baseline']:.3f})" for figure in FIGURES if figure in row
        ]
        lines.append(f"| {row['name']} | {row['tokens'] / row['seconds']:,.0f} | {', '.join(figures)} |")
    note = f"BERT-mini's size, sequences of 64 tokens, {budget} each, "
    note += f"{rows[0]['num_threads']} threads, torch {torch.__version__}."
    (out / "objectives.md").write_text(note + "\n\n" + "\n".join(lines) + "\n")
    (out / "objectives.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
