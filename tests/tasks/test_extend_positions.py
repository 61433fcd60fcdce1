"""Fine-tuning for longer sequences than the model was made for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertsmith.deploy.predict import load
from bertsmith.errors import SettingsError
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import save_model
from bertsmith.model.resize import Extension
from bertsmith.model.sizes import named_size
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.text.tokenizer import load_tokenizer

QUIET = Console(quiet=True)
OPTIONS = ClassificationSettings(max_length=40)
TEXT = "the old king sat by the river and he saw two fish . " * 4  # 52 tokens
TABLE = "bert.embeddings.position_embeddings.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    rows = [f"{TEXT if number % 2 else 'a dog runs'},{'long' if number % 2 else 'short'}" for number in range(12)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def settings(tiny_tokenizer: Path, data: Path, where: Path, model_type: str = "bert") -> FinetuneSettings:
    """From a model of 16 positions, or of those of its family where these are rotary."""
    own = load_tokenizer(tiny_tokenizer)
    config = named_size("tiny", own.vocab_size, model_type=model_type, max_length=16)
    torch.manual_seed(5)
    folder = where / "model"
    folder.mkdir()
    save_model(folder, nn.ModuleDict({"encoder": Encoder(config)}), config, family(model_type).bare)
    own.save(folder)
    return FinetuneSettings(
        model=str(folder), train=str(data), dev_share=0.0, out=where / "out", epochs=1, precision="fp32", device="cpu"
    )


@pytest.mark.conformance
@pytest.mark.parametrize("extension", ["tile", "interpolate"])
def test_a_longer_model_is_taught_saved_and_loaded_by_transformers(
    tiny_tokenizer: Path, data: Path, tmp_path: Path, extension: Extension
) -> None:
    chosen = replace(settings(tiny_tokenizer, data, tmp_path), extend_positions=extension, learning_rate=0.0)
    result = finetune("classification", chosen, OPTIONS, console=QUIET)
    config = json.loads((result.model / "config.json").read_text())
    assert config["max_position_embeddings"] == 40
    assert json.loads((result.model / "tokenizer_config.json").read_text())["model_max_length"] == 40
    # Nothing was learnt at a rate of 0, so that the table is what it began with.
    old = load_file(tmp_path / "model" / "model.safetensors")[TABLE.removeprefix("bert.")].numpy()
    new = load_file(result.model / "model.safetensors")[TABLE].numpy()
    places = np.linspace(0, 15, 40)
    between = np.stack([np.interp(places, np.arange(16), column) for column in old.T], axis=1)
    expected = np.concatenate([old, old, old[:8]]) if extension == "tile" else between
    np.testing.assert_allclose(new, expected, rtol=0, atol=1e-6)
    theirs = AutoModelForSequenceClassification.from_pretrained(result.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    inputs = tokenizer(TEXT, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 40)
    (answer,) = load(result.model, device="cpu").predict([TEXT])
    with torch.inference_mode():
        scores = theirs(**inputs).logits.softmax(-1)[0]
    assert list(answer["scores"].values()) == pytest.approx(scores.tolist(), abs=1e-5)
    assert f"extend_positions: {extension}" in (result.model / "README.md").read_text(encoding="utf-8")
    saved = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert saved["extend_positions"] == extension


def test_what_fits_is_not_extended(tiny_tokenizer: Path, data: Path, tmp_path: Path) -> None:
    chosen = replace(settings(tiny_tokenizer, data, tmp_path), extend_positions="tile")
    result = finetune("classification", chosen, replace(OPTIONS, max_length=12), console=QUIET)
    assert json.loads((result.model / "config.json").read_text())["max_position_embeddings"] == 16


def test_positions_that_cannot_be_extended(tiny_tokenizer: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rotary").mkdir()
    base = settings(tiny_tokenizer, data, tmp_path)
    rotary = settings(tiny_tokenizer, data, tmp_path / "rotary", model_type="modernbert")
    for chosen, message in (
        (base, r"max_length is 40; this model takes 4 to 16 tokens \(max_position_embeddings\)\. .*extend_positions"),
        (rotary, r"takes 4 to 16 tokens \(max_position_embeddings\)\.$"),
        (replace(rotary, extend_positions="tile"), "modernbert has rotary positions"),
        (replace(base, extend_positions="interpolate", lora=2), "with lora they are not learnt. Take tile"),
        (replace(base, extend_positions="interpolate", freeze=0), "with freeze they are not learnt. Take tile"),
        (
            replace(base, model="size:tiny", tokenizer=str(tiny_tokenizer), extend_positions="tile"),
            "extend_positions goes with a pre-trained model",
        ),
    ):
        with pytest.raises(SettingsError, match=message):
            finetune("classification", chosen, OPTIONS, console=QUIET)
        assert not chosen.out.exists()
