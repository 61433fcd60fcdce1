"""BERT against GPT: two-way against one-way, with the same text, tokenizer, size, time and fine-tuning.

    python benchmarks/objectives.py --corpus STORE --out runs/objectives --only "bert mlm" "gpt2 clm"
    python benchmarks/contrast.py --pretrained runs/objectives --data FOLDER --out runs/contrast [--seeds 3]

Fine-tunes both models on question types (TREC) and parts of speech (UD English-EWT), and draws what each token
looks at in one sentence. Writes `contrast.md`, `contrast.json` and `attention.png`.
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
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer

MODELS = {"BERT (two-way)": "bert-mlm", "GPT (one-way)": "gpt2-clm"}
"""Name -> the folder of its row of objectives.py."""
SENTENCE = "The old man who had seen the sea as a boy could not forget it."


def main() -> None:
    """Run what is not there yet, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, required=True, help="what objectives.py wrote")
    parser.add_argument("--data", type=Path, required=True, help="the folder with classify/ and tag/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    tasks = {
        "TREC accuracy": (
            "classification",
            ClassificationSettings(max_length=64),
            {
                "train": str(arguments.data / "classify/trec-train.tsv"),
                "test": str(arguments.data / "classify/trec-test.tsv"),
                "epochs": 5.0,
            },
        ),
        "part-of-speech accuracy": (
            "tagging",
            TaggingSettings(tag_column="upos", scheme="none", max_length=128),
            {
                "train": str(arguments.data / "tag/ud-ewt-train.conllu.xz"),
                "test": str(arguments.data / "tag/ud-ewt-dev.conllu"),
                "epochs": 1.0,
            },
        ),
    }
    results: dict[str, dict[str, Any]] = {}
    for name, row in MODELS.items():
        pretrained = arguments.pretrained / row
        results[name] = {"pretraining": json.loads((pretrained / "objective.json").read_text())}
        for figure, (task, options, data) in tasks.items():
            scores = []
            for seed in range(arguments.seeds):
                place = arguments.out / row / f"{task}-{seed}"
                if not (place / "score.json").exists():
                    settings = FinetuneSettings(
                        model=str(pretrained),
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
    draw(arguments)


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
        f"BERT-mini's size, pre-trained as in objectives.md, then {arguments.seeds} seeds, torch {torch.__version__}."
    )
    (arguments.out / "contrast.md").write_text(note + "\n\n" + "\n".join(lines) + "\n")


def draw(arguments: argparse.Namespace) -> None:
    """The mean over the heads of every layer, both models, one sentence."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(len(MODELS), 4, figsize=(14, 7.5), squeeze=False)
    for row, (name, folder) in enumerate(MODELS.items()):
        place = arguments.pretrained / folder / "model"
        encoder, _ = load_encoder(place)
        tokenizer = load_tokenizer(place)
        ids = np.concatenate([[tokenizer.cls_id], tokenizer.encode(SENTENCE).ids, [tokenizer.sep_id]])
        for layer, weights in enumerate(encoder.attention_maps(pack([ids]))):
            axis = axes[row][layer]
            axis.imshow(weights.mean(0).numpy(), cmap="magma", vmin=0, vmax=0.5)
            axis.set_title(f"{name}, layer {layer + 1}", fontsize=9)
            axis.set_xticks(range(len(ids)), tokenizer.tokens(ids), rotation=90, fontsize=6)
            axis.set_yticks(range(len(ids)), tokenizer.tokens(ids), fontsize=6)
    figure.tight_layout()
    figure.savefig(arguments.out / "attention.png", dpi=110)


if __name__ == "__main__":
    main()
