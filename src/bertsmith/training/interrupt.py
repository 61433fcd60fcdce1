"""Ctrl-C means: finish the step, save, and leave. So do SIGTERM, and SIGHUP of a terminal that is closed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from bertsmith.errors import Interrupted


class StopRequest:
    """A context in which SIGINT, SIGTERM or SIGHUP only raises a flag, to be looked at between steps.

    A second Ctrl-C ends the process at once. A second SIGTERM or SIGHUP does not: a process group and who watches over
    it may be sent the same signal, one after the other. What is ignored, as SIGHUP is under nohup, remains so. In
    threads other than the main one Python cannot set handlers, and the flag stays down.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._previous):
            self._restore(number)

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore(signal.SIGINT)

    def _restore(self, number: int) -> None:
        if number in self._previous:
            handler = self._previous.pop(number)
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
