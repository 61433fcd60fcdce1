"""The verb `advise`: figures of the data, what is recommended, what fits time and memory, the command at the end."""

import io
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from bertsmith.cli import advice_verbs, main, model_verbs
from bertsmith.cli.advice_verbs import command
from bertsmith.errors import SettingsError, StorageError, TrainingError
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks import advise as advise_module
from bertsmith.tasks.advice_rules import DataFigures, Least, recommend, remarks
from bertsmith.tasks.advice_text import advice_sheets, no_advice, render
from bertsmith.tasks.advise import Advice, AdviceSettings, advise
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.child import in_child
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.forecast import FinetuneMeasured, memory_limit, time_limit, writable
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.calibrate import Calibration, Pace, StageCost

MakeFiles = Callable[[dict[str, str | bytes]], Path]

WORDS = ("cat", "dog", "river", "king", "queen", "the", "house", "blue")


def reviews(number: int = 200, longest: int = 60) -> str:
    """Rows of 1 to `longest` words, every tenth of the label "bad"."""
    draw = random.Random(0)
    lines = ["text,label"]
    for row in range(number):
        text = " ".join(draw.choice(WORDS) for _ in range(1 + row % longest))
        lines.append(f"{text} {row},{'bad' if row % 10 == 0 else 'good'}")
    return "\n".join(lines) + "\n"


class Machine:
    """Stands for the process that measures: a step takes 1 second, or 1.5 and a tenth of the memory where layers are
    computed again, and `examples` fit into the memory at once.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[FinetuneSettings, Any]] = []
        self.fits: Callable[[FinetuneSettings], bool] = lambda settings: True
        self.examples = 1000
        self.rows = 90
        self.examples_of_a_row = 1

    def measure(
        self, task: str, settings: FinetuneSettings, options: Any, *, memory_limit_bytes: int
    ) -> FinetuneMeasured:
        """`rows` examples of 10 tokens to learn from, 10 to evaluate."""
        self.asked.append((settings, options))
        fits = self.fits(settings)
        batch = settings.batch_size
        seconds, peak_bytes = (1.5, 10**8) if settings.gradient_checkpointing else (1.0, 10**9)
        stage = StageCost(
            batch, min(batch, self.examples), -(-self.rows // batch), 5, Pace(seconds, 0.0), 10.0 * batch, batch,
            100.0 * batch, {}, 0.01, peak_bytes,
        )  # fmt: skip
        calibration = Calibration(1000, 1000, fits, peak_bytes, (stage,) if fits else (), 0.5, 12000, 0.25, 4000, 1.0)
        tokens = {"train": 10 * self.rows, "dev": 100, "test": 0}
        sizes = {"train": self.rows, "dev": 10, "test": 0}
        return FinetuneMeasured(4.0, calibration, sizes, tokens, self.rows // self.examples_of_a_row)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    stand_in = Machine()
    monkeypatch.setattr(advise_module, "measure_finetune", stand_in.measure)
    return stand_in


@pytest.fixture
def model(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A folder of random weights with the tiny tokenizer."""
    tokenizer = load_tokenizer(tiny_tokenizer)
    config = named_size("tiny", tokenizer.vocab_size, max_length=48)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, PretrainingModel(Encoder(config), pairs=True), config, "BertForPreTraining")
    tokenizer.save(folder, model_max_length=48, has_segments=True)
    return folder


def chosen(advice: Advice) -> dict[str, Any]:
    return {choice.name: choice.value for choice in advice.choices}


def test_figures_are_those_of_the_tokenizer_and_numpy(make_files: MakeFiles, model: Path, machine: Machine) -> None:
    folder = make_files({"a.csv": reviews(), "b.csv": reviews(20)})
    data = advise(
        "classification", AdviceSettings(model=str(model), train=str(folder / "a.csv"), test=str(folder / "b.csv"))
    ).data
    rows = [line.rsplit(",", 1) for line in reviews().splitlines()[1:]]
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [len(tokenizer(text)["input_ids"]) for text, _ in rows]
    expected = np.percentile(lengths, [50, 95, 100], method="lower")
    assert data.percentiles == tuple(expected.tolist())
    assert data.rows == {"train": 200, "test": 20}
    assert data.labels == {"good": 180, "bad": 20}
    assert (data.scripts, data.unknown_share) == ({"Latin": 1.0}, 0.0)


