"""What is printed, and what happens where nobody reads it: a run goes on, an answer ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertsmith.screen import progress_screen, say

RUN = """
import sys, time
from pathlib import Path
from bertsmith.training.progress import Reporter
with Reporter(Path(sys.argv[1])) as reporter:
    for step in range(300):
        reporter.train(step, step / 300, {"loss": 1.0, "tokens_per_second": 1.0, "seconds": 1.0})
        reporter.note("note", step, "x" * 1000, {})
        time.sleep(0.001)
print("done")
"""


def test_a_line_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say(progress_screen(), "[red] 12 of [0, 1] " + "long " * 100)
    assert capsys.readouterr().err == "[red] 12 of [0, 1] " + "long " * 100 + "\n"


def test_a_run_goes_on_when_the_reader_of_its_progress_has_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline()
        process.stderr.close()
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 600


def test_a_run_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    """With a bar on it."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        while b"%" not in seen:
            seen += os.read(ours, 1000)
        os.close(ours)
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 600


def as_verb(body: str, stdout: int | None = subprocess.PIPE, **environment: str) -> subprocess.Popen[bytes]:
    """A process of `bertsmith demo`, which is this body."""
    program = (
        "import sys, types\n"
        "from bertsmith.screen import output_screen\n"
        "verbs = types.ModuleType('bertsmith.cli.model_verbs')\n"
        f"def demo() -> None:\n    {body}\n"
        "verbs.demo = demo\n"
        "sys.modules['bertsmith.cli.model_verbs'] = verbs\n"
        "from bertsmith.cli import main\n"
        "sys.exit(main(['demo']))\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment})


def test_an_answer_without_a_reader_ends_the_command() -> None:
    with as_verb("while True: output_screen().print('x' * 1000)") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, b"")


def test_letters_that_a_locale_does_not_have_are_written_otherwise() -> None:
    with as_verb("print('好 ±'); output_screen().print('好')", PYTHONIOENCODING="latin-1") as process:
        out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, b"\\u597d \xb1\n\\u597d\n", b"")
