"""Checkpoints that are damaged, killed while they are written, refused by the disk, or in the way."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from bertsmith.cli import main
from bertsmith.errors import SettingsError, StorageError, TrainingError
from bertsmith.files import bring_back
from bertsmith.locks import LOCK
from bertsmith.tasks.run_folder import claim_run_folder, run_folder_held
from bertsmith.tasks.run_settings import RunSettings
from bertsmith.training import checkpoint, loop
from bertsmith.training.checkpoint import (
    find_fault,
    newest_checkpoint,
    read_state,
    remove_checkpoints,
    save_checkpoint,
    step_of,
)
from bertsmith.training.distributed import ALONE
from bertsmith.training.progress import read_metrics

CHILDREN = Path(__file__).with_name("children.py")
FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


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
    model, optimizer = toy.trained()
    good = save_checkpoint(tmp_path, 1, model, optimizer, {"step": 1})
    bad = save_checkpoint(tmp_path, 2, model, optimizer, {"step": 2})
    harm(bad / name)
    fault = find_fault(bad)
    assert fault is not None
    assert name in fault or name == "manifest.json"  # which may say that another file is not as it says
    with pytest.warns(RuntimeWarning, match=f"{bad.name} is damaged") as warnings:
        assert newest_checkpoint(tmp_path) == good
    assert len(warnings) == 1


@pytest.mark.parametrize("name", ["../outside", "/outside", "inner/outside", ".."])
def test_a_manifest_names_nothing_outside_its_folder(toy: SimpleNamespace, tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 1, *toy.trained(), {})
    (path / "inner").mkdir()
    target = path / (name if name != "/outside" else str(tmp_path / "outside"))
    if name != "..":
        target.write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]  # as a checkpoint of an earlier version
    manifest["files"][str(target) if name == "/outside" else name] = {
        "bytes": 1,
        "sha256": hashlib.sha256(b"x").hexdigest(),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    fault = find_fault(path)
    assert fault is not None and fault.endswith("which is no file of its folder")


@pytest.mark.parametrize(
    "text", ["[]", "3", "{}", '{"format": 1}', '{"format": 1, "files": {"state.json": 3}}', "\xff"]
)
def test_a_manifest_of_another_shape_is_a_fault(toy: SimpleNamespace, tmp_path: Path, text: str) -> None:
    path = save_checkpoint(tmp_path, 1, *toy.trained(), {})
    (path / "manifest.json").write_text(text, encoding="latin-1")
    assert "manifest.json" in str(find_fault(path))


def test_a_checkpoint_of_an_earlier_version_has_no_hash_of_its_manifest(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *toy.trained(), {}) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "sha256"}))
    assert find_fault(path.parent) is None
    path.write_text(json.dumps({("sha257" if name == "sha256" else name): value for name, value in manifest.items()}))
    assert find_fault(path.parent) == "manifest.json was changed after it was written"


def test_a_newer_format_is_not_guessed_at(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *toy.trained(), {})
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace('"format": 1', '"format": 2'))
    assert find_fault(path) == "its format is 2, this version reads 1"


def test_when_none_is_whole_the_run_does_not_quietly_start_again(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *toy.trained(), {})
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
    model, optimizer = toy.trained()
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
    model, optimizer = toy.trained()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(StorageError, match=r"needed, 1\.0 MiB free"):
        save_checkpoint(tmp_path, 1, model, optimizer, {})
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_read_back_is_not_kept(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back other bits: neither the older checkpoints nor the one of the same name is lost."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, *toy.trained(), {"value": step})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_json = checkpoint.write_json

    def damaged(path: Path, value: Any) -> None:
        write_json(path, value)
        if path.name == "manifest.json":
            flip(path.parent / "model.safetensors")

    monkeypatch.setattr(checkpoint, "write_json", damaged)
    for step in (2, 3):
        with pytest.raises(
            StorageError, match=rf"step-0000000{step} does not read back .*model\.safetensors was changed"
        ):
            save_checkpoint(tmp_path, step, *toy.trained(1), {}, keep=1)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_old_checkpoint_goes_only_after_the_new_one_is_verified(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    verify, remove = checkpoint.find_fault, shutil.rmtree
    save_checkpoint(tmp_path, 1, *toy.trained(), {})
    monkeypatch.setattr(checkpoint, "find_fault", lambda path: (calls.append("verify"), verify(path))[1])
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **how: (calls.append(f"remove {path.name[1:14]}"), remove(path, **how))
    )
    save_checkpoint(tmp_path, 2, *toy.trained(), {}, keep=1)
    assert calls == ["verify", "remove step-00000001"]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **how: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    save_checkpoint(tmp_path, 1, *toy.trained(), {})
    with (
        monkeypatch.context() as patch,
        pytest.warns(RuntimeWarning, match="step-00000001 cannot be removed: Permission"),
    ):
        patch.setattr(shutil, "rmtree", refuse)
        new = save_checkpoint(tmp_path, 2, *toy.trained(), {}, keep=1)
    assert newest_checkpoint(tmp_path) == new
    save_checkpoint(tmp_path, 3, *toy.trained(), {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_the_best_and_the_stable_outlive_any_number_of_steps(toy: SimpleNamespace, tmp_path: Path) -> None:
    for kind in ("best", "stable"):
        save_checkpoint(tmp_path, 1, *toy.trained(), {}, kind=kind, keep=1)
    for step in range(2, 6):
        save_checkpoint(tmp_path, step, *toy.trained(), {}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000001", "stable-00000001", "step-00000005"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "files may not be as large here"),
        (errno.EIO, "the disk reported an error"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
@pytest.mark.parametrize("failing", ["save_file", "fsync"])
def test_what_the_disk_refuses_leaves_the_last_checkpoint_and_says_how_much_is_needed(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, failing: str
) -> None:
    old = save_checkpoint(tmp_path, 1, *toy.trained(), {})

    def fail(*arguments: Any) -> None:
        if failing == "fsync":
            raise OSError(code, os.strerror(code))
        raise SafetensorError(f"I/O error: {os.strerror(code)} (os error {code})")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (checkpoint, "save_file")), fail)
    with pytest.raises(StorageError, match=rf"cannot write .*: {message} \(.* needed, .* free\)"):
        save_checkpoint(tmp_path, 2, *toy.trained(), {}, keep=1)
    assert list(tmp_path.iterdir()) == [old]
    assert newest_checkpoint(tmp_path) == old


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_that_step(
    toy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the next one is due, or at the end: nothing is written beside the steps (row 9)."""
    task, save_file = toy.Task(), checkpoint.save_file

    def fail(tensors: Any, path: Path) -> None:
        if path.parent.name.startswith(".step-00000004"):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fail)
    settings = loop.TrainSettings(
        budget="12 steps", batch_size=8, device="cpu", precision="fp32", num_workers=0, save_every="2 steps"
    )
    with pytest.raises(StorageError, match="step-00000004: no space left"):
        loop.train(toy.Model(), [loop.Stage(task)], settings, tmp_path, console=Console(quiet=True))
    assert len(task.seen) == 4
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000002"


