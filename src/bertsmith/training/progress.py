"""What a run says while it runs: metrics.jsonl for programs, a bar or plain lines for people."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from bertsmith.files import atomic_write

_PLAIN_LINE_SECONDS = 10.0


class Reporter:
    """Appends lines to `metrics.jsonl` and shows where the run is.

    Every line has "kind" and "step"; the kinds of the training loop are "run", "train", "eval", "bad_step",
    "out_of_memory", "compile" and "end". A terminal gets a bar that is redrawn; anything else (a pipe, a log file) gets
    a line every ten seconds.
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
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._last_line = -math.inf
        self._bar: Progress | None = None
        self._bar_id = TaskID(0)
        if run_folder is None:
            self._file = open(os.devnull, "w", encoding="utf-8")
            return
        path = run_folder / "metrics.jsonl"
        kept = path.read_bytes()[:keep_bytes] if path.exists() else b""
        atomic_write(path, kept[: kept.rfind(b"\n") + 1])
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Reporter":
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar_id = self._bar.add_task("", total=1.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()

    @property
    def position(self) -> int:
        """Bytes written so far: the `keep_bytes` with which to go on from here."""
        return self._file.tell()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and nothing else. Numbers that are not finite become null."""
        self._file.write(_to_json({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()

    def train(self, step: int, progress: float, values: Mapping[str, Any]) -> None:
        """Figures of the steps since the last call; wants "loss", "tokens_per_second" and "seconds"."""
        self.write("train", step, {"progress": progress, **values})
        left = values["seconds"] * (1 - progress) / max(progress, 1e-9)
        text = (
            f"step {step:,}  loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"{duration(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._bar_id, completed=progress, description=text)
        elif self._clock() - self._last_line >= _PLAIN_LINE_SECONDS:
            self._last_line = self._clock()
            self._print(f"{progress:4.0%}  {text}")

    def note(self, kind: str, step: int, text: str, values: Mapping[str, Any]) -> None:
        """Something that people should see at once: a line of metrics.jsonl with `text` in it, and `text` itself."""
        self.write(kind, step, {"text": text, **values})
        self._print(f"      step {step:,}  {text}")

    def evaluation(self, step: int, metrics: Mapping[str, float], seconds: float, best: bool) -> None:
        """Scores of the held-out split after `step` steps, which took `seconds` to get; baselines are not shown."""
        self.write("eval", step, {"metrics": dict(metrics), "evaluation_seconds": seconds, "best": best})
        shown = {name: value for name, value in metrics.items() if not name.endswith("_baseline")}
        figures = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._print(f"      step {step:,}  {figures}{'  (best)' if best else ''}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


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
