"""Settings are a closed schema: what does not fit is an error that names the place and the nearest name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.errors import SettingsError
from bertsmith.settings import from_mapping, read_config, save_yaml, to_mapping


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    steps: int | None = None


@dataclass(frozen=True)
class Outer:
    corpus: Path
    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    is_fast: bool = False
    inner: Inner = field(default_factory=Inner)
    sources: tuple[str, ...] = ()
    span: tuple[int, float] = (0, 1.0)
    weights: Mapping[str, float] | None = None
    limit: int | str = 1
    count: Literal[1, 2] = 1
    extra: Any = None


def test_nested_values_are_built_and_converted() -> None:
    made = from_mapping(
        Outer,
        {
            "corpus": "store",
            "inner": {"rate": 1, "steps": 3},
            "sources": ["a", "b"],
            "span": [1, 2],
            "weights": {"ham": 1},
            "limit": "all",
        },
    )
    assert made == Outer(
        Path("store"), inner=Inner(1.0, 3), sources=("a", "b"), span=(1, 2.0), weights={"ham": 1.0}, limit="all"
    )
    assert isinstance(made.inner.rate, float) and isinstance(made.span[1], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corpsu": "x"}, 'r.yaml: unknown key "corpsu". Did you mean "corpus"?'),
        ({}, 'r.yaml: "corpus" is missing'),
        ({"corpus": "x", "inner": {"stepz": 1}}, 'r.yaml, inner: unknown key "stepz". Did you mean "steps"?'),
        ({"corpus": "x", "kind": "wordpeice"}, "kind: 'wordpeice' is not a choice. Did you mean \"wordpiece\"?"),
        ({"corpus": 3}, "corpus: whole number 3 given, a path wanted"),
        ({"corpus": "x", "inner": {"steps": "3"}}, "inner, steps: text '3' given, a whole number wanted"),
        ({"corpus": "x", "inner": {"steps": 1.5}}, "inner, steps: number 1.5 given"),
        ({"corpus": "x", "inner": {"rate": True}}, "inner, rate: true/false True given, a number wanted"),
        ({"corpus": "x", "inner": {"rate": 10**400}}, "inner, rate: the number is too large"),
        ({"corpus": "x", "inner": [1]}, "inner: list [1] given, a mapping wanted"),
        ({"corpus": "x", "is_fast": 1}, "is_fast: whole number 1 given, true or false wanted"),
        ({"corpus": "x", "sources": "a"}, "sources: text 'a' given, a list wanted"),
        ({"corpus": "x", "sources": ["a", 2]}, "sources[1]: whole number 2 given, text wanted"),
        ({"corpus": "x", "span": [1]}, "span: 2 values wanted, 1 given"),
        ({"corpus": "x", "weights": {"ham": "heavy"}}, "weights, ham: text 'heavy' given, a number wanted"),
        ({"corpus": "x", "limit": 1.5}, "limit: number 1.5 given, a whole number or text wanted"),
        ({"corpus": "x", "count": True}, "count: True is not a choice"),
        ({"corpus": "x", "count": 3}, "Choices: 1, 2."),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping(Outer, values, "r.yaml")
    assert message in str(caught.value)


outers = st.builds(
    Outer,
    corpus=st.text("abc/", min_size=1).map(Path),
    kind=st.sampled_from(["wordpiece", "bpe"]),
    is_fast=st.booleans(),
    inner=st.builds(Inner, rate=st.floats(allow_nan=False), steps=st.none() | st.integers()),
    sources=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))).map(tuple),
    weights=st.none()
    | st.dictionaries(st.sampled_from(["no", "1", "true", "1e5", "~", "null", "中文"]), st.floats(0, 1)),
    limit=st.integers() | st.sampled_from(["1e-4", "no", "12:30", "2001-01-01", "0x10", "089", "1_000", "", " "]),
)


@given(outers)
def test_yaml_gives_back_equal_settings(tmp_path_factory: pytest.TempPathFactory, settings: Outer) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    save_yaml(path, settings)
    assert from_mapping(Outer, read_config(path)) == settings


def test_plain_mapping_has_no_python_in_it() -> None:
    assert to_mapping(Outer(Path("a/b"), sources=("x",), weights={"ham": 2.0})) == {
        "corpus": "a/b",
        "kind": "wordpiece",
        "is_fast": False,
        "inner": {"rate": 1e-3, "steps": None},
        "sources": ["x"],
        "span": [0, 1.0],
        "weights": {"ham": 2.0},
        "limit": 1,
        "count": 1,
        "extra": None,
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "rate: 1e-4\nname: no\nflag: true\nday: 2001-01-01\nsteps: 12\nhalf: .5\n"),
        ("c.toml", 'rate = 1e-4\nname = "no"\nflag = true\nday = "2001-01-01"\nsteps = 12\nhalf = 0.5\n'),
        ("c.json", '{"rate": 1e-4, "name": "no", "flag": true, "day": "2001-01-01", "steps": 12, "half": 0.5}'),
    ],
)
def test_the_three_kinds_of_file_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    expected = {"rate": 1e-4, "name": "no", "flag": True, "day": "2001-01-01", "steps": 12, "half": 0.5}
    values = read_config(tmp_path / name)
    assert values == expected
    assert [type(values[key]) for key in expected] == [type(value) for value in expected.values()]


def test_numbers_of_yaml_are_those_that_people_mean(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: 2024_05_01\nb: 1:30\nc: 010\nd: 1_000\ne: 0x1F\nf: -5\n")
    assert read_config(tmp_path / "c.yaml") == {"a": "2024_05_01", "b": "1:30", "c": 10, "d": 1000, "e": 31, "f": -5}


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "c.yaml") == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: 1\nb: 2\na: 3\n", r'c\.yaml:3: the key "a" is there twice'),
        ("c.yaml", "a: [1\nb: 2\n", r"c\.yaml:2: "),
        ("c.yaml", "a: !!python/object/apply:os.system [ls]\n", r"c\.yaml:1: could not determine a constructor"),
        ("c.yaml", "- a\n", "holds keys and values, not a list"),
        ("c.yaml", "1: a\n", "a key is a text, and 1 is a whole number: put it in quotes"),
        ("c.toml", "a = \n", "cannot be read"),
        ("c.json", "{", "cannot be read"),
        ("c.json", "[" * 100_000, "cannot be read: nested too deeply"),
        ("c.yaml", "[" * 5_000, "cannot be read: nested too deeply"),
        ("c.ini", "a=1", r'unknown kind of settings file "\.ini"'),
        ("c.yaml", b"a: \xff\n", "cannot be read"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=message):
        read_config(tmp_path / name)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "novels.yaml").write_text("")
    with pytest.raises(SettingsError, match=r'no such settings file\. Did you mean ".*novels\.yaml"'):
        read_config(tmp_path / "novel.yaml")
