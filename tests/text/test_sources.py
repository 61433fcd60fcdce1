"""Sources: what each format gives, in which order, and what is said when it cannot be read."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertsmith.errors import InputError, SettingsError
from bertsmith.text import sources
from bertsmith.text.python_docs import PythonDoc
from bertsmith.text.sentences import split_sentences
from bertsmith.text.sources import Document, expand_sources, iter_documents, iter_rows

MakeFiles = Callable[[dict[str, str | bytes]], Path]

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
ODD = "first\u2028still first\x85 \u0151\x0c\x1c 你好 \U0001f600"


def parquet(rows: list[dict[str, Any]], noted: str | None = None) -> bytes:
    """With what Hugging Face's `datasets` notes of the columns, if given."""
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.Table.from_pylist(rows)
    if noted is not None:
        table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, sink, row_group_size=2)
    return bytes(sink.getvalue())


def texts(*names: str | Path, **options: Any) -> list[str]:
    return [document.text for document in iter_documents([str(name) for name in names], **options)]


def rows(source: str | Path, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in iter_rows(str(source), **options)]


# Documents


@pytest.mark.parametrize("compression", PACK)
def test_every_format_gives_the_same_documents(make_files: MakeFiles, compression: str) -> None:
    wanted = [ODD, 'She said "no",\nand\tleft.\n\nThen he did.', "last"]
    table = pandas.DataFrame({"id": [1, 2, 3], "text": wanted})
    pack = PACK[compression]
    folder = make_files(
        {
            f"a.jsonl{compression}": pack("".join(json.dumps({"text": text}) + "\n\n" for text in wanted).encode()),
            f"a.ndjson{compression}": pack(table.to_json(orient="records", lines=True, force_ascii=False).encode()),
            f"a.csv{compression}": pack(table.to_csv(index=False).encode()),
            f"a.parquet{compression}": pack(parquet(table.to_dict("records"))),
        }
    )
    for path in sorted(folder.iterdir()):
        assert texts(path) == wanted, path
    assert texts(folder) == wanted * 4


def test_text_files_are_documents(make_files: MakeFiles) -> None:
    folder = make_files({"a.txt": "One.\n\nTwo.\n", "b.md": "# Head\n\nText", "c.txt": " \n\n\u3000", "d.txt": ""})
    assert list(iter_documents([str(folder)])) == [
        Document("One.\n\nTwo.\n", str(folder / "a.txt")),
        Document("# Head\n\nText", str(folder / "b.md")),
    ]


def test_blank_lines_between_documents(make_files: MakeFiles) -> None:
    """The example of google-research/bert's README, and its sample_text.txt, in small."""
    path = (
        make_files({"a.txt": "\n\nFirst one\nsecond one.\n \t\nThe only\r\n\r\n\r\n  Last document.\n  Ends"}) / "a.txt"
    )
    documents = list(iter_documents([str(path)], document_separator="blank-lines"))
    assert [document.source.rsplit(":")[-1] for document in documents] == ["3", "6", "9"]
    sentences = [[sentence.strip() for sentence in split_sentences(document.text)] for document in documents]
    assert sentences == [["First one", "second one."], ["The only"], ["Last document.", "Ends"]]


def test_lines_are_sentences_whatever_is_in_them(make_files: MakeFiles) -> None:
    long = "word " * 4000
    lines = ['He said: "Go! Now." She left at 5 p.m. Friday.', "Why? Why not. 好。再见", "no end", long.strip()]
    path = make_files({"a.txt": "\n".join(lines) + "\n\nOne. Two.\n"}) / "a.txt"
    document, other = iter_documents([str(path)], document_separator="blank-lines")
    parts = [part.strip() for part in split_sentences(document.text)]
    assert parts[:3] == lines[:3] and " ".join(parts[3:]) == lines[3]
    assert max(map(len, parts)) <= 8192 and "".join(split_sentences(document.text)) == document.text
    assert split_sentences(other.text) == ["One. Two."]
    assert len(split_sentences(next(iter_documents([str(path)])).text)) > 8


