"""Several ranks are one run: the same examples, losses and weights as one process, one clock, one writer."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertsmith.errors import SettingsError, StorageError, TrainingError
from bertsmith.training import distributed
from bertsmith.training.checkpoint import newest_checkpoint, read_state
from bertsmith.training.distributed import ALONE, Agreement, Ranks, name_attempt
from bertsmith.training.interrupt import StopRequest
from bertsmith.training.launch import Launch, read_launch
from bertsmith.training.loader import Loader, Share
from bertsmith.training.progress import read_metrics

RANKED = Path(__file__).with_name("ranked.py")
STARTED = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranked.py has played all its scenarios."""
    folder = tmp_path_factory.mktemp("ranked")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, RANKED, "all", folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def seen(folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """What each rank of a scenario's run saw, by rank."""
    paths = sorted(folder.glob(f"rank-*-{number}.json"))
    return [json.loads(path.read_text()) for path in paths]


def lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "run" / "metrics.jsonl") if line["kind"] in kinds]


def tensors(folder: Path, file: str = "model") -> dict[str, torch.Tensor]:
    """Weights, moments or averages of a run's last checkpoint."""
    path = newest_checkpoint(folder / "run" / "checkpoints")
    assert path is not None
    return load_file(path / f"{file}.safetensors")


def in_order(ranks: list[dict[str, Any]], first_step: int = 0) -> list[list[int]]:
    """The micro-batches of all ranks as one process has them: four of two examples a step; or one, in every seventh."""
    queues = [iter(rank["seen"]) for rank in ranks]
    order = []
    for step in itertools.count(first_step):
        for number in range(1 if step % 7 == 6 else 4):
            micro_batch = next(queues[number % len(queues)], None)
            if micro_batch is None:
                assert all(next(queue, None) is None for queue in queues)
                return order
            order.append(micro_batch)
    return order


@pytest.mark.parametrize(("name", "size"), [("two", 2), ("four", 4)])
def test_any_number_of_ranks_is_the_same_run(root: Path, name: str, size: int) -> None:
    """The four are given no size of micro-batches, and take a quarter of the step."""
    alone, together = root / "one", root / name
    ranks = seen(together)
    assert len(ranks) == size
    assert in_order(ranks) == in_order(seen(alone)) == seen(alone)[0]["seen"]
    assert len(in_order(ranks)) == 7 * (6 * 4 + 1) + 4
    own, other = lines(together, "train", "eval"), lines(alone, "train", "eval")
    assert [line["step"] for line in own] == [line["step"] for line in other]
    assert len(own) == 50 + 5
    for left, right in zip(own, other, strict=True):
        for key in ("loss", "losses", "grad_norm", "metrics", "learning_rate", "tokens", "epochs"):
            if key in right:
                assert left[key] == pytest.approx(right[key], abs=1e-5, rel=1e-5), (left["step"], key)
    for file in ("model", "optimizer", "average"):
        for key, tensor in tensors(alone, file).items():
            torch.testing.assert_close(tensors(together, file)[key], tensor, rtol=1e-4, atol=1e-6)


def test_all_ranks_end_with_the_same_bits(root: Path) -> None:
    for name in ("two", "four", "dropout, two", "spoilt, two", "clocks", "stops early"):
        first, *others = seen(root / name)
        assert first["error"] is None
        for other in others:
            assert other["model"] == first["model"], name
            assert other["result"] == first["result"], name


def test_dropout_is_that_of_one_process_with_the_same_micro_batches(root: Path) -> None:
    """Two micro-batches a step are one addition, which has the same bits wherever it is made."""
    alone, together = root / "dropout, one", root / "dropout, two"
    for file in ("model", "optimizer", "average"):
        expected = tensors(alone, file)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors(together, file).items())
    assert not torch.equal(tensors(alone)["count.weight"], tensors(root / "one")["count.weight"])


