"""A command in forks of this process, one a rank, and what is done to it while it saves a checkpoint.

For kill_campaign.py.

The parent has imported the command line, so that an attempt costs the run alone. It may not have started a thread: a
fork has only the thread that forked.
"""

import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from safetensors import SafetensorError

from bertsmith.cli import main
from bertsmith.files import free_bytes
from bertsmith.training import checkpoint, loop
from bertsmith.training.distributed import Agreement

PRELOADED = ("bertsmith.cli.model_verbs", "torch._dynamo", "matplotlib.backends.backend_svg", "sklearn.metrics")
"""What a run imports late."""
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)
PATIENCE_SECONDS = 60.0
"""How long the other ranks have to end by themselves: at once, but that rank 0 first ends what it does for all."""
REMOVALS = {"os.remove", "os.rmdir", "shutil.rmtree"}
CHANGES = REMOVALS | {"open", "os.mkdir", "os.chmod", "os.rename", "os.truncate"}
"""Python's audit events for calls that change a file or folder."""


@dataclass(frozen=True)
class Trouble:
    """What happens in the first save, from number `save` of an attempt on, that can have it.

    kill        SIGKILL before call `number` of those that change a file, or half-way through a file of tensors
    refuse      that call and all later ones are refused with `code`
    fill        another file takes the space on the disk but `number` bytes, once the free space has been looked at
    read-only   the folder of checkpoints is mounted read-only
    """

    kind: Literal["kill", "refuse", "fill", "read-only"]
    save: int = 1
    number: int = 0
    code: int = 0


@dataclass(frozen=True)
class Attempt:
    """How the ranks ended, and what they had noted by then."""

    codes: Sequence[int]  # by rank: exit code, or minus the signal
    notes: Sequence[dict[str, Any]]
    have_met: bool  # whether all ranks had found each other before the first of them ended
    seconds_behind: float  # from the first end that was not a success to the last end

    def of(self, event: str) -> list[dict[str, Any]]:
        """The notes of one kind, in order."""
        return [note for note in self.notes if note["event"] == event]


