"""Several tasks over one encoder: which step learns what, losses as of each alone, a run, its folders, refusals."""

import io
import json
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from bertsmith.cli import main
from bertsmith.deploy.predict import load
from bertsmith.errors import BertsmithError, Interrupted, ModelError, SettingsError, TrainingError
from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.settings import read_config
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import ListExamples
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings
from bertsmith.tasks.together import TogetherResult, TogetherSettings, finetune_together
from bertsmith.tasks.together_task import TaskBatches, Together, model_of
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.evaluate import evaluate_task
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)


# Which step learns what


class Numbers:
    """A collection whose items are their own numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def num_examples(self, epoch: int) -> int:
        return self.size

    def take(self, indices: Any, epoch: int) -> list[int]:
        return list(indices)

    def num_tokens(self, index: int) -> int:
        return 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    batch_size=st.integers(1, 9),
    sampling=st.sampled_from((0.0, 0.5, 1.0)),
    seed=st.integers(0, 5),
)
def test_each_task_passes_over_all_its_rows_before_it_begins_again(sizes, batch_size, sampling, seed):
    batches = TaskBatches({str(place): Numbers(size) for place, size in enumerate(sizes)}, batch_size, sampling, seed)
    seen: dict[str, list[int]] = {str(place): [] for place in range(len(sizes))}
    for epoch in range(4):
        every = batches.take(range(batches.num_examples(epoch)), epoch)
        assert every == [batches.take([index], epoch)[0] for index in range(len(every))]
        assert all(0 < len(one.examples) <= batch_size for one in every)
        for one in every:
            seen[one.name] += one.examples
        if sampling == 1:  # an epoch is a pass over everything
            assert sorted(map(len, seen.values())) == sorted(size * (epoch + 1) for size in sizes)
    for name, size in zip(seen, sizes, strict=True):
        for start in range(0, len(seen[name]) - size + 1, size):
            assert sorted(seen[name][start : start + size]) == list(range(size))


def test_orders_differ_by_pass_and_seed() -> None:
    def passes(seed: int) -> list[list[int]]:
        batches = TaskBatches({"a": Numbers(64), "b": Numbers(64)}, 64, 1.0, seed)
        return [list(one.examples) for epoch in range(2) for one in batches.take([0, 1], epoch)]

    found = passes(1) + passes(2)
    assert len({tuple(one) for one in found}) == 8
    assert passes(1) == passes(1)


@pytest.mark.parametrize(("sampling", "expected"), [(1.0, [100, 25, 4]), (0.5, [76, 38, 15]), (0.0, [43, 43, 43])])
def test_how_often_a_task_is_learnt(sampling: float, expected: list[int]) -> None:
    sizes = {"large": Numbers(800), "middle": Numbers(200), "small": Numbers(30)}
    batches = TaskBatches(sizes, 8, sampling, 0)
    assert batches.numbers.tolist() == expected
    every = batches.take(range(batches.num_examples(0)), 0)
    assert list(Counter(one.name for one in every).values()) == expected


# The same as alone


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def make(tokenizer: Tokenizer) -> Together:
    texts = ("the king sat by the river", "a dog", "who was the old queen of the city", "the cat")
    rows = [ClassificationRow(text, text, None, "ab"[place % 2]) for place, text in enumerate(texts)]
    sentences = [TaggingRow(text, tuple(text.split()), None, ("O",) * len(text.split())) for text in texts[:3]]
    return Together(
        {
            "kinds": Classification(
                tokenizer, ("a", "b"), ClassificationSettings(max_length=24), {"train": rows, "dev": rows, "test": []}
            ),
            "items": Tagging(
                tokenizer,
                ("O", "B-X"),
                TaggingSettings(max_length=24, crf=True),
                {"train": sentences, "dev": sentences, "test": []},
            ),
        },
        batch_size=2,
        sampling=1.0,
        seed=0,
    )


def test_a_step_is_learnt_as_its_task_alone_would_learn_it(tokenizer: Tokenizer) -> None:
    together = make(tokenizer)
    model = together.build(Encoder(named_size("tiny", tokenizer.vocab_size))).eval()
    examples = together.examples("train")
    assert examples.num_examples(0) == 4
    for one in examples.take(range(4), 0):
        batch = together.collate([one])
        task, own = together.tasks[one.name], model_of(model, one.name)
        assert batch.counts == {f"{one.name}/{task.name}": task.collate(one.examples).counts[task.name]}
        losses = together.loss(model, batch)
        assert losses.keys() == batch.counts.keys() <= together.loss_weights.keys()
        alone = task.loss(own, task.collate(one.examples))[task.name]
        torch.testing.assert_close(losses[f"{one.name}/{task.name}"], alone)
        model.zero_grad()
        alone.backward()
        other = model_of(model, "items" if one.name == "kinds" else "kinds")
        learnt = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
        of_encoder = {id(parameter) for parameter in model_of(model, "kinds").encoder.parameters()}
        assert learnt & of_encoder
        assert not learnt & ({id(parameter) for parameter in other.parameters()} - of_encoder)


def test_an_evaluation_gives_the_metrics_of_each_task_and_their_mean(tokenizer: Tokenizer) -> None:
    together = make(tokenizer)
    model = together.build(Encoder(named_size("tiny", tokenizer.vocab_size)))
    device = torch.device("cpu")
    found = evaluate_task(model, together, "dev", device=device).metrics
    expected, firsts = {}, []
    for name, task in together.tasks.items():
        metrics = evaluate_task(model_of(model, name), task, "dev", device=device).metrics
        firsts.append(next(iter(metrics.values())))
        expected |= {f"{name}/{key}": value for key, value in metrics.items()}
    assert found == pytest.approx({"mean": np.mean(firsts), **expected})
    assert next(iter(found)) == "mean"
    assert isinstance(together.examples("dev"), ListExamples)
    assert evaluate_task(model, together, "test", device=device).metrics == {}


def test_the_encoder_is_there_once(tokenizer: Tokenizer) -> None:
    model = make(tokenizer).build(Encoder(named_size("tiny", tokenizer.vocab_size)))
    assert model_of(model, "kinds").encoder is model_of(model, "items").encoder
    names = [name for name, _ in model.named_parameters()]
    assert len({name.split("encoder.")[-1] for name in names}) == len(names)


# A run


def write_data(folder: Path) -> Path:
    animals, places = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")
    words = [(animals if number % 2 else places)[number // 2 % 4] for number in range(64)]
    reviews = [f"the {word} {number},{'animal' if word in animals else 'place'}" for number, word in enumerate(words)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *reviews]) + "\n")
    tagged = [
        f"the\tO\n{word}\t{'B-LIVING' if word in animals else 'O'}\nsaw\tO\n{number}\tO\n"
        for number, word in enumerate(words[:40])
    ]
    (folder / "tags.conll").write_text("\n".join(tagged))
    tasks = f"""
