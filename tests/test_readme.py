"""What the documents say is so: the tree is the real one, and every command and example runs."""

import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from bertsmith.cli import main
from bertsmith.cli.app import build_app
from bertsmith.settings import read_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Every `bertsmith` command of a shell block as arguments, without pipes and redirections, and without torchrun."""
    for line in text.replace("\\\n", " ").split("\n"):
        for part in re.split(r"\s(?:\||&&|>|<)\s", line.split(" # ")[0]):
            words = shlex.split(part, comments=True)
            if "torchrun" in words[:2] and words[words.index("-m") :][1:2] == ["bertsmith"]:
                words = words[words.index("-m") + 1 :]
            if words and words[0] == "bertsmith":
                yield words[1:]


def all_commands(path: Path) -> list[list[str]]:
    """The `bertsmith` commands of a document, in order."""
    return [command for block in blocks(path, "sh") for command in commands(block)]


def drawn_tree(path: Path) -> set[str]:
    """The files below src/bertsmith/ in a document's drawing, as paths."""
    drawing = next(block for block in blocks(path, "text") if block.startswith("src/bertsmith/"))
    files, folders = set(), {0: ""}
    for line in drawing.split("\n")[1:]:
        if found := re.match(r"((?:  )+)(\S+)", line):
            depth, name = len(found.group(1)) // 2, found.group(2)
            if name.endswith("/"):
                folders[depth] = folders[depth - 1] + name
            else:
                files.add(folders[depth - 1] + name)
    return files


def test_the_drawn_tree_is_the_real_one() -> None:
    package = ROOT / "src" / "bertsmith"
    real = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert drawn_tree(ROOT / "docs" / "code.md") == real


