"""Answering: windows and targets, the loss, the choice of an answer, scores, real questions."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertsmith.errors import InputError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.answer import Answering, QuestionAnsweringModel, find_labels
from bertsmith.tasks.answer_data import (
    AnsweringExample,
    AnsweringSettings,
    TrainingWindows,
    locate,
    read_rows,
    scored_in,
    training_examples,
)
from bertsmith.tasks.answer_spans import Candidate, QuestionAnswer, choose_answer
from bertsmith.tasks.rows import sub_batches
from bertsmith.tasks.saved import load_task, save_task
from bertsmith.text.labelled import Answer, Question, read_squad
from bertsmith.text.tokenizer import Encoding, Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer
from bertsmith.text.windows import Window, windows
from bertsmith.training.report import Table

MakeFiles = Callable[[dict[str, str | bytes]], Path]

CONTEXT = "the old king sat by the river. a small cat saw the blue bird, and the queen runs to the house at night."
SMALL = AnsweringSettings(max_length=24, max_query_length=6, doc_stride=5, max_answer_length=8, null_windows="all")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm: Path) -> Tokenizer:
    return load_tokenizer(minilm)


def question(*answers: str, text: str = "who sat by the river?", context: str = CONTEXT, name: str = "q") -> Question:
    places = tuple(Answer(answer, context.index(answer)) for answer in answers)
    return Question(text, context, places, name, f"train.json, question {name}")


def make(tokenizer: Tokenizer, *rows: Question, split: str = "dev", chosen: AnsweringSettings = SMALL) -> Answering:
    return Answering(tokenizer, (), chosen, {split: rows})


def items(task: Answering, split: str) -> list[AnsweringExample]:
    examples = task.examples(split)
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


# Windows and targets


def test_a_sequence_is_question_and_window_with_their_segments(tokenizer):
    task = make(tokenizer, question("king"))
    (example,) = items(task, "dev")
    batch = task.collate([example])
    assert len(example.windows) > 1
    lengths = batch.inputs.lengths
    assert sum(lengths) == example.num_tokens
    assert max(lengths) == SMALL.max_length
    ids = batch.inputs.token_ids[: lengths[0]].tolist()
    segments = batch.inputs.segment_ids[: lengths[0]].tolist()
    tokens = tokenizer.tokens(ids)
    assert tokens[:8] == ["[CLS]", "w", "##h", "##o", "sat", "by", "the", "[SEP]"]  # cut to 6 tokens
    assert tokens[8:12] == ["the", "old", "king", "sat"]
    assert tokens[-1] == "[SEP]"
    assert segments == [0] * 8 + [1] * (len(ids) - 8)
    assert example.first_context_token == 8
    assert batch.labels == {}
    starts = [window.start for window in example.windows]
    assert {b - a for a, b in itertools.pairwise(starts)} == {SMALL.doc_stride}


def test_training_has_an_example_a_window_and_points_at_cls_where_the_answer_is_not(tokenizer):
    task = make(tokenizer, question("blue bird"), question(name="none"), split="train")
    examples = items(task, "train")
    answered = [example for example in examples if example.row.id == "q"]
    assert len(answered) > 2
    whole = answered[0].context.ids
    found = 0
    for example in examples:
        batch = task.collate([example])
        (start, end) = batch.labels["targets"].tolist()[0]
        span = tokenizer.tokens(batch.inputs.token_ids.tolist())[start : end + 1]
        window = tokenizer.tokens(whole[example.windows[0].start : example.windows[0].end])
        holds = any(window[i : i + 2] == ["blue", "bird"] for i in range(len(window)))
        if example.row.id == "q" and holds:
            assert span == ["blue", "bird"]
            found += 1
        else:
            assert (start, end) == (0, 0)
    assert 0 < found < len(answered)
    assert task.collate(examples).counts == {"answering": float(len(examples))}


def test_a_window_that_holds_only_half_of_the_answer_does_not_count(tokenizer):
    row = question("cat saw the blue bird")
    (example,) = make(tokenizer, row).encode([row])
    span = locate(example.context, row.answers[0].start, len(row.answers[0].text))
    assert span is not None
    for one in training_examples(example):
        window = one.windows[0]
        inside = window.start <= span[0] and span[1] < window.end
        assert (one.targets[0] != (0, 0)) == inside


def test_an_answer_begins_and_ends_at_the_pieces_that_hold_its_characters(minilm_tokenizer):
    context = "The leader was John Smith (1895-1943), a Japanese-born unaffable man."
    (example,) = make(minilm_tokenizer, chosen=AnsweringSettings()).encode([question(context=context)])

    def pieces(text: str) -> list[str]:
        span = locate(example.context, context.index(text), len(text))
        assert span is not None
        return minilm_tokenizer.tokens(example.context.ids[span[0] : span[1] + 1])

    # run_squad.py _improve_answer_span's own examples, where words split by spaces are too coarse ...
    assert pieces("1895") == ["1895"]
    # ... and where not even pieces are fine enough.
    assert pieces("Japan") == ["japanese"]
    assert pieces("affable") == ["una", "##ffa", "##ble"]
    assert locate(example.context, context.index(" John"), 1) is None  # a space alone
    assert locate(example.context, None, 4) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), context=st.text(min_size=1, max_size=60))
def test_located_tokens_cover_the_answer_and_no_token_too_many(minilm_tokenizer, data, context):
    encoding = minilm_tokenizer.encode(context)
    start = data.draw(st.integers(0, len(context) - 1))
    length = data.draw(st.integers(1, len(context) - start))
    touching = [i for i, (a, b) in enumerate(encoding.offsets.tolist()) if a < start + length and b > start]
    expected = (touching[0], touching[-1]) if touching else None
    assert locate(encoding, start, length) == expected


def test_the_place_of_the_first_located_answer_is_learnt_and_lost_ones_are_counted(tokenizer):
    row = question("king")
    lost = replace(row, answers=(Answer("king", None),))
    second = replace(row, answers=(Answer("nowhere", None), *row.answers))
    task = make(tokenizer, row, lost, second, split="train")
    assert task.num_skipped == 1
    assert any("1 training questions are left out" in note for note in task.notes())
    targets = [example.targets for example in items(task, "train")]
    half = len(targets) // 2
    assert targets[:half] == targets[half:]
    with pytest.raises(InputError, match="nothing to learn"):
        make(tokenizer, lost, split="train")
    # It can still be scored.
    assert len(items(make(tokenizer, lost), "dev")) == 1


@settings(max_examples=40, deadline=None)
@given(
    places=st.lists(st.sampled_from(["answer", "null", "unanswerable"]), min_size=1, max_size=30),
    null_windows=st.sampled_from([0, 0.3, 1, 2.5, 100, "all"]),
    num_epochs=st.integers(1, 8),
)
def test_an_epoch_has_all_windows_but_some_null_ones_and_these_in_turn(places, null_windows, num_epochs):
    rows = {name: Question("who?", "he", (Answer("he", 0),) * (name != "unanswerable"), name, "") for name in places}
    ids = np.zeros(1, dtype=np.int32)
    context = Encoding(ids, np.array([[0, 2]]), np.ones(1, dtype=bool))
    target = {"answer": (3, 3), "null": (0, 0), "unanswerable": (0, 0)}
    examples = [
        AnsweringExample(rows[place], ids, context, (Window(number, number + 1),), (target[place],))
        for number, place in enumerate(places)
    ]
    found = TrainingWindows(examples, null_windows)
    epochs = [found.take(range(found.num_examples(epoch)), epoch) for epoch in range(num_epochs)]
    wanted = Counter(places)
    nulls = wanted["null"] if null_windows == "all" else min(wanted["null"], round(null_windows * wanted["answer"]))
    assert found.num_left_out == wanted["null"] - nulls
    for windows_of_one in epochs:
        kinds = Counter(one.row.id for one in windows_of_one)
        assert kinds == Counter({**wanted, "null": nulls})
        assert len({one.windows for one in windows_of_one}) == len(windows_of_one)
    uses = Counter(one.windows for each in epochs for one in each if one.row.id == "null")
    if nulls:  # none a second time before all others have had their turn
        counts = [uses[one.windows] for one in examples if one.row.id == "null"]
        assert max(counts) - min(counts) <= 1
    # Any order, any part: the same.
    last = num_epochs - 1
    backwards = found.take(range(found.num_examples(last))[::-1], last)
    assert [one.windows for one in backwards] == [one.windows for one in epochs[last]][::-1]


def test_by_default_there_are_two_null_windows_for_each_other(tokenizer):
    row = question("king")
    task = make(tokenizer, row, split="train", chosen=replace(SMALL, null_windows=AnsweringSettings.null_windows))
    every = items(make(tokenizer, row, split="train"), "train")
    found = items(task, "train")
    with_answer = [one for one in every if one.targets != ((0, 0),)]
    assert 3 * len(with_answer) == len(found) < len(every)
    (note,) = [note for note in task.notes() if "null_windows" in note]
    assert f"Of {len(every) - len(with_answer)} windows" in note and f"learns from {2 * len(with_answer)}," in note
    assert len(items(make(tokenizer, row, chosen=task.settings), "dev")[0].windows) == len(every)
    with pytest.raises(InputError, match="no window holds a whole answer"):
        make(tokenizer, question(CONTEXT[:100]), split="train", chosen=task.settings)
    with pytest.raises(SettingsError, match='null_windows must be at least 0, or "all"'):
        replace(SMALL, null_windows=-1)


# Loss


def test_loss_is_half_of_both_cross_entropies_over_each_sequence_of_its_own(tokenizer):
    task = make(tokenizer, question("blue bird"), question("king", text="who?"), split="train")
    batch = task.collate(items(task, "train"))
    model = task.build(encoder(tokenizer)).eval()
    loss = task.loss(model, batch)["answering"]
    logits = model.tokens.out(model.encoder(batch.inputs)).detach()
    expected = 0.0
    for (start, end), part in zip(
        batch.labels["targets"].tolist(), torch.split(logits, batch.inputs.lengths), strict=True
    ):
        logs = part.log_softmax(0)
        expected -= (logs[start, 0] + logs[end, 1]).item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    # A sequence's loss does not depend on what else is in the batch.
    alone = sum(task.loss(model, task.collate([example]))["answering"].item() for example in items(task, "train"))
    assert alone == pytest.approx(loss.item(), rel=1e-5)


def test_there_is_no_dropout_before_the_last_layer(tokenizer):
    model = make(tokenizer, question("king")).build(encoder(tokenizer)).train()
    hidden = torch.randn(5, 32)
    assert torch.equal(model.tokens(hidden), model.tokens.out(hidden))


def test_a_model_that_learns_the_rows_answers_them(tokenizer):
    rows = [question("king", text="who sat?"), question("blue bird", text="what was seen?"), question(text="why?")]
    task = Answering(tokenizer, (), replace(SMALL, unanswerable=True), {"train": rows, "dev": rows})
    model = task.build(encoder(tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = task.collate(items(task, "train"))
    model.eval()
    for _ in range(80):
        optimizer.zero_grad()
        task.loss(model, batch)["answering"].backward()
        optimizer.step()
    dev = task.collate(items(task, "dev"))
    with torch.inference_mode():
        answers = task.decode(task.predict(model, dev), dev)
    assert [answer.text for answer in answers] == ["king", "blue bird", ""]
    assert task.score(answers, items(task, "dev"))["f1"] == 1.0


# The choice of an answer


def logits_for(example: AnsweringExample, scores: dict[tuple[int, int], float], null: float = -9.0) -> list[np.ndarray]:
    """Logits under which the span (first, last context token) scores as said, in every window that holds it."""
    frame = len(example.question_ids) + 3
    windows = [np.full((len(window) + frame, 2), -10.0, dtype=np.float32) for window in example.windows]
    for array, window in zip(windows, example.windows, strict=True):
        array[0] = null / 2
        for (first, last), score in scores.items():
            if window.start <= first < window.end:
                array[first - window.start + frame - 1, 0] = score / 2
            if window.start <= last < window.end:
                array[last - window.start + frame - 1, 1] = score / 2
    return windows


def encoded(tokenizer: Tokenizer, row: Question, chosen: AnsweringSettings = SMALL) -> AnsweringExample:
    return make(tokenizer, chosen=chosen).encode([row])[0]


def test_windows_of_a_long_context_go_through_the_model_in_parts(tokenizer, monkeypatch):
    task = make(tokenizer, question(context=CONTEXT * 3), question())
    batch = task.collate(items(task, "dev"))
    model = task.build(encoder(tokenizer)).eval()
    sizes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0].token_ids)))
    with torch.inference_mode():
        whole = task.predict(model, batch)
        monkeypatch.setattr(sub_batches, "__defaults__", (60,))
        torch.testing.assert_close(task.predict(model, batch), whole)
    assert sizes[0] == len(batch.inputs.token_ids) > 400 and max(sizes[1:]) <= 60


def test_the_best_span_is_a_slice_of_the_context(tokenizer):
    row = replace(question(), context=CONTEXT.replace("king sat", "KING  sat"))
    example = encoded(tokenizer, row)
    answer = choose_answer(example, logits_for(example, {(1, 3): 8.0, (12, 13): 5.0}), SMALL)
    assert answer.text == "old KING  sat"
    assert answer.best is not None
    assert row.context[answer.best.start : answer.best.end] == answer.text
    assert answer.candidates[0].score == pytest.approx(8.0)
    assert len({one.text for one in answer.candidates}) == len(answer.candidates) == SMALL.n_best
    assert sum(one.probability for one in answer.candidates) == pytest.approx(1.0)
    scores = [one.score for one in answer.candidates]
    assert scores == sorted(scores, reverse=True)


def test_an_answer_has_no_white_space_around_it(tiny_documents, tmp_path):
    tokenizer = train_tokenizer([str(tiny_documents)], tmp_path / "bpe", kind="bpe", vocab_size=400)
    row = replace(question(), context="an old  mill \n by the river\n")
    task = make(tokenizer, row, chosen=replace(SMALL, n_best=200))
    (example,) = task.encode([row])
    answer = choose_answer(example, logits_for(example, {}), replace(SMALL, n_best=200))
    texts = [one.text for one in answer.candidates]
    assert "old  mill" in texts and len(set(texts)) == len(texts)
    for one in answer.candidates:
        assert one.text == one.text.strip() == row.context[one.start : one.end]


def brute_force(example: AnsweringExample, logits: Sequence[np.ndarray], chosen: AnsweringSettings) -> list[tuple]:
    """All spans that run_squad.py would allow, by its rules one after the other; best first, no text twice."""
    spans = []
    for index, (window, array) in enumerate(zip(example.windows, logits, strict=True)):
        for start in range(len(window)):
            position = window.start + start
            contexts = [
                (min(position - w.start, w.end - 1 - position) + 0.01 * len(w), -i)
                for i, w in enumerate(example.windows)
                if w.start <= position < w.end
            ]
            if -max(contexts)[1] != index:
                continue
            for end in range(start, min(start + chosen.max_answer_length, len(window))):
                shift = len(example.question_ids) + 2
                a = int(example.context.offsets[position, 0])
                b = int(example.context.offsets[window.start + end, 1])
                score = float(array[shift + start, 0]) + float(array[shift + end, 1])
                spans.append((-score, position, window.start + end, example.row.context[a:b]))
    best: dict[str, float] = {}
    for negative, _, _, text in sorted(spans):
        best.setdefault(text, -negative)
    return list(best.items())[: chosen.n_best]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    words=st.integers(1, 40),
    n_best=st.integers(1, 7),
    longest=st.integers(1, 9),
    stride=st.integers(1, 20),
)
def test_candidates_are_those_of_a_search_through_everything(tokenizer, seed, words, n_best, longest, stride):
    chosen = replace(SMALL, n_best=n_best, max_answer_length=longest, doc_stride=stride)
    random = np.random.default_rng(seed)
    context = " ".join(random.choice(["the", "cat", "sat", "zebra"][: 1 + seed % 4], words))
    example = encoded(tokenizer, replace(question(), context=context), chosen)
    frame = len(example.question_ids) + 3
    logits = [random.normal(size=(len(window) + frame, 2)).astype(np.float32) for window in example.windows]
    answer = choose_answer(example, logits, chosen)
    expected = brute_force(example, logits, chosen)
    assert [one.text for one in answer.candidates] == [text for text, _ in expected]
    assert [one.score for one in answer.candidates] == pytest.approx([score for _, score in expected])


def test_a_start_counts_only_where_its_context_is_widest(tokenizer):
    example = encoded(tokenizer, question())
    first, second = example.windows[:2]
    # The token at the edge of the first window lies deeper in the second one.
    edge = first.end - 1
    frame = len(example.question_ids) + 3
    logits = logits_for(example, {})
    logits[0][edge - first.start + frame - 1, 0] = 50.0
    assert choose_answer(example, logits, SMALL).candidates[0].score < 0
    logits[1][edge - second.start + frame - 1] = 20.0
    assert choose_answer(example, logits, SMALL).candidates[0].score == pytest.approx(40.0)


def test_no_answer_wins_by_more_than_the_threshold_and_by_the_lowest_window(tokenizer):
    row = question()
    example = encoded(tokenizer, row)
    logits = logits_for(example, {(2, 2): 4.0}, null=7.0)
    for window in logits[1:]:
        window[0] = 4.5  # 9 in sum: the minimum over windows is still 7
    chosen = replace(SMALL, unanswerable=True)
    silent = choose_answer(example, logits, chosen)
    assert (silent.text, silent.best) == ("", None)
    assert silent.null_difference == pytest.approx(3.0)
    assert silent.candidates[0].text == "king"
    assert silent.probability == pytest.approx(1 - sum(one.probability for one in silent.candidates))
    assert choose_answer(example, logits, replace(chosen, no_answer_threshold=2.9)).text == ""
    assert choose_answer(example, logits, replace(chosen, no_answer_threshold=3.1)).text == "king"
    assert choose_answer(example, logits, SMALL).text == "king"


@pytest.mark.parametrize("context", ["", "   ", "\n\u200b"])
@pytest.mark.parametrize("no_answer", [True, False])
def test_a_context_without_text_has_no_answer_and_no_error(tokenizer, context, no_answer):
    task = make(tokenizer, Question("who?", context, (), "q", "w"), chosen=replace(SMALL, unanswerable=no_answer))
    batch = task.collate(items(task, "dev"))
    model = task.build(encoder(tokenizer)).eval()
    with torch.inference_mode():
        (answer,) = task.decode(task.predict(model, batch), batch)
    assert answer == QuestionAnswer(None, 1.0, (), None)
    assert task.to_json(answer) == {"answer": None, "start": None, "end": None, "score": 1.0, "candidates": []}
    assert task.score([answer], items(task, "dev"))["best_f1"] == 1.0


def test_all_windows_may_say_that_there_is_no_answer(tokenizer):
    # The n-best list of run_squad.py was empty here and the script stopped (google-research/bert#476).
    example = encoded(tokenizer, question())
    logits = [np.full_like(window, -np.inf) for window in logits_for(example, {})]
    for window in logits:
        window[0] = 10.0
    answer = choose_answer(example, logits, replace(SMALL, unanswerable=True))
    assert (answer.text, answer.candidates, answer.probability) == ("", (), 1.0)


# Reading, scores, answers for people


def test_reading_finds_out_whether_questions_may_have_no_answer(make_files):
    def file(*entries: dict) -> str:
        return json.dumps({"data": [{"paragraphs": [{"context": "a cat", "qas": list(entries)}]}]})

    entry = {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 2}]}
    folder = make_files({"one.json": file(entry), "two.json": file(entry, {**entry, "id": "2", "is_impossible": True})})
    assert read_rows(str(folder / "one.json"), AnsweringSettings())[0].unanswerable is False
    found, rows = read_rows(str(folder / "two.json"), AnsweringSettings())
    assert found.unanswerable is True
    assert find_labels(rows, found) == ()
    with pytest.raises(InputError, match=r"two\.json, question 2: no question of the training data has an answer"):
        find_labels(rows[1:], found)
    assert read_rows(str(folder / "two.json"), AnsweringSettings(unanswerable=False))[0].unanswerable is False
    asked = AnsweringSettings(no_answer_threshold=1.0)
    assert read_rows(str(folder / "two.json"), asked)[0].no_answer_threshold == 1.0
    with pytest.raises(SettingsError, match="which there never is here: no question of the training data lacks one"):
        read_rows(str(folder / "one.json"), asked)


def test_rows_with_columns_of_other_names(make_files):
    line = json.dumps({"q": "who?", "passage": "a cat", "gold": {"text": ["cat"], "answer_start": [2]}})
    folder = make_files({"train.jsonl": line + "\n", "empty.jsonl": "", "cut.jsonl": line.replace("2", "9")})
    chosen = AnsweringSettings(question_column="q", context_column="passage", answers_column="gold")
    _, (row,) = read_rows(str(folder / "train.jsonl"), chosen)
    assert (row.question, row.context, row.answers, row.where) == (
        "who?", "a cat", (Answer("cat", 2),), f"{folder}/train.jsonl:1",
    )  # fmt: skip
    with pytest.raises(InputError, match=r'train.jsonl:1: this row has no field "question".*--question-column NAME'):
        read_rows(str(folder / "train.jsonl"), AnsweringSettings())
    with pytest.raises(InputError, match=r"cut.jsonl:1: the answer .* is not at 9"):
        read_rows(str(folder / "cut.jsonl"), chosen)
    with pytest.raises(InputError, match="no questions"):
        read_rows(str(folder / "empty.jsonl"), chosen)


def test_rows_to_predict(tokenizer):
    task = make(tokenizer, chosen=replace(SMALL, question_column="q"))
    row = task.row({"q": "who?", "context": "a cat"}, "line 1")
    assert row == task.row({"question": "who?", "context": "a cat"}, "line 1")
    with pytest.raises(InputError, match='"question" and "context"'):
        task.row("who?", "line 1")
    with pytest.raises(InputError, match=r'line 1: there is no column "context".*predict: --set context_column=NAME'):
        task.row({"q": "who?"}, "line 1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 67}, "no room"),
        ({"doc_stride": 0}, "doc_stride"),
        ({"n_best": 0}, "n_best"),
        ({"max_answer_length": 0}, "max_answer_length"),
        ({"no_answer_threshold": float("nan")}, "no_answer_threshold must be a number"),
        ({"no_answer_threshold": 1.0, "unanswerable": False}, "which there never is here"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(SettingsError, match=message):
        AnsweringSettings(**values)


def test_a_model_with_too_few_positions_is_refused(tokenizer):
    with pytest.raises(SettingsError, match="takes 1 to 64 tokens"):
        make(tokenizer, chosen=AnsweringSettings(max_length=65, max_query_length=8)).build(encoder(tokenizer))
    assert isinstance(make(tokenizer).build(encoder(tokenizer)), QuestionAnsweringModel)


def answered(text: str, difference: float = -1.0, best: str | None = None) -> QuestionAnswer:
    """An answer as `decode` gives it; `best` is what would be said without a threshold."""
    example = question(best or text)
    place = example.answers[0].start or 0
    found = Candidate(place, place + len(best or text), best or text, 1.0, 0.5)
    return QuestionAnswer(found if text else None, 0.5, (found,), difference)


def test_scores_with_and_without_questions_that_have_no_answer(tokenizer):
    task = make(tokenizer, question("old king", "king"), question("blue bird"), question(name="none"))
    examples = items(task, "dev")
    answers = [answered("the old king"), answered("a small cat saw the blue bird"), answered("cat")]
    both = task.score(answers[:2], examples[:2])
    assert list(both) == ["f1", "exact_match"]
    assert both["exact_match"] == 0.5  # "the" does not count
    # Without "a" and "the" five words, two of them right: precision 2/5, recall 1.
    assert both["f1"] == pytest.approx((1 + 2 * 0.4 / 1.4) / 2)
    every = task.score(answers, examples)
    assert every["no_answer_f1"] == 0.0
    assert every["has_answer_f1"] == pytest.approx(both["f1"])
    assert every["f1"] == pytest.approx(both["f1"] * 2 / 3)
    silent = [*answers[:2], answered("", difference=2.0, best="cat")]
    scores = task.score(silent, examples)
    assert scores["no_answer_exact_match"] == 1.0
    assert scores["best_f1"] == pytest.approx(scores["f1"])
    assert -1.0 <= scores["best_f1_threshold"] < 2.0
    other = Answering(tokenizer, (), replace(SMALL, metric="exact_match"), {"dev": []})
    assert next(iter(other.score(answers[:2], examples[:2]))) == "exact_match"


def test_answers_that_are_never_given_are_said(tokenizer):
    short, long = question("king"), question(CONTEXT[: CONTEXT.index("king") + 4])
    tokens = len(tokenizer.encode(long.answers[0].text).ids)
    chosen = replace(SMALL, max_answer_length=tokens - 1)
    (note,) = [one for one in make(tokenizer, short, long, split="train", chosen=chosen).notes() if "never" in one]
    assert note == (
        f"1 of 2 training questions have an answer of more than {tokens - 1} tokens, the longest of {tokens}: "
        f"max_answer_length {tokens - 1} never gives them."
    )
    enough = make(tokenizer, short, long, split="train", chosen=replace(SMALL, max_answer_length=tokens))
    assert not any("never" in one for one in enough.notes())


@given(st.lists(st.tuples(st.sampled_from(["king", "blue bird", ""]), st.integers(-3, 3)), min_size=2, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_threshold_that_is_left_open_is_the_best_one(tokenizer, rows):
    """What is decided scores what the official search promises, and is what a task with that threshold says itself."""
    questions = [question(text) if text else question() for text, _ in rows]
    task = make(tokenizer, *questions, chosen=replace(SMALL, unanswerable=True))
    examples = items(task, "dev")
    logits = [
        logits_for(example, {(2, 2): 4.0}, null=4.0 + gap) for example, (_, gap) in zip(examples, rows, strict=True)
    ]
    answers = [choose_answer(*pair, task.settings) for pair in zip(examples, logits, strict=True)]
    decided, changed = task.decided_on(answers, examples)
    if len({bool(text) for text, _ in rows}) < 2:
        assert decided is task and changed == answers
        return
    before, after = task.score(answers, examples), decided.score(changed, examples)
    assert after["f1"] == pytest.approx(before["best_f1"]) and after["f1"] >= before["f1"]
    assert decided.settings.no_answer_threshold == before["best_f1_threshold"] == after["best_f1_threshold"]
    said = [choose_answer(*pair, decided.settings) for pair in zip(examples, logits, strict=True)]
    assert [(one.best, one.probability) for one in said] == [(one.best, one.probability) for one in changed]
    given_one = make(tokenizer, *questions, chosen=replace(SMALL, unanswerable=True, no_answer_threshold=1.0))
    assert given_one.decided_on(answers, examples)[0] is given_one


def test_a_model_whose_threshold_dev_chose_can_be_told_to_answer_always(tokenizer, tmp_path):
    task = make(tokenizer, chosen=replace(SMALL, unanswerable=True, no_answer_threshold=1.5))
    model = task.build(encoder(tokenizer))
    save_task(tmp_path / "model", task, model, model.encoder.config, "# card\n", {})
    assert load_task(tmp_path / "model")[0].settings.no_answer_threshold == 1.5
    always = load_task(tmp_path / "model", {"unanswerable": False})[0].settings
    assert always.unanswerable is False and always.no_answer_threshold is None
    with pytest.raises(SettingsError, match="which there never is here"):
        load_task(tmp_path / "model", {"unanswerable": False, "no_answer_threshold": 1.0})


def test_questions_that_are_cut_are_said(tokenizer):
    long = question("king", text="who sat by the river and saw the blue bird at night?")
    notes = make(tokenizer, long, question("king", text="who sat?")).notes()
    assert "Questions longer than max_query_length 6, which lose their end: 1 of dev." in notes
    assert not any(
        "max_query_length" in note for note in make(tokenizer, question("king", text="who sat?")).notes()[1:]
    )


def test_answers_as_json_point_into_the_context(tokenizer):
    row = question("king")
    task = make(tokenizer, row, chosen=replace(SMALL, unanswerable=True))
    (example,) = items(task, "dev")
    answer = choose_answer(example, logits_for(example, {(1, 2): 9.0}), task.settings)
    value = json.loads(json.dumps(task.to_json(answer)))
    assert value["answer"] == CONTEXT[value["start"] : value["end"]] == "old king"
    assert value["candidates"][0] == {key: value[key] for key in ("answer", "start", "end", "score")}


def test_sections_group_by_length_and_show_right_and_wrong_answers(tokenizer):
    rows = [question("king"), question("small cat"), question("the queen runs to the house"), question(name="none")]
    task = make(tokenizer, *rows)
    answers = [answered("king"), answered("river"), answered("house"), answered("", 1.0, "cat")]
    lengths, right, wrong = task.sections(answers, items(task, "dev"))
    assert isinstance(lengths, Table) and isinstance(right, Table) and isinstance(wrong, Table)
    assert [(row[0], row[1]) for row in lengths.rows] == [("1", 1), ("2", 1), ("5-8", 1), ("no answer", 1)]
    assert [row[2] for row in lengths.rows] == [1.0, 0.0, 0.0, 1.0]
    assert [row[2] for row in right.rows] == ["king", "(no answer)"]
    assert [(row[1], row[2]) for row in wrong.rows] == [("small cat", "river")]
    assert "189" in make(tokenizer, chosen=AnsweringSettings()).notes()[0]


@pytest.mark.parametrize(
    ("values", "step", "shared"),
    [
        ({}, "128 tokens at a time (doc_stride as a step)", 189),
        ({"max_length": 128}, "61 tokens at a time (doc_stride 128, cut to the room)", 0),
        ({"max_length": 128, "doc_stride": 61}, "61 tokens at a time (doc_stride as a step)", 0),
        ({"max_length": 128, "doc_stride": 60}, "60 tokens at a time (doc_stride as a step)", 1),
    ],
)
def test_the_step_that_is_said_is_the_one_that_is_taken(values, step, shared):
    chosen = AnsweringSettings(**values)
    note = chosen.describe_windows()
    assert step in note and f"neighbours share {shared} tokens" in note
    room = chosen.max_length - 3 - chosen.max_query_length
    first, second, *_ = windows(1000, room, chosen.doc_stride)
    assert (f"{second.start} tokens at a time" in note, first.end - second.start) == (True, shared)
    assert ("Answers that lie across a border get lost: give a doc_stride below 61." in note) == (shared == 0)


# Real questions


@pytest.mark.parametrize("name", ["squad-v1.1-dev-a.json.xz", "squad-v2.0-dev-a.json.xz"])
def test_gold_answers_of_squad_can_be_recovered_from_their_windows(shared_data, minilm_tokenizer, name):
    """With gold logits the answer is the reference, but for characters that a piece holds besides."""
    rows = list(read_squad(shared_data / "answer" / name))[::40]
    assert len(rows) > 100
    # Short windows, so that most contexts need several.
    chosen = AnsweringSettings(max_length=128, doc_stride=40, unanswerable=True, max_answer_length=200)
    task = make(minilm_tokenizer, *rows, chosen=chosen)
    exact = 0
    answers = []
    for example in items(task, "dev"):
        spans = {}
        if example.row.answers:
            first = example.row.answers[0]
            span = locate(example.context, first.start, len(first.text))
            assert span is not None
            spans = {span: 12.0}
        answers.append(choose_answer(example, logits_for(example, spans), chosen))
        exact += answers[-1].text == (example.row.answers[0].text if example.row.answers else "")
    assert any(len(example.windows) > 2 for example in items(task, "dev"))
    assert exact / len(rows) > 0.97
    assert task.score(answers, items(task, "dev"))["f1"] > 0.98


def test_the_rules_that_score_are_those_of_the_contexts(make_files: MakeFiles) -> None:
    texts = {"zh": "这座磨坊建于1820年,在河边。", "en": "The mill was built in 1820 (磨坊)."}
    for language, text in texts.items():
        row = {"question": "?", "context": text, "answers": [{"text": "1820", "answer_start": text.index("1820")}]}
        data = str(make_files({f"{language}.jsonl": json.dumps(row, ensure_ascii=False)}) / f"{language}.jsonl")
        found, questions = read_rows(data, AnsweringSettings())
        assert scored_in(found.language, questions) == language
        assert scored_in("en", questions) == "en"


def test_a_model_of_one_language_is_scored_on_another_by_its_rules(tokenizer: Tokenizer) -> None:
    text = "这座磨坊建于1820年,在河边。"
    row = question("在河边", text="磨坊", context=text)
    found = Candidate(12, 14, "在河", 1.0, 1.0)
    answer = QuestionAnswer(found, 1.0, (found,), None)
    for task in (make(tokenizer, question("a small cat")), make(tokenizer, row)):
        # Two of three characters; by words it would be wrong.
        assert task.score([answer], task.encode([row]))["f1"] == pytest.approx(0.8)
    assert any("Answers of dev are scored by characters" in note for note in make(tokenizer, row).notes())
    assert not any("characters" in note for note in make(tokenizer, question("a small cat")).notes())


def test_gold_answers_in_chinese(shared_data, shared_vocabulary):
    chosen = AnsweringSettings(language="zh", lenient=True, max_answer_length=200)
    found, rows = read_rows(str(shared_data / "answer" / "cmrc2018-trial.zh.json"), chosen)
    task = Answering(load_tokenizer(shared_vocabulary), (), found, {"dev": rows[::10]})
    answers, examples = [], items(task, "dev")
    for example in examples:
        first = example.row.answers[0]
        span = locate(example.context, first.start, len(first.text)) or (0, 0)
        answers.append(choose_answer(example, logits_for(example, {span: 9.0}), found))
    scores = task.score(answers, examples)
    assert scores["exact_match"] > 0.93
    assert scores["f1"] >= scores["exact_match"]


@pytest.fixture(scope="module")
def shared_vocabulary(shared_data: Path) -> Path:
    return shared_data / "vocab" / "bert-base-chinese-vocab.txt"
