"""Classification: columns, sequences, loss, metrics and what the report shows."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import (
    ClassificationRow,
    ClassificationSettings,
    find_columns,
    read_rows,
)
from bertsmith.tasks.classify_targets import ClassificationAnswer, ClassificationExample, calibration, find_labels
from bertsmith.tasks.rows import sub_batches
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.report import Curves, Matrix, Table

MakeFiles = Callable[[dict[str, str | bytes]], Path]

TEXTS = ("the cat sat .", "a dog runs to the house", "red bird", "the king", "queen and king of the city")
LABELS = ("animal", "animal", "animal", "person", "person")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def rows(labels: tuple[str | None, ...] = LABELS, pair: str | None = None) -> list[ClassificationRow]:
    return [
        ClassificationRow(f"train.csv:{line}", text, pair, label)
        for line, (text, label) in enumerate(zip(TEXTS, labels, strict=True), 2)
    ]


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


def make(tokenizer: Tokenizer, data: list[ClassificationRow], **settings: object) -> Classification:
    chosen = ClassificationSettings(max_length=32, **settings)  # type: ignore[arg-type]
    return Classification(tokenizer, find_labels(data, chosen), chosen, {"train": data})


# Reading


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["text", "label"], ("text", None, "label")),
        (["id", "Review", "Sentiment"], ("Review", None, "Sentiment")),
        (["utterance", "category"], ("utterance", None, "category")),
        (["idx", "sentence1", "sentence2", "label"], ("sentence1", "sentence2", "label")),
        (["question", "sentence", "label"], ("question", "sentence", "label")),
        (["text", "pair", "label"], ("text", "pair", "label")),
        (["question", "passage", "answer", "label"], None),
        (["title", "text", "label"], None),
        (["text", "label", "category"], None),
        (["utterance", "stars"], None),
    ],
)
def test_columns_are_found_only_without_doubt(columns: list[str], found: tuple[str, str | None, str] | None) -> None:
    if found is None:
        with pytest.raises(InputError, match=rf"cannot tell which .*Columns: {', '.join(columns)}"):
            find_columns(ClassificationSettings(), columns, "a.csv:2")
        return
    settings = find_columns(ClassificationSettings(), columns, "a.csv:2")
    assert (settings.text_column, settings.pair_column, settings.label_column) == found


def test_dev_may_use_another_usual_name() -> None:
    train = ClassificationSettings(text_column="sentence", label_column="label")
    dev = find_columns(train, ["category", "content"], "dev.csv:2")
    assert (dev.text_column, dev.label_column) == ("content", "category")
    pairs = ClassificationSettings(text_column="question", pair_column="sentence", label_column="label")
    dev = find_columns(pairs, ["premise", "hypothesis", "label"], "dev.csv:2")
    assert (dev.text_column, dev.pair_column) == ("premise", "hypothesis")
    # A name of the user's own, or a file in which it is there, changes nothing.
    own = ClassificationSettings(text_column="phrase", label_column="label")
    assert find_columns(own, ["text", "label"], "dev.csv:2") == own
    assert find_columns(train, ["sentence", "content", "label"], "dev.csv:2") == train
    assert find_columns(pairs, ["question", "sentence", "premise", "hypothesis", "label"], "dev.csv:2") == pairs


def test_given_columns_go_before_known_names(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": 'label,text,topic\n1,"one, two",cats\n0,three,dogs\n'})
    settings, read = read_rows(str(folder / "a.csv"), ClassificationSettings(label_column="topic"))
    assert (settings.text_column, settings.label_column) == ("text", "topic")
    assert [(row.text, row.label) for row in read] == [("one, two", "cats"), ("three", "dogs")]
    assert read[0].where == f"{folder / 'a.csv'}:2"


def test_a_file_without_header(make_files: MakeFiles) -> None:
    folder = make_files({"a.tsv": "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThe rode sailors.\n"})
    _, read = read_rows(str(folder / "a.tsv"), ClassificationSettings(columns="source, label, star, sentence"))
    assert [(row.text, row.label) for row in read] == [("The sailors rode.", "1"), ("The rode sailors.", "0")]


def test_an_unknown_column_is_named_with_the_nearest(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "sentence,label\nx,1\n"})
    with pytest.raises(InputError, match=r'a\.csv:2: there is no column "sentense".*Did you mean "sentence"'):
        read_rows(str(folder / "a.csv"), ClassificationSettings(text_column="sentense"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("text,label\n", "no rows"), ("text,label\nx,1\ny,\n", r"a\.csv:3, label: nothing here")],
)
def test_rows_need_labels(make_files: MakeFiles, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(str(make_files({"a.csv": content}) / "a.csv"), ClassificationSettings())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "x", "label": ["a", "b"]},
            r"a\.jsonl:1, label: text or a number wanted, list found.*for several labels a row say multi_label",
        ),
        ({"text": {"en": "x"}, "label": "a"}, r"a\.jsonl:1, text: text or a number wanted, dict found"),
    ],
)
def test_lists_and_objects_are_no_text(make_files: MakeFiles, row: dict[str, object], message: str) -> None:
    path = make_files({"a.jsonl": json.dumps(row)}) / "a.jsonl"
    with pytest.raises(InputError, match=message):
        read_rows(str(path), ClassificationSettings(text_column="text", label_column="label"))


def test_numbers_are_text(make_files: MakeFiles) -> None:
    path = make_files({"a.jsonl": '{"text": 7.5, "label": true}\n{"text": 7, "label": 2}'}) / "a.jsonl"
    assert [(row.text, row.label) for row in read_rows(str(path), ClassificationSettings())[1]] == [
        ("7.5", "True"),
        ("7", "2"),
    ]


def test_labels_that_cannot_be_learnt() -> None:
    with pytest.raises(InputError, match='every row has the label "animal"'):
        find_labels(rows(labels=("animal",) * 5), ClassificationSettings())
    numbers = [ClassificationRow("a:1", "x", None, f"{number / 7:.3f}") for number in range(30)]
    with pytest.raises(InputError, match="look like numbers"):
        find_labels(numbers, ClassificationSettings(label_column="score"))


def test_nearly_as_many_labels_as_rows_are_no_classes() -> None:
    def labelled(number: int, labels: list[str]) -> list[ClassificationRow]:
        return [ClassificationRow(f"a:{n + 1}", "x", None, labels[n % len(labels)]) for n in range(number)]

    chosen = ClassificationSettings(label_column="label")
    texts = [f"what is the name of the river number {number} of this land?" for number in range(60)]
    message = (
        r'^a:1: 60 labels in 60 rows: hardly any of the column "label" stands twice \("what is the name of the river '
        r'number 0 o\.\.\.", .*Choose another label_column'
    )
    with pytest.raises(InputError, match=message) as caught:
        find_labels(labelled(60, texts), chosen)
    assert "regression" not in str(caught.value)
    with pytest.raises(InputError, match=r"If they are numbers to learn, say regression\."):
        find_labels(labelled(60, [str(number) for number in range(60)]), chosen)
    assert len(find_labels(labelled(49, texts), chosen)) == 49, "few rows may be an example"
    assert len(find_labels(labelled(120, texts), chosen)) == 60, "each stands twice"


def test_named_columns_of_a_file_with_a_header_are_refused(make_files: MakeFiles) -> None:
    path = str(make_files({"a.tsv": "Text\tLabel\nwho was he\tperson\nlabel\ttext\n"}) / "a.tsv")
    for columns in ("label,text", "text, label"):
        with pytest.raises(InputError, match=r"a\.tsv:1: the first row equals the column names \(Text, Label\).*leave"):
            read_rows(path, ClassificationSettings(columns=columns))
    assert len(read_rows(path, ClassificationSettings())[1]) == 2
    assert len(read_rows(path, ClassificationSettings(columns="text,topic", label_column="topic"))[1]) == 3


def test_another_delimiter_is_proposed(make_files: MakeFiles) -> None:
    folder = make_files({"a.csv": "text;label\na;b\n"})
    for settings in (ClassificationSettings(), ClassificationSettings(text_column="text", label_column="label")):
        with pytest.raises(
            InputError, match=r'text;label\. If ";" parts them, say --delimiter ";" \(.* --set delimiter=";"\)\.$'
        ):
            read_rows(str(folder / "a.csv"), settings)
    assert len(read_rows(str(folder / "a.csv"), ClassificationSettings(delimiter=";"))[1]) == 1


def test_an_unknown_label_in_dev_names_its_line(tokenizer: Tokenizer) -> None:
    dev = [ClassificationRow("dev.csv:9", "x", None, "animel")]
    with pytest.raises(InputError, match=r'^dev\.csv:9: the label "animel".*Did you mean "animal"'):
        Classification(tokenizer, ("animal", "person"), ClassificationSettings(), {"train": rows(), "dev": dev})


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(SettingsError, match='"mcc" does not go with a regression'):
        ClassificationSettings(regression=True, metric="mcc")
    with pytest.raises(SettingsError, match="are for labels"):
        ClassificationSettings(regression=True, label_smoothing=0.1)
    with pytest.raises(SettingsError, match=r"label_smoothing must be in \[0, 1\)"):
        ClassificationSettings(label_smoothing=1.0)
    with pytest.raises(SettingsError, match="doc_stride, max_windows and window_pooling are for windows"):
        ClassificationSettings(doc_stride=64)
    with pytest.raises(SettingsError, match="doc_stride, max_windows and window_pooling are for windows"):
        ClassificationSettings(max_windows=4)
    with pytest.raises(SettingsError, match="max_windows is 0; give 1 or more"):
        ClassificationSettings(long="windows", max_windows=0)
    with pytest.raises(SettingsError, match="doc_stride is 0; windows must move forward"):
        ClassificationSettings(long="windows", doc_stride=0)


# Sequences


@pytest.mark.conformance
@pytest.mark.parametrize("pair", [None, "a fish, not a bird!"])
def test_sequences_are_those_of_transformers(tokenizer: Tokenizer, tiny_tokenizer: Path, pair: str | None) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_tokenizer)
    for item in make(tokenizer, rows(pair=pair)).examples("train").items:
        expected = theirs(item.row.text, pair)
        assert [ids.tolist() for ids in item.token_ids] == [expected["input_ids"]]
        assert [ids.tolist() for ids in item.segment_ids] == [expected["token_type_ids"]]
        assert item.cut_tokens == 0


def test_long_pairs_lose_the_end_of_the_longer_text(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b"), ClassificationSettings(max_length=10), {})
    row = ClassificationRow("x:1", "cat dog bird fish tree river king", "red blue", None)
    (item,) = task.encode([row])
    assert read(tokenizer, item) == ["[CLS] cat dog bird fish tree [SEP] red blue [SEP]"]
    assert item.segment_ids[0].tolist() == [0] * 7 + [1] * 3
    assert item.cut_tokens == 2


def read(tokenizer: Tokenizer, item: ClassificationExample) -> list[str]:
    """What the model reads of an example, a text a sequence."""
    return [" ".join(tokenizer.tokens(ids)) for ids in item.token_ids]


@pytest.mark.parametrize(
    ("text", "pair", "options", "expected", "cut_tokens"),
    [
        ("cat dog bird fish tree river king red", None, {"long": "tail"}, ["fish tree river king red"], 3),
        ("cat dog bird fish tree river king red", None, {"long": "head-tail"}, ["cat tree river king red"], 3),
        ("cat dog bird", None, {"long": "head-tail"}, ["cat dog bird"], 0),
        ("cat dog bird fish tree", "red king", {"long": "tail"}, ["fish tree [SEP] red king"], 3),
        ("cat dog bird fish tree river", None, {"long": "windows"}, ["cat dog bird fish tree", "river"], 0),
        (
            "cat dog bird fish tree river king red",
            None,
            {"long": "windows", "doc_stride": 3},
            ["cat dog bird fish tree", "fish tree river king red"],
            0,
        ),
        (
            "cat dog bird fish tree river king red blue house queen",
            None,
            {"long": "windows", "max_windows": 2},
            ["cat dog bird fish tree", "queen"],
            5,
        ),
        (
            "cat dog bird fish tree river king red blue house queen",
            None,
            {"long": "windows", "max_windows": 2, "doc_stride": 3},
            ["cat dog bird fish tree", "king red blue house queen"],
            1,
        ),
        (
            "cat dog bird fish tree river",
            None,
            {"long": "windows", "max_windows": 2},
            ["cat dog bird fish tree", "river"],
            0,
        ),
        ("red", "cat dog bird fish", {"long": "windows", "max_windows": 1}, ["red [SEP] cat dog bird"], 1),
        ("red", "cat dog bird fish", {"long": "windows"}, ["red [SEP] cat dog bird", "red [SEP] fish"], 0),
        ("cat dog bird fish", "red", {"long": "windows"}, ["cat dog bird [SEP] red", "fish [SEP] red"], 0),
        ("cat dog", "red king", {"long": "windows"}, ["cat dog [SEP] red king"], 0),
        (
            "cat dog bird",
            "red blue king queen",
            {"long": "windows"},
            ["cat dog [SEP] red blue", "cat dog [SEP] king queen"],
            1,
        ),
    ],
)
def test_what_is_read_of_a_long_text(
    tokenizer: Tokenizer,
    text: str,
    pair: str | None,
    options: dict[str, object],
    expected: list[str],
    cut_tokens: int,
) -> None:
    settings = ClassificationSettings(max_length=7, **options)  # type: ignore[arg-type]
    (item,) = Classification(tokenizer, ("a", "b"), settings, {}).encode([ClassificationRow("x:1", text, pair, None)])
    assert read(tokenizer, item) == [f"[CLS] {one} [SEP]" for one in expected]
    assert item.cut_tokens == cut_tokens
    assert item.num_tokens == sum(map(len, item.token_ids))


@pytest.mark.conformance
@pytest.mark.parametrize("overlap", [0, 1, 4])
def test_windows_are_those_of_transformers(tokenizer: Tokenizer, tiny_tokenizer: Path, overlap: int) -> None:
    settings = ClassificationSettings(max_length=9, long="windows", doc_stride=7 - overlap)
    text = "the queen and king of the city saw a dog and a cat run to the red house by the river ."
    (item,) = Classification(tokenizer, ("a", "b"), settings, {}).encode([ClassificationRow("x:1", text, None, None)])
    theirs = AutoTokenizer.from_pretrained(tiny_tokenizer)(
        text, max_length=9, truncation=True, stride=overlap, return_overflowing_tokens=True
    )
    assert [ids.tolist() for ids in item.token_ids] == theirs["input_ids"]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_logits_of_windows_are_pooled(tokenizer: Tokenizer, pooling: str) -> None:
    """Beside the windows as texts of their own, in a batch with texts that have one."""
    task = Classification(
        tokenizer,
        ("animal", "person"),
        ClassificationSettings(max_length=6, long="windows", window_pooling=pooling),  # type: ignore[arg-type]
        {"train": rows()},
    )
    torch.manual_seed(0)
    model = task.build(encoder(tokenizer)).eval()
    items = task.examples("train").items
    batch = task.collate(items)
    parts = [
        ClassificationExample(item.row, (ids,), (segments,), item.target, 0)
        for item in items
        for ids, segments in zip(item.token_ids, item.segment_ids, strict=True)
    ]
    counts = [len(item.token_ids) for item in items]
    assert counts == [1, 2, 1, 1, 2]
    assert torch.equal(task.collate(parts).inputs.token_ids, batch.inputs.token_ids)
    with torch.no_grad():
        logits = task.logits(model, batch)
        alone = [task.logits(model, task.collate([part])) for part in parts]
        predicted = task.predict(model, batch)
        losses = task.loss(model, batch)
    for row, several in zip(logits, torch.split(torch.cat(alone), counts), strict=True):
        assert torch.allclose(row, several.mean(0) if pooling == "mean" else several.amax(0), atol=1e-6)
    assert torch.allclose(predicted, logits.softmax(-1), atol=1e-6)
    targets = torch.tensor([0, 0, 0, 1, 1])
    assert losses["classification"].item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    )
    assert batch.counts["classification"] == 5


def test_a_text_of_many_windows_is_predicted_in_parts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ClassificationSettings(max_length=6, long="windows")
    task = Classification(tokenizer, ("animal", "person"), settings, {"train": rows()})
    model = task.build(encoder(tokenizer)).eval()
    batch = task.collate(task.examples("train").items)
    with torch.inference_mode():
        whole = task.predict(model, batch)
        sizes = []
        model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0].token_ids)))
        monkeypatch.setattr("bertsmith.tasks.classify.sub_batches", lambda inputs: sub_batches(inputs, 12))
        assert torch.allclose(task.predict(model, batch), whole, atol=1e-6)
    assert len(sizes) > 2
    assert max(sizes) <= 12


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, "lose 4 tokens at their end"),
        ({"long": "tail"}, "lose 4 tokens at their beginning"),
        ({"long": "head-tail"}, "lose 4 tokens in their middle"),
        ({"long": "windows"}, "are read in 4 windows, the longest in 2 at once"),
    ],
)
def test_notes_count_what_is_cut(tokenizer: Tokenizer, options: dict[str, object], note: str) -> None:
    settings = ClassificationSettings(max_length=6, **options)  # type: ignore[arg-type]
    task = Classification(tokenizer, ("animal", "person"), settings, {"train": rows()})
    assert task.notes() == [f"2 of 5 train texts (40.0%) are longer than max_length 6 and {note}."]
    assert make(tokenizer, rows()).notes() == []


def test_notes_count_what_windows_cut_of_pairs(tokenizer: Tokenizer) -> None:
    settings = ClassificationSettings(max_length=8, long="windows")
    data = rows(pair="cat dog bird fish tree")
    task = Classification(tokenizer, ("animal", "person"), settings, {"train": data})
    assert task.notes() == [
        "5 of 5 train texts (100.0%) are longer than max_length 8 and are read in 10 windows, the longest in "
        "2 at once, but lose 8 tokens that no window shows."
    ]


def test_max_length_must_fit_the_position_table(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b"), ClassificationSettings(max_length=65), {})
    with pytest.raises(SettingsError, match="max_length is 65; this model takes 4 to 64 tokens"):
        task.build(encoder(tokenizer))


# Loss and answers


@pytest.mark.parametrize(("weights", "smoothing"), [("none", 0.0), ("none", 0.15), ("auto", 0.0), ("person=3", 0.0)])
def test_loss_is_pytorchs_weighted_or_smoothed_mean(tokenizer: Tokenizer, weights: str, smoothing: float) -> None:
    task = make(tokenizer, rows(), class_weights=weights, label_smoothing=smoothing)
    model = task.build(encoder(tokenizer)).eval()
    items = task.examples("train").items
    batch = task.collate(items)
    hidden = model.encoder(batch.inputs)
    expected_weights = {"none": [1.0, 1.0], "auto": [5 / (2 * 3), 5 / (2 * 2)], "person=3": [1.0, 3.0]}[weights]
    expected = torch.nn.functional.cross_entropy(
        model.pooled(hidden, batch.inputs),
        torch.tensor([0, 0, 0, 1, 1]),
        weight=torch.tensor(expected_weights),
        label_smoothing=smoothing,
    )
    # In one piece, and in micro-batches whose sums and counts are added up as the loop does.
    for size in (5, 2):
        parts = [task.collate(items[start : start + size]) for start in range(0, 5, size)]
        total = sum(task.loss(model, part)["classification"] for part in parts)
        count = sum(part.counts["classification"] for part in parts)
        torch.testing.assert_close(total / count, expected, rtol=1e-5, atol=1e-6)


def test_regression_loss_is_the_share_of_the_variance(tokenizer: Tokenizer) -> None:
    numbers = [1.5, 0, -2, 0.4, 3]
    task = make(tokenizer, rows(labels=[str(number) for number in numbers]), regression=True)
    model = task.build(encoder(tokenizer)).eval()
    batch = task.collate(task.examples("train").items)
    values = [answer.score for answer in task.decode(task.predict(model, batch).detach(), batch)]
    expected = np.mean((np.array(values) - numbers) ** 2) / np.var(numbers)
    loss = task.loss(model, batch)["classification"].item() / batch.counts["classification"]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_regression_does_not_depend_on_the_unit(tokenizer: Tokenizer) -> None:
    celsius = [18.5, 21, 25.25, 19, 30]
    found = []
    for numbers in (celsius, [1000 * (number - 20) for number in celsius]):
        task = make(tokenizer, rows(labels=[str(number) for number in numbers]), regression=True)
        torch.manual_seed(0)
        model = task.build(encoder(tokenizer)).eval()
        loss = task.loss(model, batch := task.collate(task.examples("train").items))["classification"]
        loss.backward()
        gradient = model.encoder.token_embedding.weight.grad
        found.append(
            (loss.item(), gradient, task.predict(model, batch).mean().item(), np.mean(numbers), np.std(numbers))
        )
    for loss, gradient, mean, wanted, deviation in found:
        assert loss == pytest.approx(found[0][0], rel=1e-4)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-6)
        assert abs(mean - wanted) < 3 * deviation


def test_numbers_of_a_regression_are_not_rounded_by_autocast(tokenizer: Tokenizer) -> None:
    numbers = [80, 88.5, 93.25, 99, 100]
    task = make(tokenizer, rows(labels=[str(number) for number in numbers]), regression=True)
    model = task.build(encoder(tokenizer)).eval()
    batch = task.collate(task.examples("train").items)
    with torch.inference_mode():
        exact = task.predict(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = task.predict(model, batch)
    assert found.dtype == torch.float32
    assert (found != found.bfloat16()).any()  # which tells 93.0 and 93.5, nothing between
    torch.testing.assert_close(found, exact, atol=0.2, rtol=0)


def test_a_regression_wants_numbers(tokenizer: Tokenizer) -> None:
    for label in ("much", "nan", "inf"):
        with pytest.raises(InputError, match=rf'^train\.csv:2: "{label}" is not a number'):
            make(tokenizer, rows(labels=(label, "0", "0", "0", "0")), regression=True)
    with pytest.raises(InputError, match=r"^train\.csv:2: 1e39 is more than float32 can hold"):
        make(tokenizer, rows(labels=("1e39", "0", "0", "0", "0")), regression=True)


def test_a_text_that_is_the_label_is_refused() -> None:
    with pytest.raises(SettingsError, match='text_column and label_column are both "text"'):
        ClassificationSettings(text_column="text", label_column="text")


def test_an_answer_does_not_depend_on_its_neighbours(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, rows())
    model = task.build(encoder(tokenizer)).eval()
    items = task.examples("train").items
    with torch.inference_mode():
        together = task.predict(model, task.collate(items))
        alone = torch.cat([task.predict(model, task.collate([item])) for item in items])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.sum(-1), torch.ones(5))


def test_rows_to_predict(tokenizer: Tokenizer) -> None:
    single = Classification(tokenizer, ("a", "b"), ClassificationSettings(text_column="review"), {})
    assert single.row("some text", "row 1").text == "some text"
    assert single.row({"review": "x", "text": "y"}, "row 1").text == "x"
    assert single.row({"text": "y"}, "row 1").text == "y"
    with pytest.raises(InputError, match=r'^row 3: there is no column "review"'):
        single.row({"revue": "y"}, "row 3")
    pairs = Classification(tokenizer, ("a", "b"), ClassificationSettings(text_column="q", pair_column="s"), {})
    assert pairs.row({"q": "x", "s": "y"}, "row 1").pair == "y"
    assert pairs.row({"text": "x", "pair": "y"}, "row 1").pair == "y"
    with pytest.raises(InputError, match="row 1, q: text or a number wanted, list found"):
        pairs.row({"q": ["x"], "s": "y"}, "row 1")
    with pytest.raises(InputError, match="this model reads pairs"):
        pairs.row("x", "row 1")
    unknown = Classification(tokenizer, ("a", "b"), ClassificationSettings(), {})
    assert unknown.row({"text": "x", "pair": "y"}, "row 1").pair == "y"
    for values in ({"text": "x", "pair": None}, {"text": "x", "pair": math.nan}, {"sentence1": "x", "sentence2": None}):
        assert unknown.row(values, "row 1") == unknown.row("x", "row 1"), "null is no pair"
    with pytest.raises(InputError, match="row 1, text: nothing here"):
        unknown.row({"text": None, "pair": "y"}, "row 1")
    with pytest.raises(InputError, match="row 1, s: nothing here"):
        pairs.row({"q": "x", "s": None}, "row 1")
    batch = unknown.collate(unknown.encode([unknown.row("x", "row 1")]))
    assert not batch.labels and batch.counts == {"classification": 0.0}


@pytest.mark.parametrize(
    ("train", "row", "texts"),
    [
        (("sentence", None), {"content": "x", "label": "a"}, ("x",)),
        (("sentence", None), {"content": "x"}, ("x",)),
        (("sentence", None), {"content": "x", "text": "y"}, ("y",)),
        (("sentence", None), {"content": "x", "review": "y"}, 'there is no column "sentence"'),
        (("sentence", None), {"body": "x", "label": "a"}, 'there is no column "sentence"'),
        (("body", None), {"content": "x", "label": "a"}, 'there is no column "body"'),
        (("sentence1", "sentence2"), {"premise": "x", "hypothesis": "y", "label": "a"}, ("x", "y")),
        (("sentence1", "sentence2"), {"text": "x", "pair": "y"}, ("x", "y")),
        (("sentence1", "sentence2"), {"premise": "x", "other": "y"}, 'there is no column "sentence1"'),
        (("sentence1", "sentence2"), {"sentence1": "x", "other": "y"}, 'there is no column "sentence2"'),
        (("q", "s"), {"premise": "x", "hypothesis": "y"}, 'there is no column "q"'),
    ],
)
def test_rows_to_predict_may_use_other_usual_names(
    tokenizer: Tokenizer, train: tuple[str, str | None], row: dict[str, str], texts: tuple[str, ...] | str
) -> None:
    """As labelled data may, which are read in the same columns."""
    settings = ClassificationSettings(text_column=train[0], pair_column=train[1], label_column="label")
    task = Classification(tokenizer, ("a", "b"), settings, {})
    if isinstance(texts, str):
        column = "pair" if "sentence2" in texts else "text"
        with pytest.raises(InputError, match=rf"^row 1: {texts}.*evaluate and predict: --set {column}_column=NAME"):
            task.row(row, "row 1")
        return
    assert task.row(row, "row 1").texts == texts
    if "label" in row:
        found = find_columns(settings, list(row), "row 1")
        assert tuple(row[name] for name in (found.text_column, found.pair_column) if name) == texts


def test_a_row_to_predict_that_is_cut_at_the_wrong_character_says_so(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b"), ClassificationSettings(text_column="sentence"), {})
    with pytest.raises(InputError, match=r'--set delimiter=";"\)\.$'):
        task.row({"sentence;label": "x;a"}, "row 1")


# Metrics and report


def answered(predicted: str, gold: str, score: float = 0.9) -> tuple[ClassificationAnswer, ClassificationExample]:
    ids = {"a": 0, "b": 1, "c": 2}
    scores = np.full(3, (1 - score) / 2, dtype=np.float32)
    scores[ids[predicted]] = score
    row = ClassificationRow(f"{gold}:1", f"text of {gold}", None, gold)
    example = ClassificationExample(row, (np.zeros(2),), (np.zeros(2),), ids[gold], 0)
    return ClassificationAnswer(predicted, scores), example


def split(*pairs: tuple[str, str, float]) -> tuple[list[ClassificationAnswer], list[ClassificationExample]]:
    both = [answered(*pair) for pair in pairs]
    return [answer for answer, _ in both], [example for _, example in both]


def test_the_f1_of_one_label_is_that_of_scikit_learn(tokenizer: Tokenizer) -> None:
    """The label that is named; of 0 and 1 the latter, as GLUE scores MRPC and QQP."""
    answers, examples = split(("a", "a", 0.9), ("a", "b", 0.9), ("b", "b", 0.9), ("b", "b", 0.9), ("a", "c", 0.9))
    gold, found = [str(item.row.label) for item in examples], [str(answer.label) for answer in answers]
    for settings, labels, positive in (
        (ClassificationSettings(positive_label="b", metric="f1"), ("a", "b", "c"), "b"),
        (ClassificationSettings(positive_label="a"), ("a", "b"), "a"),
    ):
        some = [i for i in range(5) if gold[i] in labels and found[i] in labels]
        task = Classification(tokenizer, labels, settings, {})
        scores = task.score([answers[i] for i in some], [examples[i] for i in some])
        expected = f1_score([gold[i] for i in some], [found[i] for i in some], labels=[positive], average="macro")
        assert scores["f1"] == pytest.approx(expected) and 0 < expected < 1
        assert next(iter(scores)) == (settings.metric or "accuracy")
    for labels, gold, found in ((("0", "1"), "0111", "0011"), (("no", "yes"), "nyyy", "nnyy")):
        task = Classification(tokenizer, labels, ClassificationSettings(metric="f1"), {})
        names = {label[0]: label for label in labels}
        items = [SimpleNamespace(target=labels.index(names[one])) for one in gold]
        said = [ClassificationAnswer(names[one], np.zeros(2)) for one in found]
        assert task.score(said, items)["f1"] == pytest.approx(0.8)  # type: ignore[arg-type]
    assert "f1" not in Classification(tokenizer, ("a", "b", "c"), ClassificationSettings(), {}).score(answers, examples)
    with pytest.raises(
        SettingsError, match=r"f1 is that of one label: give positive_label \(one of equal, not_equal\)"
    ):
        Classification(tokenizer, ("equal", "not_equal"), ClassificationSettings(metric="f1"), {})
    with pytest.raises(SettingsError, match=r'positive_label: no label "spam"\. Did you mean "Spam"'):
        Classification(tokenizer, ("Ham", "Spam"), ClassificationSettings(positive_label="spam"), {})
    with pytest.raises(SettingsError, match="positive_label is for one label a row"):
        ClassificationSettings(positive_label="a", multi_label=True)


def test_metrics_by_hand(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b", "c"), ClassificationSettings(metric="macro_f1"), {})
    scores = task.score(*split(("a", "a", 0.9), ("a", "b", 0.9), ("b", "b", 0.9), ("b", "b", 0.9), ("a", "c", 0.9)))
    # a: 1 of 3 predictions right, found 1 of 1: F1 1/2. b: 2 of 2, 2 of 3: F1 4/5. c: never found: 0.
    # MCC (Gorodkin 2004): c = 3 right, s = 5, t = (1, 3, 1), p = (3, 2, 0).
    mcc = (3 * 5 - (1 * 3 + 3 * 2)) / math.sqrt((25 - (9 + 4)) * (25 - (1 + 9 + 1)))
    assert list(scores) == ["macro_f1", "accuracy", "micro_f1", "mcc"]
    assert scores == pytest.approx({"accuracy": 0.6, "micro_f1": 0.6, "macro_f1": (0.5 + 0.8) / 3, "mcc": mcc})


def test_regression_metrics_by_hand(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, (), ClassificationSettings(regression=True), {})
    values, gold = np.array([1.0, 2.0, 3.0, 10.0]), np.array([2.0, 1.0, 3.0, 4.0])
    answers = [ClassificationAnswer(None, np.array([value], dtype=np.float32)) for value in values]
    row = ClassificationRow("x:1", "x", None, "0")
    examples = [ClassificationExample(row, (np.zeros(2),), (np.zeros(2),), float(target), 0) for target in gold]
    scores = task.score(answers, examples)
    ranks = (np.argsort(np.argsort(values)), np.argsort(np.argsort(gold)))
    assert next(iter(scores)) == "r2"
    assert scores["r2"] == pytest.approx(1 - np.mean((values - gold) ** 2) / np.var(gold))
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["pearson"] == pytest.approx(np.corrcoef(values, gold)[0, 1])
    assert scores["mse"] == pytest.approx(np.mean((values - gold) ** 2))
    assert task.score(answers[:1] * 4, examples)["pearson"] == 0.0
    assert task.score(answers, examples[:1] * 4)["r2"] == 0.0
    assert task.to_json(answers[3]) == {"value": 10.0}
    (table,) = task.sections(answers, examples)
    assert isinstance(table, Table) and table.rows[0][:2] == (4.0, 10.0)


def test_smaller_is_better_for_squared_errors(tokenizer: Tokenizer) -> None:
    assert not Classification(
        tokenizer, (), ClassificationSettings(regression=True, metric="mse"), {}
    ).greater_is_better
    assert Classification(tokenizer, (), ClassificationSettings(regression=True), {}).greater_is_better


def test_sections_show_where_it_goes_wrong(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b", "c"), ClassificationSettings(), {})
    matrix, labels, calibrated, mistakes = task.sections(
        *split(("a", "a", 0.9), ("a", "b", 0.5), ("b", "b", 0.9), ("b", "c", 0.7), ("b", "c", 0.6))
    )
    assert isinstance(matrix, Matrix) and matrix.counts == [[1, 0, 0], [1, 1, 0], [0, 2, 0]]
    assert isinstance(labels, Table) and labels.rows[1] == ("b", pytest.approx(1 / 3), 0.5, pytest.approx(0.4), 2)
    assert isinstance(calibrated, Curves) and calibrated.title == "Calibration (expected error 0.400)"
    assert isinstance(mistakes, Table)
    assert [(row[0], row[1], round(float(str(row[2])), 3)) for row in mistakes.rows] == [
        ("c", "b", 0.7),
        ("c", "b", 0.6),
        ("b", "a", 0.5),
    ]
    assert mistakes.note.startswith("3 of 5 rows are wrong")


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=200))
def test_calibration_is_that_of_its_definition(answers: list[tuple[float, bool]]) -> None:
    curves = calibration([score for score, _ in answers], np.array([right for _, right in answers]))
    error, points = 0.0, []
    for low in range(10):
        inside = [(p, r) for p, r in answers if low <= 10 * p < low + 1 or (low == 9 and p == 1.0)]
        if inside:
            points.append((statistics.fmean(p for p, _ in inside), statistics.fmean(r for _, r in inside)))
            error += len(inside) / len(answers) * abs(points[-1][0] - points[-1][1])
    assert list(zip(*curves.series["this model"], strict=True)) == [pytest.approx(point) for point in points]
    assert float(curves.title.split()[-1].rstrip(")")) == pytest.approx(error, abs=6e-4)


def test_many_labels_show_their_confusions_instead_of_a_matrix(tokenizer: Tokenizer) -> None:
    labels = tuple(f"label {number:02}" for number in range(60))
    task = Classification(tokenizer, labels, ClassificationSettings(), {})
    answers, examples = [], []
    for number in (1, 1, 2, 3):
        scores = np.zeros(60, dtype=np.float32)
        scores[7] = 1.0
        answers.append(ClassificationAnswer(labels[7], scores))
        row = ClassificationRow("x:1", "x", None, labels[number])
        examples.append(ClassificationExample(row, (np.zeros(2),), (np.zeros(2),), number, 0))
    confusions = task.sections(answers, examples)[1]
    assert isinstance(confusions, Table)
    assert confusions.rows == [("label 01", "label 07", 2), ("label 02", "label 07", 1), ("label 03", "label 07", 1)]
    assert confusions.note == "There is no confusion matrix: 60 labels are too many; it can be read up to 40."


def test_answers_as_json(tokenizer: Tokenizer) -> None:
    task = Classification(tokenizer, ("a", "b", "c"), ClassificationSettings(), {})
    answer, _ = answered("b", "b", 0.5)
    assert task.to_json(answer) == {"label": "b", "score": 0.5, "scores": {"a": 0.25, "b": 0.5, "c": 0.25}}
