"""Checkpoints: the same bits back, in plain files. (Faults: tests/faults/test_checkpoints.py.)"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW

from bertsmith.errors import TrainingError
from bertsmith.training.checkpoint import (
    find_fault,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
)
from bertsmith.training.optim import OptimizerSettings, build_optimizer

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def bits(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """All numbers, as lists that compare exactly."""
    values = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        values |= {f"{name}|{key}": value.tolist() for key, value in optimizer.state[parameter].items()}
    return values


def test_what_is_loaded_goes_on_as_what_was_saved(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    state = {"step": 3, "objective": 0.1 + 0.2, "name": "Füße 深", "none": None}
    path = save_checkpoint(tmp_path, 3, model, optimizer, state)
    other, other_optimizer = toy.trained(seed=1)
    assert bits(other, other_optimizer) != bits(model, optimizer)
    assert load_checkpoint(path, other, other_optimizer) == state == read_state(path)
    assert bits(other, other_optimizer) == bits(model, optimizer)
    for pair in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(5)
        toy.learn(*pair)
    assert bits(other, other_optimizer) == bits(model, optimizer)


def test_a_fresh_optimizer_takes_the_moments(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    path = save_checkpoint(tmp_path, 3, model, optimizer, {})
    other = toy.Model()
    fresh = build_optimizer(other, OptimizerSettings())
    load_checkpoint(path, other, fresh)
    assert bits(other, fresh) == bits(model, optimizer)


def test_an_average_is_kept_beside_the_weights(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    average = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    path = save_checkpoint(tmp_path, 3, model, optimizer, {}, average=average)
    assert sorted(file.name for file in path.iterdir()) == ["average.safetensors", *FILES]
    other, other_optimizer = toy.trained(seed=1)
    other_average = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
    load_checkpoint(path, other, other_optimizer, other_average)
    assert bits(other, other_optimizer) == bits(model, optimizer)
    assert all(torch.equal(tensor, average[name]) for name, tensor in other_average.items())
    (path / "average.safetensors").write_bytes(b"")
    assert "average.safetensors has 0 bytes" in str(find_fault(path))


def test_the_files_are_plain_and_hold_a_tied_weight_once(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    path = save_checkpoint(tmp_path, 12, model, optimizer, {})
    assert path == tmp_path / "step-00000012"
    assert sorted(file.name for file in path.iterdir()) == FILES
    names = set(load_file(path / "model.safetensors"))
    assert names == {*dict(model.named_parameters()), "steps_seen"}
    assert not any(name.startswith("tied") for name in names)
    assert "hidden.weight|exp_avg_sq" in load_file(path / "optimizer.safetensors")


def test_only_the_newest_are_kept(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, model, optimizer, {})
        save_checkpoint(tmp_path, step, model, None, {}, kind="best", keep=1)
    # Step 10 was written before the run went back to 9: it is of another history.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000009", "step-00000002", "step-00000009"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    assert newest_checkpoint(tmp_path, "best") == tmp_path / "best-00000009"


def test_a_step_saved_twice_is_the_second(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    save_checkpoint(tmp_path, 1, model, optimizer, {"time": 1})
    path = save_checkpoint(tmp_path, 1, model, optimizer, {"time": 2})
    assert read_state(path) == {"time": 2}
    assert find_fault(path) is None


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "step-00000001.txt").write_text("not a folder")
    (tmp_path / "step-one").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_a_model_of_another_shape_is_refused(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    wider = toy.Model()
    wider.count = nn.Linear(8, 3)
    with pytest.raises(TrainingError, match=r"count\.weight is \[1, 8\], not \[3, 8\]"):
        load_checkpoint(path, wider, None)
    more = toy.Model()
    more.extra = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"only one of them has extra\.bias, extra\.weight"):
        load_checkpoint(path, more, None)
