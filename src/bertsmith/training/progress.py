"""What a run says while it runs: metrics.jsonl for programs, a bar or plain lines for people."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID

from bertsmith.errors import StorageError
from bertsmith.files import atomic_write, refusals_explained
from bertsmith.screen import progress_screen, say

_PLAIN_LINE_SECONDS = 10.0
_CUT_OFF = "With --resume the run goes on from its last checkpoint."


class Reporter:
    """Appends lines to `metrics.jsonl` and shows where the run is.

    Every line has "kind" and "step"; the kinds of the training loop are "run", "train", "eval", "bad_step",
    "out_of_memory", "compile", "early_stop" and "end". A terminal gets a bar that is redrawn; anything else (a pipe, a
    log file) gets a line every ten seconds.
    """

    def __init__(
        self,
        run_folder: Path | None,
        *,
        keep_bytes: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the file for appending.

        Args:
            run_folder: None keeps nothing, for a rank other than the first.
            keep_bytes: what follows in the file is removed, because the run that is resumed will write
                it again; see `position`. 0 begins a new file.
            console: where people look; None is standard error. `Console(quiet=True)` shows nothing.
        """
        self._console = console or progress_screen()
        self._clock = clock
        self._last_line = -math.inf
        self._pace = _Pace()
        self._bar: Progress | None = None
        self._bar_id = TaskID(0)
        self._path = Path(os.devnull) if run_folder is None else run_folder / "metrics.jsonl"
        if run_folder is not None:
            kept = self._path.read_bytes()[:keep_bytes] if self._path.exists() else b""
            atomic_write(self._path, kept[: kept.rfind(b"\n") + 1])
        with refusals_explained(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "Reporter":
        self._bar = _bars(self._console)
        if self._bar is not None:
            self._bar_id = self._bar.add_task("", total=1.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        try:
            with refusals_explained(self._path, after=_CUT_OFF):
                self._file.close()
        except (OSError, StorageError):  # of a line that was refused before, for that is tried again
            if error is None:
                raise

    @property
    def position(self) -> int:
        """Bytes written so far: the `keep_bytes` with which to go on from here."""
        return self._file.tell()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and nothing else. Numbers that are not finite become null.

        Raises:
            StorageError: the disk refused.
        """
        line = _to_json({"kind": kind, "step": step, **values}) + "\n"
        with refusals_explained(self._path, len(line.encode()), after=_CUT_OFF):
            self._file.write(line)
            self._file.flush()

    def train(self, step: int, progress: float, values: Mapping[str, Any]) -> None:
        """Figures of the steps since the last call; wants "loss", "tokens_per_second" and "seconds"."""
        self.write("train", step, {"progress": progress, **values})
        text = _state_of(step, progress, values, self._pace)
        if self._bar is not None:
            self._bar.update(self._bar_id, completed=progress, description=text)
        elif self._clock() - self._last_line >= _PLAIN_LINE_SECONDS:
            self._last_line = self._clock()
            say(self._console, f"{progress:4.0%}  {text}")

    def note(self, kind: str, step: int, text: str, values: Mapping[str, Any]) -> None:
        """Something that people should see at once: a line of metrics.jsonl with `text` in it, and `text` itself."""
        self.write(kind, step, {"text": text, **values})
        say(self._console, f"      step {step:,}  {text}")

    def evaluation(self, step: int, metrics: Mapping[str, float], seconds: float, best: bool) -> None:
        """Scores of the held-out split after `step` steps, which took `seconds` to get; baselines are not shown."""
        self.write("eval", step, {"metrics": dict(metrics), "evaluation_seconds": seconds, "best": best})
        say(self._console, f"      {_scored(step, metrics, best)}")


class Watcher:
    """Shows where runs of other processes are, by what they write to `metrics.jsonl`, as `Reporter` shows its own.

    Each line begins with the name of its run; on a terminal each run has a bar.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bars = _bars(console, "{task.fields[run]}")
        self._runs: dict[Path, _Watched] = {}

    def __enter__(self) -> "Watcher":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        if self._bars is not None:
            self._bars.stop()

    def follow(self, run_folder: Path) -> None:
        """Show what a run will write; what an earlier part of it has written has been seen."""
        path = run_folder / "metrics.jsonl"
        bar_id = self._bars.add_task("", total=1.0, run=run_folder.name) if self._bars is not None else TaskID(0)
        self._runs[run_folder] = _Watched(path, path.stat().st_size if path.exists() else 0, bar_id)

    def look(self) -> None:
        """Show what has been written since the last look."""
        for run_folder, watched in self._runs.items():
            for line in watched.new_lines():
                self._show(run_folder.name, watched, line)

    def leave(self, run_folder: Path) -> None:
        """Look once more, and no longer."""
        self.look()
        watched = self._runs.pop(run_folder)
        if self._bars is not None:
            self._bars.remove_task(watched.bar_id)

    def _show(self, name: str, watched: "_Watched", line: Mapping[str, Any]) -> None:
        step = line["step"]
        if line["kind"] == "train":
            text = _state_of(step, line["progress"], line, watched.pace)
            if self._bars is not None:
                self._bars.update(watched.bar_id, completed=line["progress"], description=text)
            elif self._clock() - watched.last_line >= _PLAIN_LINE_SECONDS:
                watched.last_line = self._clock()
                say(self._console, f"{name}  {line['progress']:4.0%}  {text}")
        elif line["kind"] == "eval":
            say(self._console, f"{name}        {_scored(step, line['metrics'], line['best'])}")
        elif "text" in line:
            say(self._console, f"{name}        step {step:,}  {line['text']}")


class _Pace:
    """How long a run still takes, by how fast it was in the last half to three quarters of what this process has seen.

    What was before a run was resumed may have been another machine, and short sequences may come first; by the last few
    steps alone, an evaluation would weigh too much.
    """

    def __init__(self) -> None:
        self._begin: float | None = None
        self._since = self._next = (0.0, 0.0)

    def left(self, seconds: float, progress: float) -> float:
        """Seconds, from `progress` in [0, 1], which took `seconds`, to 1."""
        if self._begin is None:
            self._begin = seconds
            self._next = (seconds, progress)
        elif seconds - self._begin >= 2 * (self._next[0] - self._begin):
            self._since, self._next = self._next, (seconds, progress)
        since_seconds, since_progress = self._since if progress > self._since[1] else (0.0, 0.0)
        return (seconds - since_seconds) * (1 - progress) / max(progress - since_progress, 1e-9)


@dataclass
class _Watched:
    """How much of a run's metrics.jsonl has been seen."""

    path: Path
    position: int
    bar_id: TaskID
    last_line: float = -math.inf
    pace: _Pace = field(default_factory=_Pace)

    def new_lines(self) -> list[dict[str, Any]]:
        """Whole lines that were added. A run that is resumed first removes some: what follows them is new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            self.position = min(self.position, file.seek(0, os.SEEK_END))
            file.seek(self.position)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        lines = []
        for line in whole.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:  # the rest of a line that began among those removed
                continue
        return lines


def _bars(console: Console, *before: str) -> Progress | None:
    """Bars with a description, for a terminal; `before` each of them is a column of text."""
    if console.quiet or not console.is_terminal:
        return None
    bar = BarColumn(bar_width=24)
    return Progress(*before, bar, "{task.percentage:3.0f} %", "{task.description}", console=console, transient=True)


def _state_of(step: int, progress: float, values: Mapping[str, Any], pace: _Pace) -> str:
    """A line of kind "train" for people. A figure that is not finite is None in the file."""
    left = pace.left(values["seconds"], progress)
    loss = math.nan if values["loss"] is None else values["loss"]
    return f"step {step:,}  loss {loss:.4f}  {values['tokens_per_second']:,.0f} tokens/s  {duration(left)} left"


def _scored(step: int, metrics: Mapping[str, float | None], best: bool) -> str:
    """A line of kind "eval" for people."""
    shown = {name: value for name, value in metrics.items() if not name.endswith("_baseline")}
    figures = "  ".join(f"{name} {math.nan if value is None else value:.4f}" for name, value in shown.items())
    return f"step {step:,}  {figures}{'  (best)' if best else ''}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a crash cut off is left out, and so is a missing file."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def duration(seconds: float) -> str:
    """Time for people.

    >>> duration(3725)
    '1h02m'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
