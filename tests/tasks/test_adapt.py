"""Pre-training on a task's own texts before the task: what it reads, what the task starts from, and resuming."""

import io
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from bertsmith.errors import Interrupted, SettingsError, TrainingError
from bertsmith.files import read_json
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import read_config, save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks import adapt as adapt_module
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.text.tokenizer import load_tokenizer

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)


@pytest.fixture
def base(tiny_tokenizer: Path, tmp_path: Path) -> Path:
    return base_model(tiny_tokenizer, tmp_path / "base", "bert")


def base_model(tokenizer: Path, folder: Path, model_type: str) -> Path:
    torch.manual_seed(5)
    config = named_size("tiny", load_tokenizer(tokenizer).vocab_size, model_type=model_type)
    folder.mkdir()
    save_model(folder, nn.ModuleDict({"encoder": Encoder(config)}), config, family(model_type).bare)
    load_tokenizer(tokenizer).save(folder)
    return folder


def settings(folder: Path, base: Path, **changes: Any) -> FinetuneSettings:
    words = {"animal": ("cat", "dog", "bird"), "place": ("city", "river", "house")}
    rows = [f"the {one} is {n} and red .,{label}" for n in range(10) for label, those in words.items() for one in those]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows, rows[0]]))
    (folder / "test.csv").write_text("text,label\nthe king is old,animal\n")
    values: dict[str, Any] = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "dev_share": 0.2}
    values |= {"model": str(base), "out": folder / "run", "epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    values |= {"dropout": 0.0, "precision": "fp32", "device": "cpu", "adapt": "6 steps", "num_workers": 0}
    return FinetuneSettings(**{**values, **changes})


def test_the_task_starts_from_the_adapted_model(base: Path, tmp_path: Path) -> None:
    chosen = settings(tmp_path, base, learning_rate=0.0, weight_decay=0.0)
    result = finetune("classification", chosen, OPTIONS, console=QUIET)
    adapted = load_file(tmp_path / "run" / "adapt" / "run" / "model" / "model.safetensors")
    before, after = load_file(base / "model.safetensors"), load_file(result.model / "model.safetensors")
    for name in before:
        assert torch.equal(after[f"bert.{name}"], adapted[f"bert.{name}"]), name
    assert not torch.equal(
        after["bert.encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"]
    )
    assert "adapt: 6 steps" in (result.model / "README.md").read_text()


def test_pooler_and_head_stay_those_of_the_model(base: Path, tmp_path: Path) -> None:
    learnt = finetune("classification", settings(tmp_path, base, adapt=None), OPTIONS, console=QUIET)
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "out": tmp_path / "more"}
    again = finetune("classification", settings(tmp_path, learnt.model, **still), OPTIONS, console=QUIET)
    before, after = (load_file(one.model / "model.safetensors") for one in (learnt, again))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {"bert.pooler.dense.weight", "classifier.weight", "classifier.bias"} <= kept
    assert "bert.encoder.layer.0.output.dense.weight" not in kept
    assert read_json(again.model / "bertsmith.json")["new_tensors"] == []


