"""Shards made by Daft: the same bytes as by our own processes, whoever is killed, here and on a real Ray cluster."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertsmith.cli import main
from bertsmith.errors import MissingExtraError, SettingsError
from bertsmith.text import corpus_building, daft_engine
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.selection import SelectionSettings
from bertsmith.text.sentences import SentenceALine
from bertsmith.text.shards import ShardText, Workshop
from bertsmith.text.sources import Document, iter_documents
from bertsmith.text.tokenizer import load_tokenizer

pytest.importorskip("daft", reason="the extra scale is not installed")
# Daft does not close the pipes of its workers itself.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WORDS = "the old king sat by a river and saw small cat house tree queen who reads at night in new city".split()
OPTIONS: dict[str, Any] = {"shard_bytes": 14_000, "heldout_share": 0.1}
NEAR = SelectionSettings(deduplicate="near")
posix = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked for in /proc")


@pytest.fixture(autouse=True)
def pipes_are_closed() -> Iterator[None]:
    """Before the next test, which may mind."""
    yield
    gc.collect()


def write(path: Path, num_documents: int) -> Path:
    """Documents of which every eighth is a copy of an earlier one."""
    draws = np.random.default_rng(5)
    documents: list[str] = []
    for number in range(num_documents):
        text = ". ".join(" ".join(draws.choice(WORDS, size=8)) for _ in range(20))
        documents.append(documents[number - 5] if number % 8 == 7 else text)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "all.jsonl", 160)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(source: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store as our own engine makes it, of several shards on both sides."""
    out = tmp_path_factory.mktemp("whole") / "store"
    manifest = build_corpus([str(source)], tiny_tokenizer, out, num_workers=1, selection=NEAR, **OPTIONS)
    assert len(manifest.splits["train"].shards) > 5 and manifest.selection is not None
    assert manifest.selection.removed["exact duplicates"] == 20
    return snapshot(out)


def on_daft(source: Path, tokenizer: Path, out: Path, **options: Any) -> Any:
    return build_corpus([str(source)], tokenizer, out, **{"engine": "daft", "num_workers": 2, **OPTIONS, **options})


