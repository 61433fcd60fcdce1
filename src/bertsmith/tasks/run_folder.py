"""The folder of a run: what it may be written to, what it holds, and which model is in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bertsmith.errors import ModelError, SettingsError
from bertsmith.files import RUN_MARK, atomic_write, is_leftover, refuse_removing, remove_from
from bertsmith.locks import LOCK, only_writer
from bertsmith.settings import read_config, to_yaml
from bertsmith.tasks.run_settings import RunSettings
from bertsmith.training.distributed import Ranks

OF_A_SEED = "seed-"
"""What the names of the folders begin with that a run of several seeds holds."""
OF_A_TRIAL = "trial-"
"""The same of a search."""
OF_A_FOLD = "fold-"
"""The same of a cross-validation."""
_OF_SEVERAL = re.compile(rf"(?:{OF_A_SEED}|{OF_A_TRIAL}|{OF_A_FOLD})\d+")
ADAPTED = "adapt"
"""The folder of a run in which its model was made to know the texts of the task."""
AUGMENTED = "augment"
"""The folder of a run with what its training examples are changed by."""
_TOLD = ("config.yaml", "tasks.yaml", "report.html", "result.json", "predictions.jsonl")
_OF_A_RUN = ("metrics.jsonl", "checkpoints", "model", "generator", ADAPTED, AUGMENTED)


def model_folder(path: str | Path) -> str:
    """The model folder of a run's folder; anything else as it is (a model folder, a Hub id).

    Raises:
        ModelError: the folder of a run that has not finished.
    """
    folder = Path(path).expanduser()
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if any(folder.glob(f"{OF_A_FOLD}*/config.yaml")):
        raise ModelError(f"{folder} is a run of folds, which keeps no model. To have one, fine-tune without folds.")
    if (folder / "tasks.yaml").is_file() and (folder / "config.yaml").is_file():
        raise ModelError(f"{folder} is a run of several tasks. Give the folder of one of them, which is in it.")
    is_run = (folder / "metrics.jsonl").is_file() or any(
        any(folder.glob(f"{begin}*/config.yaml")) for begin in (OF_A_SEED, OF_A_TRIAL)
    )
    if is_run and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is a run that has no model yet. Let it finish: the same command with --resume.")
    return str(folder)


@contextmanager
def run_folder_held(
    ranks: Ranks, settings: RunSettings, command: str, sources: Iterable[str | Path | None] = ()
) -> Iterator[None]:
    """`claim_run_folder`, and hold the folder until the run has ended, all by rank 0: it alone writes there.

    What a run has in it, such as those of seeds, is held by the process that carries it out: see `Teaching.run`.

    Raises:
        SettingsError: as `claim_run_folder`; or another process writes to it.
        StorageError: it cannot be made, or not be written to.
    """
    with ExitStack() as held:

        def hold() -> None:
            claim_run_folder(settings, command, sources)
            held.enter_context(only_writer(settings.out))
            claim_run_folder(settings, command)  # a run may have ended there in between

        ranks.first(hold)
        yield


def claim_run_folder(settings: RunSettings, command: str, sources: Iterable[str | Path | None] = ()) -> None:
    """Make sure that a run may be written to its folder; changes nothing.

    Args:
        command: which run, as for `write_config`.
        sources: what the run reads; those that are no files or folders here are passed over.

    Raises:
        SettingsError: it holds a run and neither `resume` nor `overwrite` is set; or to resume, that of another
            command; or something that is not a run; or what is read lies in what `overwrite` replaces.
    """
    out = settings.out
    if out.is_file():
        raise SettingsError(f"{out} is a file; a run needs a folder.")
    names = {path.name for path in out.iterdir() if not is_leftover(path.name)} if out.is_dir() else set()
    names.discard(LOCK)  # ours, or that of a process that was killed
    config = out / "config.yaml"
    has_settings = config.is_file() and config.read_bytes().startswith(RUN_MARK.encode())
    # A run that fails before its first step leaves nothing but its settings.
    if not names or (has_settings and names <= {"config.yaml", "tasks.yaml"}):
        return
    has_runs = has_settings or any(map(_OF_SEVERAL.fullmatch, names)) or bool(names & set(_OF_A_RUN))
    if "config.yaml" not in names or not has_runs:
        raise SettingsError(f"{out} holds files that are not of a run. Choose another folder.")
    if not settings.resume and not settings.overwrite:
        raise SettingsError(f"{out} already holds a run. Go on with --resume, replace it with --overwrite.")
    if settings.overwrite:
        refuse_removing(out, [source for source in sources if source is not None])
    elif (begun := _command(out)) is not None and begun != command:
        raise SettingsError(f"{out} holds a run of bertsmith {begun}. Go on with that, or choose another folder.")


def own_files(model: str | Path) -> list[Path]:
    """What a run has written of its own, besides its model; nothing of a folder that is no run's."""
    folder = Path(model).expanduser()
    return [path for name in (*_OF_A_RUN, *_TOLD) if (path := folder / name).exists()]


def clear_run_folder(out: Path) -> None:
    """Remove what a run has written to its folder, so that another can; what else there is in it stays.

    Raises:
        SettingsError: its `tasks.yaml`, which names folders of several tasks, cannot be read; nothing is removed then.
        StorageError: something may not be removed.
    """
    # What the folder is known by goes last, so that a removal which was stopped can be gone on with.
    last = ("tasks.yaml", "config.yaml")
    names = [path.name for path in out.iterdir() if path.name not in last] if out.is_dir() else []
    names += [name for name in last if (out / name).exists()]
    own = {*_OF_A_RUN, *_TOLD, *(read_config(out / "tasks.yaml") if "tasks.yaml" in names else ())}
    remove_from(out, [name for name in names if name in own or _OF_SEVERAL.fullmatch(name) or is_leftover(name)])


def _command(out: Path) -> str | None:
    """What a run was begun with, by the first line of its settings, if that is still there."""
    first = (out / "config.yaml").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    said = first.removeprefix(RUN_MARK).removesuffix(" --config config.yaml")
    return said if first == f"{RUN_MARK}{said} --config config.yaml" else None


def write_config(
    settings: RunSettings, command: str, configuration: Mapping[str, object], *, has_ended: bool = False
) -> None:
    """`config.yaml` of a run, by whose first line its folder is known.

    A run that is resumed keeps the one that it has until it has ended: what it is resumed with may be refused.

    Args:
        command: for example "pretrain".
        configuration: what `--config` would be given for the same run.
    """
    path = settings.out / "config.yaml"
    if has_ended or not settings.resume or not path.is_file():
        atomic_write(path, f"{RUN_MARK}{command} --config config.yaml\n{to_yaml(configuration)}")
