"""Everything that wants a GPU, in one command of less than ten minutes: tests, speed beside the Trainer, quality.

    pip install accelerate pytest hypothesis
    python benchmarks/gpu.py --corpus STORE --novels STORE --out runs/gpu [--model FOLDER --train FILE] [--only NAME]

STORE of --corpus has the vocabulary of BERT-base (30,522), that of --novels one of 8,192. Each part is a process with a
time limit and a log of its own in the folder; a part that fails or takes too long does not stop the others. Printed
is the last line of each; `gpu.json` has the card, the seconds and whether it ended well.

tests       those marked `gpu`
base        pretraining.py: BERT-base, 256 x 128, compiled and not
mini        the same with BERT-mini, 1,024 x 128
finetuning  finetuning.py on the encoder and the rows of --model and --train
precision   BERT-mini for 1,500 steps in bf16 and in fp32: held-out losses should differ by less than 0.02 nats
objectives  next sentences, sentence order and replaced tokens in batches of 128, all at once on the one card
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
PRETRAIN = (sys.executable, "-m", "bertsmith", "pretrain", "--size", "mini", "--max-length", "64", "--dropout", "0")
LEARNING = ("--batch-size", "128", "--mask-probability", "0.2", "--learning-rate", "1e-3", "--compile")


@dataclass(frozen=True)
class Part:
    """Commands that run at the same time, and the seconds that they have."""

    commands: Sequence[Sequence[str]]
    seconds: int


def main() -> None:
    """Run the parts in turn and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--novels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--train")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device here.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for name, part in parts(arguments).items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.monotonic()
        codes = run(part, arguments.out / name)
        results.append({"part": name, "exit_codes": codes, "seconds": time.monotonic() - began})
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "parts": results}
        (arguments.out / "gpu.json").write_text(json.dumps(about, indent=1) + "\n")


def parts(arguments: argparse.Namespace) -> dict[str, Part]:
    """What there is to run, in this order; fine-tuning only where a model and rows are given."""
    out, novels = arguments.out, str(arguments.novels)
    speed = [sys.executable, str(HERE / "pretraining.py"), "--corpus", str(arguments.corpus), "--steps", "14"]
    base = [*speed, "--size", "base", "--batch-size", "256", "--rounds", "2"]
    found = {
        "tests": Part([[sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(HERE.parent / "tests")]], 90),
        "base": Part([[*base, "--out", str(out / "speed-base")]], 50),
        "base-compiled": Part([[*base, "--compile", "--out", str(out / "speed-base-compiled")]], 100),
        "mini": Part([[*speed, "--batch-size", "1024", "--rounds", "3", "--out", str(out / "speed-mini")]], 50),
    }
    if arguments.model is not None and arguments.train is not None:
        tuning = [sys.executable, str(HERE / "finetuning.py"), "--model", str(arguments.model)]
        tuning += ["--train", arguments.train, "--text-column", "sentence", "--steps", "100"]
        found["finetuning"] = Part([[*tuning, "--out", str(out / "speed-finetuning")]], 50)
    learn = [*PRETRAIN, *LEARNING, "--corpus", novels, "--overwrite"]
    found["precision"] = Part(
        [
            [*learn, "--budget", "1500 steps", "--precision", precision, "--out", str(out / precision)]
            for precision in ("bf16", "fp32")
        ],
        80,
    )
    objectives = {
        "nsp": ["--family", "bert"],
        "sop": ["--family", "albert", "--max-length", "256"],
        "rtd": ["--family", "electra"],
    }
    found["objectives"] = Part(
        [[*learn, "--budget", "80s", "--out", str(out / name), *extra] for name, extra in objectives.items()], 120
    )
    return found


def run(part: Part, log: Path) -> list[int | None]:
    """The exit codes of the part's commands, None for one that was stopped; what they print goes to log-0.txt, ..."""
    files = [open(f"{log}-{number}.txt", "w") for number in range(len(part.commands))]
    children = [
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        for command, file in zip(part.commands, files, strict=True)
    ]
    deadline = time.monotonic() + part.seconds
    codes: list[int | None] = []
    for child, file in zip(children, files, strict=True):
        try:
            codes.append(child.wait(max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            codes.append(None)
        file.close()
        lines = Path(file.name).read_text(errors="replace").splitlines() or ["(nothing)"]
        figures = [line for line in lines if "held-out" in line or "times" in line or "passed" in line]
        print(f"{Path(file.name).stem} (exit code {codes[-1]}): {(figures or lines)[-1][:200]}", flush=True)
    return codes


if __name__ == "__main__":
    main()