@pytest.fixture
def workplace(tmp_path: Path, tiny_documents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents name, as the current one."""
    documents = tiny_documents.read_text(encoding="utf-8").split("\n\n")
    (tmp_path / "books").mkdir()
    for number, document in enumerate(documents):
        (tmp_path / "books" / f"{number:02}.txt").write_text(document, encoding="utf-8")
    reviews = [f"{i} {'good and new' if i % 2 else 'old and red'},{'yes' if i % 2 else 'no'}" for i in range(40)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *reviews]) + "\n")
    (tmp_path / "more-reviews.csv").write_text("\n".join(["text,label", *reviews[:6]]) + "\n")
    pairs = [f"the king {i} sat,a queen {i} came" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,document", *pairs]) + "\n")
    (tmp_path / "new-reviews.txt").write_text("good\nold\n")
    (tmp_path / "letters.txt").write_text("The king of Fish sat.\nA queen came.\n")
    sentence = "The O\nking O\nof O\n{} B-LOC\nsat O\n. O\n\n"
    (tmp_path / "entities.conll").write_text("".join(sentence.format(f"Fish{i}") for i in range(30)))
    paragraphs = [
        {
            "context": f"The house number {i} was built by the king in {1800 + i}.",
            "qas": [
                {
                    "id": f"q{i}",
                    "question": f"When was house {i} built?",
                    "answers": [
                        {"text": str(1800 + i), "answer_start": len(f"The house number {i} was built by the king in ")}
                    ],
                }
            ],
        }
        for i in range(24)
    ]
    squad = {"version": "1.1", "data": [{"title": "Houses", "paragraphs": paragraphs}]}
    (tmp_path / "questions.json").write_text(json.dumps(squad))
    (tmp_path / "reviews.yaml").write_text(blocks(ROOT / "docs" / "guide.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALLER = {"--vocab-size": "200", "--size": "tiny", "--budget": "3 steps", "--epochs": "1"}


def smaller(command: list[str]) -> list[str]:
    """The command with values that take seconds instead of minutes."""
    return [SMALLER.get(before, word) for before, word in itertools.pairwise(["", *command])]


def parse(command: list[str]) -> None:
    """Read a command line, its settings file and its settings, without doing anything."""
    build_app().parse_args(command, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_can_be_read(document: Path, workplace: Path) -> None:
    for command in all_commands(document):
        parse(command)


@pytest.mark.parametrize("name", ["README", "docs/guide"])
def test_both_languages_show_the_same_commands(name: str) -> None:
    english, chinese = all_commands(ROOT / f"{name}.md"), all_commands(ROOT / f"{name}.zh.md")
    assert len(english) > 10
    assert english == [command for command in chinese if "zh" not in command]


def test_both_guides_have_the_same_sections() -> None:
    english, chinese = (headings(ROOT / "docs" / name) for name in ("guide.md", "guide.zh.md"))
    assert [level for level, _ in english] == [level for level, _ in chinese]
    assert len(english) > 30


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, anchor) of every heading of a Markdown file, anchors as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^(#+) (.*)$", text, re.M)
    return [(len(marks), re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")) for marks, title in found]


def test_links_lead_somewhere() -> None:
    missing = []
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", document.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            page = document.parent / target if target else document
            is_there = page.exists() and (not anchor or anchor in {found for _, found in headings(page)})
            missing += [] if is_there else [f"{document.name}: {link}"]
    assert missing == []


def test_the_templates_for_clusters_can_be_read(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "cluster.md"
    (script,) = blocks(page, "bash")
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    found = list(commands(script))
    documents = [document for block in blocks(page, "yaml") for document in yaml.safe_load_all(block)]
    assert [document["kind"] for document in documents] == ["Service", "Job", "PyTorchJob"]
    pods = [documents[1]["spec"]["template"]]
    pods += [replica["template"] for replica in documents[2]["spec"]["pytorchReplicaSpecs"].values()]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        mounts, volumes = container["volumeMounts"], pod["spec"]["volumes"]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in volumes}
        found += commands(shlex.join(container["command"]))
    assert documents[0]["metadata"]["name"] == documents[1]["metadata"]["name"] == pods[0]["spec"]["subdomain"]
    assert len(found) == 1 + 1 + 2
    for command in found:
        parse(command)
        assert "--resume" in command

    # No cluster is started: what would be given to Ray is looked at.
    class Trainer:
        def __init__(self, learn: Any, train_loop_config: dict[str, Any], **others: Any) -> None:
            self.fit = lambda: learn(train_loop_config)

    given: list[Any] = []
    monkeypatch.setattr("bertsmith.pretrain", given.append)
    for name, members in {"ray": {}, "ray.train": {}, "ray.train.torch": {"TorchTrainer": Trainer}}.items():
        module = ModuleType(name)
        for member in ("FailureConfig", "RunConfig", "ScalingConfig"):
            setattr(module, member, dict)
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    (program,) = blocks(page, "python")
    (workplace / "program.py").write_text(program)
    runpy.run_path(str(workplace / "program.py"), run_name="__main__")
    (settings,) = given
    assert settings.resume and settings.batch_size == 1024


@pytest.mark.slow
def test_the_commands_of_the_readme_run(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    walk = re.search(r"<!-- run -->\n```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert walk
    for command in commands(walk.group(1)):
        code = main(smaller(command))
        output = capfd.readouterr()
        assert code == 0, f"{shlex.join(command)}\n{output.err}"
    assert json.loads(output.out)["answer"] is not None
    assert len((workplace / "entities.jsonl").read_text().split("\n")) == 3
    for run in ("books", "reviews", "entities", "answers"):
        assert {path.name for path in (workplace / "runs" / run).iterdir()} >= {
            "config.yaml",
            "metrics.jsonl",
            "report.html",
            "model",
        }


@pytest.mark.slow
def test_the_python_of_the_readme_runs(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks(ROOT / "README.md", "python")
    for large, small in (("8192", "200"), ('"mini"', '"tiny"'), ('"30m"', '"3 steps"')):
        assert large in program
        program = program.replace(large, small)
    (workplace / "program.py").write_text(program)
    runpy.run_path(str(workplace / "program.py"), run_name="__main__")
    *_, first, second = capfd.readouterr().out.rstrip().split("\n")
    assert {first.split()[0], second.split()[0]} <= {"yes", "no"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_the_settings(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    head = re.sub(r"^# ?", "", recipe.read_text(encoding="utf-8"), flags=re.M)
    shown = list(commands(head))
    for command in shown:
        parse(command)
        assert "evaluate" in command or command[command.index("--config") + 1] == f"recipes/{recipe.name}"
    assert {command[0] for command in shown} >= set(read_config(recipe))
