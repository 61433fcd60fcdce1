"""Runs that are killed, files that are damaged, disks that refuse: is a checkpoint ever lost, or a wrong one used?

    python benchmarks/kill_campaign.py --out runs/kills [--only kills damage disk] [--verbs pretrain finetune]
        [--kills 200] [--damages 1000] [--refusals 80] [--seed 0]

Tiny models learn on made-up sentences, a checkpoint every other step; what the same command gives when nothing happens
to it is made first, by `python -m bertsmith`, and kept in the folder. An attempt is that command in a fork of a process
that has imported it.

kills   SIGKILL at a random instant, or before a call that changes a file while a checkpoint is saved (every such call
        in turn) or half-way through a file of tensors. Then the newest whole checkpoint has to be the last that was
        finished, or the one that was being written, bit for bit that of the undisturbed run, with no damaged one
        beside it; the next attempt has to go on from it. After some kills in a row the run is left alone and has to
        end with the undisturbed run's weights and scores.
damage  one bit flipped, or the end cut off, at random, in each file of checkpoints and token stores in turn: whoever
        reads them with all hashes must notice. No process is needed.
disk    a disk that fills up while a checkpoint is written (a tmpfs), a folder that becomes read-only (a bind mount;
        both need the rights of root, and are left out without them), and each call of a save in turn refused with "no
        space", "read-only", "quota" or "input/output error" (by a hook in the child). The command has to end with
        exit code 2 (but if all that was refused is the removal of an older checkpoint), the last checkpoint to be
        whole, nothing half-written to be left, and the run to end right once the disk is well again.

Figures add up over calls with the same --out (`kill_campaign.json`, `.md`). Exit code 1: something failed.
"""

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from campaign_child import REFUSALS, Attempt, Trouble, attempt, hashes, preload
from campaign_tally import Tally, report

from bertsmith.errors import BertsmithError, TrainingError
from bertsmith.files import bring_back, is_leftover
from bertsmith.text.corpus import open_corpus
from bertsmith.training.checkpoint import Kind, find_fault, newest_checkpoint
from bertsmith.training.progress import read_metrics

WORDS = "the a of and to in it is was he she old king cat river house city blue red saw came went said one two".split()
KILLS_IN_A_ROW = 8
TMPFS_MIB = 64
KINDS: tuple[Kind, ...] = ("step", "best", "stable")


@dataclass(frozen=True)
class Straight:
    """A verb's command without --out, and what comes of it when nothing happens."""

    verb: str
    command: Sequence[str]
    outcome: dict[str, Any]
    files: dict[str, dict[str, str]]  # name of a checkpoint -> hashes of its tensors
    calls: dict[str, int]  # calls that change a file in the save of each
    seconds: float


