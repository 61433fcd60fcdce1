"""Leaving documents out of a store: which, why, and that workers, interruptions and restarts change nothing."""

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.cli import main
from bertsmith.errors import CorpusError, MissingExtraError, SettingsError
from bertsmith.text import corpus_building, selection
from bertsmith.text.corpus import Manifest, open_corpus, read_manifest
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.doctor import check_corpus
from bertsmith.text.languages import Languages
from bertsmith.text.selection import REASONS, Decision, SelectionSettings, decide
from bertsmith.text.sources import Document, iter_documents

WORDS = "the old king sat by a river and saw small cat house tree queen who reads at night in new city".split()
CHARACTERS = "北京大学天地人山水日月风云花鸟鱼虫春夏秋冬东西南王坐在河边看见小猫"
NEAR = SelectionSettings(deduplicate="near")
EXACT = SelectionSettings(deduplicate="exact")

Planted = tuple[list[str], dict[int, str]]


def planted(language: str) -> Planted:
    """120 documents, and which of them are copies, by their place: every 8th exact, every 8th near."""
    draws = np.random.default_rng(3)
    vocabulary, joint = (WORDS, " ") if language == "en" else (list(CHARACTERS), "")
    documents: list[str] = []
    copies: dict[int, str] = {}
    for number in range(120):
        if number % 8 == 5:
            source = documents[number - 5]
            documents.append(f"\n {source} \n" if language == "zh" else source.replace(" ", "\n  ", 3))
            copies[number] = "exact duplicates"
        elif number % 8 == 7:
            source = documents[number - 6]
            documents.append(source[:-10] + ("!" if language == "en" else "。"))
            copies[number] = "near duplicates"
        else:
            sentences = (joint.join(draws.choice(vocabulary, size=8)) for _ in range(20))
            documents.append((joint + "." + joint).join(sentences))
    return documents, copies


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def decided(documents: list[str], chosen: SelectionSettings, folder: Path) -> Decision:
    return decide(lambda: documents, [], chosen, folder / "selection")


def reasons(documents: list[str], chosen: SelectionSettings, folder: Path) -> list[str]:
    found = decided(documents, chosen, folder).reasons.tolist()
    return [REASONS[reason - 1] if reason else "" for reason in found]


@pytest.fixture
def build(tiny_tokenizer: Path, tmp_path: Path) -> Callable[..., Manifest]:
    def make(name: str, source: Path, chosen: SelectionSettings, **options: Any) -> Manifest:
        options = {"shard_bytes": 9000, "num_workers": 1, "heldout_share": 0.1, **options}
        return build_corpus([str(source)], tiny_tokenizer, tmp_path / name, selection=chosen, **options)

    return make


# Copies


@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_copies_go_and_originals_stay(language: str, tmp_path: Path) -> None:
    documents, copies = planted(language)
    near = reasons(documents, NEAR, tmp_path)
    assert near == [copies.get(number, "") for number in range(len(documents))]
    exact = [reason if reason == "exact duplicates" else "" for reason in near]
    assert reasons(documents, EXACT, tmp_path) == exact
    assert exact.count("exact duplicates") == near.count("near duplicates") == 15


