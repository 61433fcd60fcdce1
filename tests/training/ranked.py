"""Runs of several ranks, for test_distributed.py, test_sharding.py and tests/faults/test_ranks.py.

python ranked.py all ROOT       each of SCENARIOS but the sharded, or those named behind ROOT; the ranks are forks of
                                this process (which has imported torch once)
torchrun ranked.py try ROOT     two ranks, which the first time are slow; the second time one is killed in the 20th step

A scenario leaves the run in ROOT/NAME/run, and what each rank saw in ROOT/NAME/rank-R.json.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from conftest import ToyModel, ToyTask  # of this folder, which is where Python looks first for what a script imports
from rich.console import Console

from bertsmith.errors import BertsmithError, Interrupted
from bertsmith.training import checkpoint, distributed
from bertsmith.training.distributed import Ranks, joined
from bertsmith.training.launch import read_launch
from bertsmith.training.loop import Stage, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.sharding import Shards

VALUES: dict[str, Any] = {
    "budget": "50 steps",
    "batch_size": 8,
    "micro_batch_size": 2,
    "device": "cpu",
    "precision": "fp32",
    "num_workers": 0,
    "log_every": 1,
    "evaluate_every": "10 steps",
    "save_every": "7 steps",
    "keep_best": True,
    "ema_decay": 0.9,
}


class HalfUsed(ToyModel):
    """A model with a matrix that no loss depends on; decayed, it would not stay as it is."""

    def __init__(self, dropout: float) -> None:
        super().__init__(dropout)
        self.unused = torch.nn.Linear(3, 3)


def go(
    folder: Path,
    ranks: Ranks,
    *,
    dropout: float = 0.0,
    before_loss: Callable[[int, Any], None] = lambda step, batch: None,
    clock: Callable[[], float] = time.monotonic,
    own_data: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """A run, and what this rank saw of it; `before_loss` is told how many steps are finished.

    Each rank begins with weights of its own, which must not matter.
    """
    torch.manual_seed(0 if ranks.is_first else 100)
    task = ToyTask(size=50, dev_size=10)
    steps: list[int] = []
    learnt = distributed.Ranks.sum_gradients

    def counted(self: Ranks, *arguments: Any) -> None:
        learnt(self, *arguments)
        steps.append(len(steps))

    distributed.Ranks.sum_gradients = counted  # type: ignore[method-assign]
    held: list[int] = []
    for kind in (distributed.Ranks, Shards):
        kind.clip = weighed(kind.clip, held)  # type: ignore[method-assign]
    task.before_loss = lambda batch: before_loss(len(steps), batch)
    optimizer = OptimizerSettings(learning_rate=0.02, weight_decay=0.1)
    settings = TrainSettings(optimizer=optimizer, **{**VALUES, **changes})
    model = HalfUsed(dropout)
    written = watch(folder) if not ranks.is_first else []
    found: dict[str, Any] = {"error": None}
    try:
        console = Console(file=(folder.parent / f"{os.environ.get('RANK', 0)}.txt").open("a"), width=200)
        options: dict[str, Any] = {"resume": True, "console": console, "clock": clock, "ranks": ranks}
        options["fingerprint"] = {"data": str(read_launch().rank if own_data else 0)}
        result = train(model, [Stage(task)], settings, folder, **options)
        found["result"] = {**asdict(result), "checkpoint": result.checkpoint.name}
        found["model"] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    except (BertsmithError, Interrupted) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return {**found, "seen": task.seen, "written": written, "held": max(held, default=0)}


def weighed(clip: Callable[..., Any], held: list[int]) -> Callable[..., Any]:
    """Clipping that notes how many weights this rank updates, and how many gradients it has."""

    def noted(self: Any, parameters: Sequence[torch.nn.Parameter], max_norm: float) -> Any:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        held.append(sum(tensor.numel() for tensor in (*parameters, *gradients)))
        return clip(self, parameters, max_norm)

    return noted


def watch(folder: Path) -> list[str]:
    """What this process changes in a folder from now on."""
    written: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event.startswith(("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.", "tempfile."))
        if is_change or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            if str(arguments[0]).startswith(str(folder)):
                written.append(f"{event} {arguments[0]}")

    sys.addaudithook(audit)
    return written


def press(rank: int, step: int) -> dict[str, Any]:
    """A SIGTERM to one rank in a step."""

    def before_loss(done: int, batch: Any) -> None:
        if done == step and read_launch().rank == rank:
            signal.raise_signal(signal.SIGTERM)

    return {"before_loss": before_loss}


def spoil(done: int, batch: Any) -> None:
    """Two examples have a loss that is not finite."""
    for place, example in enumerate(batch.examples):
        if example.index in (7, 31):
            batch.labels["count"][place] = float("nan")


def end(rank: int, step: int, how: Callable[[], None]) -> Callable[[int, Any], None]:
    """What `how` does to one rank, before its first loss at or after a step."""

    def before_loss(done: int, batch: Any) -> None:
        if done >= step and read_launch().rank == rank:
            how()

    return before_loss


def killed() -> None:
    """As the system does it when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def slow_clock() -> float:
    """Rank 0's seconds pass; the others' are those of another world."""
    slow_clock.now += 0.25 if read_launch().rank == 0 else 1000.0  # type: ignore[attr-defined]
    return slow_clock.now  # type: ignore[attr-defined, no-any-return]