def test_what_no_rank_has_learnt_from_is_not_decayed(root: Path) -> None:
    for name in ("one", "two", "four"):
        assert "unused.weight|exp_avg" not in tensors(root / name, "optimizer")
        assert torch.equal(tensors(root / name)["unused.weight"], tensors(root / "spoilt, one")["unused.weight"])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(root: Path) -> None:
    """Stopped by a signal to one rank of four, to one of two, in one process; ended with four."""
    folder = root / "stopped"
    parts = [seen(folder, number) for number in range(4)]
    assert [len(part) for part in parts] == [4, 2, 1, 4]
    steps = [0, 17, 30, 36]
    for part, stop in zip(parts, steps[1:], strict=False):
        for rank in part:
            assert rank["error"].startswith(f"Interrupted: Stopped after step {stop}; the run is saved in")
    order = [ids for part, start in zip(parts, steps, strict=True) for ids in in_order(part, start)]
    assert order == seen(root / "one")[0]["seen"]
    for file in ("model", "optimizer", "average"):
        for key, tensor in tensors(root / "one", file).items():
            torch.testing.assert_close(tensors(folder, file)[key], tensor, rtol=1e-4, atol=1e-6)
    assert [line["loss"] for line in lines(folder, "train")] == pytest.approx(
        [line["loss"] for line in lines(root / "one", "train")], abs=1e-5
    )


def test_only_the_first_rank_writes_and_speaks(root: Path) -> None:
    for name in ("two", "four", "stopped"):
        for number in range(len(list((root / name).glob("rank-0-*.json")))):
            for rank in seen(root / name, number)[1:]:
                assert rank["written"] == [], name
    assert "step 50" in (root / "two" / "0.txt").read_text()
    assert (root / "two" / "1.txt").read_text() == ""


def test_a_bad_step_of_one_rank_is_skipped_by_all(root: Path) -> None:
    alone, together = lines(root / "spoilt, one", "bad_step"), lines(root / "spoilt, two", "bad_step")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert [line["sample_ids"] for line in together] == [line["sample_ids"] for line in alone]
    assert len(together) > 10
    for key, tensor in tensors(root / "spoilt, one").items():
        torch.testing.assert_close(tensors(root / "spoilt, two")[key], tensor, rtol=1e-4, atol=1e-6)
    for rank in seen(root / "spoilt, none allowed"):
        assert "StepError" in rank["error"] and "is not finite" in rank["error"]


def test_time_is_that_of_the_first_rank(root: Path) -> None:
    first, second = seen(root / "clocks")
    assert 28 <= first["result"]["seconds"] <= 32
    assert first["result"]["step"] == second["result"]["step"] > 5
    assert len(lines(root / "clocks", "eval")) >= 3


def test_all_ranks_stop_early_together(root: Path) -> None:
    ranks = seen(root / "stops early")
    assert [rank["result"]["stopped_early"] for rank in ranks] == [True, True]
    assert [rank["result"]["metrics"] for rank in ranks[1:]] == [ranks[0]["result"]["metrics"]]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("no disk", ["StorageError", "TrainingError: rank 1 of 2 has ended because rank 0 has"]),
        ("killed", ["TrainingError: rank 0 of 2 cannot go on: another rank has ended"]),
        ("first killed", ["TrainingError: rank 1 of 2 cannot go on: another rank has ended"]),
        ("hangs", ["cannot go on: another rank has ended or does not answer"] * 2),
        (
            "other data",
            ["cannot go on: another rank has ended", "TrainingError: data is 0 on rank 0, and 1 on rank 1 of 2."],
        ),
        ("too small", ["SettingsError: batch_size is 3, and 4 ranks share it"] * 4),
        ("auto", ["SettingsError: auto_batch cuts the micro-batches of one process"] * 2),
    ],
)
def test_what_ends_one_rank_ends_all_with_a_message(root: Path, name: str, messages: list[str]) -> None:
    found = seen(root / name)
    assert len(found) == len(messages)
    for rank, message in zip(found, messages, strict=True):
        assert message in rank["error"]
    if name in ("killed", "first killed", "hangs"):
        path = newest_checkpoint(root / name / "run" / "checkpoints")
        assert path is not None and read_state(path)["state"]["step"] == 14