def test_the_same_bytes(source: Path, tiny_tokenizer: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    seen: list[int] = []
    on_daft(
        source, tiny_tokenizer, tmp_path / "store", selection=NEAR, progress=lambda done: seen.append(done.num_shards)
    )
    assert snapshot(tmp_path / "store") == whole
    assert seen == list(range(1, len(seen) + 1)) and not list(tmp_path.glob(".store*"))


def test_one_engine_goes_on_where_the_other_stopped(
    source: Path, tiny_tokenizer: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Daft is stopped after two shards, our own engine among the documents, and Daft makes only what is missing."""

    def stop_early(done: corpus_building.BuildProgress) -> None:
        if done.num_shards == 2:
            raise KeyboardInterrupt

    def stopping(*args: Any, **options: Any) -> Iterator[Document]:
        for number, document in enumerate(iter_documents(*args, **options)):
            if number == 100:
                raise KeyboardInterrupt
            yield document

    out, shards = tmp_path / "store", tmp_path / ".store.building" / "train"
    with pytest.raises(KeyboardInterrupt):
        on_daft(source, tiny_tokenizer, out, progress=stop_early)
    assert len(list(shards.glob("*/shard.json"))) >= 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_building, "iter_documents", stopping)
        build_corpus([str(source)], tiny_tokenizer, out, num_workers=1, **OPTIONS)
    before = {path: path.stat().st_mtime_ns for path in shards.glob("*/shard.json")}
    assert len(before) >= 3
    (shards / "00001" / "tokens.npy").write_bytes(b"")
    asked: list[str] = []
    ask = daft_engine._ask
    monkeypatch.setattr(
        daft_engine, "_ask", lambda places, *rest: asked.extend(one.name for one in places) or ask(places, *rest)
    )
    on_daft(source, tiny_tokenizer, out)
    assert "00001" in asked and not {path.parent.name for path in before} - {"00001"} & {*asked}
    build_corpus([str(source)], tiny_tokenizer, tmp_path / "plain", num_workers=1, **OPTIONS)
    assert snapshot(out) == snapshot(tmp_path / "plain")


def test_lines_are_sentences_there_as_well(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """What a worker reads of a document whose sentences are known is what it was."""
    tokenizer = load_tokenizer(tiny_tokenizer)
    text = ShardText("train", "00000", [SentenceALine.of(["One. Two.", "The cat."]), "One. Two."], 30)
    records = []
    for name in ("ours", "daft"):
        workshop = Workshop(tmp_path / name, tokenizer.fingerprint, "en")
        tokenizer.save(workshop.tokenizer_folder)
        if name == "ours":
            records.append(workshop.make(text, tokenizer))
        else:
            place = daft_engine._put_down(text, workshop)
            assert daft_engine._Maker(workshop).make("train", "00000", place.input_sha256, place.text_bytes) == ""
            records.append(place.made())
    assert records[0] == records[1] and records[0].num_sentences == 4


def test_bad_rows_are_named_and_leave_nothing(tiny_tokenizer: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "The cat."}\n{"text": "\xff"}\n')
    command = ["corpus", "build", str(tmp_path / "bad.jsonl"), "--tokenizer", str(tiny_tokenizer), "--engine", "daft"]
    assert main([*command, "--out", str(tmp_path / "store")]) == 2
    assert "bad.jsonl:2" in capsys.readouterr().err
    assert not list(tmp_path.glob("*store*"))


def test_wrong_engines(source: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r'engine.*"dafd".*Did you mean "daft"'):
        on_daft(source, tiny_tokenizer, tmp_path / "store", engine="dafd")
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(MissingExtraError, match=r'engine daft needs daft.*pip install "bertsmith\[scale\]"'):
        on_daft(source, tiny_tokenizer, tmp_path / "store")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ("ray", 'DAFT_RUNNER=ray needs ray. Install it with: pip install "bertsmith[scale]"'),
        ("rey", "engine daft does not start"),
    ],
)
def test_wrong_runners(source: Path, tiny_tokenizer: Path, tmp_path: Path, runner: str, message: str) -> None:
    program = "import sys; sys.modules['ray'] = None; from bertsmith.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "corpus", "build", str(source), "--tokenizer", str(tiny_tokenizer)]
    command += ["--out", str(tmp_path / "store"), "--engine", "daft"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "DAFT_RUNNER": runner}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


# Workers that fail. They have to be other processes, so what they do instead stands in a program of its own.

PROGRAM = r"""
import os, signal, sys
from pathlib import Path
from bertsmith.cli import main
from bertsmith.errors import InputError
from bertsmith.text import daft_engine

class Failing:
    def __init__(self, workshop):
        self.maker, self.how = Maker(workshop), how
        self.once = Path(workshop.folder.parent, "died")
        if self.how in ("InputError", "ZeroDivisionError"):
            Maker.make.__globals__["make_in_worker"] = self.fail

    def fail(self, shard, workshop):
        if self.how == "InputError":
            raise InputError("no good", "books.jsonl:3")
        1 / 0

    def make(self, split: str, name: str, input_sha256: str, text_bytes: int) -> str:
        if name == "00001" and (self.how == "dies" or self.how == "dies once" and not self.once.exists()):
            self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.maker.make(split, name, input_sha256, text_bytes)

if __name__ == "__main__":
    how = sys.argv.pop(1)
    Maker, daft_engine._Maker = daft_engine._Maker, Failing
    daft_engine._PAUSE_SECONDS = 0
    sys.exit(main())
"""


def run_failing(how: str, source: Path, tokenizer: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py"), how, "corpus", "build", str(source)]
    command += ["--tokenizer", str(tokenizer), "--out", str(folder / "store"), "--engine", "daft", "--num-workers", "2"]
    command += ["--shard-bytes", "14000", "--heldout-share", "0.1", "--deduplicate", "near"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@posix
@pytest.mark.slow
def test_a_killed_worker_is_replaced(
    source: Path, tiny_tokenizer: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    done = run_failing("dies once", source, tiny_tokenizer, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert snapshot(tmp_path / "store") == whole


@posix
@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named(
    source: Path, tiny_tokenizer: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    done = run_failing("dies", source, tiny_tokenizer, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "3 times for the shard train/00001" in done.stderr and "--num-workers" in done.stderr
    assert (tmp_path / ".store.building" / "train" / "00000").exists(), "finished shards are kept"
    on_daft(source, tiny_tokenizer, tmp_path / "store", selection=NEAR)
    assert snapshot(tmp_path / "store") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "message"),
    [("InputError", 2, "error: books.jsonl:3: no good\n"), ("ZeroDivisionError", 1, "1 / 0")],
)
def test_what_is_raised_where_a_shard_is_made_is_seen(
    source: Path, tiny_tokenizer: Path, tmp_path: Path, how: str, code: int, message: str
) -> None:
    done = run_failing(how, source, tiny_tokenizer, tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr and ("Traceback" in done.stderr) == (code == 1)
    assert not (tmp_path / "store").exists()


KILLED = r"""
import os, signal, sys
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.selection import SelectionSettings

def die(done):
    if done.num_shards == 2 and sys.argv[4] == "SIGINT":
        os.killpg(os.getpgid(0), signal.SIGINT)  # as a terminal does: the workers get it, too
    elif done.num_shards == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    try:
        build_corpus(
            [sys.argv[1]], sys.argv[2], sys.argv[3], engine="daft", num_workers=2, shard_bytes=14_000,
            heldout_share=0.1, selection=SelectionSettings(deduplicate="near"), progress=die,
        )
    except KeyboardInterrupt:
        sys.exit(130)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_killed_and_started_again(
    source: Path, tiny_tokenizer: Path, tmp_path: Path, whole: dict[str, bytes], name: str, code: int
) -> None:
    """Workers of a build that was killed do not stay, and Ctrl-C ends it by no crash of Daft's."""
    (tmp_path / "program.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "program.py"), str(source), str(tiny_tokenizer), str(tmp_path / "store")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MARK_OF_THIS_TEST": str(tmp_path)}
    done = subprocess.run([*command, name], check=False, env=environment, start_new_session=True)
    assert done.returncode == code
    assert list((tmp_path / ".store.building").glob("train/*/shard.json")) and not (tmp_path / "store").exists()
    patience = time.monotonic() + 60
    while marked(f"MARK_OF_THIS_TEST={tmp_path}"):
        assert time.monotonic() < patience, "a worker is left"
        time.sleep(0.1)
    on_daft(source, tiny_tokenizer, tmp_path / "store", selection=NEAR)
    assert snapshot(tmp_path / "store") == whole
    assert not list(tmp_path.glob(".store*"))


def marked(mark: str) -> list[str]:
    """Processes that have this in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            found += [place.name] if mark.encode() in (place / "environ").read_bytes().split(b"\0") else []
        except OSError:
            continue
    return found


# Ray

CLUSTER = r"""
import sys
import ray
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.selection import SelectionSettings

if __name__ == "__main__":
    source, tokenizer, out, place = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=10**8, _temp_dir=place)
    build_corpus(
        [source], tokenizer, out, engine="daft", num_workers=2, shard_bytes=200_000, heldout_share=0.1,
        selection=SelectionSettings(deduplicate="near"),
    )
"""


def processes(title: bytes, above: int) -> list[int]:
    """Processes below another one whose command line begins so."""
    children: dict[int, list[int]] = {}
    titles: dict[int, bytes] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_bytes().rsplit(b")", 1)[1].split()[1])
            titles[int(place.name)] = (place / "cmdline").read_bytes()
        except OSError:
            continue
        children.setdefault(parent, []).append(int(place.name))
    found, below = [], [above]
    while below:
        below += children.get(pid := below.pop(), [])
        found += [pid] if titles.get(pid, b"").startswith(title) else []
    return found


def kill_one_at_work(child: subprocess.Popen[bytes], building: Path, killed: list[int]) -> None:
    """Kill a worker that is at a shard, once another shard is finished. It is held still to look at it first."""
    while child.poll() is None and not killed:
        time.sleep(0.01)
        if not list(building.glob("train/*/shard.json")):
            continue
        for pid in processes(b"ray::UDFActor.eval_input", child.pid):
            os.kill(pid, signal.SIGSTOP)
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::UDFActor.eval_input"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
            os.kill(pid, signal.SIGCONT)


@posix
@pytest.mark.slow
def test_a_worker_of_a_ray_cluster_is_killed_at_work(tiny_tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra scale is not installed")
    source = write(tmp_path / "all.jsonl", 1600)
    build_corpus(
        [str(source)],
        tiny_tokenizer,
        tmp_path / "whole",
        num_workers=1,
        selection=NEAR,
        heldout_share=0.1,
        shard_bytes=200_000,
    )
    (tmp_path / "program.py").write_text(CLUSTER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DAFT_RUNNER": "ray",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    killed: list[int] = []
    # Ray's sockets are in a folder whose path must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place,
        (tmp_path / "output").open("w+") as output,
    ):
        command = [sys.executable, str(tmp_path / "program.py"), str(source), str(tiny_tokenizer)]
        child = subprocess.Popen(
            [*command, str(tmp_path / "store"), place], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            kill_one_at_work(child, tmp_path / ".store.building", killed)
            code = child.wait()
        finally:
            child.terminate()
            child.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, said[-3000:]
    assert len(killed) == 1, "it was over before a worker could be killed: more text is needed"
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
    assert not list(tmp_path.glob(".store*"))