slow_clock.now = 0.0  # type: ignore[attr-defined]


def no_disk() -> None:
    """Rank 0 cannot save."""

    def refuse(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    checkpoint.save_file = refuse


def short_answer() -> None:
    """Five seconds instead of minutes."""
    distributed.ANSWER = timedelta(seconds=5)


TIMED = {"budget": "30s", "evaluate_every": "7s", "save_every": "5s", "clock": slow_clock}

SHARDED = {"shard_weights": True}

# name: [(number of ranks, options of `go`, what is done first), ...], one run after the other in the same folder
SCENARIOS: dict[str, list[tuple[int, dict[str, Any], Callable[[], None] | None]]] = {
    "one": [(1, {}, None)],
    "two": [(2, {}, None)],
    "four": [(4, {"micro_batch_size": None}, None)],
    "dropout, one": [(1, {"dropout": 0.3, "micro_batch_size": 4}, None)],
    "dropout, two": [(2, {"dropout": 0.3, "micro_batch_size": 4}, None)],
    "stopped": [(4, press(2, 16), None), (2, press(0, 12), None), (1, press(0, 5), None), (4, {}, None)],
    "spoilt, one": [(1, {"before_loss": spoil, "max_skipped_steps": 3}, None)],
    "spoilt, two": [(2, {"before_loss": spoil, "max_skipped_steps": 3}, None)],
    "spoilt, none allowed": [(2, {"before_loss": spoil}, None)],
    "clocks": [(2, TIMED, None)],
    "stops early": [(2, {"early_stopping": 1, "evaluate_every": "1 step"}, None)],
    "no disk": [(2, {}, no_disk)],
    "killed": [(2, {"before_loss": end(1, 19, killed)}, None)],
    "first killed": [(2, {"before_loss": end(0, 19, killed)}, None)],
    "hangs": [(2, {"before_loss": end(1, 19, lambda: time.sleep(7))}, short_answer)],
    "other data": [(2, {"own_data": True}, None)],
    "too small": [(4, {"batch_size": 3}, None)],
    "auto": [(2, {"auto_batch": True}, None)],
    "sharded, two": [(2, SHARDED, None)],
    "sharded, three": [(3, SHARDED, None)],
    "sharded, spoilt": [(2, {"before_loss": spoil, "max_skipped_steps": 3, **SHARDED}, None)],
    "sharded, stopped": [
        (2, {**press(1, 16), **SHARDED}, None),
        (2, press(0, 12), None),
        (3, {**press(2, 5), **SHARDED}, None),
        (1, SHARDED, None),
    ],
    "sharded, killed": [(2, {"before_loss": end(1, 19, killed), **SHARDED}, None)],
    "sharded, first killed": [(2, {"before_loss": end(0, 19, killed), **SHARDED}, None)],
}


def forked(size: int, action: Callable[[], None]) -> None:
    """Do something in `size` processes, as if torchrun had started them; the last to hang is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
            try:
                action()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    for _ in children[1:]:
        ended, _ = os.waitpid(-1, 0)
        children.remove(ended)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if os.waitpid(children[0], os.WNOHANG)[0]:
            return
        time.sleep(0.02)
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)


def play(name: str, root: Path) -> None:
    """The runs of a scenario, one after the other."""
    folder = root / name
    folder.mkdir(parents=True)
    for number, (size, options, first) in enumerate(SCENARIOS[name]):

        def one(number: int = number, options: dict[str, Any] = options, first: Any = first) -> None:
            if first is not None:
                first()
            with joined("cpu") as ranks:
                found = go(folder / "run", ranks, **options)
                path = folder / f"rank-{read_launch().rank}-{number}.json"
                path.write_text(json.dumps(found))

        forked(size, one)


def try_again(root: Path) -> None:
    """Two ranks under torchrun; see the module's docstring."""
    with joined("cpu") as ranks:
        tries = len(list(root.glob("try-*")))
        ranks.sum([0.0])  # all have counted
        if ranks.is_first:
            (root / f"try-{tries}").touch()
        done = max([0, *(checkpoint.step_of(path) for path in (root / "run" / "checkpoints").glob("step-*"))])
        before_loss = end(1, 19 - done if tries == 1 else 1000, killed) if tries else end(1, 2, lambda: time.sleep(0.2))
        found = go(root / "run", ranks, dropout=0.3, micro_batch_size=4, before_loss=before_loss)
        (root / f"rank-{read_launch().rank}.json").write_text(json.dumps(found))
        if found["error"]:
            sys.exit(found["error"])


if __name__ == "__main__":
    os.fsync = lambda descriptor: None
    if sys.argv[1] == "try":
        try_again(Path(sys.argv[2]))
    else:
        for each in sys.argv[3:] or (name for name in SCENARIOS if not name.startswith("sharded")):
            play(each, Path(sys.argv[2]))