def main() -> int:
    """Do what was asked for, add it to what is there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["kills", "damage", "disk"], choices=("kills", "damage", "disk"))
    parser.add_argument("--verbs", nargs="+", default=["pretrain", "finetune"], choices=("pretrain", "finetune"))
    parser.add_argument("--kills", type=int, default=200, help="over all verbs")
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument(
        "--refusals",
        type=int,
        default=80,
        help="over all verbs; of single calls, where mounts can be made half of them",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    commands = {verb: command for verb, command in prepare(out).items() if verb in arguments.verbs}
    rows: dict[str, Tally] = {}
    if {"kills", "disk"} & {*arguments.only}:
        preload()
        for verb, command in commands.items():
            place = Path(tempfile.mkdtemp(prefix=f"{verb}-", dir=out))
            draw = random.Random(f"{verb} {arguments.seed}")
            straight = observed(verb, command, place, out / "straight" / verb)
            if "kills" in arguments.only:
                rows |= kills(straight, place, arguments.kills // len(commands), arguments.seed, draw)
            if "disk" in arguments.only:
                rows |= refusals(straight, place, arguments.refusals // len(commands), draw)
            shutil.rmtree(place)
    if "damage" in arguments.only:
        rows |= damages(out, arguments.damages, random.Random(f"damage {arguments.seed}"))
    what = {name: getattr(arguments, name) for name in ("only", "verbs", "kills", "damages", "refusals", "seed")}
    return report(out, what, rows)


# What the runs are


def prepare(out: Path) -> dict[str, list[str]]:
    """Text, labels, tokenizer, store, and a run of each verb that nothing happens to; the commands without --out."""
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
    return commands


def real(*command: str) -> None:
    """The command line as users start it."""
    subprocess.run([sys.executable, "-m", "bertsmith", *command], check=True, stdout=subprocess.DEVNULL)


def observed(verb: str, command: Sequence[str], place: Path, reference: Path) -> Straight:
    """An undisturbed run in a fork, which has to come to what the real one came to."""
    began = time.monotonic()
    run = attempt([*command, "--out", str(place / "run")], place / "log")
    seconds = time.monotonic() - began
    outcome = outcome_of(reference)
    if run.code != 0 or outcome_of(place / "run") != outcome:
        raise SystemExit(f"{verb}: a fork does not give what the command gives; see {place / 'log'}")
    saved = run.of("saved")
    files = {note["name"]: note["files"] for note in saved}
    calls = {note["name"]: note["calls"] for note in saved}
    shutil.rmtree(place / "run")
    return Straight(verb, command, outcome, files, calls, seconds)


def outcome_of(run: Path) -> dict[str, Any]:
    """All tensors that a finished run has, and all that was evaluated; without times."""
    return {
        "files": {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))},
        "scores": [
            (line["step"], line["metrics"]) for line in read_metrics(run / "metrics.jsonl") if "metrics" in line
        ],
        "names": sorted(path.name for path in (*run.iterdir(), *(run / "checkpoints").iterdir())),
    }


# Kills


def kills(straight: Straight, place: Path, number: int, seed: int, draw: random.Random) -> dict[str, Tally]:
    """Half of them at every call of a save in turn, the others at random instants, in runs of a few kills each.

    The next seed goes on with the call behind the last of this one.
    """
    num_calls = max(straight.calls.values())
    calls = range(seed * (number // 2), (seed + 1) * (number // 2))
    due: list[Trouble | None] = [Trouble("kill", draw.randint(1, 3), 1 + call % num_calls) for call in calls]
    due += [None] * (number - len(due))
    draw.shuffle(due)
    rows = {"at a write": Tally(), "at a random instant": Tally(), "runs left alone at last": Tally()}
    while due:
        run = Run(straight, place, place)
        killed = 0
        while due and killed < KILLS_IN_A_ROW:
            trouble = due[-1]
            name = "at a write" if trouble else "at a random instant"
            seconds = None if trouble else draw.uniform(0, straight.seconds)
            ended = run.go(trouble, seconds, rows[name])
            if ended.code == 0:  # it was done before the kill
                if trouble and killed == 0:
                    rows[name].check(trouble.save > 1, f"no save has a call number {trouble.number}")
                due[-1] = trouble and replace(trouble, save=1)
                break
            rows[name].check(ended.code == -9, f"{run.where} ended with {ended.code}")
            rows[name].done += 1
            for note in ended.of("trouble"):
                rows[name].count(note["call"])
                rows[name].places.append(f"{trouble.number if trouble else 0} of {num_calls}")
            due.pop()
            killed += 1
        run.finish(rows["runs left alone at last"])
        rows["runs left alone at last"].done += 1
    return {f"kills, {straight.verb}: {name}": tally for name, tally in rows.items()}


class Run:
    """A run that something happens to, again and again, and what must be there after each time."""

    def __init__(self, straight: Straight, place: Path, disk: Path) -> None:
        self.straight = straight
        self.place = place
        self.folder = disk / "run"
        self.log = place / "log"
        self.last: str | None = None  # the last checkpoint that was finished
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.straight.verb} after {self.last}"

    def go(self, trouble: Trouble | None, seconds: float | None, tally: Tally) -> Attempt:
        """Start or resume it, and check what it went on from and what it left."""
        before = self.newest(tally)
        command = [*self.straight.command, "--out", str(self.folder), "--resume"]
        ended = attempt(command, self.log, trouble, seconds)
        for note in ended.of("resumed"):
            tally.check(note["name"] == before, f"{self.where}: resumed from {note['name']}, not from {before}")
        if ended.of("saved"):
            tally.check(bool(ended.of("resumed")) == (before is not None), f"{self.where}: began again")
        for note in ended.of("saved"):
            tally.check(
                note["files"] == self.straight.files[note["name"]], f"{self.where}: other bits in {note['name']}"
            )
        steps = [note["name"] for note in ended.of("saved") if note["name"].startswith("step")]
        self.last = steps[-1] if steps else self.last
        begun = [note["name"] for note in ended.of("begun") if note["name"].startswith("step")][len(steps) :]
        newest = self.newest(tally)
        tally.check(newest in (self.last, *begun), f"{self.where}: {newest} is there instead")
        self.last = newest
        return ended

    def newest(self, tally: Tally) -> str | None:
        """The newest whole checkpoint as the next run will see it; a damaged one of any kind is a failure."""
        seen = self.place / "seen"
        shutil.rmtree(seen, ignore_errors=True)
        if not (self.folder / "checkpoints").is_dir():
            return None
        shutil.copytree(self.folder / "checkpoints", seen)
        bring_back(seen)
        found: list[Path | None] = [None]
        try:
            with warnings.catch_warnings(action="error"):
                found = [newest_checkpoint(seen, kind) for kind in KINDS]
        except (RuntimeWarning, TrainingError) as error:
            tally.check(False, f"{self.where}: {error}")
        for path in found:
            if path is not None:
                tally.check(hashes(path) == self.straight.files[path.name], f"{self.where}: other bits in {path.name}")
        return found[0].name if found[0] else None

    def finish(self, tally: Tally) -> None:
        """Leave it alone until its end."""
        ended = self.go(None, None, tally)
        tally.check(ended.code == 0, f"{self.where}: ended with {ended.code}; see {self.log}")
        if ended.code == 0:
            tally.check(outcome_of(self.folder) == self.straight.outcome, f"{self.where}: another outcome")


# Disks


def refusals(straight: Straight, place: Path, number: int, draw: random.Random) -> dict[str, Tally]:
    """One refusal a run, in a save that is not its first; then the disk is well again, and the run ends."""
    rows = {"a call is refused": Tally(), "the disk fills up": Tally(), "it becomes read-only": Tally()}
    largest = sum(file.stat().st_size for file in largest_checkpoint(place.parent / "straight" / straight.verb))
    kinds = cycle((0, 1, 0, 2) if os.geteuid() == 0 else (0,))
    num_calls = max(straight.calls.values())
    calls = cycle(draw.sample(range(1, num_calls + 1), num_calls))
    for _ in range(number):
        save = draw.randint(2, len(straight.calls) - 2)
        name = list(rows)[next(kinds)]
        tally = rows[name]
        trouble = {
            "a call is refused": Trouble("refuse", save, next(calls)),
            "the disk fills up": Trouble("fill", save, draw.randrange(largest)),
            "it becomes read-only": Trouble("read-only", save),
        }[name]
        trouble = replace(trouble, code=draw.choice(REFUSALS))
        with mounted(place / "disk") if trouble.kind == "fill" else nullcontext(place) as where:
            run = Run(straight, place, where)
            ended = run.go(trouble, None, tally)
            hit = ended.of("trouble")
            if trouble.kind == "read-only" and hit:
                subprocess.run(["umount", run.folder / "checkpoints"], check=True)
            (where / "filler").unlink(missing_ok=True)
            left = [path.name for path in (run.folder / "checkpoints").iterdir() if ".tmp-" in path.name]
            # Else it was the removal of an older one that was refused, which is a warning.
            is_cut = len(ended.of("saved")) < len(ended.of("begun"))
            if trouble.kind != "refuse" or trouble.code != errno.EROFS:  # what cannot be removed stays
                tally.check(not left, f"{run.where}, {trouble}: left {left}")
            tally.check(ended.code == (2 if is_cut else 0), f"{run.where}, {trouble}: code {ended.code}")
            tally.done += len(hit)
            for note in hit if trouble.kind == "refuse" else ():
                tally.count(note["call"])
                tally.places.append(f"{trouble.number} of {num_calls}")
            run.finish(tally)
            tally.check(not any(map(is_leftover, os.listdir(run.folder / "checkpoints"))), f"{run.where}: leftovers")
    return {f"disk, {straight.verb}: {name}": tally for name, tally in rows.items() if tally.done}


@contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def largest_checkpoint(run: Path) -> list[Path]:
    """The files of a whole checkpoint."""
    return [path for path in sorted((run / "checkpoints").glob("step-*"))[-1].iterdir()]


# Damage


def damages(out: Path, number: int, draw: random.Random) -> dict[str, Tally]:
    """Flips and cuts in the checkpoints of the straight runs and in the store, in every file in turn."""
    rows: dict[str, Tally] = {}
    checkpoints = sorted(path for path in (out / "straight").glob("*/checkpoints/*") if path.is_dir())
    files = [(path, folder, finds_checkpoint) for folder in checkpoints for path in sorted(folder.iterdir())]
    store = out / "store"
    files += [(path, store, finds_store) for path in sorted(store.rglob("*")) if path.is_file()]
    draw.shuffle(files)
    for (file, folder, finds), _ in zip(cycle(files), range(number), strict=False):
        kind = "checkpoints" if finds is finds_checkpoint else "token stores"
        how = draw.choice(("flipped", "cut off"))
        tally = rows.setdefault(f"damage, {kind}: {how}", Tally())
        whole = file.read_bytes()
        place = draw.randrange(len(whole))
        damaged = whole[:place]
        if how == "flipped":
            damaged += bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
        with a_copy(folder) as copy:
            target = copy / file.relative_to(folder)
            target.unlink()
            target.write_bytes(damaged)
            tally.check(finds(copy), f"{file.relative_to(out)} {how} at {place} was not noticed")
            tally.count(file.suffix.removeprefix(".") if file.suffix != ".json" else file.name)
        tally.done += 1
    return rows


@contextmanager
def a_copy(folder: Path) -> Iterator[Path]:
    """A folder of links to the same files, under the same name."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        yield Path(shutil.copytree(folder, Path(place) / folder.name, copy_function=os.link))


def finds_checkpoint(folder: Path) -> bool:
    """Whether no run would go on from it."""
    return find_fault(folder) is not None


def finds_store(folder: Path) -> bool:
    """Whether it is refused when it is opened with all its hashes."""
    try:
        for split in ("train", "heldout"):
            open_corpus(folder, split, verify=True)
    except BertsmithError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
