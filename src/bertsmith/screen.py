"""Where people read: standard output has what was asked for, standard error says how a run goes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rich.console import Console


def output_screen() -> Console:
    """Standard output. Printing raises BrokenPipeError where its reader has gone."""
    return _Output(highlight=False)


def progress_screen() -> Console:
    """Standard error. Where its reader has gone, or the terminal was closed, printing does nothing: a run goes on."""
    return Console(file=cast(TextIO, _WhileRead()), highlight=False)


def say(screen: Console, line: str) -> None:
    """Print a line as it is."""
    screen.print(line, markup=False, highlight=False, soft_wrap=True)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process with exit code 1."""
        raise BrokenPipeError


class _WhileRead:
    """Standard error, whichever it is, for as long as it can be written to."""

    def write(self, text: str) -> int:
        with self._lasting() as stream:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting() as stream:
            stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    @property
    def _stream(self) -> TextIO:
        # While a bar is shown, rich has something in its place that prints above the bar.
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream

    @contextmanager
    def _lasting(self) -> Iterator[TextIO]:
        stream = self._stream
        try:
            yield stream
        except OSError:
            # What is still buffered would fail again, also when Python flushes at exit.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