def test_rows_are_documents(make_files: MakeFiles) -> None:
    path = (
        make_files({"a.jsonl": '{"body": "one"}\n{"body": null}\n \n{"body": " "}\n{"body": "a\\ud83d"}\n'}) / "a.jsonl"
    )
    assert list(iter_documents([str(path)], text_column="body")) == [
        Document("one", f"{path}:1"),
        Document("a\ufffd", f"{path}:5"),
    ]


def test_one_parquet_column_is_read(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_files({"a.parquet": parquet([{"text": str(i), "big": "x"} for i in range(5)])}) / "a.parquet"
    read: list[Any] = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def spy(self: Any, **options: Any) -> Any:
        read.append(options["columns"])
        return original(self, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", spy)
    assert list(iter_documents([str(path)]))[-1] == Document("4", f"{path}:5")
    assert read == [["text"]]


def test_parquet_that_cannot_be_rows_is_refused(make_files: MakeFiles) -> None:
    far = pyarrow.table({"text": ["a"], "day": pyarrow.array([10**7], pyarrow.date32())})
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    for table, message in ((far, "cannot be read as Parquet: .*out of range"), (twice, 'column "text" is there twice')):
        path = make_files({"a.parquet": b""}) / "a.parquet"
        pyarrow.parquet.write_table(table, path)
        with pytest.raises(InputError, match=rf"a\.parquet: .*{message}"):
            list(iter_rows(str(path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_unknown_column(make_files: MakeFiles, name: str) -> None:
    content: dict[str, str | bytes] = {
        "a.jsonl": '{"texts": "a", "id": "1"}\n',
        "a.csv": "texts,id\na,1\n",
        "a.tsv": "texts\tid\na\t1\n",
        "a.parquet": parquet([{"texts": "a", "id": "1"}]),
    }
    path = make_files({name: content[name]}) / name
    with pytest.raises(
        InputError, match=r'no (column|field) "text". Did you mean "texts"[?] Choices: id, texts'
    ) as caught:
        texts(path)
    assert str(caught.value).startswith(str(path))


def test_text_that_is_none(make_files: MakeFiles) -> None:
    path = make_files({"a.jsonl": '{"text": "a"}\n{"text": 7}\n'}) / "a.jsonl"
    with pytest.raises(InputError, match=r"a\.jsonl:2, text: text wanted, int found"):
        texts(path)


def test_unknown_separator(make_files: MakeFiles) -> None:
    with pytest.raises(SettingsError, match=r'Did you mean "blank-lines"[?]'):
        texts(make_files({"a.txt": "a"}), document_separator="blank-line")


def test_a_corpus_is_no_document(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_files({"parted/a.txt": "one\n\n" * 30, "not/a.txt": "one\n\n" * 2 + "two\n" * 30})
    monkeypatch.setattr(sources, "_DOCUMENT_LIMIT", 100)
    with pytest.raises(InputError, match="set document_separator"):
        texts(folder / "parted")
    assert len(texts(folder / "parted", document_separator="blank-lines")) == 30
    with pytest.raises(
        InputError, match=r"a\.txt:5: one document of more than 100 .* Part its documents by blank lines"
    ):
        texts(folder / "not", document_separator="blank-lines")


def test_documents_are_streamed(make_files: MakeFiles) -> None:
    """The first documents come although a later line, and a later file, cannot be read."""
    folder = make_files({"a.jsonl": '{"text": "one"}\n{"text": "two"}\nbroken\n', "b.txt": b"\xff"})
    documents = iter_documents([str(folder)])
    assert [document.text for document in itertools.islice(documents, 2)] == ["one", "two"]
    with pytest.raises(InputError, match=r"a\.jsonl:3"):
        next(documents)


def test_python_docs_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = [
        PythonDoc("a", "a.b", "", "Module."),
        PythonDoc("a", "a.b", "f", "Function."),
        PythonDoc("c", "c", "", "C."),
    ]
    monkeypatch.setattr(sources, "iter_docstrings", lambda: iter(docs))
    assert list(iter_documents(["python-docs"])) == [
        Document("Module.\n\nFunction.", "python-docs:a.b"),
        Document("C.", "python-docs:c"),
    ]


# Rows


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=8)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL.map(lambda cell: f"x{cell}"), CELL)))
def test_csv_as_its_writer_meant_it(tmp_path: Path, cells: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *cells])
    assert [(row["text"], row["label"]) for row in rows(path)] == cells


def test_csv_line_numbers(make_files: MakeFiles) -> None:
    path = make_files({"a.csv": 'text,label\r\n"two\r\nlines",1\r\n\r\n"a ""quote""",2\r\n'}) / "a.csv"
    assert list(iter_rows(str(path))) == [
        (f"{path}:2", {"text": "two\nlines", "label": "1"}),
        (f"{path}:5", {"text": 'a "quote"', "label": "2"}),
    ]


def test_tsv_has_no_quotes(make_files: MakeFiles) -> None:
    path = make_files({"a.tsv": 'text\tlabel\n"never closed\t1\na "b" c"\t\n'}) / "a.tsv"
    assert rows(path) == [{"text": '"never closed', "label": "1"}, {"text": 'a "b" c"', "label": ""}]
    with pytest.raises(InputError, match=r"a\.tsv:2: the record that begins here cannot be read: .*A quote"):
        rows(path, quoting=True)


def test_quoting_and_delimiter_can_be_chosen(make_files: MakeFiles) -> None:
    folder = make_files({"a.tsv": 't\tl\n"a\tb"\t1\n', "b.csv": 't;l\n"a;1\n', "c.tsv": "t|l\na|1\n"})
    assert rows(folder / "a.tsv", quoting=True) == [{"t": "a\tb", "l": "1"}]
    assert rows(folder / "b.csv", delimiter=";", quoting=False) == [{"t": '"a', "l": "1"}]
    assert rows(folder / "c.tsv", delimiter="|") == [{"t": "a", "l": "1"}]
    with pytest.raises(SettingsError, match="one character"):
        rows(folder / "c.tsv", delimiter="||")


def test_table_without_header(make_files: MakeFiles) -> None:
    path = make_files({"a.tsv": "gj04\t1\t\tA sentence.\n"}) / "a.tsv"
    wanted = {"source": "gj04", "label": "1", "star": "", "sentence": "A sentence."}
    assert list(iter_rows(str(path), columns=list(wanted))) == [(f"{path}:1", wanted)]
    with pytest.raises(InputError, match=r"a\.tsv:1: 4 fields here, but 2 columns: label, text\. Quotes have no"):
        rows(path, columns=["label", "text"])
    with pytest.raises(SettingsError, match='columns: "text" is there twice'):
        rows(path, columns=["label", "text", "star", "text"])


def test_a_field_larger_than_pythons_limit(make_files: MakeFiles) -> None:
    long = "word " * 40_000
    folder = make_files({"a.csv": f'text\n"{long}"\n'})
    assert texts(folder) == [long]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3: 3 fields here, but 2 columns: a, b."),
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 fields here"),
        (
            "a.csv",
            'a,b\n1,2\n"3,4\n5,6\n',
            "a.csv:3: the quote that opens in this line is never closed: all that follows",
        ),
        ("a.csv", 'a,b\n"1\n2","3\n4,5\n', "a.csv:3: the quote that opens in this line is never closed"),
        ("a.csv", 'a,b\n"3,4\n"5",6\n7,8\n', "a.csv:2: the record that begins here cannot be read: ',' expected"),
        ("a.csv", 'a,b\n"3,4\n"5",6\n7,8\n', " in line 3: a quote may be missing before it."),
        ("a.csv", 'a,b\n"1"2,3\n', "a.csv:2: the record that begins here"),
        ("a.csv", "a,b\r1,2\r", "a.csv:1: there is a carriage return (\\r) outside of quotes"),
        ("a.csv", "a,b\r1,2\r", "convert it: tr '\\r' '\\n' < a.csv > new-a.csv"),
        ("a.tsv", "a\tb\r1\t2\r", "a.tsv:1: there is a carriage return"),
        ("a.csv", "text;label\ngood, bad;1\n", 'columns: text;label. If ";" parts them, say --delimiter ";" (eval'),
        ("a.tsv", "text|label\na\tb\n", 'columns: text|label. If "|" parts them, say --delimiter "|" (eval'),
        ("a.csv", "text\tlabel\na,b\tc\n", "say --delimiter $'\\t' (evaluate and predict: --set delimiter=$'\\t')."),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv:1: the header names a more than once."),
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', "a.jsonl:2: not JSON: Expecting ',' delimiter at column 8"),
        ("a.jsonl", '[\n{"a": 1}\n]', "a.jsonl:1: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: an object in braces wanted on each line, list found"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "a.jsonl:1: the JSON is nested too deeply"),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "a.jsonl:1: not JSON: Exceeds the limit"),
        ("a.parquet", "PAR1 no", "a.parquet: cannot be read as Parquet"),
        (
            "a.xlsx",
            "PK",
            "a.xlsx: spreadsheets are not read. Save it as CSV, in UTF-8, and give that file. Choices: .csv, .jsonl",
        ),
        ("a.json", "[]", "jq -c '.[]' a.json > a.jsonl"),
        ("a.json", "[]", "Choices: .csv, .jsonl, .ndjson, .parquet, .tsv. Each"),
        ("a.txt", "text", "a.txt: there are no columns in plain text. Choices: .csv, .jsonl"),
    ],
)
def test_broken_rows(make_files: MakeFiles, name: str, content: str, message: str) -> None:
    folder = make_files({name: content})
    with pytest.raises(InputError) as caught:
        rows(folder / name)
    assert message in str(caught.value)


