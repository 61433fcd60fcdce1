"""Data that is broken, huge, or has no spaces: each bad row by its line, and no more memory than was said."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from bertsmith.cli import main
from bertsmith.errors import InputError
from bertsmith.tasks import rows as task_rows
from bertsmith.tasks.data_check import CheckSettings, check_data
from bertsmith.text import reading
from bertsmith.text.reading import open_text
from bertsmith.text.sources import iter_documents, iter_rows
from bertsmith.text.tokenizer_training import Kind, Sample, train_tokenizer

MakeFiles = Callable[[dict[str, str | bytes]], Path]

# A child's peak of memory, in bytes, after it has done something to FILE. (The peak that getrusage knows is also that
# of the process which the child was forked from.)
PEAK = r"""
import re, sys
from pathlib import Path
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer_training import train_tokenizer
file, tokenizer, out, separator = sys.argv[1:]
options = {"document_separator": separator}
if tokenizer:
    build_corpus([file], tokenizer, out, num_workers=1, shard_bytes=2**19, **options)
else:
    train_tokenizer([file], out, vocab_size=400, limit_bytes=2**18, **options)
print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
UNSPACED = "中文字没有空格也没有句号"
PROSE = "The old king sat by the river and saw a small cat. "


def peak_bytes(file: Path, text: str, tokenizer: Path | None, separator: str = "file") -> int:
    """The peak of a process that trains a tokenizer on the text, or builds a store of it with a tokenizer."""
    file.write_text(text, encoding="utf-8")
    arguments = [str(file), str(tokenizer or ""), f"{file}.out", separator]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], check=True, stdout=subprocess.PIPE, env=environment, text=True
    )
    return int(done.stdout)


# Bad rows (row 25)

GOOD = [f'{{"text": "the {name} number {place}", "label": "{name}"}}' for place in range(8) for name in ("cat", "dog")]
BAD = {
    3: b'{"text": "caf\xe9", "label": "cat"}',
    5: b'{"text": "no label"}',
    8: b'{"text": "cut off in the mid',
    9: b'["text", "cat"]',
    12: b'{"text": 3.5e, "label": "dog"}',
    17: b'{"text": "' + b"x" * 100_000_000 + b'", "label": "dog"}',
    20: b'{"text": null, "label": "dog"}',
}


