"""Tagging: words to pieces and back, windows, loss, scores, spans in the user's own text."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks import rows as rows_module
from bertsmith.tasks.saved import TASKS, read_training_rows
from bertsmith.tasks.tag import Tagging, TaggingAnswer, TaggingExample
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings, find_labels, read_rows
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer
from bertsmith.text.windows import windows
from bertsmith.training.report import Matrix, Table
from bertsmith.training.task import Batch

MakeFiles = Callable[[dict[str, str | bytes]], Path]

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
SMALL = TaggingSettings(max_length=12, doc_stride=4, scheme="iob2")
WORDS = ("the", "old", "king", "sat", "by", "zzqxy", "river", ".")
TAGS = ("O", "B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm: Path) -> Tokenizer:
    return load_tokenizer(minilm)


@pytest.fixture(scope="module")
def tokenizers(minilm: Path, tiny_documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tokenizer]:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    trained = {
        kind: train_tokenizer([str(tiny_documents)], folder / kind, kind=kind, vocab_size=400)
        for kind in ("bpe", "unigram")
    }
    return {"wordpiece": load_tokenizer(minilm), **trained}


def sentence(words: Sequence[str] = WORDS, tags: Sequence[str] | None = TAGS) -> TaggingRow:
    return TaggingRow("train.conll:1", tuple(words), None, None if tags is None else tuple(tags))


def make(
    tokenizer: Tokenizer, *rows: TaggingRow, chosen: TaggingSettings = SMALL, labels: Sequence[str] = LABELS
) -> Tagging:
    return Tagging(tokenizer, labels, chosen, {"dev": rows})


def items(task: Tagging) -> list[TaggingExample]:
    examples = task.examples("dev")
    return list(examples.take(range(examples.num_examples(0)), 0))


def encoder(tokenizer: Tokenizer) -> Encoder:
    torch.manual_seed(1)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return Encoder(config)


def decode(task: Tagging, batch: Batch, labels: Sequence[str]) -> list[TaggingAnswer]:
    """Answers of a model that is sure of these labels, one a word of the batch."""
    ids = torch.tensor([task.labels.index(label) for label in labels], dtype=torch.int64)
    return task.decode((torch.full((len(labels),), 0.9), ids), batch)


# Words, pieces and windows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.text(max_size=9), max_size=14), min_size=1, max_size=3),
    step=st.integers(1, 12),
    data=st.data(),
)
def test_the_labels_of_words_come_back_whatever_the_words_are(minilm_tokenizer, rows, step, data):
    chosen = replace(SMALL, doc_stride=step)
    task = make(minilm_tokenizer, *(sentence(words, None) for words in rows), chosen=chosen)
    batch = task.collate(items(task))
    first_pieces = [int(minilm_tokenizer.encode_words([word])[0][0]) for words in rows for word in words]
    is_first = np.concatenate([np.diff(example.words, prepend=-1) > 0 for example in items(task)])
    assert batch.inputs.token_ids[batch.labels["word_positions"]][is_first].tolist() == first_pieces
    drawn = [data.draw(st.sampled_from(LABELS)) for _ in is_first]
    answers, labels = decode(task, batch, drawn), list(itertools.compress(drawn, is_first))
    assert [label for answer in answers for label in answer.labels] == labels
    assert [list(answer.words) for answer in answers] == rows
    for words, example, answer in zip(rows, items(task), answers, strict=True):
        assert [example.text[a:b] for a, b in answer.word_spans.tolist()] == words
        assert max(map(len, example.token_ids)) <= SMALL.max_length


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text("a .\n\t\u3000中", max_size=20), data=st.data())
def test_what_is_found_in_raw_text_is_a_slice_of_it(tokenizers, kind, text, data):
    task = make(tokenizers[kind])
    (example,) = task.encode([task.row(text, "stdin:1")])
    batch = task.collate([example])
    number = len(example.word_positions)
    labels = [data.draw(st.sampled_from(LABELS)) for _ in range(number)]
    (answer,) = decode(task, batch, labels)
    spans = answer.word_spans.tolist()
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    assert all(word == text[a:b] and word.strip() == word for word, (a, b) in zip(answer.words, spans, strict=True))
    for entity in answer.entities:
        assert entity.text == text[entity.start : entity.end]
        assert (entity.start, entity.end) == (spans[entity.start_word][0], spans[entity.end_word - 1][1])


def test_words_of_raw_text_are_those_of_the_tokenizer(minilm_tokenizer):
    task = make(minilm_tokenizer)
    text = "Zoë's  café, in Zürich: 東京!"
    (example,) = task.encode([task.row({"text": text}, "x")])
    assert [text[a:b] for a, b in example.word_spans.tolist()] == [
        "Zoë", "'", "s", "café", ",", "in", "Zürich", ":", "東", "京", "!",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_raw_text_is_read_as_words_that_someone_has_split(tokenizers, kind):
    """Where tokens hold the space before a word, "Paris," would be one word, and its tokens others than in training."""
    task = make(tokenizers[kind])
    raw, split = task.encode([
        task.row({"text": " Zoë's  café, (in 東京)!"}, "x"),
        task.row({"words": ["Zoë", "'", "s", "café", ",", "(", "in", "東", "京", ")", "!"]}, "x"),
    ])  # fmt: skip
    assert [raw.text[a:b] for a, b in raw.word_spans.tolist()] == list(split.row.words)
    assert [ids.tolist() for ids in raw.token_ids] == [ids.tolist() for ids in split.token_ids]
    assert raw.word_positions.tolist() == split.word_positions.tolist()


def test_chinese_words_are_learnt_in_the_parts_that_raw_text_has(minilm_tokenizer):
    words, tags = ["Ada", "在", "北京", "买", "T恤"], ["B-PER", "O", "B-LOC", "O", "B-PER"]
    task = make(minilm_tokenizer, sentence(words, tags))
    (split,) = items(task)
    (raw,) = task.encode([task.row("Ada 在北京买T恤", "x")])
    assert split.token_ids[0].tolist() == raw.token_ids[0].tolist()
    assert split.word_positions.tolist() == raw.word_positions.tolist()
    assert split.words.tolist() == [0, 1, 2, 2, 3, 4, 4]
    assert [task.labels[target] for target in split.targets] == ["B-PER", "O", "B-LOC", "I-LOC", "O", "B-PER", "I-PER"]
    # Scored on the words as they were given.
    labels = ["B-PER", "O", "B-LOC", "O", "O", "O", "B-PER"]
    (answer,) = decode(task, task.collate([split]), labels)
    assert answer.labels == ("B-PER", "O", "B-LOC", "O", "O") and answer.words == tuple(words)
    assert task.score([answer], [split])["recall"] == pytest.approx(2 / 3)
    (answer,) = decode(task, task.collate([raw]), labels)
    assert [answer.words[word] for word, label in enumerate(answer.labels) if label != "O"] == ["Ada", "北", "恤"]


def test_chinese_words_of_one_label_each_are_learnt_in_their_parts(minilm_tokenizer):
    row = sentence(["我", "爱", "北京"], ["PRON", "VERB", "PROPN"])
    task = Tagging(minilm_tokenizer, ("PRON", "PROPN", "VERB"), TaggingSettings(scheme="none"), {"train": [row]})
    (example,) = task.examples("train").items
    assert [task.labels[target] for target in example.targets] == ["PRON", "VERB", "PROPN", "PROPN"]


def test_a_long_sentence_gives_each_word_to_the_window_that_sees_most_around_it(tokenizer):
    words = [("cat", "zz", "dog", "bird")[i % 4] for i in range(40)]
    task = make(tokenizer, sentence(words, None))
    (example,) = items(task)
    ids, index = tokenizer.encode_words(words)
    parts = windows(len(ids), SMALL.max_length - 2, SMALL.doc_stride)
    assert len(parts) == len(example.token_ids) > 5
    assert example.num_tokens == sum(len(part) + 2 for part in parts)
    starts = np.cumsum([0, *(len(part) + 2 for part in parts)])
    for word, position in enumerate(example.word_positions.tolist()):
        piece = int(np.flatnonzero(index == word)[0])
        owner = int(np.searchsorted(starts, position, side="right")) - 1
        assert piece == position - starts[owner] - 1 + parts[owner].start
        seen = [min(piece - w.start, w.end - 1 - piece) if w.start <= piece < w.end else -1 for w in parts]
        assert seen[owner] == max(seen)


def test_windows_of_a_long_sentence_go_through_the_model_in_parts(tokenizer, monkeypatch):
    task = make(tokenizer, sentence(WORDS * 6, None), sentence(("cat",), None))
    batch = task.collate(items(task))
    model = task.build(encoder(tokenizer)).eval()
    with torch.inference_mode():
        whole = task.predict(model, batch)
        monkeypatch.setattr(task, "logits", recorded := Recorded(task.logits))
        monkeypatch.setattr(rows_module.sub_batches, "__defaults__", (30,))
        torch.testing.assert_close(task.predict(model, batch), whole)
    assert len(recorded.sizes) > 3 and max(recorded.sizes) <= 30


class Recorded:
    """`logits` of a task, and how many tokens it was asked about each time."""

    def __init__(self, logits: Callable[..., torch.Tensor]) -> None:
        self.sizes: list[int] = []
        self._logits = logits

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        self.sizes.append(sum(batch.inputs.lengths))
        return self._logits(model, batch)


def test_a_sentence_without_words_is_answered_with_nothing(tokenizer):
    task = make(tokenizer, sentence((), ()), sentence())
    batch = task.collate(items(task))
    model = task.build(encoder(tokenizer)).eval()
    with torch.inference_mode():
        empty, other = task.decode(task.predict(model, batch), batch)
    assert (empty.words, empty.labels, empty.entities) == ((), (), ())
    assert len(other.labels) == len(WORDS)


# Loss


def test_loss_is_the_sum_over_first_pieces_only(tokenizer):
    task = make(tokenizer, sentence(), sentence(("cat", "zzz"), ("O", "B-LOC")), chosen=replace(SMALL, max_length=30))
    batch = task.collate(items(task))
    assert batch.counts == {"tagging": 10.0}
    model = task.build(encoder(tokenizer)).eval()
    loss = task.loss(model, batch)["tagging"]
    logits = torch.split(model.tokens(model.encoder(batch.inputs)).detach(), batch.inputs.lengths)
    expected = 0.0
    for part, row in zip(logits, (sentence(), sentence(("cat", "zzz"), ("O", "B-LOC"))), strict=True):
        assert row.words is not None and row.tags is not None
        _, index = tokenizer.encode_words(row.words)
        for word, tag in enumerate(row.tags):
            first = 1 + index.tolist().index(word)
            expected -= part[first].log_softmax(-1)[LABELS.index(tag)].item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    smoothed = make(tokenizer, sentence(), chosen=replace(SMALL, label_smoothing=0.2))
    plain = make(tokenizer, sentence())
    values = [one.loss(model, one.collate(items(one)))["tagging"].item() for one in (smoothed, plain)]
    assert values[0] != pytest.approx(values[1])


def test_class_weights_weigh_each_word_by_its_label(tokenizer):
    rows = [sentence(), sentence(("cat",), ("B-LOC",))]
    weighted = Tagging(tokenizer, LABELS, replace(SMALL, class_weights="B-PER=3,O=0.25"), {"train": rows})
    plain = Tagging(tokenizer, LABELS, SMALL, {"train": rows})
    batches = [task.collate(task.examples("train").items) for task in (weighted, plain)]
    # Four O, one B-PER, and four words that weigh 1.
    assert [batch.counts["tagging"] for batch in batches] == [4 * 0.25 + 3 + 4, 9.0]
    model = plain.build(encoder(tokenizer)).eval()
    alone = [task.loss(model, task.collate(task.examples("train").items[1:]))["tagging"] for task in (weighted, plain)]
    assert alone[0].item() == pytest.approx(alone[1].item())
    assert weighted.loss(model, batches[0])["tagging"].item() != pytest.approx(
        plain.loss(model, batches[1])["tagging"].item()
    )
    with pytest.raises(SettingsError, match='Did you mean "B-PER"'):
        Tagging(tokenizer, LABELS, replace(SMALL, class_weights="B-PERS=3"), {"train": rows})


def test_a_model_that_learns_the_rows_tags_them(tokenizer):
    task = make(tokenizer, sentence(), sentence(("queen", "of", "zzq"), ("B-PER", "O", "B-LOC")))
    model = task.build(encoder(tokenizer)).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = task.collate(items(task))
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(model, batch)["tagging"].backward()
        optimizer.step()
    with torch.inference_mode():
        answers = task.decode(task.predict(model, batch), batch)
    assert [answer.labels for answer in answers] == [TAGS, ("B-PER", "O", "B-LOC")]
    assert [(e.label, e.text) for e in answers[0].entities] == [("PER", "old king"), ("LOC", "zzqxy river")]
    assert next(iter(task.score(answers, items(task)).items())) == ("f1", 1.0)


# Scores, answers for people, the report


def test_scores_of_entities_and_words(tokenizer):
    task = make(tokenizer, sentence(), sentence(("cat", "dog"), ("O", "O")))
    batch = task.collate(items(task))
    predicted = ["O", "B-PER", "I-PER", "O", "O", "B-LOC", "O", "O", "I-LOC", "O"]
    answers = decode(task, batch, predicted)
    scores = task.score(answers, items(task))
    assert list(scores) == ["f1", "precision", "recall", "accuracy", "f1_LOC", "f1_PER"]
    # Found: PER (right), a LOC that is too short, a LOC made up; wanted: PER and LOC.
    assert (scores["precision"], scores["recall"], scores["f1"]) == (pytest.approx(1 / 3), 0.5, pytest.approx(0.4))
    assert (scores["f1_PER"], scores["f1_LOC"], scores["accuracy"]) == (1.0, 0.0, 0.8)
    by_accuracy = make(tokenizer, chosen=replace(SMALL, metric="accuracy"))
    assert next(iter(by_accuracy.score(answers, items(task)))) == "accuracy"


def test_scores_of_parts_of_speech(tokenizer):
    labels = ("ADJ", "NOUN", "VERB")
    row = sentence(("cat", "sat", "red", "dog"), ("NOUN", "VERB", "ADJ", "NOUN"))
    task = make(tokenizer, row, chosen=replace(SMALL, scheme="none"), labels=labels)
    batch = task.collate(items(task))
    predicted = ["NOUN", "NOUN", "ADJ", "NOUN"]
    answers = decode(task, batch, predicted)
    scores = task.score(answers, items(task))
    assert list(scores) == ["accuracy", "macro_f1"]
    assert scores["accuracy"] == 0.75
    expected = metrics.f1_score(row.tags, predicted, average="macro", zero_division=0)
    assert scores["macro_f1"] == pytest.approx(expected)
    assert "entities" not in task.to_json(answers[0])
    table, matrix, worst = task.sections(answers, items(task))
    assert isinstance(table, Table) and isinstance(matrix, Matrix) and isinstance(worst, Table)
    assert list(table.rows)[2][0] == "VERB"
    assert matrix.counts == [[1, 0, 0], [0, 2, 0], [0, 1, 0]]
    assert list(worst.rows) == [(1, "sat (VERB)", "sat (NOUN)", "cat sat red dog", "train.conll:1")]


def test_a_matrix_of_many_labels_is_left_out_and_that_is_said(tokenizer):
    labels = tuple(f"L{number}" for number in range(41))
    row = sentence(("cat", "sat"), ("L3", "L40"))
    task = make(tokenizer, row, chosen=replace(SMALL, scheme="none"), labels=labels)
    answers = decode(task, task.collate(items(task)), ["L3", "L3"])
    table, worst = task.sections(answers, items(task))
    assert (table.title, worst.title) == ("By label", "Worst sentences")
    assert table.note == "There is no confusion matrix: 41 labels are too many; it can be read up to 40."


def test_answers_as_json_with_words_and_entities(tokenizer):
    text = "The old  KING."
    task = make(tokenizer)
    examples = task.encode([task.row(text, "x")])
    (answer,) = decode(task, task.collate(examples), ["O", "B-PER", "I-PER", "O"])
    value = json.loads(json.dumps(task.to_json(answer)))
    assert [(word["text"], word["label"]) for word in value["words"]] == [
        ("The", "O"), ("old", "B-PER"), ("KING", "I-PER"), (".", "O"),
    ]  # fmt: skip
    (entity,) = value["entities"]
    assert entity == {
        "label": "PER", "start": 4, "end": 13, "text": "old  KING", "start_word": 1, "end_word": 3,
        "score": pytest.approx(0.9 , abs=1e-6),
    }  # fmt: skip
    assert text[entity["start"] : entity["end"]] == entity["text"]


def test_sections_show_types_and_the_worst_sentences(tokenizer):
    task = make(tokenizer, sentence(), sentence(("cat", "dog"), ("O", "O")), sentence(("cat",), ("B-PER",)))
    batch = task.collate(items(task))
    answers = decode(task, batch, [*TAGS[:5], "O", "O", "O", "B-LOC", "B-LOC", "B-PER"])
    entities, lengths, worst = task.sections(answers, items(task))
    assert isinstance(entities, Table) and isinstance(lengths, Table) and isinstance(worst, Table)
    assert lengths.rows == [("1", pytest.approx(1 / 3), 1.0, 0.5, 1, 3), ("2", 1.0, 0.5, pytest.approx(2 / 3), 2, 1)]
    assert [(row[0], row[4], row[5]) for row in entities.rows] == [("LOC", 1, 2), ("PER", 2, 2), ("all", 3, 4)]
    assert [row[:3] for row in worst.rows] == [(2, "", "cat (LOC), dog (LOC)"), (1, "zzqxy river (LOC)", "")]
    assert worst.note == "2 of 3 sentences have a mistake."
    assert "neighbours share 6" in task.notes()[0]


# Reading


@pytest.mark.parametrize(
    ("tags", "scheme", "expected"),
    [
        (("I-PER", "I-PER", "B-PER", "O"), "iob1", ("B-PER", "I-PER", "B-PER", "O")),
        (("B-PER", "I-PER", "B-PER", "O"), "iob2", ("B-PER", "I-PER", "B-PER", "O")),
        (("B-PER", "E-PER", "S-PER", "O"), "bioes", ("B-PER", "I-PER", "B-PER", "O")),
        (("B-PER", "M-PER", "E-PER", "O"), "bioes", ("B-PER", "I-PER", "I-PER", "O")),
        (("B", "I", "O", "B"), "iob2", ("B", "I", "O", "B")),
        (("DET", "ADJ", "NOUN", "PUNCT"), "none", ("DET", "ADJ", "NOUN", "PUNCT")),
    ],
)
def test_files_are_read_as_iob2_whatever_their_scheme(make_files, tags, scheme, expected):
    lines = "".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags))
    path = make_files({"train.conll": lines}) / "train.conll"
    found, (row,) = read_rows(str(path), TaggingSettings())
    assert found.scheme == scheme
    assert (row.words, row.tags, row.where) == (("w0", "w1", "w2", "w3"), expected, f"{path}:1")
    assert read_rows(str(path), TaggingSettings(scheme="none"))[1][0].tags == tags


def test_labels_have_both_prefixes_of_every_type():
    rows = [sentence(("a", "b", "c"), ("B-LOC", "O", "B-creative-work"))]
    assert find_labels(rows, SMALL) == ("O", "B-LOC", "I-LOC", "B-creative-work", "I-creative-work")
    assert find_labels([sentence(("a", "b"), ("B", "O"))], SMALL) == ("O", "B", "I")
    assert find_labels([sentence(("a", "b"), ("X", "NOUN"))], replace(SMALL, scheme="none")) == ("NOUN", "X")
    with pytest.raises(InputError, match='every word has the tag "O"'):
        find_labels([sentence(("a", "b"), ("O", "O"))], SMALL)


def test_rows_with_lists_of_words_and_tags(make_files):
    rows = [{"id": 1, "tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}, {"id": 2, "tokens": ["c"], "ner_tags": ["O"]}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    two = json.dumps({"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["NOUN"]}) + "\n"
    short = json.dumps({"words": ["a", "b"], "tags": ["O"]}) + "\n"
    folder = make_files({"train.jsonl": text, "two.jsonl": two, "short.jsonl": short})
    found, read = read_rows(str(folder / "train.jsonl"), TaggingSettings())
    assert (found.token_column, found.tag_column, found.scheme) == ("tokens", "ner_tags", "iob2")
    assert [row.words for row in read] == [("a", "b"), ("c",)]
    with pytest.raises(InputError, match=r"two.jsonl:1: cannot tell the tag_column.*ner_tags, pos_tags"):
        read_rows(str(folder / "two.jsonl"), TaggingSettings())
    assert read_rows(str(folder / "two.jsonl"), TaggingSettings(tag_column="pos_tags"))[1][0].tags == ("NOUN",)
    with pytest.raises(InputError, match=r"short.jsonl:1: 2 words but 1 tags"):
        read_rows(str(folder / "short.jsonl"), TaggingSettings())
    with pytest.raises(InputError, match='Did you mean "words"'):
        read_rows(str(folder / "short.jsonl"), TaggingSettings(token_column="word"))


def test_dev_may_be_of_another_format_than_train(make_files):
    folder = make_files({
        "rows.jsonl": json.dumps({"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}) + "\n",
        "columns.conll": "a O\nb B-X\n",
        "treebank.conllu": "1\ta\t_\tDET\t" + "\t".join("_" * 6) + "\n",
    })  # fmt: skip
    found, rows = read_rows(str(folder / "rows.jsonl"), TaggingSettings())
    _, others = read_rows(str(folder / "columns.conll"), found)
    assert [row.tags for row in others] == [row.tags for row in rows]
    assert read_rows(str(folder / "treebank.conllu"), replace(found, scheme="none"))[1][0].tags == ("DET",)
    by_number = TaggingSettings(token_column=0, tag_column=-1)
    assert [row.tags for row in read_rows(str(folder / "rows.jsonl"), by_number)[1]] == [("O", "B-X")]


def test_dev_may_have_other_usual_names_than_train(make_files):
    folder = make_files({
        "train.jsonl": json.dumps({"words": ["a", "b"], "tags": ["O", "B-X"]}) + "\n",
        "dev.jsonl": json.dumps({"tokens": ["a"], "ner_tags": ["O"]}) + "\n",
        "two.jsonl": json.dumps({"words": ["a"], "ner_tags": ["O"], "pos_tags": ["DET"]}) + "\n",
    })  # fmt: skip
    found, _ = read_training_rows(TASKS["tagging"], str(folder / "train.jsonl"), TaggingSettings())
    settled, (row,) = read_rows(str(folder / "dev.jsonl"), found)
    assert (row.words, row.tags) == (("a",), ("O",))
    assert (settled.token_column, settled.tag_column) == ("tokens", "ner_tags")
    with pytest.raises(InputError, match=r'two.jsonl:1: this row has no field "tags"'):
        read_rows(str(folder / "two.jsonl"), found)
    with pytest.raises(InputError, match=r'there is no column "tokens"\. token_column: did you mean "words"'):
        read_training_rows(TASKS["tagging"], str(folder / "train.jsonl"), TaggingSettings(token_column="tokens"))


def test_tags_before_their_words_are_not_learnt_as_words(make_files):
    """The layout of the MIT movie and restaurant data."""
    pairs = [("O", "what"), ("O", "is"), ("B-Title", "B-52"), ("I-Title", "O"), ("O", "I"), ("B-Year", "1990")] * 9
    first = "".join(f"{tag}\t{word}\n" for tag, word in [*pairs, ("O", "rated"), ("O", "good")])
    numbered = "".join(f"1\t{line}\n" for line in first.splitlines())
    letters = "O\tINTJ\nI\tPRON\nE\tNOUN\n"  # a text of nothing else
    folder = make_files({"mit.bio": first, "mit.iob2": numbered, "letters.conll": letters})
    with pytest.raises(
        InputError, match=r"mit.bio:1: words and tags .* Say --token-column -1 --tag-column 0 \(evaluate"
    ):
        read_rows(str(folder / "mit.bio"), TaggingSettings())
    with pytest.raises(InputError, match=r"Say --token-column 1 --tag-column 0 "):
        read_rows(str(folder / "mit.bio"), TaggingSettings(tag_column=1), [])
    with pytest.raises(InputError, match=r"mit.iob2:1: .* Say --token-column 2 --tag-column 1 "):
        read_rows(str(folder / "mit.iob2"), TaggingSettings())
    found, (row,) = read_rows(str(folder / "mit.bio"), TaggingSettings(token_column=-1, tag_column=0))
    assert (found.scheme, row.words[:3], row.tags[:3]) == ("iob2", ("what", "is", "B-52"), ("O", "O", "B-Title"))
    # Who says so has it so, and a text is none of tags for a few letters.
    both = TaggingSettings(token_column=0, tag_column=1, scheme="none")
    assert read_rows(str(folder / "mit.bio"), both)[1][0].words[0] == "O"
    assert read_rows(str(folder / "letters.conll"), TaggingSettings())[1][0].words == ("O", "I", "E")


@pytest.mark.parametrize(("name", "column"), [("columns.conll", "upos"), ("treebank.conllu", "ner_tags")])
def test_a_column_of_training_data_that_was_named_and_has_no_such_name_is_refused(make_files, name, column):
    folder = make_files(
        {"columns.conll": "a O\nb B-X\n", "treebank.conllu": "1\ta\t_\tDET\t" + "\t".join("_" * 6) + "\n"}
    )
    with pytest.raises(InputError, match=f'there is no column "{column}". tag_column: name one that is there'):
        read_training_rows(TASKS["tagging"], str(folder / name), TaggingSettings(tag_column=column))
    found, _ = read_training_rows(
        TASKS["tagging"], str(folder / "treebank.conllu"), TaggingSettings(tag_column="upos", scheme="none")
    )
    assert found.tag_column == "upos"


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (["B-LOC", "I-LOC", "I-PER", "O"], ["I-PER", "O", "I-LOC", "I-LOC", "B-LOC"]),
        (
            ["O", *(f"{one}-{kind}" for kind in ("LOC", "PER") for one in "BIES")],
            ["S-PER", "O", "B-LOC", "E-LOC", "S-LOC"],
        ),
        (
            ["O", *(f"{one}-{kind}" for kind in ("LOC", "PER") for one in "BILU")],
            ["U-PER", "O", "B-LOC", "L-LOC", "U-LOC"],
        ),
        (["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], ["B-PER", "O", "B-LOC", "I-LOC", "B-LOC"]),
    ],
    ids=["iob1", "bioes", "bilou", "iob2"],
)
def test_a_model_of_others_is_scored_in_the_scheme_of_its_own_labels(tokenizer, labels, own):
    gold = ("B-PER", "O", "B-LOC", "I-LOC", "B-LOC")
    row = TaggingRow("here", ("a", "b", "c", "d", "e"), None, gold)
    task = Tagging(tokenizer, labels, TaggingSettings(), {"test": [row]})
    (example,) = task.examples("test").items
    assert [labels[target] for target in example.targets] == own
    answer = task._answer(example, np.ones(5, dtype=np.float32), example.targets)
    figures = task.score([answer], [example])
    assert (figures["f1"], figures["accuracy"]) == (1.0, 1.0)


def test_files_without_sentences_and_tags_of_no_scheme(make_files):
    folder = make_files({"empty.conll": "\n\n", "odd.conll": "a B-PER\nb PERSON\nc O\n"})
    (folder / "no-words.jsonl").write_text('{"words": [], "tags": []}\n')
    with pytest.raises(InputError, match="no sentences with words"):
        read_rows(str(folder / "no-words.jsonl"), TaggingSettings())
    with pytest.raises(InputError, match="no sentences"):
        read_rows(str(folder / "empty.conll"), TaggingSettings())
    with pytest.raises(InputError, match=r'odd.conll:1: the tag "PERSON" of word 2'):
        read_rows(str(folder / "odd.conll"), TaggingSettings())


@pytest.mark.parametrize("context", ["none", "document"])
def test_a_file_of_which_no_sentence_can_be_used_is_an_error_where_bad_ones_are_passed_over(make_files, context):
    sentences = "# 0\nthe O\nking B-PER\n\n# 1\na O\ncat PERSON\n"
    path = make_files({"all.conll": sentences}) / "all.conll"
    bad: list[InputError] = []
    with pytest.raises(InputError, match=r'all.conll:1: the tag "0" of word 1'):
        read_rows(str(path), TaggingSettings(context=context), bad)
    assert len(bad) == 2


def test_a_tag_that_training_did_not_have_is_an_error_with_a_suggestion(tokenizer):
    with pytest.raises(InputError, match=r'"B-PERS" does not occur.*Did you mean "B-PER"'):
        make(tokenizer, sentence(("a",), ("B-PERS",)))


def test_rows_to_predict(tokenizer):
    task = make(tokenizer)
    assert task.row({"words": ["a", "b"]}, "x").words == ("a", "b")
    assert task.row({"tokens": ["a", "b"], "text": "a b"}, "x").words == ("a", "b")
    assert task.row({"text": "a b"}, "x") == task.row("a b", "x") == TaggingRow("x", None, "a b", None)
    for missing in (None, float("nan")):
        assert task.row({"text": "a b", "words": missing}, "x") == task.row("a b", "x")
        assert task.row({"tokens": ["a", "b"], "words": missing}, "x").words == ("a", "b")
    named = make(tokenizer, chosen=replace(SMALL, token_column="pieces"))
    assert named.row({"pieces": ["a"]}, "x").words == ("a",)
    with pytest.raises(InputError, match="x: give a row with"):
        task.row({"txt": "a b"}, "x")
    with pytest.raises(InputError, match="x: give a row with"):
        task.row({"words": None}, "x")
    with pytest.raises(InputError, match=r"x, words: a list wanted, str found. If this is .* --set text_column=words"):
        task.row({"words": "a b"}, "x")


def test_what_is_called_words_and_is_no_list_does_not_hide_the_text(tokenizer):
    task = make(tokenizer, chosen=replace(SMALL, token_column="tokens"))
    for count in ("2", 2, 2.0):
        assert task.row({"id": 1, "text": "a b", "tokens": count}, "x") == task.row("a b", "x")
        assert task.row({"Review": "a b", "words": count}, "x") == task.row("a b", "x")
        assert task.row({"text": "a b", "tokens": count, "words": ["a", "b"]}, "x").words == ("a", "b")
        with pytest.raises(
            InputError, match=r"x, tokens: a list wanted, \w+ found. If .* --set text_column=tokens; if"
        ):
            task.row({"id": 1, "body": "a b", "tokens": count}, "x")
    with pytest.raises(InputError, match="x, tokens: a list wanted, dict found"):
        task.row({"text": "a b", "tokens": {}}, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 2}, "max_length"),
        ({"doc_stride": 0}, "doc_stride"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(SettingsError, match=message):
        TaggingSettings(**values)


def test_metrics_that_do_not_go_with_the_labels(tokenizer):
    with pytest.raises(SettingsError, match="macro_f1"):
        make(tokenizer, chosen=replace(SMALL, metric="macro_f1"))
    with pytest.raises(SettingsError, match='"f1" does not go with'):
        make(tokenizer, chosen=replace(SMALL, scheme="none", metric="f1"))


def test_labels_of_another_toolkit_tell_whether_they_are_entities(tokenizer):
    auto = replace(SMALL, scheme="auto")
    assert make(tokenizer, chosen=auto).has_entities
    assert not make(tokenizer, chosen=auto, labels=("ADJ", "NOUN")).has_entities
    # Some have a label for what is no word. It is none of an entity.
    task = make(tokenizer, chosen=auto, labels=("O", "B-PER", "I-PER", "X"))
    (example,) = task.encode([task.row({"words": ["the", "old", "king"]}, "x")])
    (answer,) = decode(task, task.collate([example]), ["B-PER", "X", "I-PER"])
    assert [(one.label, one.start_word, one.end_word) for one in answer.entities] == [("PER", 0, 1), ("PER", 2, 3)]


def test_a_model_with_too_few_positions_is_refused(tokenizer):
    with pytest.raises(SettingsError, match="takes 1 to 64 tokens"):
        make(tokenizer, chosen=replace(SMALL, max_length=65)).build(encoder(tokenizer))


def test_real_sentences_go_through(shared_data, minilm_tokenizer):
    chosen, rows = read_rows(str(shared_data / "tag" / "wnut17-dev.conll"), TaggingSettings())
    labels = find_labels(rows, chosen)
    assert len(labels) == 13
    task = make(minilm_tokenizer, *rows, chosen=chosen, labels=labels)
    examples = items(task)
    gold = [tag for row in rows for tag in row.tags or ()]
    batch = task.collate(examples)
    assert batch.counts["tagging"] == len(gold)
    scores = task.score(decode(task, batch, gold), examples)
    assert scores["f1"] == scores["accuracy"] == 1.0
