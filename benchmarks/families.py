"""Speed and memory of pre-training a new model of every family, at one size, as it learns by default.

    python benchmarks/families.py --corpus STORE --out runs/families [--size mini] [--budget 30s]

Each family is a process of its own. Writes `families.md` and `families.json`. Nothing else should run on the
machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bertsmith.model.families import FAMILIES


def main() -> None:
    """Run every family once and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--budget", default="30s")
    arguments = parser.parse_args()
    rows = []
    for model_type in FAMILIES:
        folder = arguments.out / model_type
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "bertsmith", "pretrain", "--corpus", str(arguments.corpus)]
        command += ["--out", str(folder), "--family", model_type, "--size", arguments.size, "--dropout", "0"]
        command += ["--budget", arguments.budget, "--evaluation-samples", "50", "--evaluate-every", "100%"]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{model_type}: the run failed")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"][2:]  # without the warm-up
        rows.append(
            {
                "family": model_type,
                "tokens_per_second": statistics.median(speeds),
                "peak_memory_bytes": usage.ru_maxrss * 1024,
            }
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "families.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = [f"Size {arguments.size}, {torch.get_num_threads()} threads, torch {torch.__version__}.", ""]
    text += ["| family | tokens/s | peak memory, GiB |", "|---|---:|---:|"]
    for row in rows:
        memory = row["peak_memory_bytes"] / 2**30
        text.append(f"| {row['family']} | {row['tokens_per_second']:,.0f} | {memory:.1f} |")
    (arguments.out / "families.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
