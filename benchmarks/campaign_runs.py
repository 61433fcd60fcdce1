"""The runs of a campaign: what they learn from, their commands, and what comes of them when nothing happens.

For kill_campaign.py.
"""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign_child import attempt

from bertsmith.training.progress import read_metrics

WORDS = "the a of and to in it is was he she old king cat river house city blue red saw came went said one two".split()


@dataclass(frozen=True)
class Straight:
    """A verb's command without --out, and what comes of it when nothing happens."""

    verb: str
    num_ranks: int
    command: Sequence[str]
    outcome: dict[str, Any]
    files: dict[str, dict[str, str]]  # name of a checkpoint -> hashes of its tensors
    calls: dict[str, int]  # calls that change a file in the save of each
    seconds: float

    @property
    def name(self) -> str:
        """For tables and messages."""
        return self.verb if self.num_ranks == 1 else f"{self.verb}, {self.num_ranks} ranks"


def prepare(out: Path, num_ranks: Iterable[int] = (1,)) -> dict[str, list[str]]:
    """Text, labels, tokenizer, store, and a run of each verb that nothing happens to; the commands without --out.

    With each number of ranks; what `finetune` starts from is always of one process.
    """
    store, labelled, straight = out / "store", out / "labelled.csv", out / "straight"
    shared = ["--batch-size", "4", "--max-length", "32", "--save-every", "2 steps", "--device", "cpu"]
    commands = {
        "pretrain": ["pretrain", "--corpus", str(store), "--size", "tiny", "--budget", "12 steps", *shared],
        "finetune": ["finetune", "classification", "--model", str(straight / "pretrain"), "--train", str(labelled)],
    }
    commands["pretrain"] += ["--schedule", "wsd", "--ema-decay", "0.9", "--evaluate-every", "4 steps"]
    commands["finetune"] += ["--epochs", "2", "--dev-share", "0.5", "--evaluate-every", "3 steps", *shared]
    if not (straight / "finetune" / "report.html").exists():
        draw = random.Random(0)

        def sentence() -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "."

        (out / "text.txt").write_text(
            "\n\n".join("\n".join(sentence() for _ in range(6)) for _ in range(60)) + "\n", encoding="utf-8"
        )
        texts = [sentence() for _ in range(48)]
        rows = [f"{text},{'royal' if 'king' in text.lower() else 'other'}\n" for text in texts]
        labelled.write_text("text,label\n" + "".join(rows))
        text = [str(out / "text.txt"), "--document-separator", "blank-lines", "--overwrite"]
        real("tokenizer", "train", *text, "--vocab-size", "300", "--out", str(out / "tokenizer"))
        tokenizer = ["--tokenizer", str(out / "tokenizer"), "--heldout-share", "0.1", "--shard-bytes", "8000"]
        real("corpus", "build", *text, *tokenizer, "--num-workers", "1", "--out", str(store))
        for verb, command in commands.items():
            shutil.rmtree(straight / verb, ignore_errors=True)
            real(*command, "--out", str(straight / verb))
    for size in num_ranks:
        for verb, command in commands.items():
            run = reference(out, verb, size)
            if not (run / "report.html").exists():
                shutil.rmtree(run, ignore_errors=True)
                real(*command, "--out", str(run), num_ranks=size)
    return commands


def reference(out: Path, verb: str, num_ranks: int) -> Path:
    """Where the run is that nothing happens to."""
    return out / ("straight" if num_ranks == 1 else f"straight-{num_ranks}") / verb


def real(*command: str, num_ranks: int = 1) -> None:
    """The command line as users start it."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m"]
    program = [*(torchrun if num_ranks > 1 else []), "bertsmith"]
    subprocess.run([sys.executable, "-m", *program, *command], check=True, stdout=subprocess.DEVNULL)


def observed(verb: str, command: Sequence[str], num_ranks: int, place: Path, reference: Path) -> Straight:
    """An undisturbed run in forks, which has to come to what the real one came to."""
    began = time.monotonic()
    run = attempt([*command, "--out", str(place / "run")], place / "log", num_ranks=num_ranks)
    seconds = time.monotonic() - began
    outcome = outcome_of(reference)
    if any(run.codes) or outcome_of(place / "run") != outcome:
        raise SystemExit(f"{verb}: forks do not give what the command gives; see {place / 'log'}")
    saved = run.of("saved")
    files = {note["name"]: note["files"] for note in saved}
    calls = {note["name"]: note["calls"] for note in saved}
    shutil.rmtree(place / "run")
    return Straight(verb, num_ranks, command, outcome, files, calls, seconds)


def outcome_of(run: Path) -> dict[str, Any]:
    """All tensors that a finished run has, and all that was evaluated; without times."""
    return {
        "files": {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))},
        "scores": [
            (line["step"], line["metrics"]) for line in read_metrics(run / "metrics.jsonl") if "metrics" in line
        ],
        "names": sorted(path.name for path in (*run.iterdir(), *(run / "checkpoints").iterdir())),
    }