def test_a_field_that_one_row_lacks_is_no_missing_column(make_files: MakeFiles) -> None:
    folder = make_files({"a.jsonl.gz": gzip.compress(b'{"text": "a"}\n{"txt": "b"}\n'), "a.csv": "txt\na\n"})
    with pytest.raises(InputError, match=r'a\.jsonl\.gz:2: this row has no field "text"\. Did you mean "txt"'):
        texts(folder / "a.jsonl.gz")
    with pytest.raises(InputError, match=r'a\.csv:2: there is no column "text"\. Did you mean "txt"'):
        texts(folder / "a.csv")


def test_documents_of_tables_with_other_delimiters_and_quotes(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "text;n\ngood, bad;1\n", "b.tsv": '"text"\t"n"\n"a\tb"\t"1"\n', "c.txt": "plain"})
    assert texts(folder / "a.csv", folder / "c.txt", delimiter=";") == ["good, bad", "plain"]
    assert texts(folder / "b.tsv", quoting=True) == ["a\tb"]
    with pytest.raises(InputError, match='say --delimiter ";"'):
        texts(folder / "a.csv")
    with pytest.raises(SettingsError, match="one character wanted"):
        texts(folder / "c.txt", delimiter=";;")


def test_names_in_quotes_that_mean_nothing_are_explained(make_files: MakeFiles) -> None:
    folder = make_files({"a.tsv": '"text"\t"label"\n"a"\t"b"\n'})
    with pytest.raises(InputError, match=r"If quotes stand around fields, say --quoting"):
        texts(folder / "a.tsv")


