"""Changed training examples: labels that stay right, draws that depend on nothing else, other words, and whole runs."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from bertsmith.errors import Interrupted, ModelError, SettingsError, TrainingError
from bertsmith.files import sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.tasks import augment
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.augment import AugmentedExamples, augmented, read_variants
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.entities import read_spans
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.replace_words import load_word_model, replacements
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings, in_documents
from bertsmith.text.augment import text_units, word_units
from bertsmith.text.labelled import Answer, Question
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.distributed import ALONE
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)
WORDS = "the old king sat by a river and saw red fish 今 天 , .".split()
RATES = st.sampled_from([0.0, 0.2, 0.9])
SEEDS = st.integers(0, 500)


def read_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def settings(**changes: Any) -> FinetuneSettings:
    values = {"augment_delete": 0.3, "augment_swap": 0.3, "augment_share": 1.0, **changes}
    if not (values["augment_delete"] or values["augment_swap"] or changes.get("augment_model")):
        del values["augment_share"]
    return FinetuneSettings(model="m", train="t", out=Path("o"), device="cpu", **values)


def classification(tokenizer: Tokenizer, *, pairs: bool = True, number: int = 20) -> Classification:
    rows = [
        ClassificationRow(
            f"x:{n}", f"the old king {n} sat by a river", f"a red fish, {n}!" if pairs else None, "ab"[n % 2]
        )
        for n in range(number)
    ]
    return Classification(tokenizer, ("a", "b"), ClassificationSettings(max_length=32), {"train": rows})


def token_ids(examples: Sequence[Any]) -> list[list[int]]:
    return [np.concatenate(example.token_ids).tolist() for example in examples]


def test_an_example_depends_on_seed_epoch_and_number_alone(tokenizer: Tokenizer) -> None:
    task = classification(tokenizer)
    examples = AugmentedExamples(task, settings(seed=3), ())
    whole = token_ids(examples.take(range(20), 1))
    assert [token_ids(examples.take([number], 1))[0] for number in reversed(range(20))] == whole[::-1]
    assert token_ids(AugmentedExamples(classification(tokenizer), settings(seed=3), ()).take(range(20), 1)) == whole
    assert token_ids(examples.take(range(20), 2)) != whole
    assert token_ids(AugmentedExamples(task, settings(seed=4), ()).take(range(20), 1)) != whole
    assert examples.num_examples(0) == 20 and examples.num_tokens(2) == task.examples("train").num_tokens(2)


def test_both_texts_of_a_pair_change_and_the_label_stays(tokenizer: Tokenizer) -> None:
    task = classification(tokenizer)
    base = task.examples("train").items
    changed = AugmentedExamples(task, settings(), ()).take(range(20), 0)
    assert sum(one.row.text != other.row.text for one, other in zip(changed, base, strict=True)) > 10
    assert sum(one.row.pair != other.row.pair for one, other in zip(changed, base, strict=True)) > 5
    assert [one.target for one in changed] == [one.target for one in base]
    assert token_ids(changed) == token_ids(task.encode([one.row for one in changed]))


def test_a_share_of_the_examples_is_changed_and_others_stay(tokenizer: Tokenizer) -> None:
    task = classification(tokenizer, number=400)
    base = task.examples("train").items
    examples = AugmentedExamples(task, settings(augment_share=0.25, augment_swap=0.5), ())
    by_epoch = [examples.take(range(400), epoch) for epoch in range(2)]
    is_same = [[one is other for one, other in zip(epoch, base, strict=True)] for epoch in by_epoch]
    assert [sum(same) for same in is_same] == [pytest.approx(300, abs=35)] * 2
    assert is_same[0] != is_same[1]


def test_without_rates_the_task_is_itself(tokenizer: Tokenizer) -> None:
    task = classification(tokenizer)
    nothing = settings(augment_delete=0.0, augment_swap=0.0)
    assert augmented(task, task, nothing, ALONE, torch.device("cpu"), "fp32") is task
    same = AugmentedExamples(task, nothing, ()).take(range(20), 0)
    assert all(one is other for one, other in zip(same, task.examples("train").items, strict=True))


def test_evaluation_reads_what_it_always_did(tokenizer: Tokenizer) -> None:
    rows = classification(tokenizer).examples("train").items
    splits = {"train": [one.row for one in rows], "dev": [one.row for one in rows]}
    task = Classification(tokenizer, ("a", "b"), ClassificationSettings(max_length=32), splits)
    learnt = augmented(task, task, settings(), ALONE, torch.device("cpu"), "fp32")
    assert learnt.examples("dev") is task.examples("dev")
    assert learnt.examples("train") is not task.examples("train")


@st.composite
def tagged(draw: st.DrawFn) -> TaggingRow:
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=14))
    tags: list[str] = []
    for _ in words:
        inside = [] if not tags or tags[-1] == "O" else [f"I-{tags[-1][2:]}"]
        tags.append(draw(st.sampled_from(["O", "O", "B-PER", "B-LOC", *inside])))
    return TaggingRow("x:1", tuple(words), None, tuple(tags))


def entities(row: TaggingRow) -> list[tuple[str, tuple[str, ...]]]:
    return [(span.label, (row.words or ())[span.start : span.end]) for span in read_spans(row.tags or ())]


LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@given(tagged(), SEEDS, RATES, RATES)
def test_entities_stay_whole_and_in_order(
    tiny_tokenizer: Path, row: TaggingRow, seed: int, delete: float, swap: float
) -> None:
    task = Tagging(
        read_tokenizer(tiny_tokenizer), LABELS, TaggingSettings(max_length=24, scheme="iob2"), {"train": [row]}
    )
    chosen = settings(seed=seed, augment_delete=delete, augment_swap=swap)
    (example,) = AugmentedExamples(task, chosen, ()).take([0], 0)
    assert entities(example.row) == entities(row)
    assert len(example.row.words) == len(example.row.tags) == len(example.targets) == len(example.word_positions)
    assert [task.labels[target] for target in example.targets] == list(example.row.tags)
    # Each word still has a tag that it had somewhere.
    assert set(zip(example.row.words, example.row.tags, strict=True)) <= set(
        zip(row.words or (), row.tags or (), strict=True)
    )


def test_parts_of_speech_move_with_their_words(tokenizer: Tokenizer) -> None:
    words = tuple("the old king sat by a river and saw fish".split())
    row = TaggingRow("x:1", words, None, tuple(word.upper() for word in words))
    task = Tagging(tokenizer, sorted(row.tags or ()), TaggingSettings(max_length=32, scheme="none"), {"train": [row]})
    examples = AugmentedExamples(task, settings(), ())
    found = [examples.take([0], epoch)[0].row for epoch in range(20)]
    assert all(one.tags == tuple(word.upper() for word in one.words) for one in found)
    assert len({one.words for one in found}) > 10


def test_a_changed_sentence_stands_in_its_document(tokenizer: Tokenizer) -> None:
    rows = [TaggingRow(f"x:{n}", ("king", str(n), "sat"), None, ("O", "B-PER", "O")) for n in range(3)]
    options = TaggingSettings(max_length=24, scheme="iob2", context="document")
    task = Tagging(tokenizer, ("O", "B-PER", "I-PER"), options, {"train": in_documents(rows)})
    changed = AugmentedExamples(task, settings(augment_delete=0.999, augment_swap=0.0), ()).take([1], 0)[0]
    assert changed.row.words == ("1",)
    shown = tokenizer.decode(changed.token_ids[0], skip_special_tokens=True)
    assert shown == "king 0 sat 1 king 2 sat"


@st.composite
def asked(draw: st.DrawFn) -> Question:
    separator = draw(st.sampled_from([" ", "", ", "]))
    context = separator.join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30)))
    answers = []
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(context) - 1))
        end = draw(st.integers(start + 1, min(len(context), start + 12)))
        if context[start:end].strip():  # white space alone is no token
            answers.append(Answer(context[start:end], start))
    if answers and draw(st.booleans()):
        answers.append(Answer("nowhere", None))
    return Question("who sat", context, tuple(answers), "q", "x:1")


@given(asked(), SEEDS, RATES, RATES)
def test_answers_keep_their_text_and_their_tokens(
    tiny_tokenizer: Path, row: Question, seed: int, delete: float, swap: float
) -> None:
    options = AnsweringSettings(max_length=24, max_query_length=8, doc_stride=8, null_windows="all")
    task = Answering(read_tokenizer(tiny_tokenizer), (), options, {"train": [row]})
    base = task.examples("train").items
    chosen = settings(seed=seed, augment_delete=delete, augment_swap=swap)
    examples = AugmentedExamples(task, chosen, ()).take(range(len(base)), 0)
    for example, unchanged in zip(examples, base, strict=True):
        changed = example.row
        assert [one.text for one in changed.answers] == [one.text for one in row.answers]
        for one in changed.answers:
            assert one.start is None or changed.context[one.start : one.start + len(one.text)] == one.text
        assert changed.question == row.question
        assert [window.start for window in example.windows] == [window.start for window in unchanged.windows]
        assert sum(map(len, example.windows)) <= 24
        (first, last), shift = example.targets[0], example.first_context_token - example.windows[0].start
        if (first, last) != (0, 0):
            start, end = example.context.offsets[first - shift, 0], example.context.offsets[last - shift, 1]
            assert changed.answers[0].text.strip() in changed.context[start:end]


# Other words, by a model.


def save_word_model(
    folder: Path, tiny_tokenizer: Path, favourites: Sequence[str] = (), model_type: str = "bert"
) -> Path:
    """A model with random weights that expects some words everywhere."""
    tokenizer = load_tokenizer(tiny_tokenizer)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = EncoderConfig(tokenizer.vocab_size, intermediate_size=64, max_position_embeddings=16, **sizes)
    model = PretrainingModel(Encoder(config), pairs=False)
    assert model.vocabulary.bias is not None
    with torch.no_grad():
        for place, word in enumerate(favourites):
            model.vocabulary.bias[tokenizer.token_to_id(word)] = 20.0 - place
    save_model(folder, model, config, "BertForMaskedLM")
    tokenizer.save(folder)
    return folder


def replaced(folder: Path, texts: Sequence[str], **changes: Any) -> Any:
    values: dict[str, Any] = {"rate": 0.5, "num_variants": 3, "seed": 1, "device": torch.device("cpu"), **changes}
    return replacements([text_units(text) for text in texts], load_word_model(str(folder)), precision="fp32", **values)


TEXT = "The king, by the river; a dog! " * 8  # of several windows
OTHERS = ("##s", ".", "[MASK]", "fish", "5")


def test_words_are_replaced_by_what_the_model_expects(tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = save_word_model(tmp_path / "m", tiny_tokenizer, OTHERS)
    ((first, second, third), (alone, *_)) = replaced(folder, [TEXT, "Fish"], rate=0.5)
    assert first != second != third
    num_words = len(text_units(TEXT).spans)
    assert sum(map(len, (first, second, third))) == pytest.approx(1.5 * num_words, abs=20)
    units = text_units(TEXT)
    # Pieces, punctuation, special tokens are no words, and a new word has the capital of the old one.
    for variant in (first, second, third):
        assert {word for unit, word in variant.items() if units.word(unit) != "The"} <= {"fish", "5"}
        assert {word for unit, word in variant.items() if units.word(unit) == "The"} <= {"Fish", "5"}
    assert set(alone.values()) <= {"5"}  # not by itself
    assert replaced(folder, [TEXT, "Fish"]) == replaced(folder, [TEXT, "Fish"])
    assert replaced(folder, [TEXT], seed=2) != replaced(folder, [TEXT])
    assert replaced(folder, [TEXT], rate=0.0) == [[{}, {}, {}]]
    barred = replaced(folder, [TEXT], barred=frozenset(["fish"]))[0]
    assert {word for variant in barred for word in variant.values()} == {"5"}


def test_what_is_fixed_is_not_replaced(tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = save_word_model(tmp_path / "m", tiny_tokenizer, ["fish"])
    units = word_units("king of [MASK] 今 天 by".split(), [True, False, False, False, True, False])
    ((variant,),) = replacements(
        [units],
        load_word_model(str(folder)),
        rate=0.999,
        num_variants=1,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
    )
    # [MASK] in a text is text; a character is not replaced by a word.
    assert set(variant) <= {1, 5} and variant[1] == variant[5] == "fish"


def test_a_model_that_fills_no_masks_is_refused(tiny_tokenizer: Path, tmp_path: Path) -> None:
    config = EncoderConfig(
        130,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    config = replace(config, vocab_size=load_tokenizer(tiny_tokenizer).vocab_size)
    save_model(tmp_path / "bare", nn.ModuleDict({"encoder": Encoder(config)}), config, "BertModel")
    load_tokenizer(tiny_tokenizer).save(tmp_path / "bare")
    own = run_settings(tmp_path, tiny_tokenizer, "run", augment_model=str(tmp_path / "bare"))
    with pytest.raises(ModelError, match=r"augment_model .*bare: it takes one with a masked-language-model head"):
        finetune("classification", own, OPTIONS, console=QUIET)
    assert not own.out.exists()


# Whole runs.

OPTIONS = ClassificationSettings(max_length=24)


def run_settings(folder: Path, tiny_tokenizer: Path, out: str, **changes: Any) -> FinetuneSettings:
    lines = [{"text": f"the {('cat', 'city')[i % 2]} is old {i}", "label": "ab"[i % 2]} for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    values: dict[str, Any] = {"train": str(folder / "rows.jsonl"), "out": folder / out, "epochs": 2, "batch_size": 8}
    values |= {"model": "size:tiny", "tokenizer": str(tiny_tokenizer), "precision": "fp32", "device": "cpu"}
    return FinetuneSettings(**{**values, "augment_delete": 0.2, "augment_swap": 0.2, **changes})


@pytest.fixture
def texts_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts that were learnt from, and Ctrl-C at the sixth step of the next run."""
    seen: list[str] = []
    steps, loss = 0, Classification.loss

    def noting(self: Classification, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == 6:
            signal.raise_signal(signal.SIGINT)
        seen.extend(example.row.text for example in batch.examples)
        return loss(self, model, batch)

    monkeypatch.setattr(Classification, "loss", noting)
    yield seen


def test_a_run_that_is_resumed_ends_with_the_same_bits(
    tmp_path: Path, tiny_tokenizer: Path, texts_seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_word_model(tmp_path / "words", tiny_tokenizer, ["fish", "tree", "bird"])
    parts = run_settings(tmp_path, tiny_tokenizer, "parts", augment_model=str(model), augment_replace=0.5)
    with pytest.raises(Interrupted):
        finetune("classification", parts, OPTIONS, console=QUIET)
    kept = (parts.out / "augment" / "replacements.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=r"augment_delete was 0\.2 and is now 0\.1"):
        finetune("classification", replace(parts, resume=True, augment_delete=0.1), OPTIONS, console=QUIET)
    with monkeypatch.context() as patch:  # the model is not asked again
        patch.setattr(augment, "load_word_model", None)
        resumed = finetune("classification", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert (parts.out / "augment" / "replacements.jsonl").read_bytes() == kept
    seen = list(texts_seen)
    texts_seen.clear()
    whole = finetune("classification", replace(parts, out=tmp_path / "whole"), OPTIONS, console=QUIET)
    assert texts_seen == seen
    assert sha256(whole.model / "model.safetensors") == sha256(resumed.model / "model.safetensors")
    originals = {json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text().split("\n")}
    assert 0.3 < sum(text in originals for text in seen) / len(seen) < 0.8
    assert any("fish" in text or "tree" in text or "bird" in text for text in seen)


def test_other_settings_or_rows_make_other_words(tmp_path: Path, tiny_tokenizer: Path) -> None:
    model = save_word_model(tmp_path / "words", tiny_tokenizer, ["fish"])
    chosen = run_settings(tmp_path, tiny_tokenizer, "run", augment_model=str(model), augment_variants=2)
    path, task = chosen.out / "augment" / "replacements.jsonl", classification(load_tokenizer(tiny_tokenizer))
    found = []
    for own, of_task in (
        (chosen, task),
        (replace(chosen, augment_variants=3), task),
        (chosen, classification(task.tokenizer, pairs=False)),
    ):
        augmented(of_task, of_task, own, ALONE, torch.device("cpu"), "fp32")
        found.append(read_variants(path))
    assert [{len(row) for row in variants} for variants in found] == [{2}, {3}, {2}]
    assert [{len(texts) for row in variants for texts in row} for variants in found] == [{2}, {2}, {1}]


def test_names_replace_no_words(tmp_path: Path, tiny_tokenizer: Path) -> None:
    model = save_word_model(tmp_path / "words", tiny_tokenizer, ["fish", "tree"])
    rows = [TaggingRow("x:1", tuple("king Fish sat by a river".split()), None, ("O", "B-PER", "O", "O", "O", "O"))]
    task = Tagging(
        load_tokenizer(tiny_tokenizer), LABELS, TaggingSettings(max_length=24, scheme="iob2"), {"train": rows}
    )
    chosen = run_settings(tmp_path, tiny_tokenizer, "run", augment_model=str(model), augment_replace=0.9)
    learnt = augmented(task, task, chosen, ALONE, torch.device("cpu"), "fp32")
    found = [learnt.examples("train").take([0], epoch)[0].row for epoch in range(20)]
    assert {word for row in found for word in row.words} - set(rows[0].words or ()) == {"tree"}
    assert all(entities(row) == entities(rows[0]) for row in found)


def test_seeds_draw_for_themselves(tmp_path: Path, tiny_tokenizer: Path) -> None:
    model = save_word_model(tmp_path / "words", tiny_tokenizer, ["fish", "tree"])
    own = run_settings(tmp_path, tiny_tokenizer, "run", augment_model=str(model), seeds=2, epochs=1)
    finetune("classification", own, OPTIONS, console=QUIET)
    first, second = (tmp_path / f"run/seed-{seed}/augment/replacements.jsonl" for seed in range(2))
    assert read_variants(first) != read_variants(second)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "augment_model: words" in card and str(tmp_path) not in card


def test_windows_of_later_epochs_have_replacements(tmp_path: Path, tiny_tokenizer: Path) -> None:
    # The answer of every second question lies across the border of two windows: both are null ones.
    words = "the king by the river a dog the cat the house and the bird of a night".split()
    rows = []
    for number in range(12):
        context = " ".join(words * 3) + f" {number}"
        answer = " ".join(words * 3) if number % 2 else "king"
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        rows.append({"question": f"who {number}", "context": context, "answers": answers})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = AnsweringSettings(max_length=24, max_query_length=4, doc_stride=8, null_windows=0.5)
    model = save_word_model(tmp_path / "words", tiny_tokenizer, OTHERS)
    own = run_settings(
        tmp_path, tiny_tokenizer, "run", train=str(tmp_path / "questions.jsonl"), augment_model=str(model), epochs=6,
        dev_share=0.0,
    )  # fmt: skip
    finetune("answering", own, chosen, console=QUIET)
    _, *kept = (own.out / "augment" / "replacements.jsonl").read_text().strip().split("\n")
    assert len(kept) == len(rows)


@pytest.mark.parametrize(
    ("task", "options", "rows"),
    [
        ("choice", ChoiceSettings(max_length=24), {"text": "t", "choices": ["a", "b"], "label": 0}),
        ("embedding", EmbeddingSettings(max_length=24, text_column="text", pair_column="pair"), {"pair": "b"}),
    ],
)
def test_tasks_of_few_words_are_refused(
    tmp_path: Path, tiny_tokenizer: Path, task: str, options: Any, rows: dict[str, Any]
) -> None:
    own = run_settings(tmp_path, tiny_tokenizer, "run")
    more = {"pair": "the queen"} if "pair" in rows else {}
    lines = [json.dumps({**rows, "text": f"the king {number}"}) for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, json.dumps({**rows, "text": "the", **more})]))
    with pytest.raises(SettingsError, match="are for classification, tagging, answering; in"):
        finetune(task, own, options, console=QUIET)
    assert not own.out.exists()


def test_other_words_may_be_other_parts_of_speech(tmp_path: Path, tiny_tokenizer: Path) -> None:
    own = run_settings(tmp_path, tiny_tokenizer, "run", train=str(tmp_path / "rows.conll"), augment_model="m")
    (tmp_path / "rows.conll").write_text("\n".join(f"the DET\nking NOUN\n{i} NUM\n" for i in range(20)))
    with pytest.raises(SettingsError, match="each word has a label of its own"):
        finetune("tagging", own, TaggingSettings(max_length=24), console=QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment_delete": 1.0}, r"augment_delete must be in \[0, 1\), not 1.0"),
        ({"augment_swap": -0.1}, r"augment_swap must be in \[0, 1\), not -0.1"),
        ({"augment_replace": float("nan")}, r"augment_replace must be in \[0, 1\), not nan"),
        ({"augment_share": 0.0}, r"augment_share must be in \(0, 1\], not 0.0"),
        ({"augment_variants": 0}, "augment_variants must be at least 1, not 0"),
        ({"augment_variants": 3}, "augment_variants says how words are replaced, and goes with augment_model"),
        ({"augment_replace": 0.2}, "augment_replace says how words are replaced"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(**changes)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="augment_share is of the examples that are changed"):
        FinetuneSettings(model="m", train="t", out=Path("o"), augment_share=0.9)