def preload() -> None:
    """Import here what every child needs, and make sure that a fork of this process is a whole one."""
    for name in PRELOADED:
        importlib.import_module(name)
    threads = {Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")}
    if len(threads - {"jemalloc_bg_thd"}) > 1:  # jemalloc, which pyarrow brings, looks after its own thread in a fork
        raise SystemExit(f"a library has started a thread: {threads}. Set OMP_NUM_THREADS=1.")


def attempt(
    command: Sequence[str],
    log: Path,
    trouble: Trouble | None = None,
    seconds: float | None = None,
    num_ranks: int = 1,
    victim: int = 0,
) -> Attempt:
    """Run a command to its end, or to a SIGKILL after so many seconds, or into trouble.

    Args:
        log: gets what the command prints; `log`.RANK.notes what a child notes about its saves.
        trouble: of rank 0, which saves.
        victim: the rank that is killed after `seconds`.
    """
    notes = [log.with_suffix(f".{rank}.notes") for rank in range(num_ranks)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children: dict[int, int] = {}
    for rank, path in enumerate(notes):
        path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            if num_ranks > 1:
                where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1")
            _run(command, log, path, trouble if rank == 0 else None)
        children[rank] = child
    codes, have_met, seconds_behind = _watched(children, notes, seconds, victim)
    return Attempt(codes, [note for path in notes for note in _read(path)], have_met, seconds_behind)


def _watched(
    children: dict[int, int], notes: Sequence[Path], seconds: float | None, victim: int
) -> tuple[list[int], bool, float]:
    """Wait for children, by rank, and kill one in its time; and the others as torchrun would, if they cannot know."""
    codes: dict[int, int] = {}
    end = None if seconds is None else time.monotonic() + seconds
    first_death: float | None = None
    have_met = True
    while True:
        for rank, child in list(children.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del children[rank]
        now = time.monotonic()
        if first_death is None and any(codes.values()):
            first_death = now
            have_met = all(any(note["event"] == "met" for note in _read(path)) for path in notes)
        if not children:
            return [codes[rank] for rank in sorted(codes)], have_met, now - (first_death or now)
        if first_death is not None and (not have_met or now > first_death + PATIENCE_SECONDS):
            for child in children.values():
                os.kill(child, signal.SIGKILL)
        elif end is not None and now >= end:
            if victim in children:
                os.kill(children[victim], signal.SIGKILL)
            end = None
        time.sleep(0.001)


def _read(notes: Path) -> list[dict[str, Any]]:
    """What a child has noted; the last line may be cut off by its end."""
    lines = notes.read_text().split("\n")[:-1] if notes.exists() else []
    return [json.loads(line) for line in lines]


def _run(command: Sequence[str], log: Path, notes: Path, trouble: Trouble | None) -> NoReturn:
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        watch = _Watch(os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND), trouble)
        watch.install()
        code = main(command)
        sys.stdout.flush()
    finally:
        os._exit(code)


class _Watch:
    """Notes what the run loads and saves, and makes trouble."""

    def __init__(self, notes: int, trouble: Trouble | None) -> None:
        self.notes = notes
        self.trouble = trouble
        self.saves = self.calls = 0
        self.is_saving = self.is_refusing = False

    def install(self) -> None:
        """Stand between the run and its checkpoints."""
        save, load = loop.save_checkpoint, loop.load_checkpoint
        save_file, fsync, ensure_free = checkpoint.save_file, os.fsync, checkpoint.ensure_free

        def noted_load(path: Path, model: Any, optimizer: Any, *others: Any) -> Any:
            state = load(path, model, optimizer, *others)
            if optimizer is not None:
                self.note("resumed", name=path.name)
            return state

        def noted_save(folder: Path, step: int, *others: Any, **options: Any) -> Path:
            name = f"{options.get('kind', 'step')}-{step:08d}"
            self.saves, self.calls = self.saves + 1, 0
            self.note("begun", name=name)
            if self.is_due("read-only"):
                folder.mkdir(exist_ok=True)
                for how in (["--bind"], ["-o", "remount,ro,bind"]):
                    subprocess.run(["mount", *how, str(folder), str(folder)], check=True)
                self.note("trouble", call="mount")
            self.is_saving = True
            path = save(folder, step, *others, **options)
            self.is_saving = False
            self.note("saved", name=name, files=hashes(path), calls=self.calls)
            return path

        def noted_save_file(tensors: Any, path: Path) -> None:
            self.call("save_file", path)
            save_file(tensors, path)
            self.call("half of save_file", path, before=lambda: os.truncate(path, path.stat().st_size // 2))

        def noted_fsync(descriptor: int) -> None:
            self.call("fsync")
            fsync(descriptor)

        def full(folder: Path, needed_bytes: int) -> None:
            ensure_free(folder, needed_bytes)
            if self.trouble is not None and self.is_due("fill"):
                with (folder.parents[1] / "filler").open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, free_bytes(folder) - self.trouble.number)
                self.note("trouble", call="fill")

        def met(*arguments: Any) -> Agreement:
            agreement = Agreement(*arguments)  # which all ranks have come to
            self.note("met")
            return agreement

        loop.save_checkpoint, loop.load_checkpoint = noted_save, noted_load
        loop.Agreement = met  # type: ignore[assignment, misc]
        checkpoint.save_file, os.fsync, checkpoint.ensure_free = noted_save_file, noted_fsync, full
        sys.addaudithook(self.audit)

    def note(self, event: str, **values: Any) -> None:
        os.write(self.notes, (json.dumps({"event": event, **values}) + "\n").encode())

    def is_due(self, kind: str) -> bool:
        return self.trouble is not None and self.trouble.kind == kind and self.saves == self.trouble.save

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self.call(event)

    def call(self, name: str, path: Path | None = None, before: Callable[[], None] = lambda: None) -> None:
        """A call that is about to change something."""
        if not self.is_saving or threading.current_thread() is not threading.main_thread():
            return
        self.calls += 1
        trouble = self.trouble
        if trouble is None:
            return
        if self.is_refusing:
            # A full disk lets files be removed.
            if name not in REMOVALS or trouble.code == errno.EROFS:
                self.refuse(trouble.code, path)
        elif trouble.kind in ("kill", "refuse") and self.saves >= trouble.save and self.calls == trouble.number:
            self.is_saving = False  # what follows here is no call of the save
            self.note("trouble", call=name)
            before()
            if trouble.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self.is_saving = self.is_refusing = True
            self.refuse(trouble.code, path)

    def refuse(self, code: int, path: Path | None) -> NoReturn:
        """As the system says it, or as safetensors does."""
        if path is not None:
            raise SafetensorError(f"I/O error: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files of tensors, by its manifest."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {name: files[name]["sha256"] for name in sorted(files) if name.endswith(".safetensors")}
