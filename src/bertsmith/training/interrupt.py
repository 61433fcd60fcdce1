"""Ctrl-C means: finish the step, save, and leave."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from bertsmith.errors import Interrupted


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only raises a flag, to be looked at between steps.

    The signals mean what they meant before as soon as the flag is raised, so a second Ctrl-C ends
    the process at once, and again when the context ends. In threads other than the main one Python
    cannot set handlers, and the flag stays down.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # A handler that was not set from Python reads as None and cannot be set back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Ctrl-C in a run that has begun says how to go on, also where no step is under way: between seeds, at the end.

    Raises:
        Interrupted: for KeyboardInterrupt, if there are settings of a run in `folder`.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not (folder / "config.yaml").is_file():
            raise
        raise Interrupted(
            f"Stopped; what {folder} holds is kept. Run the same command with --resume to go on."
        ) from None


def interrupted(step: int, checkpoint: Path) -> Interrupted:
    """What to leave with after a step, when it is saved."""
    return Interrupted(
        f"Stopped after step {step:,}; the run is saved in {checkpoint}. Run the same command with --resume to go on."
    )
