"""Prediction: the same answers as transformers, in the order of the rows, for every kind of folder."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    pipeline,
)

from bertsmith.deploy.predict import Placed, PretrainedPredictor, TaskPredictor, load
from bertsmith.errors import InputError, ModelError, SettingsError, StepError
from bertsmith.model.batch import PackedBatch
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.classify_data import find_columns
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.saved import load_task, save_task, task_kind
from bertsmith.tasks.tag_data import as_text
from bertsmith.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.conformance

TEXTS = [
    "the cat sat by the river .",
    "red",
    "she writes at night and he reads by day , not for the king but for the queen of the old city !",
    "",
    "two fish",
]


def folder(tiny_tokenizer: Path, where: Path, kind: type[PreTrainedModel], **config: object) -> Path:
    """A random model as transformers saves it, with its tokenizer: no file of ours in it."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    sizes = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,  # so that answers differ clearly
        **config,  # type: ignore[arg-type]
    )
    kind(sizes).eval().save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def classifier(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "low", 1: "middle", 2: "high"}
    where = tmp_path_factory.mktemp("classifier")
    return folder(
        tiny_tokenizer,
        where,
        BertForSequenceClassification,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )


def test_classification_is_that_of_transformers(classifier: Path) -> None:
    theirs = BertForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    answers = list(load(classifier, device="cpu").predict(TEXTS))
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.inference_mode():
            expected = theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["label"] == theirs.config.id2label[int(expected.argmax())]
        assert answer["score"] == max(answer["scores"].values())
        json.dumps(answer)


def test_pairs_in_a_folder_of_others(classifier: Path) -> None:
    theirs = BertForSequenceClassification.from_pretrained(classifier).eval()
    inputs = AutoTokenizer.from_pretrained(classifier)("the cat", "a dog runs", return_tensors="pt")
    (answer,) = load(classifier, device="cpu").predict([{"text": "the cat", "pair": "a dog runs"}])
    with torch.inference_mode():
        expected = theirs(**inputs).logits.softmax(-1)[0]
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_rows_that_are_more_than_a_pair_may_have_what_is_not_read(classifier: Path) -> None:
    """A table has the columns that it has; nothing but `pair` beside `text` was meant to be read."""
    single = load_task(classifier, {"text_column": "text"})[0]
    assert single.row({"text": "a", "pair": "b", "id": 3}, "row 1").texts == ("a",)
    assert single.row({"text": "a", "pair": None}, "row 1").texts == ("a",)
    with pytest.raises(InputError, match=r'^row 1: this model reads one text; leave "pair" out'):
        single.row({"text": "a", "pair": "b"}, "row 1")
    both = load_task(classifier, {"text_column": "question", "pair_column": "context"})[0]
    assert both.row({"question": "a", "context": "b"}, "row 1").texts == ("a", "b")


def test_default_labels_of_transformers(tiny_tokenizer: Path, tmp_path: Path) -> None:
    predictor = load(folder(tiny_tokenizer, tmp_path, BertForSequenceClassification), device="cpu")
    (answer,) = predictor.predict(["red"])
    assert set(answer["scores"]) == {"LABEL_0", "LABEL_1"}


