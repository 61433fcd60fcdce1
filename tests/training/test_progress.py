"""metrics.jsonl, and what a terminal or a log file shows."""

import errno
import io
import json
import math
import os
import resource
from pathlib import Path

import pytest
from rich.console import Console

from bertsmith.errors import StorageError
from bertsmith.training.progress import Reporter, Watcher, duration, read_metrics

FIGURES = {"loss": 2.5, "tokens_per_second": 1234.0, "seconds": 30.0}


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100), out


def test_time_left_is_by_the_pace_of_this_process(tmp_path: Path) -> None:
    """A run that took an hour for its first half is resumed, and now does one per cent in ten seconds."""
    console, out = plain()
    clock = iter(range(0, 1000, 10))
    with Reporter(tmp_path, console=console, clock=lambda: float(next(clock))) as reporter:
        for number in range(20):
            figures = {**FIGURES, "seconds": 3600.0 + 10 * number}
            reporter.train(100 + number, 0.5 + number / 100, figures)
    left = [line.split()[-2] for line in out.getvalue().splitlines()]
    assert left[0] == "1h00m"
    assert left[2:] == [duration(10 * (50 - number)) for number in range(2, 20)]


def test_time_left_follows_a_machine_that_becomes_slower(tmp_path: Path) -> None:
    console, out = plain()
    clock = iter(range(0, 10000, 10))
    with Reporter(tmp_path, console=console, clock=lambda: float(next(clock))) as reporter:
        for number in range(16):  # one per cent a second, then one in eleven
            seconds = float(number if number < 4 else 4 + (number - 4) * 11)
            reporter.train(number, number / 100, {**FIGURES, "seconds": seconds})
    assert out.getvalue().splitlines()[-1].split()[-2] == duration(85 * 11)


def test_lines_are_json_whatever_the_numbers(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=plain()[0]) as reporter:
        reporter.train(5, 0.25, {**FIGURES, "loss": math.inf, "losses": {"mlm": math.nan}})
        reporter.evaluation(5, {"accuracy": 0.5, "correlation": math.nan}, 1.5, best=True)
        reporter.write("run", 5, {"name": "汉语", "list": [1.0, math.nan]})
        lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {
            "kind": "train",
            "step": 5,
            "progress": 0.25,
            "loss": None,
            "tokens_per_second": 1234.0,
            "seconds": 30.0,
            "losses": {"mlm": None},
        },
        {
            "kind": "eval",
            "step": 5,
            "metrics": {"accuracy": 0.5, "correlation": None},
            "evaluation_seconds": 1.5,
            "best": True,
        },
        {"kind": "run", "step": 5, "name": "汉语", "list": [1.0, None]},
    ]
    assert "汉语" in lines[2]


