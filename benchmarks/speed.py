"""Every row of docs/performance.md on a processor, in one command: ours beside its peers, a table and a picture.

    pip install accelerate sentence-transformers onnx onnxscript onnxruntime
    python benchmarks/speed.py --novels STORE --articles STORE --model FOLDER --phrases FILE --squad FILE
        --sentences FILE --out runs/speed [--only NAME ...]

Some twenty minutes on two cores. Each row is a benchmark of this folder in a process of its own, which is printed
first; a row that is there already is not run again. STORE of --novels and of --articles (long ones) are made by
`bertsmith corpus build`, FOLDER is a small encoder, --phrases a table with the column `sentence`, --squad in SQuAD's
layout, --sentences a text with one a line. Writes `speed.json`, `speed.md` and `speed.svg`. Nothing else should run on
the machine.

mini        pre-train BERT-mini, 64 x 128, MLM + NSP                  pretraining.py
base        the same, BERT-base, 16 x 128
articles    BERT-base, 4 x 512
sst2        fine-tune on short phrases                                finetuning.py
squad       fine-tune on questions, 384 tokens
encoding    vectors of 2,048 sentences                                encoding.py
builder     pairs, masks and packing, on one core                     builder.py
memory      of BERT-base's pre-training at its peak, 16 x 128         memory.py
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

HERE = Path(__file__).parent
SQUAD = ("--task", "answering", "--max-length", "384", "--batch-size", "16", "--steps", "10")


def main() -> None:
    """Run the rows that are not there, write what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("novels", "articles", "model", "phrases", "squad", "sentences", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    found = {}
    for name, (script, options) in commands(arguments).items():
        folder = arguments.out / name
        result = folder / f"{Path(script).stem}.json"
        if not result.exists() and (not arguments.only or name in arguments.only):
            folder.mkdir(parents=True, exist_ok=True)
            command = [
                sys.executable,
                str(HERE / script),
                *options,
                "--out",
                str(result if name == "builder" else folder),
            ]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=False)
        if result.exists():
            found[name] = json.loads(result.read_text())
    (arguments.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
    ratios = {label: ratio for name, row in found.items() for label, ratio in ratios_of(name, row).items()}
    (arguments.out / "speed.md").write_text(table(found))
    draw(ratios, arguments.out / "speed.svg")
    print(table(found))


def commands(arguments: argparse.Namespace) -> dict[str, tuple[str, Sequence[str]]]:
    """name -> script, options but --out"""
    pretrain = ["--corpus", str(arguments.novels)]
    tune = ["--model", str(arguments.model)]
    base = ["--size", "base", "--steps", "5"]
    return {
        "mini": ("pretraining.py", [*pretrain, "--steps", "8"]),
        "base": ("pretraining.py", [*pretrain, *base, "--batch-size", "16"]),
        "articles": (
            "pretraining.py",
            ["--corpus", str(arguments.articles), *base, "--batch-size", "4", "--max-length", "512"],
        ),
        "sst2": (
            "finetuning.py",
            [*tune, "--train", str(arguments.phrases), "--text-column", "sentence", "--steps", "30"],
        ),
        "squad": ("finetuning.py", [*tune, "--train", str(arguments.squad), *SQUAD]),
        "encoding": ("encoding.py", [*tune, "--texts", str(arguments.sentences), "--rounds", "3"]),
        "builder": ("builder.py", pretrain),
        "memory": ("memory.py", pretrain),
    }


def ratios_of(name: str, row: Mapping[str, Any]) -> dict[str, float]:
    """What is drawn: how many times the peer's speed, or for memory the peer's share, by what it is."""
    if "ratios" in row:
        return {f"{name}, beside {peer}": ratio for peer, ratio in row["ratios"].items()}
    return {name: 1 / row["ratio"] if name == "memory" else row["ratio"]}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The ratios as Markdown, and the share of the largest matrix product where it was measured."""
    lines = ["| row | ours / peer | of the largest matrix product |", "|---|---:|---:|"]
    for name, row in found.items():
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        lines += [f"| {label} | {ratio:.2f} | {share} |" for label, ratio in ratios_of(name, row).items()]
    return "\n".join(lines) + "\n"


def draw(ratios: Mapping[str, float], path: Path) -> None:
    """A bar a row; the line at 1 is the peer."""
    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(ratios) + 1))
    axes.barh(list(ratios), list(ratios.values()), color="#3b6fb6")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times the peer's speed (memory: the peer's peak by ours)")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
