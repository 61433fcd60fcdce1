"""Shards made by Daft, on this machine or on a Ray cluster: the same function, the same files, the same marks.

The parent cuts the text into shards as ever, and puts down the text of those that are missing in files beside them. A
Daft query then has a row a shard: a worker reads the text, makes the shard and gives its folder its name. That folder
is the only mark that counts. So whatever is lost on the way is asked for again, and either engine goes on where the
other was stopped.
"""

import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, final

from bertsmith.errors import (
    BertsmithError,
    CorpusError,
    InputError,
    MissingExtraError,
    ModelError,
    SettingsError,
    StorageError,
)
from bertsmith.files import atomic_write, read_json
from bertsmith.limits import usable_cores
from bertsmith.text.corpus import ShardRecord, Split
from bertsmith.text.sentences import SentenceALine
from bertsmith.text.shards import ShardText, Workshop, make_in_worker

_ATTEMPTS = 3
# Before what nobody made is asked for again: a machine may come back, and a shared file system may be late in showing
# what is there.
_PAUSE_SECONDS = 20
_KINDS = {kind.__name__: kind for kind in (InputError, SettingsError, CorpusError, ModelError, StorageError)}


@dataclass(frozen=True)
class ShardPlace:
    """A shard whose text lies in a file."""

    workshop: Workshop
    split: Split
    name: str
    input_sha256: str
    text_bytes: int

    @property
    def text(self) -> Path:
        """Where its documents are, as a JSON list; one whose sentences are known is a list of them."""
        return self.workshop.folder / "texts" / f"{self.split}-{self.name}.json"

    def made(self) -> ShardRecord | None:
        """Its record, if it is made."""
        record = self.workshop.whole(self.split, self.name)
        return record if record is not None and record.input_sha256 == self.input_sha256 else None


def load_daft() -> Any:
    """The module daft, with its runner started: of this machine, or with DAFT_RUNNER=ray of a Ray cluster.

    Raises:
        MissingExtraError: Daft, or Ray where it is asked for, is not installed.
        SettingsError: there is no such runner, or no Ray cluster.
    """
    # Daft and Ray tell their makers that they are used, unless they are told not to.
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft
    except ImportError as error:
        raise MissingExtraError("daft", "scale", "engine daft") from error
    try:
        daft.get_or_create_runner()
    except ImportError as error:
        raise MissingExtraError("ray", "scale", "DAFT_RUNNER=ray") from error
    except (ConnectionError, ValueError) as error:
        raise SettingsError(
            f"engine daft does not start: {error}. DAFT_RUNNER is native or ray; RAY_ADDRESS says where the Ray "
            "cluster is."
        ) from error
    return daft


def make_on_daft(
    shards: Iterable[ShardText], workshop: Workshop, num_workers: int | None
) -> Generator[tuple[Split, ShardRecord], None, None]:
    """Records of all shards, in order, as they are made. Close it, so that nothing is at work when it ends early.

    Args:
        num_workers: processes; when None, one a core of this machine, or of all machines of the Ray cluster.

    Raises:
        CorpusError: workers were lost, several times without a shard in between.
        BertsmithError: the one that was raised where a shard was made.
    """
    places = [_put_down(shard, workshop) for shard in shards]
    num_done = num_vain = 0
    while num_done < len(places):
        lost: Exception | None = None
        num_before = num_done
        missing = [place for place in places[num_done:] if place.made() is None]
        try:
            with closing(_ask(missing, num_workers)) as answers:
                # One look more than there are answers, for shards that were there before.
                for failure in chain([""], answers):
                    if failure:
                        break
                    while num_done < len(places) and (record := places[num_done].made()) is not None:
                        places[num_done].text.unlink(missing_ok=True)
                        yield places[num_done].split, record
                        num_done += 1
        except Exception as error:
            # What a shard's own function raises comes back as text, so this is Daft's: a worker is lost.
            lost, failure = error, ""
        if failure:
            raise _as_error(failure)
        num_vain = num_vain + 1 if num_done == num_before else 0
        if num_vain == _ATTEMPTS:
            raise _lost(places[num_done], lost) from lost
        if num_vain:
            time.sleep(_PAUSE_SECONDS)


