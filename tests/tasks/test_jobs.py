"""Runs at the same time: the same as one after the other, and as safe to stop."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bertsmith.cli import main
from bertsmith.errors import BertsmithError, InputError, MissingExtraError, SettingsError, StepError
from bertsmith.files import sha256
from bertsmith.locks import LOCK
from bertsmith.tasks import finetune as verb
from bertsmith.tasks import jobs
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.jobs import own_device
from bertsmith.tasks.saved import task_kind
from bertsmith.tasks.teaching import Teaching
from bertsmith.training.distributed import ALONE
from bertsmith.training.progress import read_metrics

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)
ANIMALS, PLACES = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs one after the other then have as many threads as runs at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    words = [word for pair in zip(ANIMALS, PLACES, strict=True) for word in pair]
    rows = [f"the {word} is old {n},{'animal' if word in ANIMALS else 'place'}" for n in range(8) for word in words]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def settings(train: Path, tokenizer: Path, out: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {"model": "size:tiny", "tokenizer": str(tokenizer), "train": str(train), "out": out}
    values |= {"dev_share": 0.25, "epochs": 2.0, "batch_size": 8, "learning_rate": 3e-4, "precision": "fp32"}
    return FinetuneSettings(**{**values, "device": "cpu", **changes})


def weights(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256(path) for path in sorted(out.glob("**/model/model.safetensors"))}


@pytest.mark.parametrize("several", [{"seeds": 3, "r_drop": 1.0}, {"folds": 3}, {"search": 3}])
def test_runs_at_the_same_time_are_those_one_after_the_other(
    train: Path, tiny_tokenizer: Path, tmp_path: Path, several: dict[str, Any]
) -> None:
    in_turn = settings(train, tiny_tokenizer, tmp_path / "in-turn", **several)
    at_once = replace(in_turn, out=tmp_path / "at-once", jobs=2)
    results = [finetune("classification", one, OPTIONS, console=QUIET) for one in (in_turn, at_once)]
    names = [sorted(str(path.relative_to(one.out)) for path in one.out.rglob("*")) for one in (in_turn, at_once)]
    if "search" in several:  # from the second trial on they know of one trial less
        first, second = ((one.out / "trial-00" / "config.yaml").read_text() for one in (in_turn, at_once))
        assert first.replace("in-turn", "at-once") == second
        assert len(list(at_once.out.glob("trial-*/result.json"))) == 3
        assert len(list(at_once.out.glob("trial-*/model"))) == 1
    else:
        assert names[0] == names[1]
        assert weights(in_turn.out) == weights(at_once.out)
        assert [one.metrics for one in results[0].seeds] == [one.metrics for one in results[1].seeds]
        assert results[0].metrics == results[1].metrics
    resumed = finetune("classification", replace(at_once, resume=True), OPTIONS, console=QUIET)
    assert resumed.metrics == results[1].metrics
    if "search" in several:
        with pytest.raises(SettingsError, match="begun with jobs 1, and goes on with as many"):
            finetune("classification", replace(in_turn, resume=True, jobs=2), OPTIONS, console=QUIET)


def of_copies(works: Any, number: int, screen: Console) -> Iterator[Any]:
    """Carries out runs here, of what has gone through the pipe to a worker."""
    for teaching, own in works:
        sent = {one.name: getattr(teaching, one.name) for one in fields(Teaching)} | {"screen": None, "ranks": None}
        copy = Teaching(**{**pickle.loads(pickle.dumps(sent)), "screen": QUIET, "ranks": ALONE})
        assert copy.task is not teaching.task
        yield copy.run(pickle.loads(pickle.dumps(own)))


TAGS = "".join(f"the O\ncat B-animal\nof O\nthe O\ncity B-place\nis O\n{n} O\n\n" for n in range(8))
QUESTIONS = "".join(
    json.dumps({"question": "which is it", "context": f"river {n}", "answers": [{"text": str(n), "answer_start": 6}]})
    + "\n"
    for n in range(8)
)
CHOICES = "question,a,b,label\n" + "".join(
    f"the cat {n} is,old,a city,a\nthe city {n} is,a bird,old,b\n" for n in range(8)
)
PAIRS = "anchor,positive\n" + "".join(f"the {one} is old,a {one} is\n" for one in ANIMALS + PLACES)


@pytest.mark.parametrize(
    ("task", "name", "text", "options", "changes"),
    [
        ("classification", "train.csv", None, {}, {"adversarial": 0.1, "augment_delete": 0.1}),
        ("classification", "train.csv", None, {}, {"mixup": 0.2}),
        ("classification", "train.csv", None, {}, {"teacher": "teacher"}),
        ("tagging", "train.conll", TAGS, {"scheme": "iob2", "crf": True}, {}),
        ("answering", "train.jsonl", QUESTIONS, {"max_query_length": 16}, {"r_drop": 1.0}),
        ("choice", "train.csv", CHOICES, {"choices_column": "a,b"}, {}),
        ("embedding", "train.csv", PAIRS, {"text_column": "anchor", "pair_column": "positive"}, {}),
    ],
)
def test_every_task_goes_to_a_worker_whole(
    train: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    name: str,
    text: str | None,
    options: dict[str, Any],
    changes: dict[str, Any],
) -> None:
    data = train
    if text is not None:
        data = tmp_path / name
        data.write_text(text)
    given = task_kind(task).settings(max_length=32, **options)
    if "teacher" in changes:
        alone = settings(train, tiny_tokenizer, tmp_path / "teacher", epochs=1)
        changes = {"teacher": str(finetune(task, alone, given, console=QUIET).model)}
    here = settings(data, tiny_tokenizer, tmp_path / "here", seeds=2, epochs=1, **changes)
    finetune(task, here, given, console=QUIET)
    monkeypatch.setattr(verb, "outcomes", of_copies)
    finetune(task, replace(here, out=tmp_path / "there", jobs=2), given, console=QUIET)
    assert weights(tmp_path / "here") == weights(tmp_path / "there")


def test_errors_come_back_as_they_were_raised() -> None:
    for error in (MissingExtraError("optuna", "search", "search"), InputError("bad", "file:3"), StepError("step 3")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def start(train: Path, tokenizer: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    """As from a terminal, in a group of its own."""
    words = ["finetune", "classification", "--model=size:tiny", f"--tokenizer={tokenizer}", f"--train={train}"]
    words += [f"--out={out}", "--max-length=24", "--dev-share=0.25", "--device=cpu", "--precision=fp32"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    code = f"import torch; torch.set_num_threads(2); from bertsmith.cli import main; raise SystemExit(main({words}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def wait_for(seen: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.05)


def are_under_way(out: Path) -> bool:
    """Whether two runs have taken steps."""
    return sum(any(line["kind"] == "train" for line in read_metrics(path)) for path in out.glob("*/metrics.jsonl")) == 2


@pytest.fixture(scope="module")
def whole(train: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    torch.set_num_threads(1)
    own = settings(train, tiny_tokenizer, tmp_path_factory.mktemp("whole") / "run", seeds=3, epochs=60.0)
    return finetune("classification", own, OPTIONS, console=QUIET)


def test_ctrl_c_saves_every_run(train: Path, tiny_tokenizer: Path, tmp_path: Path, whole: FinetuneResult) -> None:
    """A terminal sends it to all processes."""
    out = tmp_path / "run"
    process = start(train, tiny_tokenizer, out, seeds=3, jobs=2, epochs=60, learning_rate=3e-4, batch_size=8)
    wait_for(lambda: are_under_way(out))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "--resume" in said and "Traceback" not in said
    for seed in (0, 1):
        assert list((out / f"seed-{seed}" / "checkpoints").glob("step-*")), said
        assert not (out / f"seed-{seed}" / "result.json").exists()
    resumed = settings(train, tiny_tokenizer, out, seeds=3, jobs=2, epochs=60.0, resume=True)
    assert finetune("classification", resumed, OPTIONS, console=QUIET).metrics == whole.metrics
    assert weights(out) == weights(whole.folder)


def children(pid: int) -> list[int]:
    """Processes that run a fine-tuning for another one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words, line = path.with_name("cmdline").read_text().split("\0"), path.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(line.rpartition(")")[2].split()[1]) == pid and any("spawn_main" in word for word in words):
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_worker_that_is_killed_is_missed(train: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(train, tiny_tokenizer, out, seeds=3, jobs=2, epochs=300, learning_rate=3e-4, batch_size=8)
    wait_for(lambda: are_under_way(out))
    os.kill(children(process.pid)[0], signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    assert "the process of seed-0 has ended (exit code -9), most likely because memory ran out" in said
    assert "Traceback" not in said
    assert list((out / "seed-1" / "checkpoints").glob("step-*"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_workers_do_not_outlive_their_parent(train: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(train, tiny_tokenizer, out, seeds=2, jobs=2, epochs=300, learning_rate=3e-4, batch_size=8)
    wait_for(lambda: are_under_way(out))
    workers = children(process.pid)
    process.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    process.communicate()
    assert all(list((out / f"seed-{seed}" / "checkpoints").glob("step-*")) for seed in (0, 1))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_worker_that_outlives_its_parent_keeps_its_folder(train: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The parent is killed and a worker stands still: the folder around is free, and its own is not."""
    out = tmp_path / "run"
    process = start(train, tiny_tokenizer, out, seeds=2, jobs=2, epochs=300, learning_rate=3e-4, batch_size=8)
    wait_for(lambda: are_under_way(out))
    assert (out / LOCK).exists() and all((out / f"seed-{seed}" / LOCK).exists() for seed in (0, 1))
    resumed = settings(train, tiny_tokenizer, out, seeds=2, epochs=300.0, resume=True)
    with pytest.raises(SettingsError, match=rf"another process writes to .*run \(process {process.pid} on "):
        finetune("classification", resumed, OPTIONS, console=QUIET)
    workers = children(process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        process.kill()
        process.wait()
        with pytest.raises(SettingsError, match=r"another process writes to .*seed-0 \(process "):
            finetune("classification", resumed, OPTIONS, console=QUIET)
        assert not (out / LOCK).exists(), "what was held for the other run is free again"
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    process.communicate()  # until the workers have ended, too
    assert not [path for path in out.glob("*/*") if path.name == LOCK]


def test_a_gpu_each_where_there_are_several() -> None:
    cuda, second, cpu = torch.device("cuda"), torch.device("cuda", 1), torch.device("cpu")
    assert [own_device(cuda, place, 3) for place in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert own_device(cuda, 0, 1) is own_device(second, 0, 3) is own_device(cpu, 0, 3) is None


def test_jobs_that_cannot_be(train: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    for changes, message in (({"jobs": 0}, "at least 1"), ({"jobs": 2}, "there is one. Ask for seeds")):
        with pytest.raises(SettingsError, match=message):
            settings(train, tiny_tokenizer, tmp_path, **changes)


def test_what_is_shown(train: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model=size:tiny", f"--tokenizer={tiny_tokenizer}", f"--train={train}", f"--out={tmp_path / 'run'}"]
    words += ["--max-length=24", "--dev-share=0.25", "--epochs=1", "--device=cpu", "--seeds=2", "--jobs=2"]
    assert main(["finetune", "classification", *words]) == 0
    said = capsys.readouterr()
    for seed in (0, 1):
        assert f"Seed {seed}, {seed + 1} of 2." in said.err
        assert f"seed-{seed}        step 2  accuracy" in said.err
    assert "dev, 2 seeds: accuracy" in said.out


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [({"weights": "models/gone"}, BertsmithError, "models/gone"), ({"config": None}, AttributeError, "NoneType")],
)
def test_what_ends_a_run_ends_the_others(
    train: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    expected: type[Exception],
    said: str,
) -> None:
    """With the traceback where it is a fault of ours."""

    def spoilt(works: Any, number: int, screen: Console) -> Iterator[Any]:
        yield from jobs.outcomes(((replace(teaching, **changes), own) for teaching, own in works), number, screen)

    monkeypatch.setattr(verb, "outcomes", spoilt)
    own = settings(train, tiny_tokenizer, tmp_path / "run", seeds=2, jobs=2)
    with pytest.raises(expected, match=said) as caught:
        finetune("classification", own, OPTIONS, console=QUIET)
    notes = "".join(getattr(caught.value, "__notes__", []))
    assert ("In the process of seed-" in notes and "build_model" in notes) == (expected is AttributeError)


def test_a_run_that_diverges_says_so(train: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    own = settings(train, tiny_tokenizer, tmp_path / "run", seeds=2, jobs=2, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(StepError, match="not finite"):
        finetune("classification", own, OPTIONS, console=QUIET)
