"""Checkpoints that are whole or not there, and are verified before they are believed.

    checkpoints/step-00001200/
        model.safetensors       every parameter and buffer once, by its first name
        optimizer.safetensors   NAME_OF_PARAMETER|NAME_OF_STATE
        average.safetensors     the moving average of every parameter, in a run that has one
        state.json              where the run is
        manifest.json           size and SHA-256 of the others, and of itself; written last

No pickle is written or read. `best-STEP` folders hold the weights that were evaluated, which are the average if
there is one, and no optimizer. `stable-STEP` is a whole checkpoint, of the moment before the rate of schedule wsd began
to fall: from there a longer run can go on.
"""

import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from bertsmith.errors import InputError, StorageError, TrainingError
from bertsmith.files import atomic_folder, ensure_free, is_unchanged, read_json, sealed, sha256, write_json

Kind = Literal["step", "best", "stable"]

_FORMAT = 1
_KEYS = {"format", "step", "files", "sha256"}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_STALE = re.compile(r"\.(step|best|stable)-\d+\.(tmp|old)-.*")


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    *,
    average: Mapping[str, Tensor] | None = None,
    kind: Kind = "step",
    keep: int = 2,
) -> Path:
    """Write `folder/KIND-STEP` and verify it; then remove all but the newest `keep` of that kind.

    Checkpoints of later steps are removed as well: they belong to a run that went back.

    Raises:
        StorageError: no space, no permission, or what was written does not read back; what was there before is
            still there.
    """
    tensors = {"model.safetensors": _model_tensors(model)}
    if optimizer is not None:
        tensors["optimizer.safetensors"] = _optimizer_tensors(model, optimizer)
    if average:
        tensors["average.safetensors"] = dict(average)
    needed_bytes = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    ensure_free(folder, needed_bytes + 2**20)
    path = folder / f"{kind}-{step:08d}"
    with atomic_folder(path, replace=True, needed_bytes=needed_bytes) as temporary:
        for name, group in tensors.items():
            _save_tensors(group, temporary / name)
        write_json(temporary / "state.json", dict(state))
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in temporary.iterdir()}
        write_json(temporary / "manifest.json", sealed({"format": _FORMAT, "step": step, "files": files}))
        # Before it takes its name: the one that it replaces may be the last that is whole.
        if fault := find_fault(temporary):
            raise StorageError(f"{path} does not read back as it was written: {fault}. The disk may be failing.")
    remove_checkpoints(folder, kind=kind, after_step=step)
    for old in _found(folder, kind)[keep:]:
        _remove(old)
    return path


def newest_checkpoint(folder: Path, kind: Kind = "step") -> Path | None:
    """The newest checkpoint that is whole, with a warning for each newer one that is not.

    Raises:
        TrainingError: there are checkpoints to resume from, and none is whole. (A run can end without its best.)
    """
    found = _found(folder, kind)
    for path in found:
        fault = find_fault(path)
        if fault is None:
            return path
        warnings.warn(f"checkpoint {path} is damaged and is not used: {fault}", RuntimeWarning, stacklevel=2)
    if found and kind == "step":
        raise TrainingError(f"{folder}: every checkpoint is damaged. Remove the folder to start the run again.")
    return None


def find_best(folder: Path, step: int | None, *, after_step: int) -> str | None:
    """The name of the best of that step, if it is the newest and whole; those after `after_step` are removed first."""
    remove_checkpoints(folder, kind="best", after_step=after_step)
    path = newest_checkpoint(folder, "best")
    return path.name if path is not None and step_of(path) == step else None


def remove_checkpoints(folder: Path, *, kind: Kind, after_step: int) -> None:
    """Remove checkpoints of later steps, and what a process that was killed while writing left behind."""
    for path in _found(folder, kind):
        if step_of(path) > after_step:
            _remove(path)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _STALE.fullmatch(path.name):
            _remove(path)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.rpartition("-")[2])


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is whole."""
    try:
        manifest = read_json(path / "manifest.json")
        if manifest["format"] != _FORMAT:
            return f"its format is {manifest['format']}, this version reads {_FORMAT}"
        for name, expected in manifest["files"].items():
            file = path / name
            if file.parent != path or name == "..":
                return f"manifest.json names {name!r}, which is no file of its folder"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if sha256(file) != expected["sha256"]:
                return f"{name} was changed after it was written (SHA-256)"
        # Checkpoints of earlier versions have no hash of the manifest; a damaged key is one that nobody writes.
        if manifest.keys() - _KEYS or ("sha256" in manifest and not is_unchanged(path / "manifest.json", manifest)):
            return "manifest.json was changed after it was written"
    except (InputError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer | None, average: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Fill the model, the optimizer and the average in place, and return the state.

    The files are taken as they are: ask `newest_checkpoint` or `find_fault` first.

    Raises:
        TrainingError: the checkpoint is of a model of another shape.
    """
    _fill(_model_tensors(model), load_file(path / "model.safetensors"), path)
    if average:
        _fill(average, load_file(path / "average.safetensors"), path)
    if optimizer is not None:
        parameters = _parameter_names(model)
        optimizer.state.clear()
        for key, value in load_file(path / "optimizer.safetensors").items():
            name, _, field = key.rpartition("|")
            optimizer.state[parameters[name]][field] = value.to(parameters[name].device)
    return read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `state`."""
    state: dict[str, Any] = read_json(path / "state.json")
    return state


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of tensors; what the system refuses is an OSError, as it is for any other file."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise StorageError(f"cannot write {path.name} of a checkpoint: {error}") from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _remove(folder: Path) -> None:
    """Remove a checkpoint that is not needed any more. That it stays is no reason to end a run.

    It loses its name first: one that is half removed when the process is killed would look damaged.
    """
    try:
        hidden = folder
        if not folder.name.startswith("."):
            hidden = folder.with_name(f".{folder.name}.old-{os.getpid()}")
            os.rename(folder, hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        warnings.warn(f"checkpoint {folder} cannot be removed: {error.strerror}", RuntimeWarning, stacklevel=3)


def _fill(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], path: Path) -> None:
    """Copy what was loaded into the tensors of the same names, after comparing names and shapes."""
    if unknown := loaded.keys() ^ own.keys():
        raise TrainingError(f"{path} does not fit this model: only one of them has {', '.join(sorted(unknown)[:5])}.")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != loaded[name].shape:
                raise TrainingError(
                    f"{path} does not fit this model: {name} is {list(loaded[name].shape)}, not {list(tensor.shape)}."
                )
            tensor.copy_(loaded[name])


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, a tied one only under its first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _parameter_names(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=True))


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All of the optimizer's memory; its hyper-parameters follow from the settings and are not saved."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in _parameter_names(model).items():
        for field, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{field}"] = value
    return tensors


def _found(folder: Path, kind: Kind) -> list[Path]:
    """Checkpoints by their names, the newest first."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.glob(f"{kind}-*") if path.is_dir() and path.name[len(kind) + 1 :].isdecimal()]
    return sorted(paths, key=step_of, reverse=True)
