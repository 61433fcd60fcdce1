"""Runs that are killed, files that are damaged, disks that refuse: is a checkpoint ever lost, or a wrong one used?

    python benchmarks/kill_campaign.py --out runs/kills [--only kills damage disk] [--verbs pretrain finetune]
        [--ranks 1 2] [--kills 200] [--damages 1000] [--refusals 80] [--seed 0]

Tiny models learn on made-up sentences, a checkpoint every other step; what the same command gives when nothing happens
to it is made first, by `python -m bertsmith`, and kept in the folder. An attempt is that command in a fork of a process
that has imported it, or in a fork for each rank.

kills   SIGKILL at a random instant, or before a call that changes a file while a checkpoint is saved (every such call
        in turn) or half-way through a file of tensors. Then the newest whole checkpoint has to be the last that was
        finished, or the one that was being written, bit for bit that of the undisturbed run, with no damaged one
        beside it; the next attempt has to go on from it. After some kills in a row the run is left alone and has to
        end with the undisturbed run's weights and scores. With 2 ranks (of gloo) it is rank 0 that is killed in a
        save, and either of them at a random instant; the other has to end by itself, with an error. (Before the two
        have met it cannot know, and is killed, which torchrun would do.)
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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import torch
from campaign_child import REFUSALS, Attempt, Trouble, attempt, hashes, preload
from campaign_runs import Straight, observed, outcome_of, prepare, reference
from campaign_tally import Tally, report

from bertsmith.errors import BertsmithError, TrainingError
from bertsmith.files import bring_back, is_leftover
from bertsmith.text.corpus import open_corpus
from bertsmith.training.checkpoint import Kind, find_fault, newest_checkpoint

KILLS_IN_A_ROW = 8
TMPFS_MIB = 64
KINDS: tuple[Kind, ...] = ("step", "best", "stable")


def main() -> int:
    """Do what was asked for, add it to what is there, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["kills", "damage", "disk"], choices=("kills", "damage", "disk"))
    parser.add_argument("--verbs", nargs="+", default=["pretrain", "finetune"], choices=("pretrain", "finetune"))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1], help="how many processes a run has; of kills")
    parser.add_argument("--kills", type=int, default=200, help="over all verbs and ranks")
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
    sizes = {*(arguments.ranks if "kills" in arguments.only else ()), *((1,) if "disk" in arguments.only else ())}
    prepared = prepare(out, sizes)
    commands = {verb: command for verb, command in prepared.items() if verb in arguments.verbs}
    rows: dict[str, Tally] = {}
    if sizes:
        preload()
        for (verb, command), num_ranks in product(commands.items(), sorted(sizes)):
            place = Path(tempfile.mkdtemp(prefix=f"{verb}-", dir=out))
            draw = random.Random(f"{verb} {arguments.seed}")
            straight = observed(verb, command, num_ranks, place, reference(out, verb, num_ranks))
            if "kills" in arguments.only and num_ranks in arguments.ranks:
                number = arguments.kills // (len(commands) * len(arguments.ranks))
                rows |= kills(straight, place, number, arguments.seed, draw)
            if "disk" in arguments.only and num_ranks == 1:
                rows |= refusals(straight, place, arguments.refusals // len(commands), draw)
            shutil.rmtree(place)
    if "damage" in arguments.only:
        rows |= damages(out, arguments.damages, random.Random(f"damage {arguments.seed}"))
    what = {
        name: getattr(arguments, name) for name in ("only", "verbs", "ranks", "kills", "damages", "refusals", "seed")
    }
    return report(out, what, rows)


# Kills


def kills(straight: Straight, place: Path, number: int, seed: int, draw: random.Random) -> dict[str, Tally]:
    """Half of them at every call of a save in turn, the others at random instants, in runs of a few kills each.

    Of several ranks, the first alone saves; at a random instant it is any of them. The next seed goes on with the call
    behind the last of this one.
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
            victim = 0 if trouble else draw.randrange(straight.num_ranks)
            ended = run.go(trouble, seconds, rows[name], victim)
            if ended.codes[victim] == 0:  # it was done before the kill
                if trouble and killed == 0:
                    rows[name].check(trouble.save > 1, f"no save has a call number {trouble.number}")
                due[-1] = trouble and replace(trouble, save=1)
                break
            rows[name].check(ended.codes[victim] == -9, f"{run.where} ended with {ended.codes}")
            check_others(run, ended, victim, rows[name])
            rows[name].done += 1
            for note in ended.of("trouble"):
                rows[name].count(note["call"])
                rows[name].places.append(f"{trouble.number if trouble else 0} of {num_calls}")
            due.pop()
            killed += 1
        run.finish(rows["runs left alone at last"])
        rows["runs left alone at last"].done += 1
    return {f"kills, {straight.name}: {name}": tally for name, tally in rows.items()}


def check_others(run: "Run", ended: Attempt, victim: int, tally: Tally) -> None:
    """The ranks that were not killed have ended by themselves: with an error, or at the end of the run."""
    others = [code for rank, code in enumerate(ended.codes) if rank != victim]
    if others:
        tally.count(f"rank {victim}")
    if others and not ended.have_met:
        tally.count("before they had met")
        return
    is_over = run.last == list(run.straight.files)[-1]
    for code in others:
        tally.check(code == 2 or (code == 0 and is_over), f"{run.where}: another rank ended with {code}")
    tally.longest_seconds = max(tally.longest_seconds, ended.seconds_behind)


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
        return f"{self.straight.name} after {self.last}"

    def go(self, trouble: Trouble | None, seconds: float | None, tally: Tally, victim: int = 0) -> Attempt:
        """Start or resume it, and check what it went on from and what it left."""
        before = self.newest(tally)
        command = [*self.straight.command, "--out", str(self.folder), "--resume"]
        ended = attempt(command, self.log, trouble, seconds, self.straight.num_ranks, victim)
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
        tally.check(not any(ended.codes), f"{self.where}: ended with {ended.codes}; see {self.log}")
        if not any(ended.codes):
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
            tally.check(ended.codes == [2 if is_cut else 0], f"{run.where}, {trouble}: code {ended.codes}")
            tally.done += len(hit)
            for note in hit if trouble.kind == "refuse" else ():
                tally.count(note["call"])
                tally.places.append(f"{trouble.number} of {num_calls}")
            run.finish(tally)
            tally.check(not any(map(is_leftover, os.listdir(run.folder / "checkpoints"))), f"{run.where}: leftovers")
    return {f"disk, {straight.name}: {name}": tally for name, tally in rows.items() if tally.done}


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
