"""The verbs `finetune` and `evaluate`, end to end on toy data; what they write, and what they refuse."""

import io
import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertsmith.errors import InputError, Interrupted, ModelError, SettingsError, StorageError, TrainingError
from bertsmith.files import read_json, sha256
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import read_config as read_config_of
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.settings import from_mapping, read_config
from bertsmith.tasks import teaching
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.card import model_card
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.run_folder import clear_run_folder, model_folder
from bertsmith.tasks.saved import load_task, task_kind
from bertsmith.tasks.start import build_model, starting_point
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.evaluate import Evaluation
from bertsmith.training.loop import train
from bertsmith.training.task import Batch

MakeFiles = Callable[[dict[str, str | bytes]], Path]
QUIET = Console(quiet=True)

ANIMALS, PLACES = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")
FRAMES = ("the {} is old .", "she saw a {} at night", "it was not the {} , he said", "two {} and one {}", "a small {}")


def animals_or_places() -> str:
    """120 different texts: which kind of word is in it?"""
    lines = ["text,label"]
    for number in range(120):
        words, label = (ANIMALS, "animal") if number % 2 else (PLACES, "place")
        frame = FRAMES[number // 2 % len(FRAMES)]
        lines.append(f'"{frame.format(words[number // 10 % 4], words[number // 40 % 4])} {number}",{label}')
    return "\n".join(lines) + "\n"


def settings(folder: Path, own_tokenizer: Path, **changes: object) -> FinetuneSettings:
    base = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(own_tokenizer),
        train=str(folder / "train.csv"),
        out=folder / "run",
        dev_share=0.2,
        epochs=8,
        batch_size=16,
        learning_rate=1e-3,
        dropout=0.0,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


OPTIONS = ClassificationSettings(max_length=24)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "train.csv").write_text(animals_or_places())
    (folder / "test.csv").write_text("text,label\nthe dog sleeps,animal\nthe house is red,place\nthe tree,place\n")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tiny_tokenizer: Path) -> FinetuneResult:
    test = str(data / "test.csv")
    return finetune("classification", settings(data, tiny_tokenizer, test=test), OPTIONS, console=QUIET)


def test_it_learns_what_the_words_mean(run: FinetuneResult) -> None:
    assert run.metrics["dev"]["accuracy"] >= 0.95
    assert run.metrics["test"]["accuracy"] == 1.0
    assert list(run.metrics) == ["dev", "test"]