def test_only_texts_of_the_training_rows_are_read_and_each_once(base: Path, tmp_path: Path) -> None:
    finetune("classification", settings(tmp_path, base), OPTIONS, console=QUIET)
    lines = (tmp_path / "run" / "adapt" / "texts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    rows = [line.rpartition(",")[0] for line in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert len(texts) == len(set(texts)) < len(set(rows))  # the others are dev
    assert set(texts) < set(rows)


@pytest.mark.parametrize(("model_type", "objective"), [("bert", "mlm"), ("albert", "mlm"), ("gpt2", "clm")])
def test_each_family_learns_what_it_can(tiny_tokenizer: Path, tmp_path: Path, model_type: str, objective: str) -> None:
    base = base_model(tiny_tokenizer, tmp_path / "base", model_type)
    finetune("classification", settings(tmp_path, base), OPTIONS, console=QUIET)
    assert read_json(tmp_path / "run" / "adapt" / "run" / "model" / "bertsmith.json")["objective"] == objective


def test_a_head_that_the_model_lacks_is_said(base: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    finetune("classification", settings(tmp_path, base), OPTIONS, console=Console(file=screen, width=200))
    assert "base has no head for masked tokens: it is learnt from nothing." in screen.getvalue()


def test_a_discriminator_learns_with_its_generator(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Its own head for masked tokens it has not; without the generator there is none, and one is made."""
    base = base_model(tiny_tokenizer, tmp_path / "model", "electra")
    finetune("classification", settings(tmp_path, base), OPTIONS, console=QUIET)
    assert read_json(tmp_path / "run" / "adapt" / "run" / "model" / "bertsmith.json")["objective"] == "mlm"
    chosen = PretrainSettings(
        corpus=tmp_path / "run" / "adapt" / "corpus",
        out=tmp_path / "electra",
        from_model=str(base),
        objective="rtd",
        generator_share=0.5,
        budget="1 steps",
        max_length=24,
        batch_size=2,
        precision="fp32",
    )
    electra = pretrain(chosen, console=QUIET).folder
    screen = io.StringIO()
    changed = settings(tmp_path, electra, out=tmp_path / "with")
    finetune("classification", changed, OPTIONS, console=Console(file=screen, width=200))
    adapted = tmp_path / "with" / "adapt" / "run"
    assert read_json(adapted / "model" / "bertsmith.json")["objective"] == "rtd"
    assert "is learnt from nothing" not in screen.getvalue()
    assert read_config(adapted / "generator")[0].hidden_size == read_config(electra / "generator")[0].hidden_size
    layers = settings(tmp_path, electra, out=tmp_path / "layers", layers=1)
    finetune("classification", layers, OPTIONS, console=QUIET)
    assert read_json(tmp_path / "layers" / "adapt" / "run" / "model" / "bertsmith.json")["objective"] == "mlm"


@pytest.mark.parametrize("stopped", [PretrainTask, Classification])
def test_an_interrupted_run_resumes_to_the_same_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any
) -> None:
    """Stopped while it adapts, and while it learns the task."""
    chosen = settings(tmp_path, base)
    whole = finetune("classification", chosen, OPTIONS, console=QUIET)
    part = replace(chosen, out=tmp_path / "part")
    collate, batches = stopped.collate, []

    def stop_at_the_third(self: Any, examples: Any) -> Any:
        batches.append(examples)
        if len(batches) == 3:
            signal.raise_signal(signal.SIGINT)
        return collate(self, examples)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(stopped, "collate", stop_at_the_third)
        finetune("classification", part, OPTIONS, console=QUIET)
    assert (tmp_path / "part" / "adapt" / "run" / "model").exists() == (stopped is Classification)
    calls = []
    build = adapt_module.build_corpus
    monkeypatch.setattr(adapt_module, "build_corpus", lambda *all, **named: calls.append(all) or build(*all, **named))
    resumed = finetune("classification", replace(part, resume=True), OPTIONS, console=QUIET)
    assert calls == []  # the corpus was there
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_not_resumed_with_other_settings_or_texts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, base)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Classification, "collate", lambda *all: 1 / 0)
        finetune("classification", chosen, OPTIONS, console=QUIET)
    again = replace(chosen, resume=True)
    with pytest.raises(TrainingError, match="adapt was 6 steps and is now 8 steps"):
        finetune("classification", replace(again, adapt="8 steps"), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match="seed was 0 and is now 1"):
        finetune("classification", replace(again, seed=1), OPTIONS, console=QUIET)
    with pytest.raises(TrainingError, match="it has learnt other texts"):
        finetune("classification", replace(again, dev_share=0.5), OPTIONS, console=QUIET)
    assert finetune("classification", again, OPTIONS, console=QUIET).training.step > 0


def test_several_seeds_share_the_adapted_model(base: Path, tmp_path: Path) -> None:
    result = finetune("classification", settings(tmp_path, base, seeds=2), OPTIONS, console=QUIET)
    assert len(result.seeds) == 2
    assert (tmp_path / "run" / "adapt" / "run" / "model").is_dir()
    assert not (tmp_path / "run" / "seed-1" / "adapt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": "5%"}, "is a share of itself"),
        ({"adapt": "long"}, '^adapt: cannot read "long"'),
        ({"model": "size:tiny"}, 'adapt goes with a pre-trained model; "size:tiny" has random weights'),
    ],
)
def test_what_cannot_be_is_said(base: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        finetune("classification", settings(tmp_path, base, **changes), OPTIONS, console=QUIET)
    assert not (tmp_path / "run").exists()
