"""metrics.jsonl, and what a terminal or a log file shows."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from bertsmith.training.progress import Reporter, duration, read_metrics

FIGURES = {"loss": 2.5, "tokens_per_second": 1234.0, "seconds": 30.0}


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100), out


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
