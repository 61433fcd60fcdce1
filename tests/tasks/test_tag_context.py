"""Tagging in documents: what a sentence is shown with, that it changes nothing but that, and the same in prediction."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from bertsmith.deploy.predict import load
from bertsmith.errors import SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import choose_rows, split_rows
from bertsmith.tasks.tag import Tagging, TaggingExample
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings, in_documents, read_rows
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer

MakeFiles = Callable[[dict[str, str | bytes]], Path]

LABELS = ("O", "B-X", "I-X")
IN_CONTEXT = TaggingSettings(max_length=14, doc_stride=5, scheme="iob2", context="document")
DOCUMENTS = (
    (("the", "old", "king", "sat", "."), ("he", "zzq"), ("she", "reads", "by", "day"), ("fish",)),
    (("a", "dog"),),
    (("two", "birds") * 10, ("it",), ("not", "a", "large", "city", "!")),  # the first is longer than a sequence
)
"""Documents of sentences of words; no word is in two documents."""


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm: Path) -> Tokenizer:
    return load_tokenizer(minilm)


def conll(documents: Sequence[Sequence[Sequence[str]]] = DOCUMENTS) -> str:
    """As CoNLL-2003 has it; the third word of a sentence is an entity."""
    blocks = []
    for document in documents:
        blocks.append("-DOCSTART- -X- -X- O")
        for words in document:
            blocks.append("\n".join(f"{word} NN B-NP {'B-X' if n == 2 else 'O'}" for n, word in enumerate(words)))
    return "\n\n".join(blocks) + "\n\n"


def straight_reading(tokenizer: Tokenizer, document: Sequence[Sequence[str]], place: int, room: int) -> list[int]:
    """The sentence, and tokens from the left and the right of it in turn until there is no room or nothing left."""
    sentences = [tokenizer.encode_words(words)[0].tolist() for words in document]
    left, right = (list(chain.from_iterable(side)) for side in (sentences[:place], sentences[place + 1 :]))
    shown = sentences[place]
    while len(shown) < room and (left or right):
        if left:
            shown = [left.pop(), *shown]
        if right and len(shown) < room:
            shown = [*shown, right.pop(0)]
    return [tokenizer.cls_id, *shown, tokenizer.sep_id]


def encode(tokenizer: Tokenizer, rows: Sequence[TaggingRow], chosen: TaggingSettings) -> list[TaggingExample]:
    return Tagging(tokenizer, LABELS, chosen, {}).encode(rows)


def encoder(tokenizer: Tokenizer) -> Encoder:
    torch.manual_seed(1)
    return Encoder(
        EncoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )


# What is shown


@pytest.mark.parametrize("max_length", [3, 8, 13, 14, 60])
def test_each_sentence_is_shown_with_its_document_and_no_other(
    tokenizer: Tokenizer, make_files: MakeFiles, max_length: int
) -> None:
    path = make_files({"train.conll": conll()}) / "train.conll"
    chosen, rows = read_rows(str(path), replace(IN_CONTEXT, max_length=max_length))
    alone = encode(tokenizer, rows, replace(chosen, context="none"))
    examples = iter(zip(encode(tokenizer, rows, chosen), alone, strict=True))
    for document in DOCUMENTS:
        for place, words in enumerate(document):
            example, other = next(examples)
            ids, index = tokenizer.encode_words(words)
            if len(ids) > max_length - 2:  # no room for anything else
                assert len(example.token_ids) == len(other.token_ids) > 1
                assert np.array_equal(np.concatenate(example.token_ids), np.concatenate(other.token_ids))
                assert example.word_positions.tolist() == other.word_positions.tolist()
                continue
            (shown,) = example.token_ids
            assert shown.tolist() == straight_reading(tokenizer, document, place, max_length - 2)
            assert shown[example.word_positions].tolist() == [ids[index.tolist().index(w)] for w in range(len(words))]
            assert other.token_ids[0].tolist() == [tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id]
            assert example.row.words == words and len(example.row.tags or ()) == len(words)
    assert next(examples, None) is None


def test_without_the_option_marks_of_documents_change_nothing(tokenizer: Tokenizer, make_files: MakeFiles) -> None:
    marked = conll()
    folder = make_files({"marked.conll": marked, "plain.conll": marked.replace("-DOCSTART- -X- -X- O\n\n", "")})
    read = [read_rows(str(folder / f"{name}.conll"), TaggingSettings(max_length=14))[1] for name in ("marked", "plain")]
    marked_rows, plain_rows = read
    assert not any(row.neighbours for rows in read for row in rows)
    assert (
        [row.group for row in marked_rows]
        == [row.group for row in plain_rows]
        == [" ".join(r.words or ()) for r in marked_rows]
    )
    chosen = TaggingSettings(max_length=14, scheme="iob2")
    for one, other in zip(*(encode(tokenizer, rows, chosen) for rows in read), strict=True):
        assert all(map(np.array_equal, one.token_ids, other.token_ids))
        assert one.word_positions.tolist() == other.word_positions.tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.text(max_size=9), max_size=9)), min_size=1, max_size=6
    ),
    max_length=st.integers(3, 30),
    context=st.sampled_from(["none", "document"]),
    data=st.data(),
)
def test_the_labels_of_words_come_back_whatever_the_words_are(
    minilm_tokenizer: Tokenizer,
    sentences: list[tuple[str, list[str]]],
    max_length: int,
    context: Any,
    data: st.DataObject,
) -> None:
    rows = [TaggingRow("x", tuple(words), None, None, document) for document, words in sentences]
    task = Tagging(minilm_tokenizer, LABELS, replace(IN_CONTEXT, max_length=max_length, context=context), {})
    examples = task.encode(rows)
    batch = task.collate(examples)
    assert max(len(ids) for example in examples for ids in example.token_ids) <= max_length
    first_pieces = [int(minilm_tokenizer.encode_words([word])[0][0]) for _, words in sentences for word in words]
    is_first = np.concatenate([np.diff(example.words, prepend=-1) > 0 for example in examples])
    assert batch.inputs.token_ids[batch.labels["word_positions"]][is_first].tolist() == first_pieces
    labels = [data.draw(st.sampled_from(LABELS)) for _ in is_first]
    ids = torch.tensor([LABELS.index(label) for label in labels], dtype=torch.int64)
    answers = task.decode((torch.ones(len(labels)), ids), batch)
    assert [label for answer in answers for label in answer.labels] == list(itertools.compress(labels, is_first))
    for (_, words), example, answer in zip(sentences, examples, answers, strict=True):
        assert list(answer.words) == words == [example.text[a:b] for a, b in answer.word_spans.tolist()]


def test_rows_and_raw_text_have_documents_too(tokenizer: Tokenizer, make_files: MakeFiles) -> None:
    lines = [
        {"words": words, "tags": ["B-X"] + ["O"] * (len(words) - 1), **({"document": name} if name else {})}
        for name, words in (("a", ["the", "cat"]), ("a", ["it"]), (7, ["a", "dog"]), (7, ["he"]), (None, ["fish"]))
    ]
    path = make_files({"train.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}) / "train.jsonl"
    chosen, rows = read_rows(str(path), replace(IN_CONTEXT, scheme="auto"))
    assert [len(row.neighbours) for row in rows] == [2, 2, 2, 2, 1]
    assert all(row.neighbours[row.place] is row for row in rows)
    task = Tagging(tokenizer, LABELS, chosen, {})
    given = [{"text": " ".join(line["words"]), "document": line.get("document")} for line in lines]
    from_text = task.encode([task.row(value, "row") for value in given])
    for one, other in zip(from_text, task.encode(rows), strict=True):
        assert one.token_ids[0].tolist() == other.token_ids[0].tolist()
        assert one.word_positions.tolist() == other.word_positions.tolist()


# What is learnt


def test_only_words_of_the_sentence_itself_are_learnt(tokenizer: Tokenizer, make_files: MakeFiles) -> None:
    path = make_files({"train.conll": conll(DOCUMENTS[:1])}) / "train.conll"
    chosen, rows = read_rows(str(path), IN_CONTEXT)
    task = Tagging(tokenizer, LABELS, chosen, {"train": rows})
    batch = task.collate(task.examples("train").items)
    words = [word for sentence in DOCUMENTS[0] for word in sentence]
    assert batch.counts == {"tagging": float(len(words))}
    model = task.build(encoder(tokenizer)).eval()
    logits = torch.split(model.tokens(model.encoder(batch.inputs)).detach(), batch.inputs.lengths)
    expected = 0.0
    for place, (sentence, part) in enumerate(zip(DOCUMENTS[0], logits, strict=True)):
        shown = straight_reading(tokenizer, DOCUMENTS[0], place, IN_CONTEXT.max_length - 2)
        ids, index = tokenizer.encode_words(sentence)
        # The sentence stands behind as much as half of the room, or what there is, or what the other side leaves.
        (start,) = [n for n in range(len(shown)) if shown[n : n + len(ids)] == ids.tolist()]
        for word in range(len(sentence)):
            tag = "B-X" if word == 2 else "O"
            expected -= part[start + index.tolist().index(word)].log_softmax(-1)[LABELS.index(tag)].item()
    assert task.loss(model, batch)["tagging"].item() == pytest.approx(expected, rel=1e-5)
    assert task.notes()[1].endswith("documents: 1 in train.")


def test_what_only_the_sentence_before_decides_is_learnt_with_context_alone(tokenizer: Tokenizer) -> None:
    rows = [
        TaggingRow("x", words, None, tags, document)
        for document, words, tags in (
            ("a", ("the", "cat"), ("O", "O")),
            ("a", ("it",), ("B-X",)),
            ("b", ("the", "river"), ("O", "O")),
            ("b", ("it",), ("O",)),
        )
    ]
    found = {}
    for context in ("none", "document"):
        task = Tagging(tokenizer, LABELS, replace(IN_CONTEXT, context=context), {})  # type: ignore[arg-type]
        model = task.build(encoder(tokenizer)).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        batch = task.collate(task.encode(rows))
        for _ in range(60):
            optimizer.zero_grad()
            task.loss(model, batch)["tagging"].backward()
            optimizer.step()
        with torch.inference_mode():
            answers = task.decode(task.predict(model, batch), batch)
        found[context] = [answer.labels for answer in answers] == [row.tags for row in rows]
    assert found == {"none": False, "document": True}


def test_rows_that_are_chosen_keep_their_neighbours(tokenizer: Tokenizer, make_files: MakeFiles) -> None:
    path = make_files({"train.conll": conll()}) / "train.conll"
    chosen, rows = read_rows(str(path), IN_CONTEXT)
    whole = {example.row.where: example for example in encode(tokenizer, rows, chosen)}
    for example in encode(tokenizer, choose_rows(rows, 3), chosen):
        assert all(map(np.array_equal, example.token_ids, whole[example.row.where].token_ids))


def test_documents_are_held_back_as_a_whole(tokenizer: Tokenizer, make_files: MakeFiles) -> None:
    documents = [[("day", str(number)), ("the", "same"), ("it",)] for number in range(30)]
    path = make_files({"train.conll": conll(documents)}) / "train.conll"
    _, rows = read_rows(str(path), replace(IN_CONTEXT, scheme="none"))
    train, dev = split_rows(rows, 0.2)
    sides = [{row.document for row in side} for side in (train, dev)]
    assert not sides[0] & sides[1] and len(train) == 3 * len(sides[0]) and len(dev) == 3 * len(sides[1]) > 0
    (path.parent / "turned.conll").write_text(conll(documents[::-1]))
    _, turned = split_rows(read_rows(str(path.parent / "turned.conll"), replace(IN_CONTEXT, scheme="none"))[1], 0.2)
    assert sorted(row.words or () for row in turned) == sorted(row.words or () for row in dev)
    with pytest.raises(SettingsError, match=r"with 1 different texts \(with context: documents\)"):
        split_rows(in_documents([replace(row, document="") for row in rows]), 0.2)


# From training to prediction


@pytest.fixture(scope="module")
def run(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger that was taught in context, for a moment."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "train.conll").write_text(conll())
    chosen = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        train=str(folder / "train.conll"),
        dev_share=0.0,
        test=str(folder / "train.conll"),
        out=folder / "out",
        learning_rate=3e-3,
        epochs=2,
        batch_size=4,
        precision="fp32",
        device="cpu",
    )
    finetune("tagging", chosen, replace(IN_CONTEXT, scheme="auto"), console=Console(quiet=True))
    return folder


def words(document: Sequence[Sequence[str]], name: str) -> Iterator[Mapping[str, Any]]:
    for sentence in document:
        yield {"words": list(sentence), "document": name}


@pytest.mark.parametrize("read_ahead", [2, 3, 256])
def test_prediction_sees_what_evaluation_sees(run: Path, read_ahead: int) -> None:
    assert json.loads((run / "out/model/bertsmith.json").read_text())["settings"]["context"] == "document"
    expected_file = run / f"expected-{read_ahead}.jsonl"
    evaluate(run / "out", str(run / "train.conll"), predictions=expected_file, precision="fp32", device="cpu")
    expected = [json.loads(line) for line in expected_file.read_text().splitlines()]
    rows = [row for number, document in enumerate(DOCUMENTS) for row in words(document, str(number))]
    answers = list(load(run / "out", device="cpu").predict(rows, read_ahead=read_ahead))
    assert [[word["text"] for word in answer["words"]] for answer in answers] == [row["words"] for row in rows]
    for answer, other in zip(answers, expected, strict=True):
        assert [word["label"] for word in answer["words"]] == [word["label"] for word in other["words"]]
        scores = [[word["score"] for word in one["words"]] for one in (answer, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    # And what it sees matters.
    predictor = load(run / "out", device="cpu")
    (alone,) = predictor.predict(rows[2:3])
    assert abs(alone["words"][0]["score"] - answers[2]["words"][0]["score"]) > 1e-4


def test_lines_that_are_answered_at_once_see_those_before_them(run: Path) -> None:
    predictor = load(run / "out", device="cpu")
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for sentence in DOCUMENTS[0]:
            taken += 1
            yield " ".join(sentence)

    answers = predictor.predict(lines(), read_ahead=1)
    for number in range(len(DOCUMENTS[0])):
        answer = next(answers)
        assert taken == number + 1
        *_, expected = predictor.predict([" ".join(sentence) for sentence in DOCUMENTS[0][: number + 1]])
        scores = [[word["score"] for word in one["words"]] for one in (answer, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_context_can_be_left_away_when_a_model_is_evaluated(run: Path) -> None:
    without = run / "without.jsonl"
    evaluate(
        run / "out",
        str(run / "train.conll"),
        overrides={"context": "none"},
        predictions=without,
        precision="fp32",
        device="cpu",
    )
    (alone,) = load(run / "out", device="cpu").predict([{"words": list(DOCUMENTS[0][2])}])
    line = json.loads(without.read_text().splitlines()[2])
    assert [word["score"] for word in line["words"]] == pytest.approx([w["score"] for w in alone["words"]], abs=1e-5)
