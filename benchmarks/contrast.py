"""BERT against GPT: two-way against one-way, with the same text, tokenizer, size, time and fine-tuning.

    python benchmarks/contrast.py --corpus STORE --data FOLDER --out runs/contrast [--budget 10m] [--seeds 3]

Pre-trains both, fine-tunes both on question types (TREC) and parts of speech (UD English-EWT), and draws what
each token looks at in one sentence. Writes `contrast.md`, `contrast.json` and `attention.png`. Nothing else
should run on the machine.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt

from bertsmith.model.batch import pack
from bertsmith.model.folder import load_encoder
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer

MODELS: dict[str, dict[str, Any]] = {
    "BERT (two-way)": {"family": "bert", "objective": "mlm"},
    "GPT (one-way)": {"family": "gpt2"},
}
SENTENCE = "The old man who had seen the sea as a boy could not forget it."


def main() -> None:
    """Run what is not there yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder with classify/ and tag/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    tasks = {
        "TREC accuracy": (
            "classification",
            ClassificationSettings(max_length=64),
            {
                "train": str(arguments.data / "classify/trec-train.tsv"),
                "test": str(arguments.data / "classify/trec-test.tsv"),
                "epochs": 8.0,
            },
        ),
        "part-of-speech accuracy": (
            "tagging",
            TaggingSettings(tag_column="upos", scheme="none", max_length=128),
            {
                "train": str(arguments.data / "tag/ud-ewt-train.conllu.xz"),
                "test": str(arguments.data / "tag/ud-ewt-dev.conllu"),
                "epochs": 3.0,
            },
        ),
    }
    results: dict[str, dict[str, Any]] = {}
    for name, values in MODELS.items():
        folder = arguments.out / values["family"]
        results[name] = {"pretraining": pretrained(arguments, folder, values)}
        for figure, (task, options, data) in tasks.items():
            scores = []
            for seed in range(arguments.seeds):
                place = folder / f"{task}-{seed}"
                if not (place / "score.json").exists():
                    settings = FinetuneSettings(
                        model=str(folder / "pretrain"),
                        out=place,
                        dev_share=0.05,
                        evaluate_every="100%",
                        learning_rate=3e-4,
                        seed=seed,
                        overwrite=place.exists(),
                        **data,
                    )
                    metrics = finetune(task, settings, options).metrics["test"]
                    (place / "score.json").write_text(json.dumps(next(iter(metrics.values()))))
                scores.append(json.loads((place / "score.json").read_text()))
            results[name][figure] = scores
    (arguments.out / "contrast.json").write_text(json.dumps(results, indent=1) + "\n")
    write_table(arguments, results, list(tasks))
    draw(arguments.out)


def pretrained(arguments: argparse.Namespace, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The figures of one pre-training, run if it is not there."""
    place = folder / "pretrain"
    if not (place / "figures.json").exists():
        settings = PretrainSettings(
            corpus=arguments.corpus,
            out=place,
            size="mini",
            budget=arguments.budget,
            learning_rate=1e-3,
            dropout=0.0,
            evaluate_every="50%",
            overwrite=place.exists(),
            **values,
        )
        run = pretrain(settings)
        figures = {"tokens": run.training.tokens, "seconds": run.training.seconds, **run.metrics}
        (place / "figures.json").write_text(json.dumps(figures, indent=1))
    read: dict[str, Any] = json.loads((place / "figures.json").read_text())
    return read


def write_table(arguments: argparse.Namespace, results: dict[str, dict[str, Any]], figures: list[str]) -> None:
    """Markdown: pre-training's own figure, then mean and deviation over seeds."""
    lines = ["| | pre-training loss, nats (unigram) | tokens/s | " + " | ".join(figures) + " |", "|---|---:|---:|"]
    lines[1] += "---:|" * len(figures)
    for name, row in results.items():
        run = row["pretraining"]
        loss = next(key for key in ("mlm_loss", "clm_loss") if key in run)
        cells = [f"{run[loss]:.2f} ({run[f'{loss}_baseline']:.2f}) {loss[:3].upper()}"]
        cells.append(f"{run['tokens'] / run['seconds']:,.0f}")
        for figure in figures:
            deviation = statistics.stdev(row[figure]) if len(row[figure]) > 1 else 0.0
            cells.append(f"{100 * statistics.mean(row[figure]):.1f} ± {100 * deviation:.1f} %")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    note = (
        f"BERT-mini's size, {arguments.budget} of pre-training, {torch.get_num_threads()} threads, "
        f"{arguments.seeds} seeds, torch {torch.__version__}."
    )
    (arguments.out / "contrast.md").write_text(note + "\n\n" + "\n".join(lines) + "\n")


def draw(out: Path) -> None:
    """The mean over the heads of every layer, both models, one sentence."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(len(MODELS), 4, figsize=(14, 7.5), squeeze=False)
    for row, (name, values) in enumerate(MODELS.items()):
        place = out / values["family"] / "pretrain" / "model"
        encoder, _ = load_encoder(place)
        tokenizer = load_tokenizer(place)
        ids = np.concatenate([[tokenizer.cls_id], tokenizer.encode(SENTENCE).ids, [tokenizer.sep_id]])
        for layer, weights_NLL in enumerate(encoder.attention_maps(pack([ids]))):
            axis = axes[row][layer]
            axis.imshow(weights_NLL.mean(0).numpy(), cmap="magma", vmin=0, vmax=0.5)
            axis.set_title(f"{name}, layer {layer + 1}", fontsize=9)
            axis.set_xticks(range(len(ids)), tokenizer.tokens(ids), rotation=90, fontsize=6)
            axis.set_yticks(range(len(ids)), tokenizer.tokens(ids), fontsize=6)
    figure.tight_layout()
    figure.savefig(out / "attention.png", dpi=110)


if __name__ == "__main__":
    main()
