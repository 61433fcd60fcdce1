"""Runs under torchrun itself: stopped, killed and started again, they end with the weights of a run left alone.

And the order of the examples, whatever makes them. (Ranks that die or cannot save without torchrun, and whole runs with
other numbers of ranks: tests/training/test_distributed.py.)
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from bertsmith.cli import main
from bertsmith.errors import SettingsError
from bertsmith.locks import LOCK, only_writer
from bertsmith.training.checkpoint import newest_checkpoint, step_of
from bertsmith.training.launch import Launch
from bertsmith.training.loader import Loader, Share, Step
from bertsmith.training.progress import read_metrics

RANKED = Path(__file__).parents[1] / "training" / "ranked.py"
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """What torchrun does with two ranks on this machine."""
    command = [*TORCHRUN, *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def steps(folder: Path) -> list[int]:
    """The steps that a run has written a line about."""
    return [line["step"] for line in read_metrics(folder / "run" / "metrics.jsonl") if line["kind"] == "train"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(run / "checkpoints")
    assert path is not None and path.name == "step-00000050"
    return load_file(path / "model.safetensors") | load_file(path / "optimizer.safetensors")


@pytest.mark.slow
def test_a_run_that_was_stopped_and_then_lost_a_rank_ends_as_if_it_had_not(tmp_path: Path) -> None:
    """SIGTERM to torchrun itself; then SIGKILL to a rank, and a restart by torchrun."""
    straight = [sys.executable, RANKED, "all", tmp_path / "straight", "dropout, two"]
    subprocess.run(straight, env=ENVIRONMENT, timeout=120, check=True)

    stopped = subprocess.Popen([*TORCHRUN, RANKED, "try", tmp_path], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while stopped.poll() is None and not steps(tmp_path):
        time.sleep(0.05)
    stopped.terminate()
    assert "Interrupted: Stopped after step" in stopped.communicate(timeout=60)[1]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert step_of(checkpoint) == steps(tmp_path)[-1] < 19

    restarted = torchrun("--max-restarts", "1", RANKED, "try", tmp_path)
    assert restarted.returncode == 0, restarted.stderr
    assert len(list(tmp_path.glob("try-*"))) == 3
    assert "failed (exitcode: -9)" in restarted.stderr
    assert steps(tmp_path) == list(range(1, 51))
    expected = weights(tmp_path / "straight" / "dropout, two" / "run")
    found = weights(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["model"] == ranks[1]["model"]


@pytest.mark.slow
def test_the_others_end_when_a_rank_hangs(tmp_path: Path) -> None:
    """Rank 1 sleeps in the 20th step; rank 0 waits five seconds for it."""
    subprocess.run([sys.executable, RANKED, "all", tmp_path, "hangs"], env=ENVIRONMENT, timeout=120, check=True)
    found = json.loads((tmp_path / "hangs" / "rank-0-0.json").read_text())
    assert "rank 0 of 2 cannot go on: another rank has ended or does not answer" in found["error"]
    assert "with --resume the run goes on from its last checkpoint" in found["error"]
    path = newest_checkpoint(tmp_path / "hangs" / "run" / "checkpoints")
    assert path is not None and step_of(path) == 14


# The order of the examples (row 3)


@pytest.mark.parametrize("num_workers", [0, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("epoch", "position"), [(0, 0), (1, 16)])
def test_any_number_of_ranks_and_workers_makes_the_same_examples_in_the_same_order(
    toy: SimpleNamespace, size: int, num_workers: int, epoch: int, position: int
) -> None:
    """From the start of a run, and from where one was stopped; an epoch is six steps of eight and one of two."""
    task = toy.Task(size=50)

    def steps(share: Share, workers: int) -> list[Step]:
        options = {"batch_size": 8, "micro_batch_size": 2, "seed": 3, "num_workers": workers, "share": share}
        loader = Loader(task.examples("train"), task.collate, **options)
        found = loader.steps(epoch, position)
        try:
            return list(itertools.islice(found, 15))
        finally:
            found.close()

    alone = steps(Share(), 0)
    ranks = [steps(Share(rank, size), num_workers) for rank in range(size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [part.sample_ids for part in parts] == [whole.sample_ids] * size
        made = sorted(
            (number, [row.index for row in batch.examples]) for part in parts for number, batch in part.numbered
        )
        assert [index for _, ids in made for index in ids] == whole.sample_ids
    next_epoch = [index for step in alone if step.epoch == epoch + 1 for index in step.sample_ids]
    assert sorted(next_epoch) == list(range(50))


def test_a_step_that_not_all_ranks_can_share_is_refused() -> None:
    Launch(0, 4).check([4, 7], auto_batch=False)
    with pytest.raises(SettingsError, match="batch_size is 3, and 4 ranks share it: it must be at least 4"):
        Launch(0, 4).check([8, 3], auto_batch=False)


@pytest.fixture
def store(tmp_path: Path, tiny_documents: Path, tiny_tokenizer: Path) -> Path:
    """A token store in the test's folder."""
    corpus = tmp_path / "corpus"
    options = ["--tokenizer", str(tiny_tokenizer), "--out", str(corpus), "--document-separator", "blank-lines"]
    assert main(["corpus", "build", str(tiny_documents), *options]) == 0
    return corpus


