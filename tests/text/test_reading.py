"""Files: compressed or not, found by name, folder or pattern, and what is said when they cannot be read."""

import bz2
import errno
import glob
import gzip
import io
import lzma
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertsmith.errors import InputError, StorageError
from bertsmith.text.encodings import likely_encoding
from bertsmith.text.reading import find_files, open_text
from bertsmith.text.sources import expand_sources, find_sources, iter_documents

MakeFiles = Callable[[dict[str, str | bytes]], Path]

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
ODD = "first\u2028still first\x85 \u0151\x0c\x1c 你好 \U0001f600"


def texts(*names: str | Path, **options: Any) -> list[str]:
    return [document.text for document in iter_documents([str(name) for name in names], **options)]


# Reading files


@pytest.mark.parametrize("compression", PACK)
def test_lines_end_at_line_feeds_only(make_files: MakeFiles, compression: str) -> None:
    content = f"\ufeff{ODD}\nb\r\n\r\nc\rd"
    path = make_files({f"a.txt{compression}": PACK[compression](content.encode())}) / f"a.txt{compression}"
    with open_text(path) as file:
        assert list(file) == [f"{ODD}\n", "b\n", "\n", "c\rd"]
        assert file.line_number == 4
    with open_text(path) as file:
        assert next(file) == f"{ODD}\n"
        assert file.read() == "b\n\nc\rd"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"))))
def test_any_text_comes_back(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    with open_text(path) as file:
        assert list(file) == [f"{line}\n" for line in lines]


@pytest.mark.parametrize(
    ("content", "line", "offset", "encoding"),
    [
        (b"good\n\xef\xbb\xbfalso good\ncaf\xe9\n", 3, 21, "ISO-8859-1"),
        ("好\n".encode() + "不好".encode("gb18030"), 2, 4, "GB18030"),
        ("text".encode("utf-16"), 1, 0, "UTF-16"),
        (b"\xef\xbb\xbfab\xff", 1, 5, "ISO-8859-1"),
        (b"cut short \xe4\xbd", 1, 10, ""),
    ],
)
def test_wrong_encoding(make_files: MakeFiles, content: bytes, line: int, offset: int, encoding: str) -> None:
    path = make_files({"a.txt": content}) / "a.txt"
    with pytest.raises(InputError) as caught:
        texts(path)
    assert caught.value.where == f"{path}:{line}"
    assert f"byte 0x{content[offset]:02x} at offset {offset} is not UTF-8" in str(caught.value)
    assert f"iconv -f {encoding}" in str(caught.value)


SENTENCES = {
    "Grüße aus München: das Essen war köstlich, die Straße laut. Über Öl und Äpfel.": ("latin-1", "cp1252"),
    "„Schön“ – sagte er. 5 €": ("cp1252",),
    "GRÖSSE ÄÖÜ ÜBER ÄPFEL": ("latin-1",),
    "El niño comió mañana; ¿dónde está? ¡Qué bien! La habitación está limpia.": ("latin-1", "cp1252"),
    "Très déçu par cet hôtel, l'été élève à côté; créée « naïf ».": ("latin-1", "cp1252"),
    "l’été – « œuvre » … 30 €": ("cp1252",),
    "La qualità è perciò più bassa; non c'è, però è così.": ("latin-1",),
    "A AÇÃO não é boa; ações, coração, informações às vezes": ("latin-1",),
    "Þýðing á íslensku er góð": ("latin-1",),
    "I don’t think it’s good, we’re “bad” – really": ("cp1252",),
    "25°C, 30°C, 28°C": ("latin-1",),
    "这家酒店的房间很干净，服务员也很热情，下次还会来住。": ("gb2312", "gbk", "gb18030"),
    "我用iPhone手机看NBA, 5元 ok": ("gbk",),
    "這家飯店的房間很乾淨，服務人員也很熱情，下次還會來住。": ("big5", "cp950", "gb18030"),
    "このホテルの部屋はとてもきれいで、スタッフも親切でした。": ("shift_jis", "euc_jp"),
    "이 호텔은 방이 아주 깨끗하고 직원들도 친절했습니다.": ("euc_kr",),
    "Номер был чистый, персонал очень вежливый. Мы приедем ещё раз.": ("cp1251", "koi8_r"),
    "Το δωμάτιο ήταν πολύ καθαρό και το προσωπικό ευγενικό.": ("cp1253",),
}

OTHER_LATIN = {
    "Pokój był czysty, obsługa też; śniadanie wyśmienite, a łóżko wygodne.": ("cp1250", "iso8859_2"),
    "„Źle” – powiedział gość i wyszedł": ("cp1250",),
    "Příliš žluťoučký kůň úpěl ďábelské ódy.": ("cp1250", "iso8859_2"),
    "Veľmi sme boli spokojní, raňajky výborné, určite sa ešte vrátime.": ("cp1250", "iso8859_2"),
    "Nagyon jó volt, a személyzet kedves; a fürdőszoba szűk, de tűrhető.": ("cp1250", "iso8859_2"),
    "Soba je bila čista, osoblje ljubazno; još ćemo doći, sviđa nam se, žao nam je.": ("cp1250", "iso8859_2"),
    "Camera a fost curată şi personalul drăguţ, încă o dată mulţumim, aşa să fie.": ("cp1250",),
    "Oda çok temizdi, çalışanlar güler yüzlüydü; kahvaltı için teşekkürler, İyi değil.": ("cp1254", "iso8859_9"),
    "Kambarys buvo švarus, darbuotojai malonūs; dėkojame, grįšime čia dar kartą.": ("cp1257", "iso8859_13"),
    "Numurs bija tīrs, ļoti laipni cilvēki, mēs noteikti atgriezīsimies šeit vēl.": ("cp1257", "iso8859_13"),
}


@pytest.mark.parametrize(
    ("sentence", "codec"),
    [(text, codec) for text, codecs in (SENTENCES | OTHER_LATIN).items() for codec in codecs],
)
def test_the_encoding_of_the_hint_gives_the_text_back(make_files: MakeFiles, sentence: str, codec: str) -> None:
    content = f"text,label\nplain,neg\n{sentence},pos\n"
    path = make_files({"a.csv": content.encode(codec)}) / "a.csv"
    with open_text(path) as file, pytest.raises(InputError) as caught:
        list(file)
    encoding = str(caught.value).partition("iconv -f ")[2].partition(" ")[0]
    assert path.read_bytes().decode(encoding) == content


@given(st.data())
def test_a_few_words_are_enough_to_tell_an_encoding(data: st.DataObject) -> None:
    sentence = data.draw(st.sampled_from([sentence for sentence in SENTENCES if " " in sentence]))
    words = sentence.split(" ")
    begin = data.draw(st.integers(0, max(0, len(words) - 3)))
    part = " ".join(words[begin : begin + data.draw(st.integers(3, 8))])
    content = part.encode(data.draw(st.sampled_from(SENTENCES[sentence])))
    if not part.isascii():
        assert content.decode(likely_encoding(content)) == part


@pytest.mark.parametrize("compression", PACK)
def test_lines_behind_the_first_bad_one_tell_the_encoding(make_files: MakeFiles, compression: str) -> None:
    """A single character is western to all appearances."""
    lines = "text,label\n净,pos\n".encode("gbk") + b"plain,neg\n" * 9 + "房间很干净，服务员也热情,pos\n".encode("gbk")
    with pytest.raises(InputError, match="iconv -f GB18030"):
        texts(make_files({f"a.txt{compression}": PACK[compression](lines)}))


def test_wrong_encoding_counts_unpacked_bytes(make_files: MakeFiles) -> None:
    folder = make_files({"a.txt.gz": gzip.compress(b"x" * 5000 + b"\n\xff")})
    with pytest.raises(InputError, match=r"offset 5001 \(unpacked\)"):
        texts(folder)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".txt", ".parquet"])