@pytest.mark.slow
def test_a_command_that_may_not_write_more_ends_with_2_and_can_be_resumed(
    tiny_tokenizer: Path,
    tiny_documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The system itself refuses: files may not grow above a size that the second checkpoint needs."""
    store, run = tmp_path / "store", tmp_path / "run"
    build = ["--document-separator", "blank-lines", "--heldout-share", "0.1", "--out", str(store)]
    assert main(["corpus", "build", str(tiny_documents), "--tokenizer", str(tiny_tokenizer), *build]) == 0
    command = ["pretrain", "--corpus", str(store), "--out", str(run), "--size", "tiny", "--budget", "4 steps"]
    command += ["--batch-size", "4", "--max-length", "32", "--evaluation-samples", "4", "--save-every", "2 steps"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = checkpoint.save_checkpoint

    def limited(folder: Path, step: int, *arguments: Any, **options: Any) -> Path:
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        return save(folder, step, *arguments, **options)

    capsys.readouterr()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", limited)
            code = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert re.search(r"error: cannot write .*step-00000004: .* \(.* needed, .* free\)", capsys.readouterr().err)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert newest_checkpoint(run / "checkpoints") == run / "checkpoints" / "step-00000002"
    assert main([*command, "--resume"]) == 0


def test_what_a_killed_process_left_is_cleared_away(toy: SimpleNamespace, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, *toy.trained(), {})
    (tmp_path / ".step-00000002.tmp-abc").mkdir()
    (tmp_path / ".best-00000002.old-abc").mkdir()
    (tmp_path / ".stable-00000002.tmp-abc").mkdir()
    (tmp_path / "notes").mkdir()
    remove_checkpoints(tmp_path, kind="step", after_step=1)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "notes", path]
    remove_checkpoints(tmp_path / "none", kind="step", after_step=1)


def test_a_run_killed_in_its_first_moments_can_be_started_again(toy: SimpleNamespace, tmp_path: Path) -> None:
    """Where the process had only begun to write its first file, and where it had begun to write the second."""
    (tmp_path / ".config.yaml.tmp-abc").write_text("# bertsmith")
    claim_run_folder(RunSettings(out=tmp_path), "pretrain")
    (tmp_path / "config.yaml").write_text("# bertsmith pretrain")
    (tmp_path / ".metrics.jsonl.tmp-abc").touch()
    claim_run_folder(RunSettings(out=tmp_path, resume=True), "pretrain")
    (tmp_path / ".model.tmp-abc").mkdir()
    settings = loop.TrainSettings(budget="2 steps", device="cpu", precision="fp32")
    loop.train(toy.Model(), [loop.Stage(toy.Task())], settings, tmp_path, console=Console(quiet=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl"]


def test_a_folder_that_only_a_lock_is_in_is_empty_and_what_is_another_process_s_stays(tmp_path: Path) -> None:
    """The lock was left by a process that was killed; then one holds it, to begin a run or to go on with one."""
    (tmp_path / LOCK).write_text("process 1 on nowhere")
    temporary = tmp_path / "checkpoints" / ".step-00000003.tmp-abc"
    begun = RunSettings(out=tmp_path)
    for settings in (begun, replace(begun, resume=True), replace(begun, overwrite=True)):
        with run_folder_held(ALONE, settings, "pretrain"):
            (tmp_path / "config.yaml").write_text("# bertsmith pretrain --config config.yaml\n")
            temporary.mkdir(parents=True, exist_ok=True)
            with (
                pytest.raises(
                    SettingsError, match=rf"another process writes to {tmp_path} \(process {os.getpid()} on "
                ),
                run_folder_held(ALONE, RunSettings(out=tmp_path, resume=True), "pretrain"),
            ):
                pytest.fail("the block must not run")
            assert temporary.is_dir() and (tmp_path / LOCK).is_file()
        assert not (tmp_path / LOCK).exists()
        (tmp_path / "metrics.jsonl").touch()


def pretraining(tokenizer: Path, documents: Path, run: Path) -> list[str]:
    """The command of a small pre-training, but for its budget; its store is made beside the run."""
    store = run.with_name("store")
    build = ["--document-separator", "blank-lines", "--heldout-share", "0.1", "--out", str(store)]
    assert main(["corpus", "build", str(documents), "--tokenizer", str(tokenizer), *build]) == 0
    command = ["pretrain", "--corpus", str(store), "--out", str(run), "--size", "tiny", "--device", "cpu"]
    return [*command, "--batch-size", "4", "--max-length", "32", "--evaluation-samples", "4"]


@pytest.mark.slow
def test_a_second_command_in_the_same_folder_is_refused_and_one_after_a_kill_goes_on(
    tiny_tokenizer: Path, tiny_documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [*pretraining(tiny_tokenizer, tiny_documents, run), "--budget", "40 steps", "--save-every", "1 step"]
    words = [sys.executable, "-m", "bertsmith", *command]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            while not (run / LOCK).exists():  # before anything of a run is there
                assert process.poll() is None
            capsys.readouterr()
            assert main(command) == 2
            assert f"error: another process writes to {run} (" in capsys.readouterr().err
            while not list(run.glob("checkpoints/step-*")):
                assert process.poll() is None
                time.sleep(0.02)
            assert main([*command, "--resume"]) == 2
            assert f"error: another process writes to {run} (process {process.pid} on " in capsys.readouterr().err
            assert process.poll() is None, "it was left alone"
        finally:
            process.kill()
    assert (run / LOCK).exists()
    assert main([*command, "--resume"]) == 0, capsys.readouterr().err
    names = {"checkpoints", "config.yaml", "metrics.jsonl", "model", "report.html"}
    assert {path.name for path in run.iterdir()} == names


@pytest.mark.slow
def test_a_command_whose_metrics_may_not_grow_ends_with_2_and_can_be_resumed(
    tiny_tokenizer: Path, tiny_documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [*pretraining(tiny_tokenizer, tiny_documents, run), "--budget", "9 steps", "--evaluate-every", "1 step"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert re.search(r"error: cannot write .*metrics\.jsonl: files may not be as large .* needed, .* free\)", said)
    assert "Traceback" not in said
    assert main([*command, "--resume"]) == 0


def run_children(mode: str, root: Path) -> Path:
    subprocess.run([sys.executable, str(CHILDREN), mode, str(root)], check=True)
    return root


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the saves left that were killed: SCENARIO/001 before their first call, and so on."""
    return run_children("save", tmp_path_factory.mktemp("killed"))


def numbers(path: Path) -> set[float]:
    """Every number that is saved in the files of tensors."""
    return {
        value
        for file in path.glob("*.safetensors")
        for one in load_file(file).values()
        for value in one.unique().tolist()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "before", "after"),
    [
        ("a new step", "step-00000002", "step-00000003"),
        ("the same step", "step-00000002", "step-00000002"),
        ("a step that went back", "step-00000005", "step-00000003"),
        ("a better best", "best-00000001", "best-00000002"),
        ("the same best", "best-00000001", "best-00000001"),
    ],
)
def test_killed_at_every_call_the_old_or_the_new_is_there_and_whole(
    killed: Path, scenario: str, before: str, after: str
) -> None:
    kind: checkpoint.Kind = "best" if "best" in scenario else "step"
    old, seen = read_state(killed / scenario / "start" / before)["value"], set()
    places = sorted((killed / scenario).glob("[0-9]*"))
    assert len(places) > (15 if kind == "best" else 25)
    for place in places:
        bring_back(place)
        newest = newest_checkpoint(place, kind)  # a warning that it is damaged would be an error
        assert newest is not None, place
        value = read_state(newest)["value"]
        assert (newest.name, value) in {(before, old), (after, 9.0)}, place
        assert numbers(newest) == {value}, place
        seen.add(value)
        remove_checkpoints(place, kind=kind, after_step=step_of(newest))
        assert not [path for path in place.iterdir() if path.name.startswith(".")], place
    assert seen == {old, 9.0}


@pytest.mark.slow
def test_a_run_killed_wherever_a_name_changes_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    run_children("run", tmp_path)
    timed = ("seconds", "evaluation_seconds", "tokens_per_second", "data_wait_seconds")

    def everything(place: Path) -> dict[str, Any]:
        files = {
            str(path.relative_to(place)): path.read_bytes()
            for path in place.rglob("*")
            if path.suffix == ".safetensors"
        }
        metrics = read_metrics(place / "metrics.jsonl")
        lines = [line for line in metrics if line["kind"] in ("train", "eval")]
        state = read_state(place / "checkpoints" / "step-00000002")["state"]
        return {
            "names": sorted(path.name for path in (*place.iterdir(), *(place / "checkpoints").iterdir())),
            "files": files,
            "lines": [{name: value for name, value in line.items() if name not in timed} for line in lines],
            "state": {name: value for name, value in state.items() if name not in timed},
        }

    straight = everything(tmp_path / "straight")
    assert straight["names"] == ["best-00000002", "checkpoints", "metrics.jsonl", "stable-00000002", "step-00000002"]
    places = sorted(tmp_path.glob("[0-9]*"))
    assert len(places) > 25
    for place in places:
        assert everything(place) == straight, place