@pytest.mark.slow
def test_the_commands_under_torchrun(store: Path, tmp_path: Path) -> None:
    """`pretrain` on two ranks is `pretrain`; after it, in the same processes, `finetune` with what goes before it."""
    shared = ["--device", "cpu", "--precision", "fp32", "--evaluate-every", "3 steps"]
    pretrain = ["pretrain", *shared, "--corpus", str(store), "--size", "tiny", "--budget", "6 steps", "--dropout", "0"]
    pretrain += ["--ema-decay", "0.5", "--out"]
    one, two, tuned = (str(tmp_path / name) for name in ("one", "two", "tuned"))
    rows = [f"{i} {'good and new' if i % 2 else 'old and red'},{'yes' if i % 2 else 'no'}" for i in range(24)]
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("\n".join(["text,label", *rows]) + "\n")
    finetune = ["finetune", "classification", *shared, "--model", two, "--train", str(reviews), "--out", tuned]
    finetune += ["--epochs", "1", "--batch-size", "4", "--lora", "2", "--adapt", "2 steps"]
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nfrom bertsmith.cli import main\nsys.exit(main({[*pretrain, two]}) or main({finetune}))\n"
    )
    done = torchrun(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report:") == 2
    assert done.stdout.count("dev: ") == 1

    assert main([*pretrain, one]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)

    assert (tmp_path / "tuned" / "adapt" / "run" / "model" / "model.safetensors").is_file()
    assert main(["evaluate", tuned, str(reviews)]) == 0


@pytest.mark.slow
def test_a_folder_that_another_process_writes_to_is_refused_on_all_ranks(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["-m", "bertsmith", "pretrain", "--corpus", store, "--out", run, "--size", "tiny", "--budget", "2 steps"]
    words += ["--device", "cpu", "--evaluation-samples", "4", "--batch-size", "4"]
    with only_writer(run):
        refused = torchrun(*words)
    assert refused.returncode == 1
    assert f"error: another process writes to {run} (process {os.getpid()} on " in refused.stderr
    assert "error on rank 1: rank 1 of 2 has ended because rank 0 has" in refused.stderr
    assert not run.exists()
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr
    assert not list(run.rglob(LOCK))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["corpus", "build", "text", "--tokenizer", "t", "--out", "c"],
            "only finetune and pretrain can share their work",
        ),
        (["predict", "model", "A text."], "only finetune and pretrain can share"),
        (["finetune", "classification", "--seeds", "2"], "seeds, folds and search are several runs"),
        (["finetune", "tagging", "--folds", "2"], "seeds, folds and search are several runs"),
        (["finetune", "tagging", "--search", "2"], "seeds, folds and search are several runs"),
    ],
)
def test_what_ranks_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if words[0] == "finetune":
        words = [*words, "--model", "m", "--train", "t.csv", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "error on rank 1: " in error
    assert message in error
