"""A folder of every family, fine-tuned here for every task: Transformers gives the answers that we give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from bertsmith.deploy.predict import load
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import FAMILIES
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.conformance

QUIET = Console(quiet=True)
TEXTS = ("the cat sat at the river .", "a dog", "she saw the old house in the city , he said")


class Bare(torch.nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny_tokenizer: Path, tmp_path: Path) -> Path:
    """A random model of a family with a tokenizer beside it."""
    tokenizer = load_tokenizer(tiny_tokenizer)
    config = named_size(
        "tiny", tokenizer.vocab_size, model_type=request.param, max_length=48, pad_token_id=tokenizer.pad_id
    )
    torch.manual_seed(0)
    place = tmp_path / "model"
    save_model(place, Bare(Encoder(config)), config, FAMILIES[request.param].bare)
    tokenizer.save(place, config.max_sequence_length, has_segments=config.type_vocab_size > 1)
    return place


def finetuned(task: str, folder: Path, data: Path, options: Any) -> Path:
    settings = FinetuneSettings(
        model=str(folder),
        train=str(data),
        out=folder.parent / task,
        dev_share=0.0,
        epochs=2,
        batch_size=4,
        learning_rate=1e-3,
        precision="fp32",
        device="cpu",
    )
    return finetune(task, settings, options, console=QUIET).model


def their_inputs(model: Path, *texts: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model)(*texts, return_tensors="pt")


@torch.no_grad()
def test_classification_of_pairs(folder: Path) -> None:
    data = folder.parent / "pairs.jsonl"
    rows = [
        {"text": TEXTS[i % 3], "pair": TEXTS[(i + i // 3) % 3], "label": "same" if i < 3 else "other"} for i in range(9)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with torch.enable_grad():
        options = ClassificationSettings(pair_column="pair", max_length=40)
        model = finetuned("classification", folder, data, options)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    for row, answer in zip(rows, load(model, device="cpu").predict(rows), strict=True):
        expected = theirs(**their_inputs(model, row["text"], row["pair"])).logits.softmax(-1)[0]
        found = [answer["scores"][theirs.config.id2label[i]] for i in range(2)]
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_tagging(folder: Path) -> None:
    data = folder.parent / "words.conll"
    lines = [
        f"{word} {'B-X' if word in ('cat', 'dog', 'house') else 'O'}" for text in TEXTS for word in [*text.split(), ""]
    ]
    data.write_text("\n".join(line if line.strip() != "O" else "" for line in lines) + "\n")
    with torch.enable_grad():
        model = finetuned("tagging", folder, data, TaggingSettings(scheme="iob2", max_length=40))
    task = load(model, device="cpu").task  # type: ignore[attr-defined]
    module = load(model, device="cpu").model  # type: ignore[attr-defined]
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(model).eval()
    batch = task.collate(task.encode([task.row(TEXTS[2], "row")]))
    expected = theirs(**their_inputs(model, TEXTS[2])).logits[0]
    found = module.tokens(module.encoder(batch.inputs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_answering(folder: Path) -> None:
    data = folder.parent / "questions.jsonl"
    context = TEXTS[2]
    start = context.index("old house")
    row = {"question": "a dog", "context": context, "answers": [{"text": "old house", "answer_start": start}]}
    data.write_text(json.dumps(row) + "\n")
    with torch.enable_grad():
        model = finetuned("answering", folder, data, AnsweringSettings(max_length=40, max_query_length=8))
    predictor = load(model, device="cpu")
    task, module = predictor.task, predictor.model  # type: ignore[attr-defined]
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(model).eval()
    batch = task.collate(task.encode([task.row({"question": "a dog", "context": context}, "row")]))
    expected = theirs(**their_inputs(model, "a dog", context))
    found = module.tokens(module.encoder(batch.inputs))
    torch.testing.assert_close(found[:, 0], expected.start_logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 1], expected.end_logits[0], rtol=0, atol=1e-5)