def test_damaged_compression(make_files: MakeFiles, compression: str, suffix: str) -> None:
    whole = PACK[compression](os.urandom(50_000).hex().encode())
    folder = make_files({f"cut{suffix}{compression}": whole[:-1000], f"not{suffix}{compression}": b"no such format"})
    for path in sorted(folder.iterdir()):
        with pytest.raises(InputError, match="damaged or cut short") as caught:
            texts(path)
        assert caught.value.where == str(path)


def test_a_sound_file_that_needs_much_memory_is_not_called_damaged(make_files: MakeFiles) -> None:
    """The head of a frame with a window of 2 GiB, as `zstd --long=31` writes it (RFC 8878), and one block."""
    content = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + b"\x09\x00\x00" + b"a"
    path = make_files({"a.txt.zst": content}) / "a.txt.zst"
    with pytest.raises(InputError, match=r"Unpack it: zstd -d --long=31 a\.txt\.zst$"):
        texts(path)
    path.write_bytes(content.replace(bytes([(31 - 10) << 3]), bytes([(27 - 10) << 3])))
    assert texts(path) == ["a"]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_no_room_to_unpack(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    """The file is not to blame."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = make_files({f"a.parquet{compression}": PACK[compression](b"PAR1 content")})
    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(StorageError, match=r"a\.parquet.*No space left on device.*TMPDIR") as caught:
        texts(folder)
    assert "damaged" not in str(caught.value)


def test_unreadable_file(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_files({"a.txt": "text"}) / "a.txt"

    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.txt: cannot be read: Permission denied\.$"):
        open_text(path)


# Finding files


def test_folders_and_patterns_are_sorted(make_files: MakeFiles) -> None:
    names = [
        "b.txt",
        "a/z.md",
        "a/b/c.TXT",
        "a.txt.gz",
        "B.txt",
        ".hidden.txt",
        ".git/x.txt",
        "a/image.png",
        "a/x.json",
    ]
    folder = make_files({name: gzip.compress(b"a") if name.endswith("gz") else "a" for name in names})
    found = ["B.txt", "a/b/c.TXT", "a/z.md", "a.txt.gz", "b.txt"]
    everything = sorted(str(folder / name) for name in found)
    assert sorted(expand_sources([str(folder)])) == everything
    assert expand_sources([str(folder)]) == [str(path) for path in sorted(folder / name for name in found)]
    assert sorted(expand_sources([str(folder / "**")])) == everything
    assert expand_sources([str(folder / "*.txt")]) == [str(folder / "B.txt"), str(folder / "b.txt")]
    assert expand_sources([str(folder / "b.txt"), "python-docs", str(folder / "B.txt")]) == [
        str(folder / "b.txt"),
        "python-docs",
        str(folder / "B.txt"),
    ]
    assert expand_sources(str(folder / "b.txt")) == [str(folder / "b.txt")]


def test_an_existing_name_is_no_pattern(make_files: MakeFiles) -> None:
    folder = make_files({"a[1].txt": "brackets", "a1.txt": "none"})
    assert texts(folder / "a[1].txt") == ["brackets"]


MADE: dict[str, str | bytes] = {
    "a.txt": "",
    "b/tokenizer/tokenizer.json": "{}",
    "b/tokenizer/tokenizer_config.json": "{}",
    "b/tokenizer/vocab.txt": "",
    "b/b.txt": "",  # beside a tokenizer, as the first step of the README leaves it
    "c/tokenizer.json": "{}",
    "c/c.txt": "",
    "store/manifest.json": "{}",
    "store/train/00000/tokens.npy": "",
    "store/tokenizer/tokenizer.json": "{}",
    "store/s.txt": "",
    "run/config.yaml": "# bertsmith pretrain --config config.yaml\n",
    "run/model/README.md": "",
    "mine/config.yaml": "size: 3\n",
    "mine/manifest.json": "{}",
    "mine/d.txt": "",
}


@pytest.mark.parametrize("pattern", ["", "**", "**/*", "*", "**/*.txt"])
def test_folders_that_were_made_here_are_no_text_and_that_is_said(make_files: MakeFiles, pattern: str) -> None:
    folder = make_files(MADE)
    notes: list[str] = []
    found = find_files(str(folder / pattern), (".txt", ".md"), notes=notes)
    assert [path.name for path in found] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert sorted(notes) == [
        f"{folder}/b/tokenizer is passed over: it is a tokenizer.",
        f"{folder}/run is passed over: it is a run.",
        f"{folder}/store is passed over: it is a store.",
    ]


def test_a_made_folder_that_is_named_is_read(make_files: MakeFiles) -> None:
    folder = make_files(MADE)
    for named in ("b/tokenizer", "b/tokenizer/*.txt", "b/tokenizer/vocab.txt"):
        assert [path.name for path in find_files(str(folder / named), (".txt",))] == ["vocab.txt"]
    with pytest.raises(InputError, match=r"no file at all\. .*/run is passed over: it is a run\.$"):
        find_files(str(folder / "r*"), (".txt",))


def test_links_to_folders_are_not_followed(make_files: MakeFiles) -> None:
    folder = make_files({"g/a.txt": "one", "g/deep/b.txt": "two", "other/c.txt": "three"})
    (folder / "g" / "loop").symlink_to(".")
    (folder / "g" / "deep" / "up").symlink_to("..")
    (folder / "g" / "there").symlink_to(folder / "other")
    (folder / "g" / "dead").symlink_to("nowhere")
    (folder / "g" / "self").symlink_to("self")
    for source in ("g", "g/**", "g/**/*.txt"):
        notes: list[str] = []
        found = find_files(str(folder / source), (".txt",), notes=notes)
        assert [path.name for path in found] == ["a.txt", "b.txt"]
        assert len(notes) == 3 and all(note.endswith("links to folders are not followed.") for note in notes)
    assert texts(folder / "g" / "there") == texts(folder / "g" / "there" / "*.txt") == ["three"]


def test_what_is_given_twice_is_read_once_and_that_is_said(make_files: MakeFiles, capsys: Any) -> None:
    folder = make_files({"a.txt": "one", "b.txt": "two", "c.csv": "text\nthree\n"})
    (folder / "d.txt").symlink_to("a.txt")
    sources = [str(folder / "b.txt"), str(folder), f"{folder}/../{folder.name}/*.txt", "python-docs", "python-docs"]
    expected = [*(str(folder / name) for name in ("b.txt", "a.txt", "c.csv")), "python-docs"]
    assert find_sources(sources) == expand_sources(sources) == expected
    said = f"Given twice, and read once: {folder}/b.txt, {folder}/d.txt, {folder}/../{folder.name}/a.txt and 3 more."
    assert capsys.readouterr().err == f"{said}\n"
    assert texts(folder, folder / "a.txt") == ["one", "two", "three"]


@pytest.mark.parametrize("source", ["", "**/*.txt", "*/*.txt"])
@pytest.mark.parametrize("within", [False, True])
def test_a_folder_that_may_not_be_read_is_an_error(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, source: str, within: bool
) -> None:
    """Neither a traceback nor a corpus without what is in it. Whoever tests may read all: so it is said to be shut."""
    folder = make_files({"a.txt": "one", "open/b.txt": "two", "open/shut/c.txt": "three"})
    shut = str(folder / "open" / ("shut" if within else ""))
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path) == shut.rstrip("/"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if within and source == "*/*.txt":  # it need not look there
        assert [path.name for path in find_files(str(folder / source), (".txt",))] == ["b.txt"]
    else:
        with pytest.raises(InputError, match="cannot be read: Permission denied") as caught:
            find_files(str(folder / source), (".txt",))
        assert caught.value.where == shut.rstrip("/")


def test_patterns_mean_what_they_mean_to_glob(make_files: MakeFiles) -> None:
    names = [
        "a.txt",
        "b/a.txt",
        "b/[c].txt",
        "b/c/d.txt",
        "b/c/x1.txt",
        ".h/a.txt",
        "b/.h.txt",
        "b/.i/a.txt",
        "e.txt/f.txt",
    ]
    folder = make_files(dict.fromkeys(names, ""))
    for pattern in (
        *("*", "*.txt", "**", "**/*.txt", "*/*.txt", "**/c/*", "**/c/**", "b/**/d.txt", "**/**/a.txt", "?/?/*"),
        *("b/*/*[0-9].txt", "b/[[]c].txt", "**/x[!2].txt", ".*/*", "**/.*", "*/.i/*", "*/c", "b*"),
    ):
        expected = set()
        for match in map(Path, glob.glob(str(folder / pattern), recursive=True)):
            below = [path for path in match.rglob("*") if "/." not in str(path.relative_to(match.parent))]
            expected |= {path for path in [match, *below] if path.is_file()}
        assert set(find_files(str(folder / pattern), (".txt",))) == expected, pattern


def test_home_folder(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(make_files({"a.txt": "at home"})))
    assert texts("~/a.txt") == ["at home"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("books/novle.txt", 'books/novle.txt: no such file or folder. Did you mean "novel.txt"?'),
        ("boks/novel.txt", 'boks: no such file or folder. Did you mean "books"?'),
        ("empty/a.txt", "empty/a.txt: no such file or folder. The folder it should be in is empty."),
        ("books/*.csv", "books/*.csv: no file matches this pattern."),
        ("books/*.png", "books/*.png: no file here has a suffix of .txt, .md"),
        ("empty", "Found: no file at all."),
        ("books/a.png", 'books/a.png: cannot tell the format from ".png". Choices: .csv,'),
        ("books/a.json", "then name it .jsonl"),
        ("books/README", 'cannot tell the format from "README"'),
        ("x" * 300, "xxx: cannot be read: File name too long"),
    ],
)
def test_nothing_to_read(make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    folder = make_files({"books/novel.txt": "a", "books/a.png": "", "books/a.json": "{}", "books/README": "a"})
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    for read in (expand_sources, lambda names: list(iter_documents(names))):
        with pytest.raises(InputError) as caught:
            read([source])
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.conll", "The O\n# O\nking B-PER\n\nHe O\n"),
        ("a.iob2", "# text = The # king\n1\tThe\tO\n2\t#\tO\n3\tking\tB-PER\n\n1\tHe\tO\n"),
        ("a.conllu", "# text = The\n1-2\tThe#\t_\n1\tThe\t_\n2\t#\t_\n3\tking\t_\n3.1\tx\t_\n\n1\tHe\t_\n"),
    ],
)
def test_labelled_files_come_with_a_command_that_makes_text_of_them(
    make_files: MakeFiles, name: str, content: str
) -> None:
    folder = make_files({name: content})
    with pytest.raises(InputError, match="holds words with their labels, for finetune tagging, and neither") as caught:
        expand_sources([folder / name])
    assert "Did you mean" not in str(caught.value)
    subprocess.run(str(caught.value).partition("To make text of it: ")[2], shell=True, check=True, cwd=folder)
    assert (folder / "a.txt").read_text() == "The # king \nHe "
