"""A folder of every family, fine-tuned here for every task: Transformers gives the answers that we give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
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
from bertsmith.tasks.pairs import judge_pairs
from bertsmith.tasks.pretrain_model import PretrainingModel
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


def xlm_roberta_tokenizer() -> Any:
    """A small one as transformers makes it: SentencePiece, and segment 0 on both sides of a pair."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend: Any = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    return transformers.XLMRobertaTokenizer(vocab=[tuple(piece) for piece in vocabulary])


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@torch.no_grad()
def test_a_pair_has_the_segments_of_its_tokenizer(family: str, tmp_path: Path) -> None:
    """An encoder with two segments beside a tokenizer that uses one of them."""
    tokenizer = xlm_roberta_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=2, initializer_range=0.3, **sizes
    )
    for head in ("SequenceClassification", "QuestionAnswering"):
        torch.manual_seed(0)
        theirs = getattr(transformers, f"{family}For{head}")(config).eval()
        theirs.save_pretrained(tmp_path / head)
        tokenizer.save_pretrained(tmp_path / head)
        inputs = their_inputs(tmp_path / head, TEXTS[1], TEXTS[2])
        expected = theirs(**inputs)
        others = theirs(**inputs, token_type_ids=torch.tensor([[0] * 5 + [1] * (inputs["input_ids"].shape[1] - 5)]))
        predictor = load(tmp_path / head, device="cpu")
        if head == "SequenceClassification":
            (answer,) = predictor.predict([{"text": TEXTS[1], "pair": TEXTS[2]}])
            np.testing.assert_allclose(list(answer["scores"].values()), expected.logits.softmax(-1)[0], atol=1e-5)
            assert (others.logits - expected.logits).abs().max() > 1e-3, "the other segment would be seen"
        else:
            task, module = predictor.task, predictor.model  # type: ignore[attr-defined]
            row = task.row({"question": TEXTS[1], "context": TEXTS[2]}, "row")
            found = module.tokens(module.encoder(task.collate(task.encode([row])).inputs))
            torch.testing.assert_close(found[:, 0], expected.start_logits[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(found[:, 1], expected.end_logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_judgements_of_pairs_have_the_segments_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = xlm_roberta_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = named_size("tiny", len(tokenizer), max_length=48, pad_token_id=1)
    torch.manual_seed(0)
    model = PretrainingModel(Encoder(config), pairs=True).eval()
    save_model(tmp_path, model, config, "BertForPreTraining")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path).eval()
    expected = theirs(**their_inputs(tmp_path, TEXTS[1], TEXTS[2])).seq_relationship_logits.softmax(-1)[0]
    (found,) = judge_pairs(model, load_tokenizer(tmp_path), [(TEXTS[1], TEXTS[2])], "nsp")
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-5)


@torch.no_grad()
def test_a_long_text_is_read_as_far_as_the_tokenizer_says(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer, model_max_length=600)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=700, initializer_range=0.3, **sizes
    )
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = " ".join(TEXTS[number % 3] for number in range(90))
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 600
    (answer,) = load(tmp_path, device="cpu").predict([text])
    expected = theirs(**inputs).logits.softmax(-1)[0]
    np.testing.assert_allclose(list(answer["scores"].values()), expected, atol=1e-5)
    cut = theirs(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt")).logits.softmax(-1)[0]
    assert (cut - expected).abs().max() > 1e-3