def test_a_store_of_what_stayed(build: Callable[..., Manifest], tmp_path: Path, capsys: Any) -> None:
    """The same shards as of a file without the copies; what went is in the manifest and is said."""
    documents, copies = planted("en")
    all_of_them = write(tmp_path / "all.jsonl", documents)
    originals = write(tmp_path / "originals.jsonl", [text for n, text in enumerate(documents) if n not in copies])
    manifest = build("store", all_of_them, NEAR)
    plain = build("plain", originals, SelectionSettings())
    assert manifest.splits == plain.splits and manifest.fingerprint == plain.fingerprint
    assert read_manifest(tmp_path / "store") == manifest
    assert open_corpus(tmp_path / "store", verify=True).fingerprint == manifest.fingerprint
    record = check_corpus(tmp_path / "store").selection
    assert record is not None and record == manifest.selection
    assert (record.num_documents, record.removed) == (120, {"exact duplicates": 15, "near duplicates": 15})
    assert record.settings["deduplicate"] == "near" and record.settings["similarity"] == 0.8
    said = "30 of 120 documents left out: 15 exact duplicates, 15 near duplicates."
    assert main(["corpus", "check", str(tmp_path / "store"), "--samples", "0"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    command = ["corpus", "build", str(all_of_them), "--tokenizer", str(tmp_path / "store" / "tokenizer")]
    assert main([*command, "--out", str(tmp_path / "by-command"), "--deduplicate", "near"]) == 0
    assert said in capsys.readouterr().out
    (tmp_path / "options.yaml").write_text("deduplicate: exact\nmin_characters: 3\n")
    assert main([*command, "--out", str(tmp_path / "by-file"), "--config", str(tmp_path / "options.yaml")]) == 0
    assert "15 of 120 documents left out: 0 too short, 15 exact duplicates." in capsys.readouterr().out


def test_without_options_a_store_is_what_it_was(build: Callable[..., Manifest], tmp_path: Path) -> None:
    manifest = build("store", write(tmp_path / "all.jsonl", planted("en")[0]), SelectionSettings())
    assert manifest.selection is None and check_corpus(tmp_path / "store").selection is None
    assert "selection" not in json.loads((tmp_path / "store" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("one", "other", "is_copy"),
    [
        ("A cat\tsat.\n", " A  cat\u3000sat.", True),
        ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"), True),
        ("A cat", "a cat", False),
        ("A cat", "A cat.", False),
        ("a b", "ab", False),
        ("ﬁsh", "fish", False),
    ],
)
def test_what_exact_means(one: str, other: str, is_copy: bool, tmp_path: Path) -> None:
    assert reasons([one, other], EXACT, tmp_path) == ["", "exact duplicates" if is_copy else ""]


def test_texts_without_words_are_no_near_duplicates(tmp_path: Path) -> None:
    documents = ["...", "?!", "...", "a cat", "A CAT!"]
    expected = ["", "", "exact duplicates", "", "near duplicates"]
    assert reasons(documents, NEAR, tmp_path) == expected
    assert reasons([], NEAR, tmp_path / "none") == []
    assert reasons(["!"], NEAR, tmp_path / "one") == [""]


PIECES = ["the old king sat", "by the river", "北京大学天地人山水", "a cat saw it", "?!", "  \n", "日月风云花鸟鱼虫"]


@given(
    documents=st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(" ".join), max_size=15),
    chosen=st.sampled_from(
        [EXACT, NEAR, SelectionSettings(deduplicate="near", similarity=0.5, min_characters=6, max_symbol_share=0.1)]
    ),
)
@settings(max_examples=50)
def test_nothing_more_goes_the_second_time(
    documents: list[str], chosen: SelectionSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = decided(documents, chosen, tmp_path_factory.mktemp("first"))
    kept = list(first.kept(documents))
    assert len(kept) == len(documents) - sum(first.record().removed.values())
    second = decided(kept, chosen, tmp_path_factory.mktemp("second"))
    assert not second.reasons.any() and list(second.kept(kept)) == kept
    normalized = {" ".join(text.split()) for text in kept}
    assert len(normalized) == len(kept)


# Filters

GOOD = "The old king sat by the river. A small cat saw the blue bird.\nShe reads by day."
FILTERED = {
    "too short": ("Tiny.", SelectionSettings(min_characters=10)),
    "too long": (" ".join(f"day {number}" for number in range(40)), SelectionSettings(max_characters=100)),
    "symbols": ("a | b | c | d | e || == ~~ {cat} <<dog>>", SelectionSettings(max_symbol_share=0.2)),
    "repeated lines": ("Home\nNews\nHome\nHome\n", SelectionSettings(max_repeated_line_share=0.3)),
    "repeated n-grams": ("buy it now and here " * 4, SelectionSettings(max_repeated_ngram_share=0.15)),
}


@pytest.mark.parametrize("reason", FILTERED)
def test_each_filter_takes_what_it_should(reason: str, tmp_path: Path) -> None:
    documents = [GOOD, *(text for text, _ in FILTERED.values())]
    expected = ["", *(reason if reason == other else "" for other in FILTERED)]
    decision = decided(documents, FILTERED[reason][1], tmp_path)
    assert reasons(documents, FILTERED[reason][1], tmp_path / "again") == expected
    assert decision.record().removed == {reason: 1}


def test_other_languages_go(tmp_path: Path) -> None:
    """By what the text begins with; what has no letters is in none."""
    pytest.importorskip("py3langid", reason="the extra languages is not installed")
    german = "Der alte König saß am Fluss und las seiner kleinen Katze ein Buch vor."
    documents = [GOOD, german, "老国王坐在河边,看见一只小猫。", "1, 2, 3: 42!", (GOOD + " ") * 20 + german * 40]
    for codes, kept in ((("en",), {0, 3, 4}), (("zh", "de"), {1, 2, 3})):
        decision = decided(documents, SelectionSettings(keep_languages=codes), tmp_path / codes[0])
        assert set(np.flatnonzero(decision.reasons == 0).tolist()) == kept
        assert decision.record().removed == {"other languages": 5 - len(kept)}
    with pytest.raises(SettingsError, match=r'"klingon" is not a language known here\. .*Choices: .*zh'):
        decided(documents, SelectionSettings(keep_languages=("klingon",)), tmp_path / "klingon")


def test_languages_need_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setattr(selection, "load_languages", Languages)
    with pytest.raises(MissingExtraError, match=r'pip install "bertsmith\[languages\]"'):
        decided([GOOD], SelectionSettings(keep_languages=("en",)), tmp_path)


def test_limits_belong_to_what_stays(tmp_path: Path) -> None:
    limits = SelectionSettings(min_characters=9, max_characters=10, max_symbol_share=0.5, max_repeated_line_share=0.5)
    documents = [" 12345678 ", "123456789\n", "1234567890", "12345678901", "++++ abcd", "+++++ abc", "abc\ndef\nabc\n"]
    assert reasons(documents, limits, tmp_path) == ["too short", "", "", "too long", "", "symbols", "too long"]


def test_what_a_filter_takes_is_no_original(tmp_path: Path) -> None:
    """Nor is it counted twice."""
    chosen = SelectionSettings(deduplicate="exact", min_characters=6)
    documents = ["a  b c", "cat", "a b  c.", "cat", "a b c.", "a b\n\n\nc."]
    expected = ["", "too short", "", "too short", "exact duplicates", "exact duplicates"]
    assert reasons(documents, chosen, tmp_path) == expected


def test_nothing_left_is_explained(build: Callable[..., Manifest], tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", ["A cat.", "A dog."])
    with pytest.raises(CorpusError, match=r"no text in .*2 of 2 documents left out: 2 too short"):
        build("store", source, SelectionSettings(min_characters=100))
    assert not list(tmp_path.glob("*store*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deduplicate": "exakt"}, 'deduplicate: .*"exakt".*Did you mean "exact"'),
        ({"similarity": 0.4}, "similarity must be from 0.5 to 1"),
        ({"similarity": 1.1}, "similarity"),
        ({"similarity": 0.9, "deduplicate": "exact"}, 'say deduplicate "near"'),
        ({"similarity": float("nan")}, "similarity"),
        ({"min_characters": 0}, "min_characters"),
        ({"max_characters": -1}, "max_characters"),
        ({"min_characters": 10, "max_characters": 9}, "min_characters 10 is more than max_characters 9"),
        ({"max_symbol_share": 1.0}, "max_symbol_share"),
        ({"max_repeated_line_share": -0.1}, "max_repeated_line_share"),
        ({"max_repeated_ngram_share": 15}, "max_repeated_ngram_share"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SelectionSettings(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deduplicate", "exakt"], "exakt"),
        (["--dedupliate", "exact"], "--deduplicate"),
        (["--similarity", "0.3"], "similarity must be from 0.5 to 1"),
    ],
)
def test_wrong_options_of_the_command(
    arguments: list[str], message: str, tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["corpus", "build", str(tiny_documents), "--tokenizer", str(tiny_tokenizer), "--out"]
    assert main([*command, str(tmp_path / "store"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*store*"))


# Workers, interruptions, restarts


def test_workers_change_nothing(build: Callable[..., Manifest], tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", planted("en")[0])
    for num_workers in (1, 3):
        build(str(num_workers), source, NEAR, num_workers=num_workers)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")


def test_decided_once(build: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is interrupted behind the first pass, or among the shards, goes on without another one."""
    source = write(tmp_path / "all.jsonl", planted("en")[0])
    build("whole", source, NEAR)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    def stopping(decision: Decision, documents: Iterator[str]) -> Iterator[str]:
        for number, document in enumerate(kept(decision, documents)):
            if number == 60:
                raise KeyboardInterrupt
            yield document

    kept = Decision.kept
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_building, "_build_splits", interrupt)
        build("store", source, NEAR)
    monkeypatch.setattr(selection, "_pass", lambda *args: pytest.fail("decided again"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decision, "kept", stopping)
        build("store", source, NEAR)
    assert list((tmp_path / ".store.building").glob("train/*/shard.json"))
    build("store", source, NEAR)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
    assert not list(tmp_path.glob(".store*"))


KILLED = r"""
import os, signal, sys
from bertsmith.text import corpus_building, near_duplicates, selection
from bertsmith.text.selection import SelectionSettings
source, tokenizer, out, module, name = sys.argv[1:]
owner = {"corpus_building": corpus_building, "selection": selection}[module]
setattr(owner, name, lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL))
corpus_building.build_corpus(
    [source], tokenizer, out, shard_bytes=9000, num_workers=1, heldout_share=0.1,
    selection=SelectionSettings(deduplicate="near"),
)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("module", "name"),
    [("selection", "_mark_exact"), ("selection", "write_json"), ("corpus_building", "_build_splits")],
    ids=["in the first pass", "while it is saved", "between the passes"],
)
def test_killed_and_started_again(
    build: Callable[..., Manifest], tiny_tokenizer: Path, tmp_path: Path, module: str, name: str
) -> None:
    source = write(tmp_path / "all.jsonl", planted("en")[0])
    build("whole", source, NEAR)
    arguments = [str(source), str(tiny_tokenizer), str(tmp_path / "store"), module, name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / ".store.building" / "selection").exists() == (name == "_build_splits")
    build("store", source, NEAR)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "whole")
    assert not list(tmp_path.glob(".store*"))


@pytest.mark.parametrize("change", ["text", "settings", "damage", "rules", "nothing"])
def test_what_was_decided_about_something_else_is_not_used(
    build: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    documents = planted("en")[0]
    source = write(tmp_path / "all.jsonl", documents)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus_building, "_build_splits", interrupt)
        build("store", source, EXACT)
    chosen = EXACT
    if change == "text":
        write(source, [*documents[:10], "Another one.", *documents[10:]])
    elif change == "settings":
        chosen = NEAR
    elif change == "damage":
        array = tmp_path / ".store.building" / "selection" / "reasons.npy"
        array.write_bytes(array.read_bytes()[:-1] + b"\x01")
    elif change == "rules":
        monkeypatch.setattr(selection, "_RULES_VERSION", 0)
    passes = []
    whole_pass = selection._pass
    monkeypatch.setattr(selection, "_pass", lambda *args: passes.append(1) or whole_pass(*args))
    build("store", source, chosen)
    assert len(passes) == (0 if change == "nothing" else 1)
    build("fresh", source, chosen)
    assert snapshot(tmp_path / "store") == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["another", "fewer", "more"])
def test_text_that_changes_while_it_is_read(
    build: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    documents = planted("en")[0]
    source = write(tmp_path / "all.jsonl", documents)
    changed = {"another": [*documents[:-1], "?"], "fewer": documents[:-1], "more": [*documents, "?"]}[change]
    reads = iter([documents, changed])
    monkeypatch.setattr(
        corpus_building, "iter_documents", lambda *_, **__: iter([Document(text, "") for text in next(reads)])
    )
    with pytest.raises(CorpusError, match=r"document 12[01] is not what it was.*Run the command again"):
        build("store", source, EXACT)
    assert not (tmp_path / ".store.building" / "selection").exists(), "it would be wrong the next time as well"
    monkeypatch.setattr(corpus_building, "iter_documents", iter_documents)
    build("store", source, EXACT)