@pytest.mark.parametrize("of", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
def test_shares_are_the_step_and_no_example_is_made_twice(
    toy: SimpleNamespace, of: int, micro_batch_size: int | None
) -> None:
    task = toy.Task(size=31)
    size = min(micro_batch_size or 7, -(-7 // of))  # so that there is one for each

    def steps(share: Share, micro: int | None = micro_batch_size) -> list[Any]:
        options = {"batch_size": 7, "micro_batch_size": micro, "seed": 1, "num_workers": 0, "share": share}
        loader = Loader(task.examples("train"), task.collate, **options)
        return list(itertools.islice(loader.steps(), 10))

    for whole, *parts in zip(steps(Share(), size), *(steps(Share(index, of)) for index in range(of)), strict=True):
        numbered = sorted(pair for part in parts for pair in ((number, ids(batch)) for number, batch in part.numbered))
        assert numbered == [(number, ids(batch)) for number, batch in whole.numbered]
        for part in parts:
            where = (part.epoch, part.position, part.epochs, part.sample_ids)
            assert where == (whole.epoch, whole.position, whole.epochs, whole.sample_ids)


def ids(batch: Any) -> list[int]:
    return [example.index for example in batch.examples]


def test_what_torchrun_says_is_read() -> None:
    assert read_launch({}) == Launch() == read_launch({"WORLD_SIZE": "1"})
    assert read_launch(STARTED) == Launch(2, 4, 1)
    assert read_launch({**STARTED, "TORCHELASTIC_RESTART_COUNT": "3"}).restarts == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE is 4 in the environment, and RANK is not set. Start the processes with torchrun"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"RANK": "4"}, "RANK is 4 in the environment, and WORLD_SIZE 4"),
        ({"RANK": "-1"}, 'RANK is "-1"'),
        ({"WORLD_SIZE": "two"}, 'WORLD_SIZE is "two" in the environment; it must be a whole number of at least 1'),
        ({"WORLD_SIZE": "0"}, 'WORLD_SIZE is "0"'),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(change: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in {**STARTED, **change}.items() if value is not None}
    with pytest.raises(SettingsError, match=message):
        read_launch(environment)


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [("auto", 2, "cuda:1"), ("cuda", 2, "cuda:1"), ("cpu", 2, "cpu"), ("auto", 0, "cpu")],
)
def test_each_rank_of_a_machine_has_its_device(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(Ranks(Launch(5, 8, 1)).device(name)) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", r"rank 5 is number 2 on its machine, where torch sees 1 CUDA devices\. Start fewer"),
        ("cuda:0", 'device "cuda:0" cannot be that of several ranks'),
    ],
)
def test_a_device_for_all_ranks_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=message):
        Ranks(Launch(5, 8, 1)).device(name)


def test_ranks_that_come_again_have_a_name_of_their_own() -> None:
    """Though the store remembers those before them, of whom there were more, and one that never came."""
    store = torch.distributed.HashStore()
    store.set("bertsmith/rank/1", "bertsmith/one that has died")
    names = []
    for size in (4, 2, 3):
        with ThreadPoolExecutor(size) as pool:
            found = set(pool.map(lambda rank, size=size: name_attempt(store, Launch(rank, size)), range(size)))
        assert len(found) == 1
        names += found
    assert len(set(names)) == 3


def test_a_rank_that_does_not_come_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "ANSWER", timedelta(seconds=0.05))
    with pytest.raises(TrainingError, match="2 other ranks should be there"):
        name_attempt(torch.distributed.HashStore(), Launch(0, 3))


def test_what_is_not_on_shared_storage_is_named(tmp_path: Path) -> None:
    assert Ranks(Launch(1, 2)).visible(tmp_path) == tmp_path
    with pytest.raises(StorageError, match=r"step-1 is there for rank 0, and not for rank 1 of 2\. The run's folder"):
        Ranks(Launch(1, 2)).visible(tmp_path / "step-1")


def test_a_restart_does_not_begin_anew() -> None:
    with pytest.raises(SettingsError, match="overwrite would remove it"):
        Launch(0, 2, restarts=1).check([8], auto_batch=False, overwrite=True)
    Launch(0, 2).check([8], auto_batch=False, overwrite=True)
    Launch(restarts=1).check([1], auto_batch=True, are_several=True, overwrite=True)  # a process on its own


def test_a_process_on_its_own_waits_for_nobody_and_looks_at_the_clock_itself() -> None:
    now = itertools.count()
    stop = StopRequest()
    agreement = Agreement(ALONE, lambda: float(next(now)), stop)
    assert (agreement.now(), agreement.now()) == (0.0, 1.0)
    assert agreement.meet([3]) == [3]
    made = object()
    make: Callable[[], object] = lambda: made  # noqa: E731
    assert agreement.first(make) is made
    stop.requested = True
    assert agreement.is_stopping
    assert not torch.distributed.is_initialized()
