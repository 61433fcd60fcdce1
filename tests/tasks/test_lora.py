"""Low-rank adaptation: its formula, what it leaves alone, and that a finished model is like any other."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertsmith.errors import Interrupted, SettingsError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import save_model
from bertsmith.model.low_rank import LowRankLinear, add_low_rank, merge_low_rank
from bertsmith.model.sizes import named_size
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.saved import load_task
from bertsmith.text.tokenizer import load_tokenizer

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=24)
RANK = 3


def base_model(tokenizer: Path, folder: Path, model_type: str = "bert") -> Path:
    torch.manual_seed(5)
    config = named_size("tiny", load_tokenizer(tokenizer).vocab_size, model_type=model_type)
    encoder = nn.ModuleDict({"encoder": Encoder(config)})
    folder.mkdir()
    save_model(folder, encoder, config, family(model_type).bare)
    load_tokenizer(tokenizer).save(folder)
    return folder


def settings(folder: Path, **changes: Any) -> FinetuneSettings:
    words = {"animal": ("cat", "dog", "bird"), "place": ("city", "river", "house")}
    rows = [
        f"the {word} is {number},{label}" for number in range(20) for label, those in words.items() for word in those
    ]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    values: dict[str, Any] = {"train": str(folder / "train.csv"), "out": folder / "run", "dev_share": 0.2, "epochs": 8}
    values |= {"batch_size": 16, "learning_rate": 3e-3, "dropout": 0.0, "precision": "fp32", "device": "cpu"}
    return FinetuneSettings(**{**values, "lora": RANK, **changes})


def test_the_product_is_added_with_its_weight() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    before = linear.weight.detach().clone()
    part = LowRankLinear(linear, rank=2, alpha=5.0)
    inputs = torch.randn(7, 6)
    assert torch.equal(part(inputs), linear(inputs))  # nothing is learnt yet
    nn.init.normal_(part.second)
    matrix = before + 5.0 / 2 * part.second @ part.first
    expected = inputs @ matrix.T + linear.bias
    assert torch.allclose(part(inputs), expected, atol=1e-5)
    merged = part.merged()
    assert merged is linear
    assert torch.allclose(merged(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "albert", "modernbert", "gpt2"])
def test_merging_changes_no_output(model_type: str) -> None:
    torch.manual_seed(1)
    encoder = Encoder(named_size("tiny", 50, model_type=model_type)).eval()
    names = set(encoder.state_dict())
    batch = pack([torch.arange(9).numpy(), torch.arange(4).numpy()])
    plain = encoder(batch)
    add_low_rank(encoder, RANK, 6.0)
    assert torch.equal(encoder(batch), plain)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained and all(name.endswith((".first", ".second")) for name in trained)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".second"):
            nn.init.normal_(parameter, std=0.1)
    adapted = encoder(batch)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    merge_low_rank(encoder)
    assert set(encoder.state_dict()) == names
    assert torch.allclose(encoder(batch), adapted, atol=1e-5)


def test_a_run_learns_matrices_of_its_rank_and_leaves_the_rest(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = base_model(tiny_tokenizer, tmp_path / "base")
    result = finetune("classification", settings(tmp_path, model=str(where)), OPTIONS, console=QUIET)
    assert result.metrics["dev"]["accuracy"] > 0.9
    before, after = load_file(where / "model.safetensors"), load_file(result.model / "model.safetensors")
    for name, tensor in before.items():
        change = after[f"bert.{name}"] - tensor
        is_adapted = name.endswith("weight") and "layer." in name and "LayerNorm" not in name
        assert bool(change.any()) == is_adapted, name
        if is_adapted:  # queries, keys and values are one matrix here, and each a part of a product of that rank
            assert torch.linalg.matrix_rank(change, atol=1e-5) <= RANK
    moments = load_file(result.training.checkpoint / "optimizer.safetensors")
    assert sum(tensor.numel() for tensor in moments.values()) < sum(tensor.numel() for tensor in before.values()) / 4


def test_the_model_is_like_any_other(tiny_tokenizer: Path, tmp_path: Path) -> None:
    where = base_model(tiny_tokenizer, tmp_path / "base")
    result = finetune("classification", settings(tmp_path, model=str(where)), OPTIONS, console=QUIET)
    task, ours = load_task(result.model)
    assert isinstance(task, Classification)
    texts = ["the dog is 3", "a river by the city"]
    batch = task.collate(task.encode([task.row(text, "x") for text in texts]))
    theirs = AutoModelForSequenceClassification.from_pretrained(result.model).eval()
    with torch.no_grad():
        expected = theirs(
            **AutoTokenizer.from_pretrained(result.model)(texts, padding=True, return_tensors="pt")
        ).logits
        assert torch.allclose(task.logits(ours.eval(), batch), expected, atol=1e-5)
    assert "lora: 3" in (result.model / "README.md").read_text()
    again = settings(tmp_path, model=str(result.folder), out=tmp_path / "again", lora=None, epochs=1)
    assert finetune("classification", again, OPTIONS, console=QUIET).metrics["dev"]["accuracy"] > 0.9


def test_an_interrupted_run_resumes_to_the_same_weights(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = base_model(tiny_tokenizer, tmp_path / "base")
    chosen = settings(tmp_path, model=str(where), epochs=3)
    whole = finetune("classification", chosen, OPTIONS, console=QUIET)
    collate: Callable[..., Any] = Classification.collate
    batches = []

    def stop_at_the_ninth(self: Classification, examples: Any) -> Any:
        batches.append(examples)
        if len(batches) == 9:
            signal.raise_signal(signal.SIGINT)
        return collate(self, examples)

    part = replace(chosen, out=tmp_path / "part", num_workers=0)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Classification, "collate", stop_at_the_ninth)
        finetune("classification", part, OPTIONS, console=QUIET)
    resumed = finetune("classification", replace(part, resume=True), OPTIONS, console=QUIET)
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": 0}, "lora must be at least 1"),
        ({"lora": None, "lora_alpha": 8.0}, "goes with lora"),
        ({"lora_alpha": -1.0}, "must be positive"),
        ({"freeze": 1}, "does not go with freeze or reinit_layers"),
        ({"optimizer": "muon"}, "muon is for whole matrices"),
        ({"model": "size:tiny"}, 'lora goes with a pre-trained model; "size:tiny" has random weights'),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        finetune("classification", settings(tmp_path, **{"model": "base", **changes}), OPTIONS, console=QUIET)
