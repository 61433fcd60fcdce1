"""Installed documentation: what counts as such, in which order, and that nothing is executed."""

import argparse
import importlib
import inspect
import itertools
import pydoc_data.topics
import statistics
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bertsmith.text import python_docs
from bertsmith.text.python_docs import PythonDoc, iter_docstrings

MakeFiles = Callable[[dict[str, str | bytes]], Path]

LONG = "A sentence that makes the module long enough to be a document of its own. " * 4


def docs(folder: Path, library_bytes: int = 1_000_000) -> list[PythonDoc]:
    return list(iter_docstrings(stdlib=folder / "lib", site_packages=[folder / "site"], library_bytes=library_bytes))


def module(*names: str) -> str:
    return f'"""{LONG}{" ".join(names)}"""\n'


MODULE = f'''
# -*- coding: utf-8 -*-
"""The module.

{LONG}
"""
raise SystemExit("nothing here is ever run")

class Public(Base):
    r"""A class \\alpha.

        Indented more
    than this.
    """

    def method(self):
        """A method."""
        def inner():
            """Not public: within a function."""

    def _hidden(self):
        """Not public."""

    class Inner:
        @property
        def value(self):
            """A property.

            With an empty last line.

            """

class _Private:
    def method(self):
        """Not public: its class is not."""

async def coroutine():
    "Plain quotes \\ud800 do too."

def again():
    """A method."""

def none():
    x = """no docstring"""

def joined():
    f"""not {{LONG}} a docstring"""
'''


def test_docstrings_of_a_module(make_files: MakeFiles) -> None:
    folder = make_files({"site/pack/sub/mod.py": MODULE})
    found = docs(folder)
    assert {(doc.library, doc.module) for doc in found} == {("pack", "pack.sub.mod")}
    assert [(doc.name, doc.docstring) for doc in found] == [
        ("", f"The module.\n\n{LONG.strip()}"),
        ("Public", "A class \\alpha.\n\n    Indented more\nthan this."),
        ("Public.method", "A method."),
        ("Public.Inner.value", "A property.\n\nWith an empty last line."),
        ("coroutine", "Plain quotes \ufffd do too."),
    ]


def test_what_is_left_out(make_files: MakeFiles) -> None:
    left_out = [
        *("pip/a.py", "setuptools/a.py", "bertsmith/a.py", "pack/tests/a.py", "pack/test_a.py", "pack/a_test.py"),
        *(
            "pack/conftest.py",
            "pack/_vendor/b.py",
            "pack/some-folder/a.py",
            "pack/some-file.py",
            "pack-1.0.dist-info/a.py",
        ),
        *("pack/data.txt", "pack/.hidden/a.py", "tests/a.py"),
    ]
    files = {f"site/{name}": module(name) for name in left_out}
    files |= {f"lib/{name}": module(name) for name in ["test/a.py", "site-packages/x/a.py", "idlelib/a.py"]}
    files |= {f"site/{name}": module(name) for name in ["pack/__init__.py", "pack/_private.py", "single.py"]}
    files |= {"lib/json/decoder.py": module("j"), "lib/os.py": module("o")}
    files |= {"site/pack/short.py": '"""Too short."""\n', "site/pack/code.py": module("c") + "x = 1\n" * 1000}
    files |= {"site/pack/syntax.py": module("s") + "print 'python 2'\n", "site/pack/null.py": module("n") + "\0"}
    folder = make_files(dict(files) | {"site/pack/latin.py": (module("l") + "x = '\xe9'").encode("latin-1")})
    found = docs(folder)
    assert [(doc.library, doc.module) for doc in found if doc.library == "python"] in (
        [("python", "json.decoder"), ("python", "os")],
        [("python", "os"), ("python", "json.decoder")],
    )
    assert {doc.module for doc in found if doc.library == "pack"} == {"pack", "pack._private"}
    assert [doc.library for doc in found] == ["python", "python", "pack", "pack", "single"]


def test_the_same_docstring_once(make_files: MakeFiles) -> None:
    shared = f'def f():\n    """{LONG}"""\n'
    short = 'def g():\n    """Only here, and in a module that is too short."""\n'
    folder = make_files(
        {
            "lib/a.py": shared,
            "site/b.py": shared,
            "site/c.py": module("c") + shared,
            "site/d.py": short,
            "site/e.py": module("e") + short,
        }
    )
    assert [(doc.module, doc.name) for doc in docs(folder)] == [("a", "f"), ("c", ""), ("e", ""), ("e", "g")]


def test_a_library_is_left_when_there_is_enough(make_files: MakeFiles) -> None:
    folder = make_files(
        {f"site/{name}/m{i}.py": module(name, str(i)) for name in ("large", "other") for i in range(10, 60)}
    )
    size = len(docs(folder)[0].docstring)
    modules = [doc.module for doc in docs(folder, library_bytes=5 * size)]
    assert Counter(name.split(".")[0] for name in modules) == {"large": 5, "other": 5}
    assert modules[:5] == [doc.module for doc in docs(folder)][:5]
    assert modules[:5] != sorted(modules[:5]), "a sample, not the start of the alphabet"


def test_topics_are_read_not_imported(make_files: MakeFiles) -> None:
    source = "raise SystemExit\ntopics = {'b': 'The second\\n\\nSee a.\\n', 'a': '''First\\n*****\\n'''}\n"
    folder = make_files({"lib/pydoc_data/topics.py": source, "lib/pydoc_data/module_docs.py": module("m")})
    assert docs(folder) == [
        PythonDoc("python", "pydoc_data.topics.a", "a", "First\n*****"),
        PythonDoc("python", "pydoc_data.topics.b", "b", "The second\n\nSee a."),
    ]


def test_nothing_installed(tmp_path: Path) -> None:
    assert docs(tmp_path) == []


def test_topics_of_this_python() -> None:
    found = list(itertools.takewhile(lambda doc: doc.module.startswith("pydoc_data.topics."), iter_docstrings()))
    topics = {name: text.strip() for name, text in pydoc_data.topics.topics.items()}
    assert {doc.docstring for doc in found} == set(topics.values())
    assert all(topics[doc.name] == doc.docstring for doc in found)
    assert len(found) > 70


def test_docstrings_are_those_of_the_imported_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the standard library that are written in Python alone, against what `import` makes of them."""
    monkeypatch.setattr(python_docs, "_QUOTED_SHARE", 0.0)
    (tmp_path / "site").mkdir()
    for module in (argparse, statistics, tarfile, zipfile):
        (tmp_path / "site" / f"{module.__name__}.py").symlink_to(str(module.__file__))
    found = docs(tmp_path)
    assert {doc.module for doc in found} == {"argparse", "statistics", "tarfile", "zipfile"}
    for doc in found:
        value = importlib.import_module(doc.module)
        for name in filter(None, doc.name.split(".")):
            value = inspect.getattr_static(value, name)
        value = getattr(value, "__func__", value)
        assert inspect.cleandoc(value.__doc__ or "").strip() == doc.docstring, (doc.module, doc.name)


def test_this_installation_is_a_corpus() -> None:
    """Enough text from the smaller libraries alone; the whole is 10 to 20 MB."""
    found = list(iter_docstrings(library_bytes=10_000))
    assert sum(len(doc.docstring) for doc in found) > 900_000
    assert {"python", "numpy", "torch", "sklearn", "pandas"} <= {doc.library for doc in found}
    assert len({doc.docstring for doc in found}) == len(found)
    assert len(list(itertools.groupby(doc.module for doc in found))) == len({doc.module for doc in found})
    assert found[:500] == list(itertools.islice(iter_docstrings(library_bytes=10_000), 500))