def test_going_on_forgets_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Reporter(tmp_path, console=plain()[0]) as reporter:
        for name in ("Füße", "汉语", "three"):
            reporter.write("train", 1, {"name": name})
            if name == "汉语":
                position = reporter.position
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert [line["name"] for line in read_metrics(path)] == ["Füße", "汉语", "three"]
    with Reporter(tmp_path, keep_bytes=position, console=plain()[0]) as reporter:
        assert reporter.position == position
        reporter.write("train", 3, {"name": "new"})
    assert [line["name"] for line in read_metrics(path)] == ["Füße", "汉语", "new"]
    with Reporter(tmp_path, keep_bytes=position - 3, console=plain()[0]):
        assert [line["name"] for line in read_metrics(path)] == ["Füße"]
    with Reporter(tmp_path, console=plain()[0]):
        assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EFBIG, "files may not be as large here"),
        (errno.EIO, "the disk reported an error"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_line_that_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """It is tried again when the file is closed, and refused again, which hides nothing."""
    reporter = Reporter(tmp_path, console=plain()[0])
    own, tries = reporter._file, []

    class Refusing(io.TextIOWrapper):
        def flush(self) -> None:
            tries.append(1)
            raise OSError(number, os.strerror(number))

        def close(self) -> None:
            own.close()
            self.flush()

    monkeypatch.setattr(reporter, "_file", Refusing(io.BytesIO()))
    expected = rf"cannot write .*metrics\.jsonl: {message}.* \(\d+ B needed, .* free\)\. With --resume the run goes on"
    with pytest.raises(StorageError, match=expected), reporter:
        reporter.train(5, 0.25, FIGURES)
    with pytest.raises(KeyError, match="the first"), reporter:
        raise KeyError("the first")
    assert len(tries) == 3
    with pytest.raises(StorageError, match=rf"metrics\.jsonl: {message}"), reporter:
        pass
    monkeypatch.undo()


@pytest.mark.filterwarnings("error")
def test_a_line_that_the_system_refuses(tmp_path: Path) -> None:
    """As with `ulimit -f`, without anything put in its place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StorageError, match="files may not be as large here"), Reporter(tmp_path) as reporter:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
            for step in range(100):
                reporter.write("train", step, FIGURES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert 10 < len(lines) < 99


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_log_file_gets_a_line_now_and_then(tmp_path: Path) -> None:
    console, out = plain()
    now = [0.0]
    with Reporter(tmp_path, console=console, clock=lambda: now[0]) as reporter:
        for second in range(0, 25, 2):
            now[0] = float(second)
            reporter.train(second, (second + 1) / 100, FIGURES)
        reporter.evaluation(24, {"accuracy": 0.75}, 1.0, best=False)
    lines = out.getvalue().splitlines()
    assert lines[0] == "  1%  step 0  loss 2.5000  1,234 tokens/s  49m30s left"
    assert [line.split("step ")[1].split()[0] for line in lines] == ["0", "10", "20", "24"]
    assert lines[-1].split() == ["step", "24", "accuracy", "0.7500"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 14


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Reporter(tmp_path, console=console) as reporter:
        reporter.train(7, 0.5, FIGURES)
        reporter.evaluation(7, {"accuracy": 0.75}, 1.0, best=True)
    assert "50 %" in out.getvalue()
    assert "1,234 tokens/s" in out.getvalue()
    assert "accuracy 0.7500  (best)" in out.getvalue()


def test_quiet_is_quiet(tmp_path: Path) -> None:
    out = io.StringIO()
    with Reporter(tmp_path, console=Console(file=out, force_terminal=True, quiet=True)) as reporter:
        reporter.train(7, 0.5, FIGURES)
        reporter.evaluation(7, {"accuracy": 0.75}, 1.0, best=True)
    assert out.getvalue() == ""
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3725, "1h02m"), (90000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_runs_of_other_processes_are_shown_as_their_own_reporter_would(tmp_path: Path) -> None:
    """With the name of the run before each line, and nothing twice."""
    console, out = plain()
    own, shown = plain()
    now = 0.0
    runs = [tmp_path / "seed-0", tmp_path / "seed-1"]
    for run in runs:
        run.mkdir()
    with Watcher(console, clock=lambda: now) as watcher:
        for run in runs:
            watcher.follow(run)
        watcher.look()
        with Reporter(runs[0], console=own, clock=lambda: now) as reporter, Reporter(runs[1], console=own) as other:
            for step in (1, 2, 3):
                reporter.train(step, step / 4, {**FIGURES, "loss": math.inf if step == 2 else 2.5})
                watcher.look()
                now += 6
            reporter.evaluation(3, {"accuracy": 0.5, "correlation": math.nan, "x_baseline": 1.0}, 1.5, best=True)
            reporter.note("bad_step", 3, "skipped", {})
            other.write("run", 0, {"name": "not for people"})
            watcher.look()
            with (runs[0] / "metrics.jsonl").open("a") as file:
                file.write('{"kind": "eval", "st')
            watcher.look()
            watcher.leave(runs[0])
            other.train(1, 0.5, FIGURES)
    found = out.getvalue().splitlines()
    expected = shown.getvalue().splitlines()
    assert [line.removeprefix("seed-0").strip() for line in found[:-1]] == [line.strip() for line in expected[:-1]]
    assert found[-1] == "seed-1   50%  step 1  loss 2.5000  1,234 tokens/s  30s left"
    assert found[2] == "seed-0        step 3  accuracy 0.5000  correlation nan  (best)"


def test_what_a_resumed_run_had_written_before_is_not_shown_again(tmp_path: Path) -> None:
    console, out = plain()
    with Reporter(tmp_path, console=plain()[0]) as reporter:
        position = reporter.position
        reporter.note("bad_step", 3, "seen before", {})
    with Watcher(console) as watcher:
        watcher.follow(tmp_path)
        with Reporter(tmp_path, keep_bytes=position, console=plain()[0]) as reporter:
            watcher.look()
            reporter.note("bad_step", 3, "new", {})
            watcher.look()
    assert out.getvalue().split() == [tmp_path.name, "step", "3", "new"]


def test_a_resumed_run_that_has_written_before_it_is_looked_at(tmp_path: Path) -> None:
    """Its first lines stand where those were that were removed: of them some may be missed."""
    console, out = plain()
    with Reporter(tmp_path, console=plain()[0]) as reporter:
        position = reporter.position
        reporter.note("bad_step", 3, "seen before, and as long as that", {})
    with Watcher(console) as watcher:
        watcher.follow(tmp_path)
        with Reporter(tmp_path, keep_bytes=position, console=plain()[0]) as reporter:
            for number in range(9):
                reporter.note("bad_step", 3, f"new {number}", {})
    assert "seen before" not in out.getvalue() and "new 8" in out.getvalue()


def test_a_terminal_has_a_bar_for_each_run(tmp_path: Path) -> None:
    out = io.StringIO()
    with Watcher(Console(file=out, width=100, force_terminal=True)) as watcher:
        for name in ("seed-0", "seed-1"):
            (tmp_path / name).mkdir()
            watcher.follow(tmp_path / name)
        with Reporter(tmp_path / "seed-1", console=plain()[0]) as reporter:
            reporter.train(5, 0.5, FIGURES)
        watcher.look()
        watcher.leave(tmp_path / "seed-0")
    last = out.getvalue()
    assert "seed-1" in last and "50 %" in last and "loss 2.5000" in last