def test_questions_are_as_long_as_with_their_context(make_files: MakeFiles, model: Path, machine: Machine) -> None:
    context = "the king sat by the river"
    row = {"question": "who sat?", "context": context, "answers": [{"text": "king", "answer_start": 4}]}
    folder = make_files({"a.jsonl": f"{json.dumps(row)}\n" * 3})
    advice = advise("answering", AdviceSettings(model=str(model), train=str(folder / "a.jsonl")))
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert advice.data.percentiles == (len(tokenizer("who sat?", context)["input_ids"]),) * 3
    assert isinstance(advice.options, AnsweringSettings) and advice.options.max_length == 48


def test_the_command_and_the_file_are_what_is_recommended(
    make_files: MakeFiles,
    model: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The real command line parses the last line that `advise` prints."""
    folder = make_files({"my reviews.csv": reviews()})
    machine.examples = 5
    machine.fits = lambda run: run.gradient_checkpointing
    said: list[Advice] = []
    monkeypatch.setattr(advice_verbs, "advise_task", lambda *them: said.append(advise(*them)) or said[-1])  # type: ignore[func-returns-value]
    words = ["advise", "classification", "--model", str(model), "--train", str(folder / "my reviews.csv")]
    words += ["--text-column", "text", "--budget", "1m", "--run", str(folder / "run"), "--out", str(folder / "a.yaml")]
    assert main(words) == 0
    out = capsys.readouterr().out
    line = out.rstrip("\n").rpartition("\n")[2]
    (advice,) = said
    assert line.startswith("bertsmith finetune classification ") and "threshold" not in line
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(model_verbs, "finetune", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(model_verbs, "_show_finetuned", lambda *arguments: None)
    for given in (shlex.split(line)[1:], ["finetune", "classification", "--config", str(folder / "a.yaml")]):
        assert main(given) == 0
    assert calls == [("classification", advice.settings, advice.options)] * 2
    assert advice.settings.micro_batch_size == 5 and advice.options.text_column == "text"
    assert advice.settings.gradient_checkpointing and " --gradient-checkpointing" in line
    for choice in advice.choices:
        assert choice.why in out and choice.name in out


def test_a_terminal_gets_tables_and_a_file_gets_lines(make_files: MakeFiles, model: Path, machine: Machine) -> None:
    folder = make_files({"a.csv": reviews()})
    sheets = advice_sheets(advise("classification", AdviceSettings(model=str(model), train=str(folder / "a.csv"))))

    def shown(is_terminal: bool) -> str:
        console = Console(width=100, file=io.StringIO(), record=True)
        console.print(render(sheets, is_terminal=is_terminal), soft_wrap=not is_terminal)
        return console.export_text()

    assert "│" in shown(True) and "│" not in shown(False)
    assert "  learning_rate: 0.0002 (" in shown(False)
    assert "  rows: 200 train\n" in shown(False)


def test_a_limit_of_time_takes_epochs_then_rows(make_files: MakeFiles, model: Path, machine: Machine) -> None:
    """A step is a second, so an epoch of 90 rows in batches of 16 is 6; the rest is 4, and 1.5 or so an epoch."""
    folder = make_files({"a.csv": reviews()})
    settings = AdviceSettings(model=str(model), train=str(folder / "a.csv"))
    whole = advise("classification", settings)
    assert whole.settings.epochs == 20 and not whole.is_cut_short and whole.forecast is not None
    previous = whole.forecast.seconds
    for budget, epochs in (("100s", 10), ("45s", 4)):
        advice = advise("classification", replace(settings, budget=budget))
        assert advice.forecast is not None and advice.fits_time and advice.is_cut_short
        assert advice.settings.epochs >= epochs
        assert (
            advice.measured.forecast(advice.settings.epochs + 1).seconds > float(budget[:-1]) >= advice.forecast.seconds
        )
        assert advice.forecast.seconds < previous
        previous = advice.forecast.seconds
    # 24 steps are four epochs of so few rows, which are never cut; and so is evaluation, to a fifth of the time.
    hopeless = advise("classification", replace(settings, budget="14s"))
    assert (hopeless.settings.epochs, hopeless.settings.max_train_examples) == (4, None)
    assert not hopeless.fits and hopeless.forecast is not None and hopeless.least_seconds == hopeless.forecast.seconds
    machine.rows = 1600
    advice = advise("classification", replace(settings, budget="60s"))
    assert advice.settings.epochs == 1 and advice.fits and advice.forecast is not None
    kept = advice.settings.max_train_examples
    assert kept is not None and kept % 16 == 0 and 384 < kept < 1600
    more = advice.measured.forecast(1, (kept + 16) / 1600)
    assert advice.forecast.seconds <= 60 < more.seconds
    machine.examples_of_a_row = 2
    half = advise("classification", replace(settings, budget="60s"))
    assert half.settings.max_train_examples in range(kept // 2 - 16, kept // 2 + 1), "of rows, of which there are half"
    assert half.forecast is not None and half.forecast.seconds <= 60
    machine.examples_of_a_row = 1
    hopeless = advise("classification", replace(settings, budget="5s"))
    assert (hopeless.settings.epochs, hopeless.settings.max_train_examples) == (1, 384) and not hopeless.fits
    # Two evaluations of 1 second were to be a fifth of 5 seconds; in more time they have more.
    assert (advice.settings.dev_share, hopeless.settings.dev_share) == (0.1, 0.05)
    assert [run.dev_share for run, _ in machine.asked[-2:]] == [0.1, 0.05]
    assert hopeless.forecast is not None and hopeless.least_seconds == pytest.approx(hopeless.forecast.seconds / 0.8)
    assert advise("classification", replace(settings, budget=f"{hopeless.least_seconds + 1:.0f}s")).fits


def test_no_less_is_advised_than_teaches_anything() -> None:
    assert Least.of(100_000, 6, 32, 3.0) == Least(1, 768)
    assert Least.of(100_000, 150, 32, 3.0) == Least(1, 1200)
    assert Least.of(100, 6, 16, 20.0) == Least(4, 100)
    assert Least.of(100, 6, 16, 1.0) == Least(1, 100)


@pytest.mark.parametrize(
    ("memory_fits", "arguments", "said"),
    [
        (True, ["--budget", "5s"], ["nothing fits the time of 5.0 s. The least that may teach anything takes some ",
                                    "of which starting and saving are "]),
        (False, ["--memory", "300MiB"], ["nothing fits the memory of 300.0 MiB. Take a smaller model"]),
        (False, ["--memory", "300MiB", "--budget", "20s"],
         ["nothing fits the memory of 300.0 MiB. Whether 20.0 s would be enough cannot be measured"]),
    ],
)  # fmt: skip
def test_nothing_is_recommended_where_nothing_fits(
    make_files: MakeFiles, model: Path, machine: Machine, capsys: pytest.CaptureFixture[str],
    memory_fits: bool, arguments: list[str], said: list[str],
) -> None:  # fmt: skip
    folder = make_files({"a.csv": reviews()})
    machine.fits = lambda run: memory_fits
    words = ["advise", "classification", "--model", str(model), "--train", str(folder / "a.csv"), *arguments]
    assert main([*words, "--out", str(folder / "a.yaml")]) == 2
    out, err = capsys.readouterr()
    for one in said:
        assert one in err
    assert err.endswith(f"No command is given, and {folder / 'a.yaml'} is not written.\n")
    assert not (folder / "a.yaml").exists() and "bertsmith finetune" not in out
    assert "What was tried, and does not fit:" in out and "What to do" not in out
    assert ("  the whole: cannot be measured (of 20.0 s that there are" in out) == ("20s" in arguments)
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("No command is given.\n")


def test_memory_takes_time_then_embeddings_then_all_but_small_matrices(
    make_files: MakeFiles, model: Path, machine: Machine
) -> None:
    folder = make_files({"a.csv": reviews()})
    settings = AdviceSettings(model=str(model), train=str(folder / "a.csv"))
    whole = advise("classification", settings)
    assert not whole.settings.gradient_checkpointing and whole.forecast is not None
    machine.fits = lambda run: run.gradient_checkpointing
    advice = advise("classification", settings)
    assert (advice.settings.gradient_checkpointing, advice.settings.freeze, advice.settings.lora) == (True, None, None)
    # Beside that nothing is changed, and what is said of time and memory is said of a run that computes layers again.
    assert replace(advice.settings, gradient_checkpointing=False) == whole.settings
    assert advice.forecast is not None and advice.forecast.peak_bytes == 10**8
    assert advice.forecast.learning_seconds == 1.5 * whole.forecast.learning_seconds
    machine.fits = lambda run: run.freeze == 0
    advice = advise("classification", settings)
    assert chosen(advice)["freeze"] == 0 and not advice.settings.gradient_checkpointing
    machine.fits = lambda run: run.freeze == 0 and run.gradient_checkpointing
    assert advise("classification", settings).settings.gradient_checkpointing
    machine.fits = lambda run: run.lora is not None
    advice = advise("classification", settings)
    assert (advice.settings.lora, advice.settings.freeze) == (8, None)
    assert advice.settings.learning_rate == pytest.approx(10 * 2e-4)
    machine.fits = lambda run: False
    machine.asked.clear()
    advice = advise("classification", settings)
    tried = [(run.freeze, run.lora, run.gradient_checkpointing) for run, _ in machine.asked]
    assert tried == [
        (freeze, lora, lean) for freeze, lora in ((None, None), (0, None), (None, 8)) for lean in (False, True)
    ]
    assert advice.forecast is None
    assert any("does not fit" in value for sheet in advice_sheets(advice) for _, value, _ in sheet.lines)


def test_memory_takes_windows_before_anything_that_is_learnt(
    make_files: MakeFiles, model: Path, machine: Machine
) -> None:
    """Of 200 rows a twentieth has up to 20 windows of 46 tokens, the others one or two."""
    texts = [
        "the cat " * (40 * (row % 11) if row % 25 == 0 else 40 if row % 4 == 0 else 5) + str(row) for row in range(200)
    ]
    rows = [f"{text},{'bad' if row % 10 == 0 else 'good'}" for row, text in enumerate(texts)]
    folder = make_files({"a.csv": "text,label\n" + "\n".join(rows) + "\n"})
    settings = AdviceSettings(model=str(model), train=str(folder / "a.csv"))
    machine.fits = lambda run: run.lora is not None
    advice = advise("classification", settings)
    assert [(options.max_windows, run.freeze, run.lora) for run, options in machine.asked[::2]] == [
        (None, None, None),
        (2, None, None),
        (2, 0, None),
        (2, None, 8),
    ]
    assert chosen(advice)["max_windows"] == advice.options.max_windows == 2
    machine.asked.clear()
    advise("classification", settings, ClassificationSettings(long="windows", max_windows=3))
    assert {options.max_windows for _, options in machine.asked} == {3}
    machine.fits = lambda run: False
    assert "read less of the longest texts (--long)" in no_advice(advise("classification", settings))


def test_a_large_test_set_does_not_make_dev_smaller(
    make_files: MakeFiles, model: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_files({"a.csv": reviews()})
    measure = machine.measure

    def with_test(*given: Any, **options: Any) -> FinetuneMeasured:
        found = measure(*given, **options)
        return replace(found, num_tokens={"train": 900, "dev": 10, "test": 1000})

    monkeypatch.setattr(advise_module, "measure_finetune", with_test)
    advice = advise("classification", AdviceSettings(model=str(model), train=str(folder / "a.csv"), budget="25s"))
    assert advice.forecast is not None and advice.forecast.evaluation_seconds > 0.2 * 25
    assert (chosen(advice)["dev_share"], advice.is_evaluated_less) == (0.1, False)


def test_answers_that_are_longer_than_is_usual(make_files: MakeFiles, model: Path, machine: Machine) -> None:
    context = "the king sat by the river " * 8
    rows = [
        {"question": "who sat?", "context": context, "answers": [{"text": context[: 4 * n].strip(), "answer_start": 0}]}
        for n in range(2, 52)
    ]
    folder = make_files({"a.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows)})
    advice = advise("answering", AdviceSettings(model=str(model), train=str(folder / "a.jsonl")))
    tokenizer = load_tokenizer(model)
    lengths = [len(tokenizer.encode(row["answers"][0]["text"]).ids) for row in rows]
    expected = int(np.percentile(lengths, 99, method="lower"))
    assert expected > 30 and chosen(advice)["max_answer_length"] == advice.options.max_answer_length == expected


def test_windows_of_answering_follow_a_length_that_is_given() -> None:
    config = named_size("mini", 100, max_length=512)
    data = figures(500, [300], "answering")
    given = length_rules(data, AnsweringSettings(max_length=128), config)
    assert given == {"max_length": 128, "max_query_length": 21, "doc_stride": 42}
    assert length_rules(data, AnsweringSettings(), config) == {"max_length": 384}


@pytest.mark.parametrize("place", ["file/advice.yaml", "folder.yaml"])
def test_a_place_where_nothing_can_be_written_is_said_before_it_is_measured(
    make_files: MakeFiles, model: Path, machine: Machine, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    folder = make_files({"a.csv": reviews(20), "file": "text"})
    (folder / "folder.yaml").mkdir()
    words = ["advise", "classification", "--model", str(model), "--train", str(folder / "a.csv")]
    assert main([*words, "--out", str(folder / place)]) == 2
    assert "folder" in capsys.readouterr().err and not machine.asked


def test_less_evaluation_is_measured_anew_from_what_was_asked(
    make_files: MakeFiles, model: Path, machine: Machine
) -> None:
    folder = make_files({"a.csv": reviews()})
    settings = AdviceSettings(model=str(model), train=str(folder / "a.csv"), budget="5s")
    machine.fits = lambda run: run.lora is not None
    advice = advise("classification", settings)
    assert (advice.settings.dev_share, advice.settings.learning_rate) == (0.05, pytest.approx(10 * 2e-4))
    machine.fits = lambda run: run.dev_share == 0.1
    advice = advise("classification", settings)
    assert advice.settings.dev_share == 0.05 and advice.forecast is None


def test_random_weights_are_all_learnt_however_short_memory_is(
    make_files: MakeFiles, tiny_tokenizer: Path, machine: Machine
) -> None:
    folder = make_files({"a.csv": reviews()})
    machine.fits = lambda run: False
    advise(
        "classification",
        AdviceSettings(model="size:tiny", tokenizer=str(tiny_tokenizer), train=str(folder / "a.csv")),
    )
    tried = [(run.freeze, run.lora, run.gradient_checkpointing) for run, _ in machine.asked]
    assert tried == [(None, None, False), (None, None, True)]


def figures(number: int, lengths: Sequence[int], task: str = "classification", **changes: Any) -> DataFigures:
    values = {"rows": {"train": number}, "labels": {"a": 10, "b": 10}, "scripts": {"Latin": 1.0}, "unknown_share": 0.0}
    return DataFigures(task=task, lengths=np.array(lengths), **{"longest_evaluated": 0, **values, **changes})


def length_rules(data: DataFigures, options: Any, config: Any = None) -> dict[str, Any]:
    chosen = recommend(data, config or named_size("mini", 100), options, is_random=False)
    return {c.name: c.value for c in chosen if c.name in ("max_length", "long", "doc_stride", "max_query_length")}


def test_room_is_for_all_splits_and_never_less_than_is_usual() -> None:
    plain = ClassificationSettings()
    assert length_rules(figures(500, [20, 41]), plain) == {"max_length": 128}
    assert length_rules(figures(500, [20, 130]), plain) == {"max_length": 136}
    assert length_rules(figures(500, [20], longest_evaluated=301), plain) == {"max_length": 304}
    assert length_rules(figures(500, [20], longest_evaluated=900), plain) == {"max_length": 512}
    (why, *_) = [
        c.why
        for c in recommend(figures(500, [20], longest_evaluated=900), named_size("mini", 100), plain, is_random=False)
    ]
    assert why.startswith("Rows of dev or test are longer than 512 tokens")
    short = named_size("mini", 100, max_length=64)
    assert length_rules(figures(500, [20]), plain, short) == {"max_length": 64}
    assert length_rules(figures(500, [20], "choice"), ChoiceSettings()) == {"max_length": 256}


def test_a_length_that_is_given_is_what_the_other_rules_see() -> None:
    short = length_rules(figures(500, [300]), ClassificationSettings(max_length=64))
    assert short == {"max_length": 64, "long": "windows"}
    long = named_size("mini", 100, model_type="modernbert", max_length=8192)
    assert length_rules(figures(500, [900]), ClassificationSettings(max_length=1024), long) == {"max_length": 1024}
    tagged = length_rules(figures(500, [20], "tagging"), TaggingSettings(max_length=32))
    assert tagged == {"max_length": 32, "doc_stride": 16}


def test_a_sentence_has_room_for_its_document() -> None:
    in_documents = TaggingSettings(context="document")
    assert length_rules(figures(500, [40], "tagging"), in_documents) == {"max_length": 256, "doc_stride": 128}
    assert length_rules(figures(500, [300], "tagging"), in_documents)["max_length"] == 304
    data = figures(500, [40], "tagging")
    (why,) = [c.why for c in recommend(data, named_size("mini", 100), in_documents, is_random=False)][:1]
    assert "filled with its document" in why


def test_rules_follow_length_width_and_number() -> None:
    mini, base = named_size("mini", 100), named_size("base", 100)
    few = {
        c.name: c.value
        for c in recommend(figures(500, [20] * 99 + [41]), mini, ClassificationSettings(), is_random=False)
    }
    many = {
        c.name: c.value
        for c in recommend(figures(90_000, [700] * 9 + [20]), base, ClassificationSettings(), is_random=False)
    }
    assert (few["max_length"], many["max_length"]) == (128, 512)
    assert "long" not in few and many["long"] == "windows"
    assert few["learning_rate"] > many["learning_rate"] and few["epochs"] > many["epochs"]
    assert (few["dev_share"], many["dev_share"]) == (0.1, 0.02)
    kept = recommend(figures(500, [20]), mini, ClassificationSettings(max_length=64), is_random=False)
    assert next(c for c in kept if c.name == "max_length").value == 64
    rare = recommend(figures(500, [20], labels={"a": 90, "b": 10}), mini, ClassificationSettings(), is_random=False)
    assert next(c for c in rare if c.name == "metric").value == "macro_f1"
    tagged = recommend(figures(500, [20], "tagging"), mini, TaggingSettings(), is_random=False)
    assert next(c for c in tagged if c.name == "doc_stride").value == 64
    pairs = [
        recommend(figures(number, [20], "embedding"), mini, EmbeddingSettings(), is_random=False)
        for number in (30, 768, 1536)
    ]
    assert [next(c for c in one if c.name == "epochs").value for one in pairs] == [20.0, 2.0, 1.0]
    with_dev = recommend(figures(500, [20], rows={"train": 500, "dev": 3}), mini, TaggingSettings(), is_random=False)
    assert "dev_share" not in {c.name for c in with_dev}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "missing.csv"], "missing.csv"),
        (["--budget", "3 epochs"], "is no time"),
        (["--budget", "soon"], "error: budget: cannot read"),
        (["--memory", "8"], "error: memory: cannot read the size"),
        (["--memory", "0GiB"], "cannot read the size"),
        (["--out", "settings.txt"], "ends in .yaml"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--text-column", "txt"], 'Did you mean "text"?'),
        (["--model", "size:huge"], "no tokenizer of its own"),
    ],
)
def test_what_cannot_be_is_said(
    make_files: MakeFiles, model: Path, machine: Machine, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    folder = make_files({"a.csv": reviews(20)})
    given = {"--model": str(model), "--train": str(folder / "a.csv"), arguments[0]: arguments[1]}
    assert main(["advise", "classification", *(word for pair in given.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SettingsError, match="ClassificationSettings"):
        advise("classification", AdviceSettings(model=str(model), train=str(folder / "a.csv")), TaggingSettings())


def test_limits_are_read_or_found() -> None:
    assert memory_limit("2GiB", "cpu") == 2 << 30
    assert memory_limit(None, "cpu") > 0
    assert (time_limit("1h30m"), time_limit(None)) == (5400, None)


def test_a_process_that_is_killed_is_said() -> None:
    with pytest.raises(TrainingError, match="was killed"):
        in_child(os._exit, 9)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the process")
def test_a_process_that_measures_does_not_outlive_who_asked() -> None:
    program = (
        "import time; from bertsmith.tasks.child import in_child\nif __name__ == '__main__': in_child(time.sleep, 600)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until = time.monotonic() + 60
        while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(1)  # until it listens
        process.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc, where nobody can make a file")
    with pytest.raises(StorageError, match=r"/proc cannot be written to: .* Give --run a folder that can"):
        writable(Path("/proc/runs/advised"))
    assert writable(tmp_path / "runs" / "advised") == tmp_path


def test_the_first_steps_are_really_taken(make_files: MakeFiles, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_files({"a.csv": reviews()})
    settings = AdviceSettings(
        model=str(model), train=str(folder / "a.csv"), precision="fp32", device="cpu", run=folder / "runs" / "a"
    )
    monkeypatch.setattr("bertsmith.tasks.forecast.MEASURED_SECONDS", 0.2)
    advice = advise("classification", settings)
    cost = advice.measured.calibration
    assert sum(advice.measured.num_examples.values()) == 200
    assert cost.fits and advice.forecast is not None and 100 << 20 < advice.forecast.peak_bytes < 8 << 30
    encoder = named_size("tiny", load_tokenizer(model).vocab_size, max_length=48)
    with_head = sum(p.numel() for p in Encoder(encoder).parameters()) + 128 * 128 + 128 + 128 * 2 + 2
    assert cost.num_parameters == with_head
    assert advice.epoch_seconds() > 0 and not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, set()),
        ({"rows": {"train": 5000}}, {"--test"}),
        ({"rows": {"train": 500, "test": 9}}, {"--seeds 3", "--adversarial"}),
        ({"labels": {"a": 100, "b": 10}}, {"--class-weights auto"}),
        ({"labels": {"a": 100, "b": 10}, "options": ClassificationSettings(multi_label=True)}, set()),
        ({"labels": {"a": 100, "b": 10}, "options": ClassificationSettings(class_weights="a=2")}, set()),
        ({"unknown_share": 0.2}, {"tokenizer extend"}),
        ({"task": "choice"}, {"no r-drop"}),
        ({"task": "tagging", "options": TaggingSettings()}, set()),
        (
            {"task": "tagging", "options": TaggingSettings(), "rows": {"train": 500, "test": 9}},
            {"--seeds 3", "--label-smoothing"},
        ),
        ({"task": "tagging", "options": TaggingSettings(crf=True)}, {"no r-drop"}),
    ],
)
def test_remarks_are_made_where_they_apply(changes: dict[str, Any], said: set[str]) -> None:
    plain = {"rows": {"train": 5000, "test": 9}}
    options, config = changes.get("options", ClassificationSettings()), named_size("mini", 100)
    data = figures(5000, [20], **{**plain, **{name: value for name, value in changes.items() if name != "options"}})
    found = " ".join(remarks(data, config, options))
    assert "--r-drop" not in found or "--r-drop 1 takes" in found
    without = " ".join(remarks(data, config.with_dropout(0.0, 0.0, 0.0), options))
    assert without == found.replace("--r-drop 1 takes", "--r-drop 1 --dropout 0.1 takes")
    hints = ("--test", "--seeds 3", "--class-weights auto", "tokenizer extend", "--label-smoothing", "--adversarial")
    assert {hint for hint in hints if hint in found} | ({"no r-drop"} if "--r-drop" not in found else set()) == said


def test_the_command_can_be_typed_whatever_is_off() -> None:
    line = command(
        ["finetune", "classification"], FinetuneSettings(model="m", train="t", out=Path("o"), cuda_graphs=False)
    )
    assert line == "bertsmith finetune classification --no-cuda-graphs --out o --model m --train t"