def test_what_a_quote_has_swallowed_is_said(make_files: MakeFiles) -> None:
    path = make_files({"a.csv": 'a,b\n1,2\n"3,4\n' + "5,6\n" * 40}) / "a.csv"
    bad: list[InputError] = []
    assert len(list(iter_rows(path, bad=bad))) == 1
    (error,) = bad
    assert error.where == f"{path}:3" and "up to line 43, is read as one field" in str(error)


def test_rows_keep_their_types(make_files: MakeFiles) -> None:
    wanted = [
        {"words": ["a", "b"], "n": 1, "share": 0.5, "none": None},
        {"words": [], "n": -2, "share": 1.0, "none": "x"},
    ]
    folder = make_files({"a.jsonl": "".join(json.dumps(row) + "\n" for row in wanted), "b.parquet": parquet(wanted)})
    assert rows(folder / "a.jsonl") == wanted
    assert list(iter_rows(str(folder / "b.parquet"))) == list(
        zip([f"{folder}/b.parquet:1", f"{folder}/b.parquet:2"], wanted, strict=True)
    )
    assert rows(folder) == wanted * 2


def test_lone_surrogates_become_replacement_characters(make_files: MakeFiles) -> None:
    path = make_files({"a.jsonl": '{"\\ud800": ["\\uDC00 \\ud83d\\ude00", {"b": "\\ud800"}], "n": 1}\n'}) / "a.jsonl"
    assert rows(path) == [{"\ufffd": ["\ufffd \U0001f600", {"b": "\ufffd"}], "n": 1}]