def test_a_regression_answers_with_its_number(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForSequenceClassification, num_labels=1)
    theirs = BertForSequenceClassification.from_pretrained(where).eval()
    with torch.inference_mode():
        expected = theirs(**AutoTokenizer.from_pretrained(where)("red", return_tensors="pt")).logits.item()
    assert list(load(where, device="cpu").predict(["red"])) == [{"value": pytest.approx(expected, abs=1e-5)}]
    # Nobody has said that it is one: it may be the score of a label, as of a reranker.
    (answer,) = load(where, device="cpu", overrides={"multi_label": True}).predict(["red"])
    assert answer["scores"] == {"LABEL_0": pytest.approx(1 / (1 + math.exp(-expected)), abs=1e-5)}
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    with pytest.raises(SettingsError, match="choose one"):
        load(where, overrides={"multi_label": True})


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_at_the_side_of_its_tokenizer(tiny_tokenizer: Path, tmp_path: Path, side: str) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForSequenceClassification)
    settings = json.loads((where / "tokenizer_config.json").read_text())
    (where / "tokenizer_config.json").write_text(
        json.dumps({**settings, "truncation_side": side, "model_max_length": 12})
    )
    text = "the king " * 9 + "a red bird"
    inputs = AutoTokenizer.from_pretrained(where)(text, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = BertForSequenceClassification.from_pretrained(where).eval()(**inputs).logits.softmax(-1)[0]
    (answer,) = load(where, device="cpu").predict([text])
    assert list(answer["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    task, model = load_task(where)
    save_task(tmp_path / "again", task, model, model.encoder.config, "# card\n", {})
    assert AutoTokenizer.from_pretrained(tmp_path / "again").truncation_side == side


@pytest.mark.parametrize("read_ahead", [1, 2, 100])
def test_order_does_not_depend_on_how_rows_are_batched(classifier: Path, read_ahead: int) -> None:
    predictor = load(classifier, device="cpu")
    together = list(predictor.predict(TEXTS, read_ahead=read_ahead))
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = predictor.predict([text])
        assert answer["scores"] == pytest.approx(alone["scores"], abs=1e-5)


@pytest.mark.parametrize("kind", ["task", "masks", "pairs"])
@pytest.mark.parametrize("room", [1, 2])
def test_batches_that_do_not_fit_the_memory_are_cut(
    classifier: Path, tiny_tokenizer: Path, tmp_path: Path, kind: str, room: int
) -> None:
    """No more than `room` sequences fit; which may not change an answer nor the order."""
    where = classifier if kind == "task" else folder(tiny_tokenizer, tmp_path, BertForPreTraining)
    rows: list[Any] = [f"{text} [MASK]" for text in TEXTS]
    if kind == "pairs":
        rows = [{"text": text, "pair": "a dog runs"} for text in TEXTS]
    predictor = load(where, device="cpu")
    whole = list(predictor.predict(rows))
    sizes: list[int] = []

    def short_of_memory(module: nn.Module, arguments: tuple[PackedBatch, ...]) -> None:
        sizes.append(len(arguments[0].lengths))
        if sizes[-1] > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    encoder = next(part for part in predictor.model.modules() if isinstance(part, Encoder))
    encoder.register_forward_pre_hook(short_of_memory)
    cut = list(predictor.predict(rows))
    assert max(sizes) == len(rows) and sum(size for size in sizes if size <= room) == len(rows)
    assert list(map(numbers, cut)) == [pytest.approx(numbers(answer), abs=1e-5) for answer in whole]
    assert list(map(words, cut)) == list(map(words, whole))


def test_a_single_row_that_does_not_fit_is_an_error(classifier: Path) -> None:
    predictor = load(classifier, device="cpu")

    def fail(module: nn.Module, arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    encoder = next(part for part in predictor.model.modules() if isinstance(part, Encoder))
    encoder.register_forward_pre_hook(fail)
    with pytest.raises(StepError, match="memory ran out in a single example, of 3 tokens"):
        list(predictor.predict(["red", "blue"]))


def leaves(value: Any) -> Iterator[Any]:
    """Every value at the end of nested mappings and lists."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def numbers(answer: Any) -> list[float]:
    return [value for value in leaves(answer) if isinstance(value, float)]


def words(answer: Any) -> list[str]:
    return [value for value in leaves(answer) if isinstance(value, str)]


def test_rows_stream(classifier: Path) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "the cat"

    answers = load(classifier, device="cpu").predict(endless(), read_ahead=4)
    for number in range(9):
        next(answers)
        assert taken == (number // 4 + 1) * 4
    assert list(load(classifier, device="cpu").predict([])) == []


def test_bad_rows_name_their_number(classifier: Path) -> None:
    predictor = load(classifier, device="cpu")
    answers = predictor.predict(["a", {"text": "b"}, {"txt": "c"}], read_ahead=1)
    next(answers), next(answers)
    with pytest.raises(InputError, match=r'^row 3: there is no column "text".*Did you mean'):
        next(answers)
    answers = predictor.predict(["a", {"text": "b"}, Placed({"txt": "c"}, "a.csv:9"), "d"])
    assert all(next(answers)["label"] for _ in range(2)), "those before it in its batch are answered"
    with pytest.raises(InputError, match=r'^a\.csv:9: there is no column "text"'):
        next(answers)
    with pytest.raises(SettingsError, match="at least 1 row"):
        next(predictor.predict(["a"], read_ahead=0))


@pytest.mark.parametrize("rows", ["A fine place", b"A fine place", {"text": "a"}, Placed("a", "a.txt:1"), None, 3])
@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMaskedLM])
def test_a_single_text_or_row_is_refused_at_the_call(
    tiny_tokenizer: Path, tmp_path: Path, kind: type[PreTrainedModel], rows: Any
) -> None:
    """Else each of its characters or keys would be answered."""
    predictor = load(folder(tiny_tokenizer, tmp_path, kind), device="cpu")
    with pytest.raises(
        InputError, match=r"^give a list of texts, or of rows; (str|bytes|dict|Placed|NoneType|int) found"
    ):
        predictor.predict(rows)


def test_a_table_of_pandas_is_refused_at_the_call(classifier: Path) -> None:
    class DataFrame(list[str]):
        """Iterating over one gives the names of its columns."""

    with pytest.raises(InputError, match=r'\.to_dict\("records"\)\); DataFrame found'):
        load(classifier, device="cpu").predict(DataFrame(["text"]))


@pytest.mark.parametrize("bad", [None, ("a", "b"), ["Herr", "M."], 3, math.nan])
@pytest.mark.parametrize(
    "kind",
    [
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMultipleChoice,
        BertForMaskedLM,
    ],
)
def test_what_is_neither_text_nor_row_names_its_number(
    tiny_tokenizer: Path, tmp_path: Path, kind: type[PreTrainedModel], bad: Any
) -> None:
    good: Any = "the [MASK]"
    if kind is BertForQuestionAnswering:
        good = {"question": "who ?", "context": "the cat"}
    if kind is BertForMultipleChoice:
        good = {"text": "the cat", "choices": ["a", "b"]}
    answers = load(folder(tiny_tokenizer, tmp_path, kind), device="cpu").predict([good, bad])
    assert next(answers)
    with pytest.raises(InputError, match=r"^row 2: a text wanted, or a row .*; (NoneType|tuple|list|int|float) found"):
        next(answers)


def test_columns_of_pandas_without_a_header_have_no_names(classifier: Path) -> None:
    rows: Any = [{0: "the cat", 1: "a dog"}]
    with pytest.raises(InputError, match=r"^row 1: the name of a column is 0, which is no text.*names=\[\.\.\.\]"):
        next(load(classifier, device="cpu").predict(rows))


def test_gaps_of_pandas_are_no_texts(classifier: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^row 1, text: nothing here"):
        next(load(classifier, device="cpu").predict([{"text": math.nan}]))
    single = load_task(classifier, {"text_column": "text"})[0]
    assert single.row({"text": "a", "pair": math.nan}, "row 1").texts == ("a",)
    choosing = load_task(folder(tiny_tokenizer, tmp_path / "choice", BertForMultipleChoice))[0]
    row = {"text": "a", "question": "b", "choices": ["c", "d"]}
    assert choosing.row({**row, "text": math.nan}, "row 1").texts == ("b", "c", "d")
    for gap in ({"text": math.nan, "question": math.nan}, {"choices": ["c", math.nan]}):
        with pytest.raises(InputError, match=r"^row 1"):
            choosing.row({**row, **gap}, "row 1")
    settings = EmbeddingSettings(text_column="text", pair_column="pair")
    embedding = task_kind("embedding").make(load_tokenizer(tiny_tokenizer), (), settings, {})
    assert embedding.row({"text": "a", "pair": math.nan}, "row 1").texts == ("a",)
    with pytest.raises(InputError, match=r"^row 1, text: nothing here"):
        embedding.row({"text": math.nan}, "row 1")


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"id": 3, "review": "a", "label": "low"}, ("a",)),
        ({"phrase": "a", "label": "low"}, ("a",)),
        ({"Sentence1": "a", "sentence2": "b", "label": "low"}, ("a", "b")),
        ({"text": "a", "title": "b"}, ("a",)),
        ({"text": "a", "label": "low"}, ("a",)),
    ],
)
def test_columns_are_found_by_usual_names_in_a_folder_of_others(
    classifier: Path, row: dict[str, Any], texts: tuple[str, ...]
) -> None:
    task = load_task(classifier)[0]
    assert task.row(row, "row 1").texts == texts
    if "label" in row:  # as in an evaluation
        found = find_columns(task.settings, list(row), "row 1")
        assert tuple(row[name] for name in (found.text_column, found.pair_column) if name) == texts


def test_columns_of_choices_and_of_texts_are_found_by_usual_names(tiny_tokenizer: Path, tmp_path: Path) -> None:
    choosing = load_task(folder(tiny_tokenizer, tmp_path, BertForMultipleChoice))[0]
    row = {"sent1": "a", "sent2": "b", "ending0": "c", "ending1": "d"}
    assert choosing.row(row, "row 1").texts == ("a", "b", "c", "d")
    embedding = task_kind("embedding").make(load_tokenizer(tiny_tokenizer), (), EmbeddingSettings(), {})
    assert embedding.row({"sentence1": "a", "sentence2": "b"}, "row 1").texts == ("a", "b")
    assert embedding.row({"sentence": "a", "id": 3}, "row 1").texts == ("a",)


def test_settings_of_a_task_can_be_changed(classifier: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (named,) = load(classifier, device="cpu", overrides={"text_column": "body"}).predict([{"body": "red", "text": "a"}])
    (alone,) = load(classifier, device="cpu").predict(["red"])
    assert named == alone
    with pytest.raises(SettingsError, match=r'unknown key "text_colum".*Did you mean "text_column"'):
        load(classifier, overrides={"text_colum": "body"})
    with pytest.raises(SettingsError, match=r'pre-trained alone: unknown key "max_length".*Choices: columns'):
        load(folder(tiny_tokenizer, tmp_path, BertForMaskedLM), overrides={"max_length": 9})


def test_a_tagger_reads_the_text_of_a_table(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Its labelled data are words, so its own settings name no column of texts."""
    where = folder(tiny_tokenizer, tmp_path, BertForTokenClassification, id2label={0: "O", 1: "B-X", 2: "I-X"})
    (alone,) = load(where, device="cpu").predict(["the cat"])
    assert list(load(where, device="cpu").predict([{"id": 1, "Review": "the cat", "document": "d"}])) == [alone]
    row = {"body": "the cat", "text": "red", "words": ["blue"], "question": "who", "context": "x"}
    named = load(where, device="cpu", overrides={"text_column": "body"})
    assert list(named.predict([row, "the cat"])) == [alone, alone]
    assert isinstance(named, TaskPredictor) and named.task.settings == load_task(where)[0].settings
    with pytest.raises(InputError, match=r'^row 1: there is no column "body".*Choices: text'):
        list(named.predict([{"text": "a"}]))
    with pytest.raises(InputError, match=r"^row 1, body: text wanted, int found"):
        list(named.predict([{"body": 3}]))
    for unclear in ({"body": "a", "id": 1}, {"review": "a", "comment": "b"}, {"document": "a"}):
        columns = ", ".join(unclear)
        with pytest.raises(InputError, match=rf"^row 1: give a row .* --set text_column=NAME\. Columns: {columns}\."):
            list(load(where, device="cpu").predict([unclear]))
    with pytest.raises(SettingsError, match=r'unknown key "text_colum".*Did you mean "text_column".*token_column'):
        load(where, overrides={"text_colum": "body"})
    with pytest.raises(SettingsError, match='unknown key "pair_column"'):
        load(where, overrides={"pair_column": "body"})


def test_a_document_that_is_the_text_names_none(tiny_tokenizer: Path, tmp_path: Path) -> None:
    row = as_text({"document": "a b"}, "document", "row 1")
    assert (row.text, row.document) == ("a b", "")
    assert as_text({"text": "a b", "document": "d"}, "text", "row 1").document == "d"


@pytest.mark.parametrize(
    ("named", "row", "texts"),
    [
        ({}, {"Review": "the [MASK]", "id": 1}, "the [MASK]"),
        ({}, {"text": "the [MASK]", "pair": math.nan}, "the [MASK]"),
        ({}, {"sentence1": "a", "sentence2": "b"}, {"text": "a", "pair": "b"}),
        ({"text_column": "question"}, {"question": "the [MASK]", "answer": "c"}, "the [MASK]"),
        (
            {"text_column": "question", "pair_column": "context"},
            {"question": "a", "context": "b"},
            {"text": "a", "pair": "b"},
        ),
    ],
)
def test_a_pretrained_model_reads_the_texts_of_a_table(
    tiny_tokenizer: Path, tmp_path: Path, named: dict[str, str], row: dict[str, Any], texts: Any
) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForPreTraining)
    (expected,) = load(where, device="cpu").predict([texts])
    assert list(load(where, device="cpu", overrides=named).predict([row])) == [expected]


def test_a_pretrained_model_says_how_to_name_the_text_of_a_table(tiny_tokenizer: Path, tmp_path: Path) -> None:
    predictor = load(folder(tiny_tokenizer, tmp_path, BertForMaskedLM), device="cpu")
    with pytest.raises(InputError, match=r'^row 1: there is no column "text".*--set text_column=NAME'):
        list(predictor.predict([{"body": "the [MASK]", "id": 1}]))
    with pytest.raises(InputError, match=r"^row 1: this model has not learnt to judge pairs.*--set text_column=NAME"):
        list(predictor.predict([{"question": "the [MASK]", "answer": "b"}]))


def test_how_tables_are_read_can_be_said_to_a_model_that_answers(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """It has columns of its own for question and context, so there is no other for the text."""
    where = folder(tiny_tokenizer, tmp_path, BertForQuestionAnswering)
    predictor = load(where, device="cpu", overrides={"delimiter": ";", "quoting": False, "question_column": "q"})
    assert (predictor.tables.delimiter, predictor.tables.quoting, predictor.tables.columns) == (";", False, None)
    assert isinstance(predictor, TaskPredictor) and predictor.task.settings.question_column == "q"
    with pytest.raises(SettingsError, match=r'unknown key "text_column".*Did you mean "context_column".*delimiter'):
        load(where, overrides={"text_column": "context"})


def test_tags_stand_at_their_characters(tiny_tokenizer: Path, tmp_path: Path) -> None:
    labels = {0: "O", 1: "B-X", 2: "I-X"}
    where = folder(
        tiny_tokenizer,
        tmp_path,
        BertForTokenClassification,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    predictor = load(where, device="cpu")
    assert isinstance(predictor, TaskPredictor) and predictor.name == "tagging"
    for text, answer in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in answer["entities"])
        json.dumps(answer)


def test_answers_stand_at_their_characters(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForQuestionAnswering)
    predictor = load(where, device="cpu")
    context = "the old king sat by the river , the queen came from the city"
    (answer,) = predictor.predict([{"question": "who sat ?", "context": context}])
    assert answer["answer"] and context[answer["start"] : answer["end"]] == answer["answer"]
    assert 0 < answer["score"] <= 1
    # A folder of others does not say whether silence is an answer. Who gives a threshold does.
    silent = load(where, device="cpu", overrides={"no_answer_threshold": -1000})
    assert next(silent.predict([{"question": "who sat ?", "context": context}]))["answer"] is None


@pytest.mark.parametrize("kind", [BertForPreTraining, BertForMaskedLM])
def test_masks_are_filled_as_by_transformers(tiny_tokenizer: Path, tmp_path: Path, kind: type[PreTrainedModel]) -> None:
    where = folder(tiny_tokenizer, tmp_path, kind)
    tokenizer, theirs = AutoTokenizer.from_pretrained(where), kind.from_pretrained(where).eval()
    texts = ["the [MASK] sat .", "she reads by [MASK] and he writes at night", "[MASK]"]
    predictor = load(where, device="cpu", top_k=3)
    for text, answer in zip(texts, predictor.predict(texts), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            output = theirs(**inputs)
        logits = output.prediction_logits if kind is BertForPreTraining else output.logits
        best = logits[0, inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)].softmax(-1).topk(3)
        assert [guess["score"] for guess in answer["guesses"]] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert [guess["token"] for guess in answer["guesses"]] == tokenizer.convert_ids_to_tokens(best.indices.tolist())


def test_each_of_several_masks_is_filled_as_by_transformers(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForMaskedLM)
    text = "the [MASK] sat by the [MASK] ."
    theirs = pipeline("fill-mask", model=str(where), top_k=3, device="cpu")(text)
    ours, one = load(where, device="cpu", top_k=3).predict([text, "the [MASK] ."])
    assert len(ours["guesses"]) == len(theirs) == 2 and isinstance(one["guesses"][0], dict)
    for guesses, expected in zip(ours["guesses"], theirs, strict=True):
        assert [guess["token"] for guess in guesses] == [guess["token_str"] for guess in expected]
        assert [guess["score"] for guess in guesses] == pytest.approx([guess["score"] for guess in expected], abs=1e-5)
    (king, *_), (river, *_) = ours["guesses"]
    assert king["text"] == f"the {king['token'].removeprefix('##')} sat by the [MASK] ."
    assert river["text"] == f"the [MASK] sat by the {river['token'].removeprefix('##')} ."


def test_a_mask_in_a_long_text_sees_what_stands_around_it(tiny_tokenizer: Path, tmp_path: Path) -> None:
    predictor = load(folder(tiny_tokenizer, tmp_path, BertForMaskedLM), device="cpu", top_k=1)
    around = ["the cat [MASK] ." + " and" * 90, "and" + " and" * 60 + " the [MASK] ." + " and" * 29]
    (long,) = predictor.predict([f"{around[0]} {around[1]}"])
    for guesses, text in zip(long["guesses"], around, strict=True):
        (alone,) = predictor.predict([text])
        assert guesses[0]["token"] == alone["guesses"][0]["token"]
        assert guesses[0]["score"] == pytest.approx(alone["guesses"][0]["score"], abs=1e-5)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm+sop", ["odd"], None])
def test_pairs_are_judged_by_what_the_model_was_asked(tiny_tokenizer: Path, tmp_path: Path, objective: object) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForPreTraining)
    (where / "bertsmith.json").write_text(json.dumps({"task": "pretraining", "objective": objective}))
    (answer,) = load(where, device="cpu").predict([{"text": "a", "pair": "b"}])
    assert set(answer) == ({"in_order", "swapped"} if objective == "mlm+sop" else {"next", "random"})


def test_a_pair_for_a_model_without_a_judgement_ends_after_the_rows_before_it(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForMaskedLM)
    rows = [Placed("a [MASK]", "rows.txt:1"), Placed({"text": "a", "pair": "b"}, "rows.txt:2")]
    answers = load(where, device="cpu").predict(rows)
    assert "guesses" in next(answers)
    with pytest.raises(InputError, match=r"rows\.txt:2: this model has not learnt to judge pairs"):
        next(answers)


def test_albert_judges_the_order_of_sentences(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    sizes = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 4, "intermediate_size": 48}
    model = AlbertForPreTraining(AlbertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (answer,) = load(tmp_path, device="cpu").predict([{"text": "the king sat .", "pair": "he reads ."}])
    with torch.inference_mode():
        logits = model(**tokenizer("the king sat .", "he reads .", return_tensors="pt")).sop_logits
    assert [answer["in_order"], answer["swapped"]] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)


def test_guesses_are_of_models_that_guess(classifier: Path) -> None:
    with pytest.raises(SettingsError, match="top_k is of models that fill masks"):
        load(classifier, top_k=3)


def test_at_least_one_guess_is_given(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="top_k must be at least 1, not 0"):
        load(tmp_path, top_k=0)


def test_pairs_are_judged_as_by_transformers(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = folder(tiny_tokenizer, tmp_path, BertForPreTraining)
    tokenizer, theirs = AutoTokenizer.from_pretrained(where), BertForPreTraining.from_pretrained(where).eval()
    rows = [{"text": "the king sat .", "pair": "he reads ."}, "the [MASK]", {"text": "a dog", "pair": "two fish"}]
    predictor = load(where, device="cpu")
    assert isinstance(predictor, PretrainedPredictor)
    first, masked, second = predictor.predict(rows)
    assert len(masked["guesses"]) == 5
    for row, answer in ((rows[0], first), (rows[2], second)):
        assert isinstance(row, dict)
        with torch.inference_mode():
            logits = theirs(**tokenizer(row["text"], row["pair"], return_tensors="pt")).seq_relationship_logits
        assert [answer["next"], answer["random"]] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)
    with pytest.raises(InputError, match="a model that is pre-trained alone does not answer questions"):
        list(predictor.predict([{"question": "who?", "context": "the king [MASK]"}]))
    for bad in ({"sentence": "x"}, "no mask here", {"text": "x", "pair": 3}):
        with pytest.raises(InputError, match=r"^row 41: give a text that holds \[MASK\]"):
            list(predictor.predict([*["the [MASK]"] * 40, bad]))
        answers = predictor.predict([*["the [MASK]"] * 40, Placed(bad, "a.jsonl:50"), "the [MASK]"])
        assert all(next(answers)["guesses"] for _ in range(40)), "those before it are answered"
        with pytest.raises(InputError, match=r"^a\.jsonl:50: give a text that holds \[MASK\]"):
            next(answers)


def test_what_cannot_answer_is_refused(tiny_tokenizer: Path, tmp_path: Path) -> None:
    bare = folder(tiny_tokenizer, tmp_path / "bare", BertModel)
    with pytest.raises(ModelError, match=r"has no head that answers\. Fine-tune it first"):
        load(bare)
    with pytest.raises(ModelError, match="nowhere"):
        load(tmp_path / "nowhere")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ModelError, match="has no model yet"):
        load(run)


def test_bf16_only_when_asked(classifier: Path) -> None:
    exact = [answer["score"] for answer in load(classifier, device="cpu").predict(TEXTS)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [answer["score"] for answer in load(classifier, device="cpu").predict(TEXTS)] == exact