def _put_down(shard: ShardText, workshop: Workshop) -> ShardPlace:
    """Write the text of a shard that is missing to where workers find it."""
    place = ShardPlace(workshop, shard.split, shard.name, workshop.input_sha256(shard), shard.text_bytes)
    if place.made() is None:
        documents = [text.sentences() if isinstance(text, SentenceALine) else text for text in shard.documents]
        atomic_write(place.text, json.dumps(documents, ensure_ascii=False))
    return place


def _ask(places: Sequence[ShardPlace], num_workers: int | None) -> Generator[str, None, None]:
    """Have shards made; for each, in any order, what `_Maker.make` says."""
    if not places:
        return
    daft = load_daft()
    is_on_ray = daft.get_or_infer_runner_type() == "ray"
    num_workers = num_workers or (_ray_cores() if is_on_ray else usable_cores())
    # On Ray each is an actor, a process already.
    kind = daft.cls(_Maker, use_process=None if is_on_ray else True, max_concurrency=min(num_workers, len(places)))
    names = ("split", "name", "input_sha256", "text_bytes")
    frame = daft.from_pydict({name: [getattr(place, name) for place in places] for name in names})
    if is_on_ray:
        frame = frame.into_partitions(len(places))  # a row a task: what is lost with a worker is a shard
    answers = frame.select(kind(places[0].workshop).make(*(frame[name] for name in names)).alias("failure"))
    # A row at a time, or one worker would be given all rows, and none would be answered before the last.
    with daft.execution_config_ctx(default_morsel_size=1):
        try:
            for answer in answers.iter_rows():
                yield answer["failure"]
        finally:
            _wait_for_threads()


def _wait_for_threads() -> None:
    """Let Daft's threads bring home the shards that are at work when a query ends early, by Ctrl-C for instance.

    Before Python 3.14, a thread of another language that comes back when Python ends aborts the process.
    """
    num_quiet = 0
    while num_quiet < 3:  # between two calls a thread may be out of Python for a moment
        num_quiet = 0 if any(map(_is_of_daft, sys._current_frames().values())) else num_quiet + 1
        time.sleep(0.05)


def _is_of_daft(frame: FrameType | None) -> bool:
    """Whether a thread waits for a worker of Daft."""
    while frame is not None and frame.f_globals.get("__name__") != "daft.execution.udf":
        frame = frame.f_back
    return frame is not None


def _lost(place: ShardPlace, error: Exception | None) -> CorpusError:
    """What to say when nobody makes a shard. Of Ray's messages, which are long, the last line tells."""
    why = str(error or "nothing was raised").strip().split("\n")[-1].strip().rstrip(".")
    return CorpusError(
        f"Daft was asked {_ATTEMPTS} times for the shard {place.split}/{place.name}, and its workers were lost: {why}. "
        "Where memory was short, run the same command with fewer --num-workers or a smaller --shard-bytes: finished "
        "shards are kept. On a Ray cluster every machine needs bertsmith, in the same version."
    )


def _ray_cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


@final
class _Maker:
    """What each worker of Daft has one of."""

    def __init__(self, workshop: Workshop) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
        self.workshop = workshop

    def make(self, split: Split, name: str, input_sha256: str, text_bytes: int) -> str:
        """Make a shard, unless it is there.

        Returns:
            What went wrong, since Daft would let only some exceptions through: the kind of error, its message on the
            lines below. Nothing if all is well.
        """
        place = ShardPlace(self.workshop, split, name, input_sha256, text_bytes)
        try:
            if place.made() is None:
                if not place.text.exists():
                    raise CorpusError(
                        f"{place.text} is not to be seen on {platform.node()}: on a Ray cluster the store must be in a "
                        "folder that all machines share, under the same name."
                    )
                documents = [
                    text if isinstance(text, str) else SentenceALine.of(text) for text in read_json(place.text)
                ]
                make_in_worker(ShardText(split, name, documents, text_bytes), self.workshop)
        except Exception as error:
            # Another attempt, of a worker that was thought to be lost, may have been faster.
            if place.made() is None:
                known = isinstance(error, BertsmithError)
                return f"{type(error).__name__}\n{error}" if known else f"\n{traceback.format_exc()}"
        return ""


def _as_error(failure: str) -> Exception:
    """The exception that `_Maker.make` has told of: of ours, if the user can mend it."""
    kind, _, message = failure.partition("\n")
    return _KINDS.get(kind, BertsmithError)(message) if kind else RuntimeError(f"a shard could not be made:\n{message}")


def _follow_parent(parent: int) -> None:
    """End with the parent: when it is killed it cannot say so, and the next build wants the shards for itself."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