# The Hub


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("hub:imdb", "imdb", None, "train"),
        ("hub:imdb:test", "imdb", None, "test"),
        ("hub:org/name", "org/name", None, "train"),
        ("hub:org/name/config", "org/name", "config", "train"),
        (
            "hub:Salesforce/wikitext/wikitext-2-raw-v1:validation",
            "Salesforce/wikitext",
            "wikitext-2-raw-v1",
            "validation",
        ),
        ("hub:./own/folder:test", "HERE/own/folder", None, "test"),
        ("hub:HERE/own/folder", "HERE/own/folder", None, "train"),
        ("hub:~/own/folder", "HERE/own/folder", None, "train"),
    ],
)
def test_hub_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str, config: str | None, split: str
) -> None:
    (tmp_path / "own" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    source, name = source.replace("HERE", str(tmp_path)), name.replace("HERE", str(tmp_path))
    calls: list[Any] = []
    tags = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
        }
    )

    def load(path: str, config: str | None, *, split: str, streaming: bool) -> datasets.IterableDataset:
        calls.append((path, config, split, streaming))
        stored = [{"text": "one", "label": 1, "tags": [0, 1]}, {"text": "two", "label": -1, "tags": None}]
        return datasets.Dataset.from_list(stored, features=tags).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(iter_documents([source])) == [Document("one", f"{source}:1"), Document("two", f"{source}:2")]
    assert rows(source) == [
        {"text": "one", "label": "pos", "tags": ["O", "B"]},
        {"text": "two", "label": None, "tags": None},
    ]
    assert calls == [(name, config, split, True)] * 2