def test_every_bad_row_of_a_file_is_counted_by_its_line_and_the_others_are_read(
    make_files: MakeFiles,
    tiny_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = iter(GOOD)
    lines = [BAD.get(number) or next(good).encode() for number in range(1, len(GOOD) + len(BAD) + 1)]
    file = make_files({"a.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(lines)}) / "a.jsonl"
    monkeypatch.setattr("bertsmith.tasks.findings._SHOWN_PLACES", 9)
    report = check_data("classification", CheckSettings(train=str(file)))
    (finding,) = report.findings
    assert (finding.kind, finding.count) == ("unusable", len(BAD))
    assert report.splits["train"].rows == len(GOOD)
    found = {int(place.removeprefix(f"{file}:").partition(":")[0].partition(",")[0]): place for place in finding.places}
    assert found.keys() == BAD.keys()
    for number, part in (
        (3, "0xe9 at offset"),
        (5, '"label"'),
        (8, "not JSON"),
        (9, "list found"),
        (12, "not JSON"),
        (17, "a text of 100,000,000 characters"),
        (20, "nothing here"),
    ):
        assert part in found[number]
    assert main(["check", "classification", "--train", str(file)]) == 0
    assert f"{len(BAD)} rows cannot be used" in capsys.readouterr().out
    assert main(["check", "classification", "--train", str(file), "--strict"]) == 2
    assert "--strict was given: unusable" in capsys.readouterr().err
    command = ["finetune", "classification", "--model", "size:tiny", "--tokenizer", str(tiny_tokenizer)]
    assert main([*command, "--train", str(file), "--out", str(file.parent / "run")]) == 2
    assert f"{file}:3" in capsys.readouterr().err


def test_rows_that_are_in_two_splits_or_there_twice_are_named(make_files: MakeFiles) -> None:
    rows = [f"the {name} number {place},{name}" for place in range(8) for name in ("cat", "dog")]
    train = ["text,label", *rows, rows[2], "the cat number 3,dog"]
    test = ["text,label", rows[4], "a bird,bird"]
    folder = make_files({"a.csv": "\n".join(train), "b.csv": "\n".join(test)})
    report = check_data("classification", CheckSettings(train=str(folder / "a.csv"), test=str(folder / "b.csv")))
    found = {(finding.split, finding.kind): finding.places[0].replace(f"{folder}/", "") for finding in report.findings}
    assert found == {
        ("train", "copies"): "a.csv:18 = a.csv:4",
        ("train", "contradictions"): "a.csv:8 (cat), a.csv:19 (dog): the cat number 3",
        ("test", "leak"): "b.csv:2 = a.csv:6",
        ("test", "unseen"): '"bird": 1 (b.csv:3)',
    }


def test_an_answer_that_is_not_at_its_place_is_named(make_files: MakeFiles) -> None:
    """One that begins before the text's end and goes past it, and one that begins behind it."""
    qas = [
        {"id": f"q{place}", "question": f"which {place} ?", "answers": [{"text": "red house", "answer_start": start}]}
        for place, start in enumerate((4, 8, 400))
    ]
    content = json.dumps({"data": [{"paragraphs": [{"context": "the red house", "qas": qas}]}]})
    file = make_files({"a.json": content}) / "a.json"
    report = check_data("answering", CheckSettings(train=str(file)))
    assert [(finding.kind, finding.count) for finding in report.findings] == [("misplaced", 2)]
    assert [place.split(",")[1].split(":")[0] for place in report.findings[0].places] == [
        " question q1",
        " question q2",
    ]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_every_bad_row_of_a_table_is_collected(make_files: MakeFiles, name: str, mark: str) -> None:
    lines = [b"text,label", b"one,a", b"two,b,c", b"thr\xffee,b", b"four", b"five,b"]
    file = make_files({name: b"\n".join(line.replace(b",", mark.encode()) for line in lines)}) / name
    bad: list[InputError] = []
    assert [(where, row["text"]) for where, row in iter_rows(file, bad=bad)] == [
        (f"{file}:2", "one"),
        (f"{file}:6", "five"),
    ]
    assert [error.where for error in bad] == [f"{file}:{number}" for number in (3, 4, 5)]
    with pytest.raises(InputError, match=rf"{name}:3: 3 fields"):
        list(iter_rows(file))


def test_a_record_that_does_not_parse_is_collected(make_files: MakeFiles) -> None:
    file = make_files({"a.csv": 'text,label\none,a\n"two" or,b\nthree,c\n"four,d\n'}) / "a.csv"
    bad: list[InputError] = []
    assert [row["text"] for _, row in iter_rows(file, bad=bad)] == ["one", "three"]
    assert [error.where for error in bad] == [f"{file}:3", f"{file}:5"]


def test_what_may_have_been_the_header_is_an_error(make_files: MakeFiles) -> None:
    file = make_files({"a.csv": b"text,l\xffabel\none,a\n"}) / "a.csv"
    bad: list[InputError] = []
    with pytest.raises(InputError, match=r"a\.csv:1: byte 0xff"):
        list(iter_rows(file, bad=bad))
    assert bad == []


def test_damage_that_no_line_is_behind_ends_the_reading(make_files: MakeFiles) -> None:
    """Else the same error would come for ever."""
    file = make_files({"a.jsonl.gz": b"\x1f\x8b\x08\x00 not gzip"}) / "a.jsonl.gz"
    with pytest.raises(InputError, match="damaged or cut short"):
        list(iter_rows(file, bad=[]))


def test_a_line_that_does_not_end_is_passed_over_in_parts(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LINE_LIMIT", 20)
    monkeypatch.setattr(reading, "_PART_BYTES", 7)
    file = make_files({"a.txt": b"a" * 19 + b"\n" + b"b" * 20 + b"\n" + b"c" * 21 + b"\nd\xffe\nend"}) / "a.txt"
    bad: list[InputError] = []
    with open_text(file, bad) as lines:
        assert [(lines.line_number, line) for line in lines] == [(1, "a" * 19 + "\n"), (5, "end")]
    assert [error.where for error in bad] == [f"{file}:{number}" for number in (2, 3, 4)]
    assert "more than 20 bytes" in str(bad[0]) and f"at offset {20 + 21 + 22 + 1} " in str(bad[2])
    with pytest.raises(InputError, match=r"a\.txt:2: a line of more than 20 bytes"):
        list(iter_documents([file]))


def test_a_text_may_be_as_long_as_is_said(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_rows, "LONGEST_TEXT", 5)
    file = make_files({"a.jsonl": '{"text": "12345"}\n{"text": "123456"}\n'}) / "a.jsonl"
    bad: list[InputError] = []
    assert [row for _, row in task_rows.iter_records(str(file), bad=bad)] == [{"text": "12345"}]
    assert [error.where for error in bad] == [f"{file}:2, text"]
    with pytest.raises(InputError, match=r"a\.jsonl:2, text: a text of 6 characters; a row may have 5"):
        list(task_rows.iter_records(str(file)))


# Bounded memory (row 26)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_tokenizer_learns_from_a_sample_of_an_unspaced_line_and_says_so(
    make_files: MakeFiles, tmp_path: Path, kind: Kind
) -> None:
    text = UNSPACED * 30_000
    file = make_files({"a.txt": text}) / "a.txt"
    tokenizer = train_tokenizer([str(file)], tmp_path / "out", kind=kind, vocab_size=400, limit_bytes=2**18)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["num_documents"], record["seen_bytes"]) == (1, len(text.encode()))
    assert 0 < record["used_bytes"] <= record["limit_bytes"] == 2**18
    assert max(len(piece) for piece in tokenizer.tokens(range(tokenizer.vocab_size))) <= 303  # bytes of 101 characters


def test_counts_have_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a character that is there 2 ** 33 times: numpy is told so, as text of that size takes too long."""
    bincount = np.bincount
    monkeypatch.setattr(np, "bincount", lambda points: bincount(points) * 2**32)
    assert Sample(["aab"], 1, 3, 3).code_points == {"a": 2**33, "b": 2**32}


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["tokenizer", "store"])
def test_memory_does_not_grow_with_the_number_of_documents(verb: str, tmp_path: Path, tiny_tokenizer: Path) -> None:
    document = PROSE * 200
    times = 2000 if verb == "tokenizer" else 400
    tokenizer = tiny_tokenizer if verb == "store" else None
    few, many = (
        peak_bytes(tmp_path / f"{number}.txt", f"{document}\n\n" * number, tokenizer, "blank-lines")
        for number in (times // 4, times)
    )
    assert many - few < 8 * 2**20  # far below what all of it takes in either


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("text", [PROSE, UNSPACED], ids=["prose", "unspaced"])
def test_one_document_takes_a_small_multiple_of_its_size(text: str, tmp_path: Path, tiny_tokenizer: Path) -> None:
    """In one line; the tokenizer gives back some hundred bytes a token, so it must not see all of it at once."""
    size = 2**21
    small, large = (
        peak_bytes(tmp_path / f"{number}.txt", text * (number // len(text.encode())), tiny_tokenizer)
        for number in (size, 2 * size)
    )
    assert large - small < 14 * size
