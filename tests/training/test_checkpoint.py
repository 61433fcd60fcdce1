"""Checkpoints: the same bits back, found to be damaged when they are, and never half-written."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW

from bertsmith.errors import StorageError, TrainingError
from bertsmith.training import checkpoint
from bertsmith.training.checkpoint import (
    find_fault,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
)
from bertsmith.training.optim import OptimizerSettings, build_optimizer

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def make(toy: SimpleNamespace, seed: int = 0) -> tuple[nn.Module, AdamW]:
    """A model and its optimizer after three steps on noise."""
    torch.manual_seed(seed)
    model = toy.Model()
    optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1))
    for _ in range(3):
        learn(model, optimizer)
    return model, optimizer


def learn(model: nn.Module, optimizer: AdamW) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.steps_seen.add_(1)


def bits(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """All numbers, as lists that compare exactly."""
    values = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        values |= {f"{name}|{key}": value.tolist() for key, value in optimizer.state[parameter].items()}
    return values


def test_what_is_loaded_goes_on_as_what_was_saved(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    state = {"step": 3, "objective": 0.1 + 0.2, "name": "Füße 深", "none": None}
    path = save_checkpoint(tmp_path, 3, model, optimizer, state)
    other, other_optimizer = make(toy, seed=1)
    assert bits(other, other_optimizer) != bits(model, optimizer)
    assert load_checkpoint(path, other, other_optimizer) == state == read_state(path)
    assert bits(other, other_optimizer) == bits(model, optimizer)
    for pair in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(5)
        learn(*pair)
    assert bits(other, other_optimizer) == bits(model, optimizer)


def test_a_fresh_optimizer_takes_the_moments(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    path = save_checkpoint(tmp_path, 3, model, optimizer, {})
    other = toy.Model()
    fresh = build_optimizer(other, OptimizerSettings())
    load_checkpoint(path, other, fresh)
    assert bits(other, fresh) == bits(model, optimizer)


def test_an_average_is_kept_beside_the_weights(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    average = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    path = save_checkpoint(tmp_path, 3, model, optimizer, {}, average=average)
    assert sorted(file.name for file in path.iterdir()) == ["average.safetensors", *FILES]
    other, other_optimizer = make(toy, seed=1)
    other_average = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
    load_checkpoint(path, other, other_optimizer, other_average)
    assert bits(other, other_optimizer) == bits(model, optimizer)
    assert all(torch.equal(tensor, average[name]) for name, tensor in other_average.items())
    (path / "average.safetensors").write_bytes(b"")
    assert "average.safetensors has 0 bytes" in str(find_fault(path))


def test_the_files_are_plain_and_hold_a_tied_weight_once(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    path = save_checkpoint(tmp_path, 12, model, optimizer, {})
    assert path == tmp_path / "step-00000012"
    assert sorted(file.name for file in path.iterdir()) == FILES
    names = set(load_file(path / "model.safetensors"))
    assert names == {*dict(model.named_parameters()), "steps_seen"}
    assert not any(name.startswith("tied") for name in names)
    assert "hidden.weight|exp_avg_sq" in load_file(path / "optimizer.safetensors")


def test_only_the_newest_are_kept(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, step, model, optimizer, {})
        save_checkpoint(tmp_path, step, model, None, {}, kind="best", keep=1)
    # Step 10 was written before the run went back to 9: it is of another history.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000009", "step-00000002", "step-00000009"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000009"
    assert newest_checkpoint(tmp_path, "best") == tmp_path / "best-00000009"


def test_a_step_saved_twice_is_the_second(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    save_checkpoint(tmp_path, 1, model, optimizer, {"time": 1})
    path = save_checkpoint(tmp_path, 1, model, optimizer, {"time": 2})
    assert read_state(path) == {"time": 2}
    assert find_fault(path) is None


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "step-00000001.txt").write_text("not a folder")
    (tmp_path / "step-one").mkdir()
    assert newest_checkpoint(tmp_path) is None


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flip, truncate, os.remove], ids=["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    toy: SimpleNamespace, tmp_path: Path, name: str, harm: Any
) -> None:
    model, optimizer = make(toy)
    good = save_checkpoint(tmp_path, 1, model, optimizer, {"step": 1})
    bad = save_checkpoint(tmp_path, 2, model, optimizer, {"step": 2})
    if name == "manifest.json" and harm is flip:
        # Which character in the middle is hit is chance; take one that a hash is made of.
        text = (bad / name).read_text()
        place = text.index('"sha256": "') + 12
        (bad / name).write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    elif name == "manifest.json" and harm is truncate:
        os.truncate(bad / name, 40)
    else:
        harm(bad / name)
    fault = find_fault(bad)
    assert fault is not None
    assert name in fault or name == "manifest.json"
    with pytest.warns(RuntimeWarning, match=f"{bad.name} is damaged") as warnings:
        assert newest_checkpoint(tmp_path) == good
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "text", ["[]", "3", "{}", '{"format": 1}', '{"format": 1, "files": {"state.json": 3}}', "\xff"]
)
def test_a_manifest_of_another_shape_is_a_fault(toy: SimpleNamespace, tmp_path: Path, text: str) -> None:
    path = save_checkpoint(tmp_path, 1, *make(toy), {})
    (path / "manifest.json").write_text(text, encoding="latin-1")
    assert "manifest.json" in str(find_fault(path))


def test_a_newer_format_is_not_guessed_at(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *make(toy), {})
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"format": 1', '"format": 2'))
    assert find_fault(path) == "its format is 2, this version reads 1"


def test_when_none_is_whole_the_run_does_not_quietly_start_again(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *make(toy), {})
    flip(path / "model.safetensors")
    with pytest.warns(RuntimeWarning), pytest.raises(TrainingError, match="every checkpoint is damaged"):
        newest_checkpoint(tmp_path)


def test_a_run_can_do_without_its_best(toy: SimpleNamespace, tmp_path: Path) -> None:
    flip(save_checkpoint(tmp_path, 1, toy.Model(), None, {}, kind="best") / "model.safetensors")
    with pytest.warns(RuntimeWarning, match="best-00000001 is damaged"):
        assert newest_checkpoint(tmp_path, "best") is None


@pytest.mark.parametrize("failing", ["save_file", "write_json", "sha256"])
def test_a_failure_while_writing_leaves_the_last_checkpoint_alone(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    model, optimizer = make(toy)
    first = save_checkpoint(tmp_path, 1, model, optimizer, {"step": 1})

    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, failing, fail)
        save_checkpoint(tmp_path, 2, model, optimizer, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    assert newest_checkpoint(tmp_path) == first


def test_a_full_disk_is_noticed_before_writing(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = make(toy)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(StorageError, match=r"needed, 1\.0 MiB free"):
        save_checkpoint(tmp_path, 1, model, optimizer, {})
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_while_writing_tensors_is_a_storage_error(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(StorageError, match=r"cannot write .*model\.safetensors: .*No space left"):
        save_checkpoint(tmp_path, 1, *make(toy), {})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *make(toy), {})
    (tmp_path / ".step-00000002.tmp-abc").mkdir()
    (tmp_path / ".best-00000002.old-abc").mkdir()
    (tmp_path / ".stable-00000002.tmp-abc").mkdir()
    (tmp_path / "notes").mkdir()
    remove_checkpoints(tmp_path, kind="step", after_step=1)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "notes", path]
    remove_checkpoints(tmp_path / "none", kind="step", after_step=1)


def test_a_model_of_another_shape_is_refused(toy: SimpleNamespace, tmp_path: Path) -> None:
    model, optimizer = make(toy)
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    wider = toy.Model()
    wider.count = nn.Linear(8, 3)
    with pytest.raises(TrainingError, match=r"count\.weight is \[1, 8\], not \[3, 8\]"):
        load_checkpoint(path, wider, None)
    more = toy.Model()
    more.extra = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"only one of them has extra\.bias, extra\.weight"):
        load_checkpoint(path, more, None)