def test_a_run_leaves_its_configuration_metrics_report_and_model(run: FinetuneResult, data: Path) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "report.html", "checkpoints", "model"}
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    for expected in ("Confusion matrix", "Mistakes", "accuracy on dev", sha256(data / "train.csv"), "Learning rate"):
        assert expected in report
    card = (run.model / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["pipeline_tag"] == "text-classification" and header["library_name"] == "transformers"
    assert f"| accuracy | {run.metrics['dev']['accuracy']:.4f} | 1.0000 |" in card
    assert str(data) not in card  # a card is made to be shared
    saved = json.loads((run.model / "bertsmith.json").read_text())
    assert saved["labels"] == ["animal", "place"] and saved["data"]["train.csv"] == sha256(data / "train.csv")


def test_the_saved_configuration_gives_the_settings_back(run: FinetuneResult, data: Path, tiny_tokenizer: Path) -> None:
    values = read_config(run.folder / "config.yaml")
    own = {name: values.pop(name) for name in ClassificationSettings.__dataclass_fields__}
    assert from_mapping(ClassificationSettings, own) == OPTIONS
    assert from_mapping(FinetuneSettings, values) == settings(data, tiny_tokenizer, test=str(data / "test.csv"))


@pytest.mark.conformance
def test_transformers_gives_equal_logits(run: FinetuneResult) -> None:
    texts = ["the dog saw a fish", "a city at the river , she said", "two"]
    theirs = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    inputs = AutoTokenizer.from_pretrained(run.model)(texts, padding=True, return_tensors="pt")
    task, model = load_task(run.folder)
    batch = task.collate(task.encode([task.row(text, "row") for text in texts]))
    with torch.inference_mode():
        expected = theirs(**inputs).logits
        ours = model.pooled(model.encoder(batch.inputs), batch.inputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert theirs.config.id2label == {0: "animal", 1: "place"}
    assert theirs.config.problem_type == "single_label_classification"


def test_evaluate_gives_the_metrics_of_the_run(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    metrics = evaluate(run.folder, str(data / "test.csv"), predictions=answers, precision="fp32", device="cpu")
    assert metrics == pytest.approx(run.metrics["test"])
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["label"] for line in lines] == ["animal", "place", "place"]
    assert lines[0]["row"] == f"{data / 'test.csv'}:2"
    assert [line["given"] for line in lines] == ["animal", "place", "place"]


def test_evaluate_shows_what_the_report_of_a_run_shows(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    metrics = evaluate(run.folder, str(data / "test.csv"), report=page, precision="fp32", device="cpu")
    content, own = page.read_text(), (run.folder / "report.html").read_text()
    for title in ("Confusion matrix", "By label", "Calibration"):
        assert title in content and title in own
    assert f"<b>{next(iter(metrics.values())):.4f}</b><span>accuracy on test</span>" in content
    assert sha256(data / "test.csv") in content and str(run.folder) in content
    for wrong in (run.model / "page.html", data / "test.csv"):
        with pytest.raises(SettingsError):
            evaluate(run.folder, str(data / "test.csv"), report=wrong)
    with pytest.raises(SettingsError, match="predictions and report are two files"):
        evaluate(run.folder, str(data / "test.csv"), report=page, predictions=page)


@pytest.mark.parametrize(
    ("task", "name", "content", "expected"),
    [
        ("classification", "a.csv", "text,label\na cat,x\na dog,y\n", ["x", "y"]),
        ("tagging", "a.conll", "a O\ncat B-A\n\ndog B-A\n", ["O B-A", "B-A"]),
        (
            "answering",
            "a.jsonl",
            '{"question": "who?", "context": "a cat", "answers": [{"text": "cat", "answer_start": 2}]}\n'
            '{"question": "who?", "context": "a dog", "answers": []}\n',
            [["cat"], []],
        ),
        ("choice", "a.jsonl", '{"text": "a", "choices": ["cat", "dog"], "label": 1}\n', ["dog"]),
        ("embedding", "a.csv", "sentence1,sentence2,score\na,b,0.25\n", ["0.25"]),
    ],
)
def test_predictions_of_every_task_have_what_is_given_beside_them(
    tiny_tokenizer: Path, make_files: MakeFiles, task: str, name: str, content: str, expected: list[str | list[str]]
) -> None:
    folder = make_files({name: content})
    kind = task_kind(task)
    options, rows = kind.read_rows(str(folder / name), kind.settings())
    work = kind.make(load_tokenizer(tiny_tokenizer), kind.find_labels(rows, options), options, {})
    saying = SimpleNamespace(to_json=lambda answer: {"label": answer})
    evaluation = Evaluation({}, ["said"] * len(rows), work.encode(rows))
    teaching.write_predictions(folder / "said.jsonl", saying, evaluation)  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    ids = [[("id", row.id)] if task == "answering" else [] for row in rows]
    assert [list(line.items()) for line in lines] == [
        [("row", row.where), *own, ("given", given), ("label", "said")]
        for row, own, given in zip(rows, ids, expected, strict=True)
    ]


def test_a_card_shows_labels_whatever_they_hold() -> None:
    """Spans are read back as CommonMark has it: an equal run of backticks ends one."""
    labels = ["plain", "a`b", "``", "`", "two\n\nlines", "x```y``z`"]
    card = model_card("t", "text-classification", made_from="m", metrics={}, labels=labels, data={}, settings={})
    line = card.split("## Labels\n\n")[1].split("\n")[0]
    spans = [body for _, body in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", line)]
    shown = [body[1:-1] if body.startswith(" ") and body.endswith(" ") else body for body in spans]
    assert shown == ["plain", "a`b", "``", "`", "two lines", "x```y``z`"]


def test_answers_are_not_written_over_a_folder(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        evaluate(run.folder, str(data / "test.csv"), predictions=tmp_path)


def test_answers_are_not_written_over_what_is_read(
    run: FinetuneResult, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = (data / "test.csv").read_text()
    (tmp_path / "more").mkdir()
    read = tmp_path / "more" / "test.csv"
    read.write_text(text)
    (tmp_path / "link.csv").symlink_to(read)
    (tmp_path / "same.csv").hardlink_to(read)
    for given, out in (
        (str(read), read),
        ("~/more/test.csv", read),
        (str(read), tmp_path / "link.csv"),
        (str(tmp_path / "link.csv"), read),
        (str(read), tmp_path / "same.csv"),
        (str(tmp_path / "more" / "*.csv"), read),
    ):
        with pytest.raises(
            SettingsError, match=r"\.csv would be overwritten, and .*\.csv is read\. Choose another file"
        ):
            evaluate(run.folder, given, predictions=out, device="cpu")
    for model in (run.folder, run.model):
        with pytest.raises(
            SettingsError, match=r"config\.json lies in .*/model, which is read\. Choose another folder"
        ):
            evaluate(model, str(read), predictions=run.model / "config.json", device="cpu")
    for own in ("config.yaml", "metrics.jsonl", "report.html"):
        with pytest.raises(SettingsError, match=f"{own} would be overwritten"):
            evaluate(run.folder, str(read), predictions=run.folder / own, device="cpu")
    with pytest.raises(SettingsError, match=r"answers\.jsonl lies in .*more, which is read"):
        evaluate(run.folder, str(tmp_path / "more"), predictions=tmp_path / "more" / "answers.jsonl", device="cpu")
    assert read.read_text() == text and not (tmp_path / "more" / "answers.jsonl").exists()
    evaluate(run.folder, str(read), predictions=tmp_path / "more" / "answers.jsonl", device="cpu")
    evaluate(run.folder, str(read), predictions=run.folder / "answers.jsonl", device="cpu")
    evaluate(run.folder, str(read), predictions=Path("/dev/null"), device="cpu")
    (run.folder / "answers.jsonl").unlink()


def test_evaluate_reads_other_columns_when_told(run: FinetuneResult, make_files: MakeFiles) -> None:
    other = make_files({"other.csv": "id,kind,phrase\n1,animal,the dog\n"}) / "other.csv"
    with pytest.raises(InputError, match='there is no column "text"'):
        evaluate(run.model, str(other), device="cpu")
    overrides = {"text_column": "phrase", "label_column": "kind"}
    assert evaluate(run.model, str(other), overrides=overrides, device="cpu")["accuracy"] == 1.0
    with pytest.raises(SettingsError, match=r'unknown key "text_colum".*Did you mean "text_column"'):
        evaluate(run.model, str(other), overrides={"text_colum": "phrase"})


def test_windows_can_be_left_for_an_evaluation_but_not_the_head(
    data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    chosen = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=0.1, dev_share=0.0)
    options = replace(OPTIONS, long="windows", doc_stride=7, window_pooling="max")
    learnt = finetune("classification", chosen, options, console=QUIET)
    assert evaluate(learnt.folder, str(data / "test.csv"), overrides={"long": "tail"}, device="cpu")
    assert evaluate(learnt.folder, str(data / "test.csv"), overrides={"doc_stride": 9}, device="cpu")
    with pytest.raises(SettingsError, match=r"multi_label is what this model has learnt \(false\); it cannot be set"):
        evaluate(learnt.folder, str(data / "test.csv"), overrides={"multi_label": True}, device="cpu")


def test_an_unknown_label_stops_an_evaluation(run: FinetuneResult, make_files: MakeFiles) -> None:
    other = make_files({"other.csv": "text,label\nthe dog,animal\nthe cat,animals\n"}) / "other.csv"
    with pytest.raises(InputError, match=r'other\.csv:3: the label "animals".*Did you mean "animal"'):
        evaluate(run.model, str(other), device="cpu")


def test_continuing_from_a_fine_tuned_model_keeps_what_fits(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    changed = settings(data, tmp_path, model=str(run.folder), tokenizer=None, out=tmp_path / "again", learning_rate=0.0)
    again = finetune("classification", replace(changed, epochs=1), OPTIONS, console=QUIET)
    assert again.metrics["dev"] == pytest.approx(run.metrics["dev"])
    text = (data / "train.csv").read_text().replace("house", "fish").replace("place\n", "thing\n")
    more = text.replace('1",animal', '1",beast')
    (tmp_path / "three.csv").write_text(more)
    three = replace(changed, train=str(tmp_path / "three.csv"), out=tmp_path / "three", epochs=1)
    finetune("classification", three, OPTIONS, console=QUIET)
    saved = json.loads((tmp_path / "three" / "model" / "bertsmith.json").read_text())
    assert saved["labels"] == ["animal", "beast", "thing"]
    assert len(saved["new_tensors"]) == 2  # the classifier's weight and bias; the pooler is kept
    assert json.loads((again.model / "bertsmith.json").read_text())["new_tensors"] == []


def test_equal_seeds_give_equal_weights(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    results = []
    for number, seed in enumerate((5, 5, 6)):
        changed = settings(data, tiny_tokenizer, out=tmp_path / str(number), seed=seed, epochs=0.2, dev_share=0.0)
        result = finetune("classification", changed, OPTIONS, console=QUIET)
        assert result.metrics == {}
        results.append(sha256(result.model / "model.safetensors"))
    assert results[0] == results[1] != results[2]


def test_an_interrupted_run_resumes_to_the_same_weights(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings(data, tiny_tokenizer, out=tmp_path / "whole", epochs=1, dropout=0.1)
    finetune("classification", whole, OPTIONS, console=QUIET)

    steps = 0
    loss = Classification.loss

    def interrupting(self: Classification, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    parts = replace(whole, out=tmp_path / "parts")
    monkeypatch.setattr(Classification, "loss", interrupting)
    with pytest.raises(Interrupted, match="--resume"):
        finetune("classification", parts, OPTIONS, console=QUIET)
    assert not (parts.out / "model").exists()
    with pytest.raises(ModelError, match="has no model yet"):
        model_folder(parts.out)
    finetune("classification", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert sha256(parts.out / "model" / "model.safetensors") == sha256(whole.out / "model" / "model.safetensors")


def test_a_folder_in_use_is_not_touched_unless_told(run: FinetuneResult, data: Path, tiny_tokenizer: Path) -> None:
    base = settings(data, tiny_tokenizer, epochs=1, test=str(data / "test.csv"))
    before = sha256(run.model / "model.safetensors")
    with pytest.raises(SettingsError, match=r"already holds a run\. Go on with --resume, replace it with --overwrite"):
        finetune("classification", base, OPTIONS, console=QUIET)
    other = data / "not-a-run"
    other.mkdir(exist_ok=True)
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="holds files that are not of a run"):
        finetune("classification", replace(base, out=other, overwrite=True), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match="is a file; a run needs a folder"):
        finetune("classification", replace(base, out=other / "thesis.txt"), OPTIONS, console=QUIET)
    with pytest.raises(InputError):
        finetune("classification", replace(base, train="missing.csv", overwrite=True), OPTIONS, console=QUIET)
    assert sha256(run.model / "model.safetensors") == before
    assert (other / "thesis.txt").read_text() == "years of work"


def test_a_run_that_never_began_is_no_run(
    run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """What only the optimizer refuses is known after the settings have been written."""
    chosen = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=0.1, dev_share=0.0)
    with pytest.raises(SettingsError, match="muon"):
        refused = replace(chosen, model=str(run.model), optimizer="muon", freeze=2)
        finetune("classification", refused, OPTIONS, console=QUIET)
    finetune("classification", chosen, OPTIONS, console=QUIET)


def test_a_run_may_lie_in_the_folder_of_its_data(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """What it writes there is none of its data: it can be resumed, replaced, and run again beside itself."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(data / "train.csv", folder)
    chosen = settings(data, tiny_tokenizer, train=str(folder), out=folder / "run", epochs=0.2, dev_share=0.0)
    finetune("classification", chosen, OPTIONS, console=QUIET)
    (folder / "notes.rst").write_text("not read")
    finetune("classification", replace(chosen, resume=True), OPTIONS, console=QUIET)
    finetune("classification", replace(chosen, overwrite=True), OPTIONS, console=QUIET)
    other = finetune("classification", replace(chosen, out=folder / "other"), OPTIONS, console=QUIET)
    assert list(json.loads((other.model / "bertsmith.json").read_text())["data"]) == ["train.csv"]


def test_a_model_of_theirs_keeps_its_head(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run.model, tmp_path / "theirs")
    saved = tmp_path / "theirs" / "bertsmith.json"
    values = json.loads(saved.read_text())
    saved.write_text(json.dumps({name: value for name, value in values.items() if name != "labels"}))
    with pytest.raises(ModelError, match="is not of this version"):
        evaluate(tmp_path / "theirs", str(data / "test.csv"), device="cpu")
    saved.unlink()
    for name in ("regression", "multi_label"):
        with pytest.raises(SettingsError, match=rf"{name} is what this model has learnt \(false\)"):
            evaluate(tmp_path / "theirs", str(data / "test.csv"), overrides={name: True}, device="cpu")
    assert evaluate(tmp_path / "theirs", str(data / "test.csv"), device="cpu")["accuracy"] == 1.0


def test_a_column_that_was_named_must_be_there_to_learn_from(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """In other files another usual name may stand for it."""
    (tmp_path / "dev.csv").write_text((data / "test.csv").read_text().replace("text,label", "sentence,target"))
    chosen = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=0.1, dev=str(tmp_path / "dev.csv"))
    finetune("classification", chosen, replace(OPTIONS, text_column="text", label_column="label"), console=QUIET)
    again = replace(chosen, overwrite=True)
    for name, given, meant in (("text_column", "sentence", "text"), ("label_column", "target", "label")):
        options = replace(OPTIONS, **{name: given})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=rf'no column "{given}"\. {name}: did you mean "{meant}"'):
            finetune("classification", again, options, console=QUIET)


def test_a_finished_run_says_what_it_was_resumed_with(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    chosen = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=1.0, dev_share=0.0, seed=3)
    finetune("classification", chosen, OPTIONS, console=QUIET)
    before = (chosen.out / "config.yaml").read_bytes()
    with pytest.raises(TrainingError, match="seed was 3 and is now 4"):
        finetune("classification", replace(chosen, resume=True, seed=4), OPTIONS, console=QUIET)
    assert (chosen.out / "config.yaml").read_bytes() == before
    finetune("classification", replace(chosen, resume=True, save_every="7 steps"), OPTIONS, console=QUIET)
    values = read_config(chosen.out / "config.yaml")
    assert (values["save_every"], values["resume"]) == ("7 steps", False)


def test_data_below_home_are_not_overwritten_either(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    chosen = settings(data, Path("~/tokenizer"), out=tmp_path / "run", epochs=0.1, dev_share=0.0)
    finetune("classification", chosen, OPTIONS, console=QUIET)
    assert load_task("~/run")[0].labels == ("animal", "place")
    shutil.copy(data / "train.csv", tmp_path / "run" / "mine.csv")
    with pytest.raises(SettingsError, match=r"~/run/mine\.csv is read, and lies in what --overwrite"):
        finetune("classification", replace(chosen, train="~/run/mine.csv", overwrite=True), OPTIONS, console=QUIET)
    assert (tmp_path / "run" / "mine.csv").is_file()


def test_a_head_for_other_labels_is_not_gone_on_from(run: FinetuneResult, data: Path) -> None:
    """Of the same labels in another order each keeps its own row."""
    theirs = load_file(run.model / "model.safetensors")["classifier.weight"]
    config, weights, tokenizer = starting_point(FinetuneSettings(model=str(run.model), train="", out=Path("o")), 24)
    for labels, expected in ((("place", "animal"), theirs.flip(0)), (("animal", "place"), theirs), (("x", "y"), None)):
        task = Classification(tokenizer, labels, OPTIONS, {})
        model, new = build_model(task, config, weights, FinetuneSettings(model="m", train="", out=Path("o")))
        head = model.state_dict()["pooled.out.weight"]
        assert torch.equal(head, expected) if expected is not None else not torch.equal(head, theirs)
        assert ("pooled.out.weight" in new) == (expected is None)


def test_a_tokenizer_that_the_model_has_not_learnt_with_is_refused(
    run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_tokenizer, other)
    for file in other.glob("tokenizer*.json"):
        file.unlink()
    words = (other / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (other / "vocab.txt").write_text("\n".join([*words[:-2], *words[:-3:-1]]) + "\n", encoding="utf-8")
    chosen = replace(settings(data, tiny_tokenizer), model=str(run.model), out=tmp_path / "run")
    with pytest.raises(ModelError, match="tokenizer is not the one that this model has learnt with: token"):
        finetune("classification", replace(chosen, tokenizer=str(other)), OPTIONS, console=QUIET)
    finetune("classification", replace(chosen, tokenizer=str(tiny_tokenizer), epochs=0.1), OPTIONS, console=QUIET)


def test_a_head_that_the_family_has_not_is_refused_before_anything_is_written(
    data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    config = named_size("tiny", load_tokenizer(tiny_tokenizer).vocab_size, model_type="gpt2")
    save_model(tmp_path / "gpt2", nn.ModuleDict({"encoder": Encoder(config)}), config, family("gpt2").bare)
    load_tokenizer(tiny_tokenizer).save(tmp_path / "gpt2")
    rows = ['{"text": "a mill", "choices": ["grinds", "sings"], "label": 0}'] * 8
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    chosen = FinetuneSettings(model=str(tmp_path / "gpt2"), train=str(tmp_path / "a.jsonl"), out=tmp_path / "run")
    with pytest.raises(ModelError, match="gpt2 models have no ForMultipleChoice architecture"):
        finetune("choice", chosen, console=QUIET)
    assert not (tmp_path / "run").exists()


def test_overwrite_replaces_a_run(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    first = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=0.2, dev_share=0.0)
    finetune("classification", first, OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match="cannot resume"):
        finetune("classification", replace(first, resume=True, batch_size=8), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match=r"cannot resume .*: dropout was 0\.0 and is now 0\.1"):
        finetune("classification", replace(first, resume=True, dropout=0.1), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match=r"cannot resume .*: dev_share was 0\.0 and is now 0\.2"):
        finetune("classification", replace(first, resume=True, dev_share=0.2), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match=r"cannot resume .*: max_length was \d+ and is now 20\."):
        finetune("classification", replace(first, resume=True), replace(OPTIONS, max_length=20), console=QUIET)
    moved = tmp_path / "moved.csv"
    shutil.copy(data / "train.csv", moved)
    finetune("classification", replace(first, resume=True, train=str(moved)), OPTIONS, console=QUIET)
    moved.write_text(moved.read_text(encoding="utf-8").replace("the", "an"), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"cannot resume .*: data was"):
        finetune("classification", replace(first, resume=True, train=str(moved)), OPTIONS, console=QUIET)
    cased = tmp_path / "tokenizer"
    shutil.copytree(tiny_tokenizer, cased)
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(TrainingError, match=r"cannot resume .*: tokenizer was"):
        finetune("classification", replace(first, resume=True, tokenizer=str(cased)), OPTIONS, console=QUIET)
    finetune("classification", replace(first, batch_size=8, overwrite=True), OPTIONS, console=QUIET)
    assert read_config(tmp_path / "run" / "config.yaml")["batch_size"] == 8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": "nowhere.csv"}, InputError, "nowhere.csv"),
        ({"model": "size:minni"}, ModelError, 'Did you mean "mini"'),
        ({"tokenizer": None}, SettingsError, "no tokenizer of its own"),
        ({"model": "nowhere"}, ModelError, "nowhere"),
        ({"dev": "train.csv"}, InputError, "train.csv"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    data: Path,
    tiny_tokenizer: Path,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        finetune("classification", settings(data, tiny_tokenizer, out=out, **changes), OPTIONS, console=QUIET)
    assert not out.exists()


def test_overwrite_removes_nothing_but_runs(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    (out / "notes").mkdir(parents=True)
    base = settings(data, tiny_tokenizer, out=out, overwrite=True, epochs=0.1, dev_share=0.0)
    (out / "config.yaml").write_text("epochs: 3  # of something else\n")
    with pytest.raises(SettingsError, match="holds files that are not of a run"):
        finetune("classification", base, OPTIONS, console=QUIET)
    # What a run leaves that fails before its first step.
    (out / "config.yaml").write_text("# bertsmith finetune classification --config config.yaml\n")
    with pytest.raises(SettingsError, match="already holds a run"):
        finetune("classification", replace(base, overwrite=False), OPTIONS, console=QUIET)
    finetune("classification", base, OPTIONS, console=QUIET)
    assert (out / "notes").is_dir()
    (out / "rows.csv").write_text(animals_or_places())
    for changes in ({"train": str(out / "*.csv")}, {"model": str(out), "tokenizer": None}, {"teacher": str(out)}):
        with pytest.raises(SettingsError, match=f"{out}.* is read, and lies in what --overwrite replaces"):
            finetune("classification", replace(base, **changes), OPTIONS, console=QUIET)  # type: ignore[arg-type]
    assert (out / "rows.csv").is_file() and (out / "model").is_dir()
    removed: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("bertsmith.tasks.run_folder.remove_from", lambda folder, names: removed.extend(map(Path, names)))
        clear_run_folder(out)
    assert len(removed) > 3 and removed[-1] == Path("config.yaml"), "by which a run is known that is half removed"
    (out / "config.yaml").unlink()
    with pytest.raises(SettingsError, match="holds files that are not of a run"):
        finetune("classification", base, OPTIONS, console=QUIET)


def test_tasks_and_options_by_name(data: Path, tiny_tokenizer: Path) -> None:
    base = settings(data, tiny_tokenizer, out=data / "unused")
    with pytest.raises(SettingsError, match=r'no task "classfication".*Did you mean "classification"'):
        finetune("classfication", base)
    with pytest.raises(SettingsError, match="tagging takes TaggingSettings, not ClassificationSettings"):
        finetune("tagging", base, OPTIONS)
    with pytest.raises(SettingsError, match="choose one"):
        settings(data, tiny_tokenizer, resume=True, overwrite=True)
    with pytest.raises(SettingsError, match="dev_share must be in"):
        settings(data, tiny_tokenizer, dev_share=1.0)
    with pytest.raises(SettingsError, match="name a folder in UTF-8"):
        settings(data, tiny_tokenizer, out=Path("run-\udcff"))
    with pytest.raises(SettingsError, match="dropout must be in"):
        settings(data, tiny_tokenizer, dropout=-0.1)


def test_a_tokenizer_larger_than_the_model_is_refused(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    words = (run.model / "vocab.txt").read_text() + "one-more\n"
    (tmp_path / "vocab.txt").write_text(words)
    changed = settings(data, tmp_path, model=str(run.model), tokenizer=str(tmp_path / "vocab.txt"), out=tmp_path / "r")
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the model only \d+"):
        finetune("classification", changed, OPTIONS, console=QUIET)


def test_people_are_told_what_was_found(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    changed = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=0.2, test=str(data / "test.csv"))
    finetune("classification", changed, ClassificationSettings(max_length=6), console=Console(file=screen))
    said = screen.getvalue()
    assert "3 test examples, 2 labels." in said
    assert "longer than max_length 6" in said


def test_a_regression_learns_to_count(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    rows = [
        f"{{'text': '{'cat ' * (n % 5)}{'dog ' * (n % 3)}{n}', 'score': {80 + 5 * (n % 5)}}}".replace("'", '"')
        for n in range(90)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    changed = settings(data, tiny_tokenizer, train=str(tmp_path / "train.jsonl"), out=tmp_path / "run", epochs=6)
    options = ClassificationSettings(regression=True, max_length=24)
    result = finetune("classification", changed, options, console=QUIET)
    assert next(iter(result.metrics["dev"])) == "r2"
    assert result.metrics["dev"]["spearman"] > 0.8
    assert result.metrics["dev"]["r2"] > 0.6
    theirs = AutoModelForSequenceClassification.from_pretrained(result.model).config
    assert theirs.num_labels == 1 and theirs.problem_type == "regression"
    task, _ = load_task(result.model)
    assert task.labels == () and task.settings.regression
    # What goes on from it with other numbers begins as many deviations from their mean as it knew; a model of others,
    # whose unit nobody says, with a last layer of its own.
    (tmp_path / "again.jsonl").write_text(
        re.sub(r"([89]\d|100)}", lambda m: f"{10 * int(m[1]) - 900}}}", "\n".join(rows))
    )
    further = replace(changed, model=str(result.model), tokenizer=None, learning_rate=1e-12, epochs=0.1, seed=1)
    for change, close in ((None, True), ("reinit", False), ("unit", False)):
        if change == "unit":
            saved = read_json(result.model / "bertsmith.json")
            (result.model / "bertsmith.json").write_text(json.dumps({k: v for k, v in saved.items() if k != change}))
        out = tmp_path / f"again-{change}"
        own = replace(further, train=str(tmp_path / "again.jsonl"), out=out)
        own = replace(own, reinit_layers=1) if change == "reinit" else own
        screen = io.StringIO()
        on = finetune("classification", own, options, console=Console(file=screen, width=200))
        assert ("its last layer is learnt anew" in screen.getvalue()) == (change == "unit")
        assert on.metrics["dev"]["r2"] > -3  # whatever its weights, it begins in the unit of its own numbers
        assert (abs(on.metrics["dev"]["r2"] - result.metrics["dev"]["r2"]) < 0.05) == close


def test_what_stands_at_the_end_of_a_long_text_is_learnt_only_if_it_is_read(
    data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    head, *lines = animals_or_places().splitlines()
    (tmp_path / "long.csv").write_text("\n".join([head, *(f'"{"the river " * 8}{line[1:]}' for line in lines)]))
    accuracy = {}
    for part in ("head", "tail", "windows"):
        changed = settings(data, tiny_tokenizer, train=str(tmp_path / "long.csv"), out=tmp_path / part, epochs=6)
        options = ClassificationSettings(
            max_length=16, long=part, window_pooling="max" if part == "windows" else "mean"
        )
        result = finetune("classification", changed, options, console=QUIET)
        whole = evaluate(result.folder, str(tmp_path / "long.csv"))
        accuracy[part] = (result.metrics["dev"]["accuracy"], whole["accuracy"])
        assert load_task(result.model)[0].settings == replace(options, text_column="text", label_column="label")
    assert max(accuracy["head"]) < 0.8
    assert min(accuracy["tail"]) > 0.9 and min(accuracy["windows"]) > 0.9


def test_tagging_and_answering_go_the_same_way(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    sentences = [
        "".join(f"{word}\t{'B-LIVING' if word in ANIMALS else 'O'}\n" for word in ["the", noun, "saw", f"{number}"])
        for number, noun in enumerate((*ANIMALS, *PLACES) * 8)
    ]
    (tmp_path / "train.conll").write_text("\n".join(sentences))
    changed = settings(data, tiny_tokenizer, train=str(tmp_path / "train.conll"), out=tmp_path / "tags", epochs=6)
    tagging = finetune("tagging", changed, TaggingSettings(max_length=24, doc_stride=12), console=QUIET)
    assert tagging.metrics["dev"]["f1"] > 0.9
    assert evaluate(tagging.folder, str(tmp_path / "train.conll"), device="cpu")["f1"] > 0.9
    questions = [
        {
            "question": f"who sat {number}",
            "context": f"the {noun} sat by the river",
            "answers": [{"text": noun, "answer_start": 4}],
        }
        for number, noun in enumerate(ANIMALS * 10)
    ]
    # Contexts stay on one side of the split, so dev has an animal of its own.
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    changed = settings(data, tiny_tokenizer, train=str(tmp_path / "train.jsonl"), out=tmp_path / "answers", epochs=8)
    options = AnsweringSettings(max_length=40, max_query_length=12, doc_stride=8)
    answering = finetune("answering", changed, options, console=QUIET)
    assert evaluate(answering.folder, str(tmp_path / "train.jsonl"), device="cpu")["exact_match"] > 0.7
    assert np.isfinite(answering.metrics["dev"]["f1"])


def test_what_is_not_said_follows_the_size_of_data_and_model(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """As `advise` has it: twenty epochs of fewer than 1,000 rows, 2e-4 for a narrow model, ten times that for lora."""
    asked = replace(settings(data, tiny_tokenizer), epochs=None, learning_rate=None, max_train_examples=8)
    said = Console(file=io.StringIO(), width=400)
    for name, changes, expected in (
        ("open", {}, (20.0, 2e-4)),
        ("lora", {"lora": 4, "model": str(tmp_path / "open")}, (20.0, 2e-3)),
        ("given", {"epochs": 1.0, "learning_rate": 3e-5}, (1.0, 3e-5)),
    ):
        run = finetune("classification", replace(asked, out=tmp_path / name, **changes), OPTIONS, console=said)
        config = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert (config["epochs"], config["learning_rate"]) == (expected[0], pytest.approx(expected[1]))
        assert run.training.epochs == pytest.approx(expected[0])
    text = said.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("epochs 20, as nothing is said: 8 rows are few") == 2
    assert "learning_rate 0.002, as nothing is said" in text


def test_dev_decides_when_there_is_no_answer(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Half of the questions have none, and hardly anything is learnt: another threshold than 0 is best."""
    for part, numbers in (("train", range(20)), ("dev", range(20, 40))):
        questions = [
            {
                "question": f"who sat {number}",
                "context": f"the {ANIMALS[number % len(ANIMALS)]} sat by the river",
                "answers": [] if number % 2 else [{"text": ANIMALS[number % len(ANIMALS)], "answer_start": 4}],
            }
            for number in numbers
        ]
        (tmp_path / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    dev = str(tmp_path / "dev.jsonl")
    changed = settings(data, tiny_tokenizer, train=str(tmp_path / "train.jsonl"), out=tmp_path / "open", epochs=1)
    changed = replace(changed, dev=dev, test=dev)
    options = AnsweringSettings(max_length=40, max_query_length=12, doc_stride=8)
    run = finetune("answering", changed, options, console=QUIET)
    saved = json.loads((run.model / "bertsmith.json").read_text())["settings"]["no_answer_threshold"]
    again = evaluate(run.folder, dev, precision="fp32", device="cpu")
    for found in (run.metrics["dev"], run.metrics["test"], again):
        assert found["f1"] == pytest.approx(found["best_f1"])
        assert saved == pytest.approx(found["best_f1_threshold"])
    fixed = finetune(
        "answering",
        replace(changed, out=tmp_path / "fixed"),
        replace(options, no_answer_threshold=saved + 100),
        console=QUIET,
    )
    assert json.loads((fixed.model / "bertsmith.json").read_text())["settings"]["no_answer_threshold"] == saved + 100
    assert fixed.metrics["dev"]["no_answer_f1"] == 0.0


def encoder_folder(model_type: str, tokenizer: Tokenizer, where: Path) -> Path:
    """Random weights of a family."""
    config = named_size("tiny", tokenizer.vocab_size, model_type=model_type)
    where.mkdir()
    save_model(where, nn.ModuleDict({"encoder": Encoder(config)}), config, family(model_type).bare)
    tokenizer.save(where)
    return where


@pytest.mark.conformance
@pytest.mark.parametrize("model_type", ["roberta", "albert", "distilbert", "modernbert"])
def test_dropout_is_for_training_only(
    data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """All of it while the model learns; the saved model has that of the one it comes from, under the family's name."""
    where = encoder_folder(model_type, load_tokenizer(tiny_tokenizer), tmp_path / "encoder")
    trained: list[nn.Module] = []

    def recorded(model: nn.Module, *arguments: Any, **named: Any) -> Any:
        trained.append(model)
        return train(model, *arguments, **named)

    monkeypatch.setattr(teaching, "train", recorded)
    changed = settings(data, tiny_tokenizer, model=str(where), tokenizer=None, out=tmp_path / "run", dropout=0.3)
    result = finetune("classification", replace(changed, epochs=0.1, dev_share=0.0), OPTIONS, console=QUIET)
    config = trained[0].encoder.config
    assert {
        config.hidden_dropout_prob,
        config.attention_probs_dropout_prob,
        config.embedding_dropout,
        trained[0].pooled.dropout,
    } == {0.3}
    theirs = AutoModelForSequenceClassification.from_pretrained(result.model)
    before, _ = read_config_of(where)
    after, raw = read_config_of(result.model)
    assert after == before and theirs.config.model_type == model_type
    assert raw["architectures"] == [type(theirs).__name__]
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert f"# {family(model_type).class_prefix} for classification" in card
    assert yaml.safe_load(card.split("---")[1])["tags"] == [model_type, "bertsmith"]


def test_kinds_of_entities_that_only_some_splits_have(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    for name, nouns in (("train", (*ANIMALS, *PLACES) * 6), ("dev", ANIMALS), ("test", PLACES)):
        rows = ({"words": ["the", noun, "sat"], "tags": ["O", tag_of(noun), "O"]} for noun in nouns)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "dev", "test")}
    changed = settings(data, tiny_tokenizer, out=tmp_path / "run", epochs=10, **files)
    result = finetune("tagging", changed, TaggingSettings(max_length=24, doc_stride=12), console=QUIET)
    assert "f1_PLACE" not in result.metrics["dev"] and "f1_LIVING" not in result.metrics["test"]
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "f1_PLACE" in report and "f1_LIVING" in report


def tag_of(noun: str) -> str:
    return "B-LIVING" if noun in ANIMALS else "B-PLACE"


def test_the_outputs_of_another_task_are_not_gone_on_from(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """A tagger of two labels has as many outputs as answering, under a name that is shared with other heads."""
    rows = ({"words": ["the", noun], "tags": ["DET", "NOUN"]} for noun in ANIMALS)
    (tmp_path / "tags.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    row = {"question": "who", "context": "the cat sat", "answers": [{"text": "cat", "answer_start": 4}]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    still = {"epochs": 1, "learning_rate": 1e-12, "dev_share": 0.0}
    tags = settings(data, tiny_tokenizer, train=str(tmp_path / "tags.jsonl"), out=tmp_path / "tags", **still)
    tagger = finetune("tagging", tags, TaggingSettings(max_length=24), console=QUIET)
    answers = replace(
        tags, train=str(tmp_path / "answers.jsonl"), model=str(tagger.folder), out=tmp_path / "answers", seed=1
    )
    options = AnsweringSettings(max_length=40, max_query_length=12)
    answering = finetune("answering", answers, options, console=QUIET)
    old, new = (load_file(run.model / "model.safetensors") for run in (tagger, answering))
    assert not torch.allclose(new["qa_outputs.weight"], old["classifier.weight"], atol=1e-3)
    assert json.loads((answering.model / "bertsmith.json").read_text())["new_tensors"] == [
        "tokens.out.weight",
        "tokens.out.bias",
    ]
    body = "bert.encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(new[body], old[body], rtol=0, atol=1e-6)
    again = replace(answers, model=str(answering.folder), out=tmp_path / "again", seed=2)
    kept = load_file(finetune("answering", again, options, console=QUIET).model / "model.safetensors")
    torch.testing.assert_close(kept["qa_outputs.weight"], new["qa_outputs.weight"], rtol=0, atol=1e-6)


def test_a_model_of_the_hub_keeps_its_settings(
    run: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str, file_patterns: Sequence[str], instead: str) -> Path:
        asked.extend(file_patterns)
        return run.model

    for module in ("bertsmith.model.folder", "bertsmith.text.definition"):
        monkeypatch.setattr(f"{module}.fetch", fetch)
    (tmp_path / "me" / "reviews").mkdir(parents=True)  # not where we are
    task, _ = load_task("me/reviews")
    assert task.settings == replace(OPTIONS, text_column="text", label_column="label") and task.labels == (
        "animal",
        "place",
    )
    assert "bertsmith.json" in asked