kinds:
  task: classification
  train: {folder / "rows.csv"}
  max_length: 16
living:
  task: tagging
  train: {folder / "tags.conll"}
  test: {folder / "tags.conll"}
  max_length: 24
  doc_stride: 12
"""
    (folder / "tasks.yaml").write_text(tasks)
    return folder / "tasks.yaml"


def settings_of(folder: Path, tiny_tokenizer: Path, **changes: Any) -> TogetherSettings:
    base = TogetherSettings(
        model="size:tiny",
        tokenizer=str(tiny_tokenizer),
        tasks=folder / "tasks.yaml",
        out=folder / "run",
        dev_share=0.2,
        epochs=6,
        batch_size=8,
        learning_rate=1e-3,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tiny_tokenizer: Path) -> TogetherResult:
    return finetune_together(settings_of(folder, tiny_tokenizer), console=QUIET)


def test_all_tasks_are_learnt_and_each_has_a_folder(run: TogetherResult, folder: Path) -> None:
    assert run.metrics["kinds"].keys() == {"dev"} and run.metrics["living"].keys() == {"dev", "test"}
    assert run.metrics["kinds"]["dev"]["accuracy"] > 0.9 and run.metrics["living"]["dev"]["f1"] > 0.9
    assert {path.name for path in run.folder.iterdir()} == {
        *("config.yaml", "tasks.yaml", "metrics.jsonl", "report.html", "checkpoints", "kinds", "living")
    }
    tensors = [load_file(run.model(name) / "model.safetensors") for name in ("kinds", "living")]
    shared = {name for name in tensors[0].keys() & tensors[1].keys() if name.startswith("bert.encoder")}
    assert len(shared) > 10 and all(torch.equal(tensors[0][name], tensors[1][name]) for name in shared)
    found = evaluate(run.folder / "living", str(folder / "tags.conll"), device="cpu", precision="fp32")
    assert found == pytest.approx(run.metrics["living"]["test"])
    assert "together with living" in (run.model("kinds") / "README.md").read_text()
    with pytest.raises(ModelError, match="several tasks"):
        load(run.folder)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {name for line in lines if "losses" in line for name in line["losses"]}
    assert losses == {"kinds/classification", "living/tagging"}
    evaluations = [line["metrics"] for line in lines if "metrics" in line and line["kind"] != "end"]
    assert all({"mean", "kinds/accuracy", "living/f1"} <= one.keys() for one in evaluations)
    means = [one["mean"] for one in evaluations]
    assert run.training.metrics["mean"] == max(means)  # of the best checkpoint, not the last


def test_a_task_that_has_learnt_nothing_is_named(folder: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    changes = {"out": tmp_path / "run", "epochs": 1, "learning_rate": 1e-9}
    run = finetune_together(settings_of(folder, tiny_tokenizer, **changes), console=Console(file=out, width=200))
    assert "kinds learnt nothing: every prediction is " in out.getvalue()
    assert "kinds learnt nothing: every prediction is " in (run.folder / "report.html").read_text(encoding="utf-8")


def test_runs_of_one_task_and_of_several_are_not_resumed_as_each_other(
    run: TogetherResult, folder: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    alone = FinetuneSettings(model="m", train="t.csv", out=run.folder, resume=True)
    with pytest.raises(SettingsError, match="holds a run of bertsmith finetune together"):
        finetune("classification", alone, console=QUIET)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# bertsmith finetune tagging --config config.yaml\nepochs: 1\n")
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(SettingsError, match="holds a run of bertsmith finetune tagging"):
        finetune_together(settings_of(folder, tiny_tokenizer, out=tmp_path / "run", resume=True), console=QUIET)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "metrics.jsonl"}


def test_what_is_wrong_with_one_task_is_said_with_its_name(folder: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tasks = read_config(folder / "tasks.yaml")
    changed: list[tuple[dict[str, Any], str]] = [
        ({"max_length": 900}, r"living: max_length is 900.*give extend_positions"),
        ({"train": "nowhere.conll"}, "living: .*nowhere.conll"),
        ({"task": "taging"}, r'tasks\.json, living: there is no task "taging"'),
    ]
    for changes, message in changed:
        (tmp_path / "tasks.json").write_text(json.dumps({**tasks, "living": {**tasks["living"], **changes}}))
        own = settings_of(folder, tiny_tokenizer, tasks=tmp_path / "tasks.json", out=tmp_path / "run")
        with pytest.raises(BertsmithError, match=message):
            finetune_together(own, console=QUIET)


def test_positions_can_be_extended_for_all(run: TogetherResult, folder: Path, tmp_path: Path) -> None:
    tasks = read_config(folder / "tasks.yaml")
    (tmp_path / "tasks.json").write_text(json.dumps({**tasks, "living": {**tasks["living"], "max_length": 600}}))
    own = TogetherSettings(
        model=str(run.model("kinds")), tasks=tmp_path / "tasks.json", out=tmp_path / "run", epochs=0.1,
        extend_positions="tile", device="cpu", sampling=0.5,
    )  # fmt: skip
    result = finetune_together(own, console=QUIET)
    table = load_file(result.model("living") / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
    assert len(table) == 600
    assert "sampling: 0.5" in (result.model("living") / "README.md").read_text()


def test_a_learning_rate_that_is_not_said_is_that_of_the_width(
    folder: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    finetune_together(settings_of(folder, tiny_tokenizer, learning_rate=None, epochs=1, out=out))
    said = " ".join(capsys.readouterr().err.split())
    assert "learning_rate 0.0002, as nothing is said: For a model 128 wide" in said
    assert read_config(out / "config.yaml")["learning_rate"] == 2e-4
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["optimizer.learning_rate"] == 2e-4


def test_the_folders_predict(run: TogetherResult) -> None:
    (kind,) = load(run.folder / "kinds", device="cpu").predict(["the dog 7"])
    assert kind["label"] == "animal"
    (living,) = load(run.model("living"), device="cpu").predict(["the bird saw 3"])
    assert [one["text"] for one in living["entities"]] == ["bird"]


@pytest.mark.conformance
def test_transformers_loads_them(run: TogetherResult) -> None:
    encoded = AutoTokenizer.from_pretrained(run.model("kinds"))("the dog 7", return_tensors="pt")
    with torch.inference_mode():
        theirs = AutoModelForSequenceClassification.from_pretrained(run.model("kinds")).eval()(**encoded)
        scores = theirs.logits.softmax(-1)[0]
        assert (
            AutoModelForTokenClassification.from_pretrained(run.model("living")).eval()(**encoded).logits.shape[-1] == 3
        )
    (kind,) = load(run.model("kinds"), device="cpu").predict(["the dog 7"])
    assert kind["score"] == pytest.approx(scores.max().item(), abs=1e-5)


def test_interrupted_and_resumed_it_ends_on_the_same_bits(
    folder: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings_of(folder, tiny_tokenizer, out=tmp_path / "whole", epochs=2, sampling=0.5)
    finished = finetune_together(whole, console=QUIET)
    steps, loss = 0, Together.loss

    def interrupting(self: Together, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps in (1, 6):  # the first when one head has never been learnt
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    parts = replace(whole, out=tmp_path / "parts")
    for resume in (False, True):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Together, "loss", interrupting)
            finetune_together(replace(parts, resume=resume), console=QUIET)
    for changes, name in (({"sampling": 1.0}, "sampling"), ({"dropout": 0.3}, "dropout")):
        with pytest.raises(TrainingError, match=name):
            finetune_together(replace(parts, resume=True, **changes), console=QUIET)
    resumed = finetune_together(replace(parts, resume=True), console=QUIET)
    for name in ("kinds", "living"):
        both = [(one.model(name) / "model.safetensors").read_bytes() for one in (finished, resumed)]
        assert both[0] == both[1]


def test_tasks_of_all_kinds(folder: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    spans = [
        {"question": "who sat", "context": f"the {one} sat", "answers": [{"text": one, "answer_start": 4}]}
        for one in ("cat", "dog", "king", "queen") * 4
    ]
    choices = [{"question": f"which {place}", "choices": ["cat", "dog"], "label": place % 2} for place in range(16)]
    pairs = [{"query": f"the king {place}", "document": f"a queen {place}"} for place in range(16)]
    prices = [{"text": f"the dog {place}", "label": place} for place in range(16)]
    tasks = {
        "spans": {
            "task": "answering",
            "train": write("spans.jsonl", spans),
            "max_length": 24,
            "max_query_length": 8,
            "doc_stride": 8,
        },
        "choices": {"task": "choice", "train": write("choices.jsonl", choices), "max_length": 24},
        "pairs": {"task": "embedding", "train": write("pairs.jsonl", pairs), "max_length": 24},
        "prices": {
            "task": "classification",
            "train": write("prices.jsonl", prices),
            "max_length": 24,
            "regression": True,
        },
        "living": {"task": "tagging", "train": str(folder / "tags.conll"), "max_length": 24, "crf": True},
    }
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    changes = {"tasks": tmp_path / "tasks.json", "out": tmp_path / "run", "epochs": 1, "optimizer": "stable-adamw"}
    run = finetune_together(settings_of(folder, tiny_tokenizer, **changes), console=QUIET)
    assert set(run.metrics) == set(tasks) and all("dev" in metrics for metrics in run.metrics.values())
    asked: dict[str, Any] = {
        "spans": {"question": "who sat", "context": "the king sat"},
        "choices": {"question": "which", "choices": ["cat", "dog"]},
        "pairs": "the king",
        "prices": "the dog",
        "living": "the dog",
    }
    for name, row in asked.items():
        (answer,) = load(run.folder / name, device="cpu").predict([row])
        assert answer


def test_the_command(folder: Path, tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", "together", "--tasks", str(folder / "tasks.yaml"), "--model", "size:tiny"]
    command += ["--tokenizer", str(tiny_tokenizer), "--epochs", "1", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "kinds, dev: accuracy" in shown and "living, test: f1" in shown
    assert main(["predict", str(tmp_path / "run" / "kinds"), "the dog 7"]) == 0
    assert main(["finetune", "together", "--config", str(tmp_path / "run" / "config.yaml")]) == 2  # it is there already
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_that_replaces_it_leaves_what_is_the_user_s(
    folder: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    finetune_together(settings_of(folder, tiny_tokenizer, out=out, epochs=0.5), console=QUIET)
    for name in ("notes.md", "seed-list.txt", "deployed/model.onnx"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    monkeypatch.chdir(out)  # it may also be where the user is
    alone = FinetuneSettings(
        model="size:tiny", tokenizer=str(tiny_tokenizer), train=str(folder / "rows.csv"), out=Path("."), epochs=0.5,
        overwrite=True, device="cpu",
    )  # fmt: skip
    finetune("classification", alone, console=QUIET)
    own = {"config.yaml", "metrics.jsonl", "report.html", "checkpoints", "model"}
    assert {path.name for path in out.iterdir()} == {*own, "notes.md", "seed-list.txt", "deployed"}
    assert (out / "deployed" / "model.onnx").read_text() == "mine"


# Refusals


GOOD = {"a": {"task": "classification", "train": "a.csv"}, "b": {"task": "tagging", "train": "b.conll"}}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": GOOD["a"]}, "1 tasks; together at least two"),
        ({}, "0 tasks"),
        ({**GOOD, "../up": GOOD["a"]}, "name is also that of its folder"),
        ({**GOOD, "1 2": GOOD["a"]}, "name is also that of its folder"),
        ({**GOOD, "checkpoints": GOOD["a"]}, "name is also that of its folder"),
        ({**GOOD, "c": 3}, "tasks.json, c: a task has keys and values"),
        ({**GOOD, "c": {"task": "classification"}}, 'tasks.json, c: "train" is missing'),
        ({**GOOD, "c": {**GOOD["a"], "task": "tag"}}, 'no task "tag"'),
        ({**GOOD, "c": {**GOOD["a"], "max_lenght": 3}}, 'c: unknown key "max_lenght".*Did you mean "max_length"'),
        ({**GOOD, "c": {**GOOD["a"], "max_length": "x"}}, "tasks.json, c, max_length"),
    ],
)
def test_files_of_tasks_that_cannot_be_used(tasks: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(BertsmithError, match=message):
        finetune_together(TogetherSettings(model="m", tasks=tmp_path / "tasks.json", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": 1.5}, "sampling"),
        ({"micro_batch_size": 4}, "micro_batch_size"),
        ({"auto_batch": True}, "auto_batch"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TogetherSettings(model="m", tasks=Path("t"), out=Path("o"), **changes)


def test_a_metric_that_should_be_small_is_refused_by_name(tokenizer: Tokenizer) -> None:
    options = ClassificationSettings(max_length=24, regression=True, metric="mse")
    numbers = Classification(tokenizer, (), options, {"train": [ClassificationRow("x", "a", None, "1")]})
    with pytest.raises(SettingsError, match=r"price: the mean.* and mse should be small"):
        Together({"price": numbers}, 2, 1.0, 0)


def test_several_ranks_are_refused(folder: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="ranks cannot share"):
        finetune_together(settings_of(folder, tiny_tokenizer), console=QUIET)
