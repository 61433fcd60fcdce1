"""Tables: the line before the header in which Excel names the delimiter, and tabs that are called so."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bertsmith.errors import InputError, SettingsError
from bertsmith.text.sources import iter_rows

MakeFiles = Callable[[dict[str, str | bytes]], Path]


def rows(path: Path, **how: Any) -> list[tuple[str, Sequence[str]]]:
    return [(where.rpartition("/")[2], tuple(row.values())) for where, row in iter_rows(str(path), **how)]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("mark", [";", ",", "|", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_first_line_that_names_the_delimiter_is_believed_and_no_row(
    make_files: MakeFiles, suffix: str, mark: str, begin: str, ending: str
) -> None:
    lines = [f"sep={mark}", f"text{mark}label", f"good, bad{mark}1" if mark != "," else "good,1", ""]
    path = make_files({f"a{suffix}": (begin + ending.join(lines)).encode()}) / f"a{suffix}"
    wanted = "good" if mark == "," else "good, bad"
    assert rows(path) == [(f"a{suffix}:3", (wanted, "1"))]
    assert rows(path, columns=["x", "y"]) == [(f"a{suffix}:2", ("text", "label")), (f"a{suffix}:3", (wanted, "1"))]


def test_a_delimiter_that_is_given_goes_before_one_in_the_file(make_files: MakeFiles) -> None:
    folder = make_files(
        {
            "a.csv": "sep=;\ntext|label\na;b|1\n",
            "b.csv": '"sep=;"\ntext;label\n"a;\nb";1\n',
            "c.csv": "text,label\nsep=;,1\n",
            "d.csv": "sep=;\ntext;label\n1;2;3\n",
        }
    )
    assert rows(folder / "a.csv", delimiter="|") == [("a.csv:3", ("a;b", "1"))]
    assert rows(folder / "b.csv") == [("b.csv:3", ("a;\nb", "1"))]
    assert rows(folder / "c.csv") == [("c.csv:2", ("sep=;", "1"))]  # only the first line is one
    with pytest.raises(InputError, match=r"d\.csv:3: 3 fields here, but 2 columns: text, label"):
        rows(folder / "d.csv")


@pytest.mark.parametrize("name", ["tab", "TAB", "\\t", "\t"])
def test_a_tab_may_be_called_one(make_files: MakeFiles, name: str) -> None:
    path = make_files({"a.csv": "text\tlabel\na, b\t1\n"}) / "a.csv"
    assert rows(path, delimiter=name) == [("a.csv:2", ("a, b", "1"))]


@pytest.mark.parametrize("name", ["", "||", "tabs", "\\n"])
def test_other_delimiters_are_one_character(make_files: MakeFiles, name: str) -> None:
    path = make_files({"a.csv": "text,label\na,1\n"}) / "a.csv"
    with pytest.raises(SettingsError, match="one character wanted, or tab"):
        rows(path, delimiter=name)


def test_a_header_line_is_no_row_of_named_columns(make_files: MakeFiles) -> None:
    """Of data to answer as of labelled ones: a model that was trained with names for the columns keeps them."""
    folder = make_files({"a.csv": "Text , label\ngood,1\n", "b.csv": "text\ntext\n", "c.csv": "good,1\ntext,label\n"})
    for columns in (["text", "label"], ["label", "text"]):
        with pytest.raises(InputError, match=r"a\.csv:1: the first row equals .*--set columns=null"):
            rows(folder / "a.csv", columns=columns)
    assert len(rows(folder / "b.csv", columns=["text"])) == 2  # a single word may be one
    assert len(rows(folder / "c.csv", columns=["text", "label"])) == 2
    with pytest.raises(InputError, match=r"a\.csv:1: 2 fields here, but 3 columns: .*--set columns=null"):
        rows(folder / "a.csv", columns=["id", "text", "label"])
