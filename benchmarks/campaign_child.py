"""A command in a fork of this process, and what is done to it while it saves a checkpoint. For kill_campaign.py.

The parent has imported the command line, so that an attempt costs the run alone. It may not have started a thread: a
fork has only the thread that forked.
"""

import errno
import importlib
import json
import os
import signal
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

PRELOADED = ("bertsmith.cli.model_verbs", "torch._dynamo", "matplotlib.backends.backend_svg", "sklearn.metrics")
"""What a run imports late."""
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)
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
    """How a child ended, and what it had noted by then."""

    code: int  # exit code, or minus the signal
    notes: Sequence[dict[str, Any]]

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


def attempt(command: Sequence[str], log: Path, trouble: Trouble | None = None, seconds: float | None = None) -> Attempt:
    """Run a command to its end, or to a SIGKILL after so many seconds, or into trouble.

    Args:
        log: gets what the command prints; `log`.notes what the child notes about its saves.
    """
    notes = log.with_suffix(".notes")
    notes.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run(command, log, notes, trouble)
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            break
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.001)
    lines = notes.read_text().splitlines() if notes.exists() else []
    return Attempt(os.waitstatus_to_exitcode(status), [json.loads(line) for line in lines])


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

        loop.save_checkpoint, loop.load_checkpoint = noted_save, noted_load
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