def test_hub_reads_a_local_folder(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real `datasets`, streaming: no network is needed for a folder."""
    folder = make_files(
        {"set/train.jsonl": '{"text": "one"}\n{"text": "two"}\n', "set/test.jsonl": '{"text": "three"}\n'}
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    assert texts(f"hub:{folder}/set", f"hub:{folder}/set:test") == ["one", "two", "three"]
    with pytest.raises(InputError, match=r'split "dev" cannot be read: .*Check the three names'):
        texts(f"hub:{folder}/set:dev")
    with pytest.raises(InputError, match=r'there is no column "body". Choices: text'):
        texts(f"hub:{folder}/set", text_column="body")


@pytest.mark.parametrize("place", ["./nothing", "../nothing", "HERE/nothing", "./org/nothing:test", "~/nothing"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the Hub is asked"))
    for read in (texts, rows, expand_sources):
        with pytest.raises(InputError, match="no such file or folder"):
            read(f"hub:{place.replace('HERE', str(tmp_path))}")


@pytest.mark.parametrize("source", ["hub:", "hub:a//b", "hub:a/b/c/d", "hub:org/"])
def test_hub_names_that_are_none(source: str) -> None:
    with pytest.raises(InputError, match="write hub:NAME"):
        expand_sources([source])


def test_an_error_in_the_stream_names_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        features = None

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise ConnectionError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Broken())
    documents = iter_documents(["hub:org/name"])
    assert next(documents).text == "one"
    with pytest.raises(InputError, match=r'hub:org/name: data set "org/name".*connection lost'):
        next(documents)


@pytest.mark.parametrize(
    "wrapped", ['{"feature": %s, "length": -1, "_type": "Sequence"}', '{"feature": %s, "_type": "List"}', "[%s]"]
)
def test_class_labels_of_parquet_have_the_names_that_its_writer_noted(make_files: MakeFiles, wrapped: str) -> None:
    label = '{"num_classes": 2, "names": ["neg", "pos"], "id": null, "_type": "ClassLabel"}'
    features = (
        f'{{"label": {label}, "tags": {wrapped % label}, "n": {{"dtype": "int64", "_type": "Value"}}, "gone": {label}}}'
    )
    written = [
        {"label": 1, "tags": [0, 1], "n": 1},
        {"label": -1, "tags": None, "n": 0},
        {"label": None, "tags": [-1, 1], "n": None},
    ]
    path = make_files({"a.parquet": parquet(written, f'{{"info": {{"features": {features}}}}}')}) / "a.parquet"
    assert rows(path) == [
        {"label": "pos", "tags": ["neg", "pos"], "n": 1},
        {"label": None, "tags": None, "n": 0},
        {"label": None, "tags": [None, "pos"], "n": None},
    ]
    path = make_files({"b.parquet": parquet([{"label": 2}], f'{{"info": {{"features": {features}}}}}')}) / "b.parquet"
    with pytest.raises(
        InputError, match=r"b.parquet:1, label: there is no class label 2; the data set has names for 2"
    ):
        rows(path)


@pytest.mark.parametrize(
    "noted",
    [
        "{",
        "[" * 100_000,
        "[]",
        "null",
        '{"info": {}}',
        '{"info": {"features": [1]}}',
        '{"info": {"features": {"label": null, "tags": [], "other": {"_type": "ClassLabel", "names": ["a"]}}}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel"}, "tags": {"feature": "x", "_type": "List"}}}}',
    ],
)
def test_notes_of_a_parquet_writer_that_say_nothing_of_labels_change_nothing(make_files: MakeFiles, noted: str) -> None:
    written = [{"label": 1, "tags": [0, 1]}]
    assert rows(make_files({"a.parquet": parquet(written, noted)}) / "a.parquet") == written


def test_parquet_of_datasets_is_read_as_the_hub_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    label = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "tags": datasets.List(label), "label": label}
    )
    written = {"words": [["a"], ["b", "c"]], "tags": [[0], [1, 0]], "label": [1, -1]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(written, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    found = rows(tmp_path / "set" / "train.parquet")
    assert found == rows(f"hub:{tmp_path}/set")
    assert [(row["tags"], row["label"]) for row in found] == [(["O"], "B-PER"), (["B-PER", "O"], None)]


# Real data


@pytest.mark.parametrize(
    ("name", "columns", "num_rows"),
    [
        ("classify/sst2-dev.tsv", None, 872),
        ("classify/sms-spam-train.tsv", None, 4457),
        ("classify/cola-in_domain_dev.tsv", ["source", "label", "star", "sentence"], 527),
        ("classify/banking77-test.csv", None, 3080),
        ("classify/chnsenticorp-hotel.zh.csv.xz", None, 7766),
        ("classify/cold-dev.zh.csv.xz", None, 6431),
        ("classify/movie-reviews-long.jsonl.xz", None, 2000),
        ("pairs/qnli-style-dev.tsv.xz", None, 4993),
    ],
)
def test_real_tables(shared_data: Path, name: str, columns: list[str] | None, num_rows: int) -> None:
    found = rows(shared_data / name, columns=columns)
    assert len(found) == num_rows
    if ".csv" in name:
        table = pandas.read_csv(shared_data / name, dtype=str, keep_default_na=False)
        text = table.columns[-1] if "banking" not in name else "text"
        assert [row[text].replace("\r\n", "\n") for row in found] == [
            value.replace("\r\n", "\n") for value in table[text]
        ]


def test_real_documents(shared_data: Path) -> None:
    documents = list(iter_documents([str(shared_data / "pretrain" / "peps.en.jsonl.xz")]))
    assert len(documents) == 712
    assert documents[0].text.startswith("PEP stands for Python Enhancement Proposal.")
