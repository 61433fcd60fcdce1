"""Processes that are killed or interrupted, for the tests beside this file.

python children.py save ROOT            kills the save of each scenario before each of its calls that change a file,
                                        in a folder each
python children.py run ROOT             a whole run, killed only where something gets or loses its name, and resumed;
                                        ROOT/straight is never killed
python children.py sleep ROOT           a run that waits in its fourth step, and says "ready", then "asked" once it has
                                        had a signal
"""

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import toy_task  # of this folder, which is where Python looks first for what a script imports
from rich.console import Console

from bertsmith.training import checkpoint
from bertsmith.training.checkpoint import save_checkpoint
from bertsmith.training.loop import Stage, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings

KILLED = 9
MOVES = {"os.rename", "os.rmdir", "shutil.rmtree"}
CHANGES = MOVES | {"open", "os.mkdir", "os.remove", "os.chmod", "fsync", "save_file"}

SCENARIOS: dict[str, tuple[list[str], str]] = {
    "a new step": (["step-1", "step-2"], "step-3"),
    "the same step": (["step-1", "step-2"], "step-2"),
    "a step that went back": (["step-1", "step-5"], "step-3"),
    "a better best": (["best-1"], "best-2"),
    "the same best": (["best-1"], "best-1"),
}
"""What is there, and what is written."""


def save(folder: Path, name: str, value: float) -> None:
    """A checkpoint in which every number is `value`."""
    kind, step = name.split("-")
    model, optimizer = toy_task.trained()
    tensors = [*model.state_dict().values(), *(one for state in optimizer.state.values() for one in state.values())]
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(value)
    options: dict[str, Any] = {"kind": kind, "keep": 1 if kind == "best" else 2}
    save_checkpoint(folder, int(step), model, None if kind == "best" else optimizer, {"value": value}, **options)


def go(folder: Path, before_loss: Callable[[Any], None] = lambda batch: None, **changes: Any) -> None:
    """A short run that writes every kind of checkpoint, or what is left of it."""
    torch.manual_seed(0)
    task = toy_task.ToyTask(size=20, dev_size=6)
    task.before_loss = lambda batch: before_loss(task)
    optimizer = OptimizerSettings(learning_rate=0.05, schedule="wsd", decay_share=0.5)
    values = {
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "num_workers": 0,
        "log_every": 1,
        "keep_best": True,
    }
    values |= {"budget": "2 steps", "save_every": "1 step", "evaluate_every": "2 steps", **changes}
    settings = TrainSettings(optimizer=optimizer, ema_decay=0.9, **values)
    train(toy_task.ToyModel(0.3), [Stage(task)], settings, folder, resume=True, console=Console(quiet=True))


def watch(last: int, events: set[str]) -> None:
    """End this process before call number `last` of these, or half-way through a file of tensors."""
    calls = itertools.count(1)

    def count(event: str) -> None:
        if event in events and next(calls) == last:
            os._exit(KILLED)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR):
            count(event)

    save_file = checkpoint.save_file

    def counted_fsync(descriptor: int) -> None:
        count("fsync")

    def counted_save_file(tensors: Any, path: Path) -> None:
        count("save_file")
        save_file(tensors, path)
        if next(calls) == last:
            os.truncate(path, path.stat().st_size // 2)
            os._exit(KILLED)

    os.fsync, checkpoint.save_file = counted_fsync, counted_save_file
    sys.addaudithook(audit)


def forked(action: Callable[[], None]) -> int:
    """The exit code of a process that does only this."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(start: Path, root: Path, action: Callable[[Path], None], events: set[str]) -> None:
    """Do it in copies of `start` named 001, 002, ..., killed before the first call, the second, and so on."""
    for last in itertools.count(1):
        place = root / f"{last:03d}"
        shutil.copytree(start, place)

        def killed(place: Path = place, last: int = last) -> None:
            watch(last, events)
            action(place)

        code = forked(killed)
        if code == 0:
            shutil.rmtree(place)
            return
        assert code == KILLED, code


def main(mode: str, root: Path) -> None:
    """See the module's docstring."""
    os.fsync = lambda descriptor: None  # slow, and a process that is killed does not lose what the system has
    start = root / "start"
    start.mkdir()
    if mode == "save":
        for scenario, (before, name) in SCENARIOS.items():
            for number, old in enumerate(before):
                save(root / scenario / "start", old, 1.0 + number)
            action = partial(save, name=name, value=9.0)
            kill_everywhere(root / scenario / "start", root / scenario, action, CHANGES)
    elif mode == "run":
        kill_everywhere(start, root, go, MOVES)
        for place in (root / "straight", *sorted(root.glob("[0-9]*"))):
            assert forked(lambda place=place: go(place)) == 0, place
    else:

        def wait(task: Any) -> None:
            if len(task.seen) == 3:
                print("ready", flush=True)
                for _ in range(3000):
                    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                        break
                    time.sleep(0.01)
                print("asked", flush=True)
                time.sleep(600)

        go(start, wait, budget="9 steps")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
