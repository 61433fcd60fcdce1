"""The whole demo on a small piece of documentation, and its claims checked against what it left behind."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from bertsmith.demo import DemoResult, DemoSettings, run, run_demo
from bertsmith.demo.data import DataSettings
from bertsmith.errors import SettingsError, StorageError
from bertsmith.tasks.evaluate import evaluate
from bertsmith.text.python_docs import PythonDoc

_SETTINGS = DemoSettings(
    data=DataSettings(libraries=("networkx", "pandas", "sklearn"), train_examples=60, test_examples=30),
    vocab_size=1500,
    heldout_share=0.1,
    size="tiny",
    evaluation_samples=40,
    classification_epochs=1.0,
    tagging_epochs=1.0,
    answering_epochs=1.0,
)
_TASKS = ("classification", "tagging", "answering")


@pytest.fixture(scope="module")
def finished(some_docs: list[PythonDoc], tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    screen = Console(file=io.StringIO(), width=160)
    out = tmp_path_factory.mktemp("demo")
    result = run_demo(out, budget="20 steps", seed=1, settings=_SETTINGS, docs=some_docs, console=screen)
    assert isinstance(screen.file, io.StringIO)
    return result, screen.file.getvalue()


def test_scores_are_those_of_the_models_it_left(finished: tuple[DemoResult, str]) -> None:
    result, _ = finished
    assert [one.task for one in result.comparisons] == list(_TASKS)
    for one in result.comparisons:
        test_file = str(result.folder / "data" / f"{one.task}-test.jsonl")
        again = evaluate(result.folder / one.task, test_file)
        from_random = evaluate(result.folder / "random" / one.task, test_file)
        assert again[one.metric] == pytest.approx(one.pretrained, abs=0.02)
        assert from_random[one.metric] == pytest.approx(one.random, abs=0.02)
        assert next(iter(again)) == one.metric
        assert (one.num_train, one.num_test) == (60, 30)
    assert result.pretraining["mlm_loss"] > 0


def test_both_models_saw_the_same(finished: tuple[DemoResult, str]) -> None:
    """Configurations of the two runs differ in where they start and where they are written, only."""
    result, _ = finished
    for task in _TASKS:
        ours, theirs = (
            dict(re.findall(r"^(\w+): (.*)$", (folder / "config.yaml").read_text(encoding="utf-8"), re.M))
            for folder in (result.folder / task, result.folder / "random" / task)
        )
        assert {key for key in ours | theirs if ours.get(key) != theirs.get(key)} == {"model", "out"}


def test_report_and_screen_say_the_same(finished: tuple[DemoResult, str]) -> None:
    result, screen = finished
    page = result.report.read_text(encoding="utf-8")
    for one in result.comparisons:
        assert f"{one.pretrained:.1%}" in screen and f"{one.gain_points:+.1f} points" in screen
        assert f"{one.task}: {one.metric}" in page
    for title in ("Masks filled", "Libraries told", "Names found", "Questions answered"):
        assert title in screen and title in page
    assert screen.count("[MASK]") >= 3
    assert "Training loss" in page and "Held-out" in page
    for name in ("pretrained", *_TASKS, *(f"random/{task}" for task in _TASKS)):
        assert f"{name}/report.html" in page and (result.folder / name / "report.html").is_file()


def test_what_to_type_next_names_what_exists(finished: tuple[DemoResult, str]) -> None:
    result, screen = finished
    commands = re.findall(r"bertsmith \w+ .*", screen)
    assert len(commands) == 5
    named = {Path(word) for command in commands for word in command.split() if word.startswith(str(result.folder))}
    assert len(named) == 3 and all(path.is_dir() for path in named)


def test_a_folder_that_is_not_a_demo_is_left_alone(some_docs: list[PythonDoc], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years", encoding="utf-8")
    with pytest.raises(SettingsError, match="not a demo"):
        run_demo(tmp_path, budget="1 steps", settings=_SETTINGS, docs=some_docs)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "ten years"


def test_a_demo_is_replaced_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shell is: that folder cannot be removed."""
    (tmp_path / "tagging").mkdir()
    (tmp_path / run._MARKER).write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run._claim(Path("."))
    assert [path.name for path in tmp_path.iterdir()] == [run._MARKER]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        run._claim(tmp_path / "file" / "demo")


def test_a_budget_that_cannot_be_read_stops_it_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="soon"):
        run_demo(tmp_path / "new", budget="soon", docs=[])
    assert not (tmp_path / "new").exists()
