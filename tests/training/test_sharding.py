"""Ranks that hold a part of every tensor are the same run as one that holds all: losses, weights, files, resuming."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, AutoModelForSequenceClassification

from bertsmith.cli import main
from bertsmith.errors import SettingsError
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.training.checkpoint import newest_checkpoint, read_state
from bertsmith.training.loop import TrainSettings
from bertsmith.training.optim import OptimizerName, OptimizerSettings
from bertsmith.training.progress import read_metrics

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
PLAYED = ("one", "spoilt, one", "two", "three", "spoilt", "stopped", "killed", "first killed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranked.py has played its sharded scenarios, and what they are compared with."""
    folder = tmp_path_factory.mktemp("sharded")
    names = [name if name.endswith("one") else f"sharded, {name}" for name in PLAYED]
    command = [sys.executable, HERE / "ranked.py", "all", folder, *names]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def seen(folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """What each rank of a run saw, by rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"rank-*-{number}.json"))]


def lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "run" / "metrics.jsonl") if line["kind"] in kinds]


def files(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a run's last checkpoint, by file."""
    path = newest_checkpoint(folder / "run" / "checkpoints")
    assert path is not None
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


def assert_same_run(own: Path, other: Path) -> None:
    """Their figures to 1e-5, and the same names, shapes and values in the same files but for rounding."""
    for left, right in zip(lines(own, "train", "eval"), lines(other, "train", "eval"), strict=True):
        for key in ("step", "loss", "losses", "grad_norm", "metrics", "learning_rate", "tokens", "epochs"):
            if key in right:
                assert left[key] == pytest.approx(right[key], abs=1e-5, rel=1e-5), (left["step"], key)
    found, expected = files(own), files(other)
    assert found.keys() == expected.keys() == {"model.safetensors", "optimizer.safetensors", "average.safetensors"}
    for name, tensors in expected.items():
        assert found[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(found[name][key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("two", 2), ("three", 3)])
def test_pieces_learn_what_the_whole_learns(root: Path, name: str, size: int) -> None:
    """Heads of one row, of which the last rank has none; the last step of an epoch has one micro-batch for all."""
    ranks = seen(root / f"sharded, {name}")
    assert len(ranks) == size
    assert len(lines(root / f"sharded, {name}", "train")) == 50
    assert_same_run(root / f"sharded, {name}", root / "one")
    for rank in ranks[1:]:
        assert rank["model"] == ranks[0]["model"]
        assert rank["result"] == ranks[0]["result"]
        assert rank["written"] == []


def test_each_rank_has_its_part_of_the_weights_and_gradients(root: Path) -> None:
    (alone,) = seen(root / "one")
    for name, size in (("two", 2), ("three", 3)):
        held = [rank["held"] for rank in seen(root / f"sharded, {name}")]
        assert sum(held) == alone["held"]
        assert max(held) < alone["held"] / size * 1.2


def test_what_no_rank_has_learnt_from_is_not_decayed(root: Path) -> None:
    found = files(root / "sharded, two")
    assert "unused.weight|exp_avg" not in found["optimizer.safetensors"]


def test_a_bad_step_of_one_rank_is_skipped_by_all(root: Path) -> None:
    own, other = (lines(root / name, "bad_step") for name in ("sharded, spoilt", "spoilt, one"))
    assert [(line["step"], line["sample_ids"]) for line in own] == [
        (line["step"], line["sample_ids"]) for line in other
    ]
    assert len(own) > 10
    for key, tensor in files(root / "spoilt, one")["model.safetensors"].items():
        torch.testing.assert_close(
            files(root / "sharded, spoilt")["model.safetensors"][key], tensor, rtol=1e-4, atol=1e-6
        )


def test_a_run_goes_on_with_and_without_pieces(root: Path) -> None:
    """Stopped by a signal to one rank: two with pieces, two without, three with, and ended by one process."""
    folder = root / "sharded, stopped"
    assert [len(seen(folder, number)) for number in range(4)] == [2, 2, 3, 1]
    for number, stop in enumerate((17, 30, 36)):
        for rank in seen(folder, number):
            assert rank["error"].startswith(f"Interrupted: Stopped after step {stop}; the run is saved in")
    assert seen(folder, 3)[0]["error"] is None
    assert_same_run(folder, root / "one")


@pytest.mark.parametrize(("name", "survivor"), [("killed", 0), ("first killed", 1)])
def test_a_rank_that_is_killed_ends_the_others(root: Path, name: str, survivor: int) -> None:
    folder = root / f"sharded, {name}"
    (rank,) = seen(folder)
    assert f"TrainingError: rank {survivor} of 2 cannot go on: another rank has ended" in rank["error"]
    path = newest_checkpoint(folder / "run" / "checkpoints")
    assert path is not None and read_state(path)["state"]["step"] == 14


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "albert", "electra"])
def test_the_commands_with_pieces(tmp_path: Path, tiny_documents: Path, tiny_tokenizer: Path, family: str) -> None:
    """Layers that are gathered one by one; in ALBERT one that is run twice, in ELECTRA two models with one table."""
    corpus, one, two, tuned = (str(tmp_path / name) for name in ("corpus", "one", "two", "tuned"))
    build = ["--tokenizer", str(tiny_tokenizer), "--out", corpus, "--document-separator", "blank-lines"]
    assert main(["corpus", "build", str(tiny_documents), *build]) == 0
    shared = ["--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--micro-batch-size", "2"]
    pretrain = ["pretrain", *shared, "--corpus", corpus, "--size", "tiny", "--family", family, "--dropout", "0"]
    pretrain += ["--budget", "6 steps", "--ema-decay", "0.5", "--optimizer", "bert-original", "--out"]
    reviews = tmp_path / "reviews.csv"
    rows = [f"{i} {'good and new' if i % 2 else 'old and red'},{'yes' if i % 2 else 'no'}" for i in range(24)]
    reviews.write_text("\n".join(["text,label", *rows]) + "\n")
    finetune = ["finetune", "classification", *shared, "--model", two, "--train", str(reviews), "--out", tuned]
    finetune += ["--epochs", "1", "--lora", "2", "--r-drop", "1"]
    pieces = ["--shard-weights", *(["--gradient-checkpointing"] * (family == "albert"))]
    program = tmp_path / "program.py"
    program.write_text(
        # The forks find imported what each would take seconds for; what hangs says where, before its time is over.
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport faulthandler\nfrom ranked import forked\n"
        "from bertsmith.cli import main\nimport bertsmith.tasks.finetune, bertsmith.training.sharding\n"
        "def run(words):\n    faulthandler.dump_traceback_later(130, exit=True)\n    assert main(words) == 0\n"
        f"if __name__ == '__main__':\n    for words in ({[*pretrain, two]}, {finetune}):\n"
        f"        forked(2, lambda: run([*words, *{pieces}]))\n"
    )
    done = subprocess.run(
        [sys.executable, program], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (Path(tuned) / "report.html").is_file(), done.stderr

    assert main([*pretrain, one]) == 0
    assert _names(tmp_path / "two") == _names(tmp_path / "one")
    for file in sorted((tmp_path / "one").rglob("*.safetensors")):
        expected, found = load_file(file), load_file(tmp_path / "two" / file.relative_to(tmp_path / "one"))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    AutoModelForPreTraining.from_pretrained(tmp_path / "two" / "model")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned" / "model")
    assert main(["evaluate", tuned, str(reviews)]) == 0


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["stable-adamw", "lamb", "muon"])
def test_optimizers_that_need_whole_matrices_are_refused(name: OptimizerName) -> None:
    settings = OptimizerSettings(optimizer=name)
    with pytest.raises(SettingsError, match=f"optimizer {name} computes with whole .* shard_weights .* adamw"):
        TrainSettings(optimizer=settings, shard_weights=True)


def test_what_does_not_go_with_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="compile and shard_weights"):
        TrainSettings(compile=True, shard_weights=True)
    with pytest.raises(SettingsError, match="adversarial goes back through weights that shard_weights has let go"):
        FinetuneSettings(model="m", train=tmp_path, out=tmp_path, adversarial=1.0, shard_weights=True)
