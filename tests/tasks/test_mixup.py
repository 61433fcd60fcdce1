"""Mixup: the loss by its paper for every kind of target, what it is refused for, and a run with it."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import Interrupted, SettingsError, TrainingError
from bertsmith.files import sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.tasks.classify import Classification, SequenceClassifier
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.mixup import Mixup
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)
TEXTS = ("the king sat by the river", "a dog", "who was the old queen of the city", "it is red")
LABELS: dict[str, tuple[Any, ...]] = {
    "labels": ("a", "b", "a", "c"),
    "pairs": ("a", "b", "a", "c"),
    "smoothed and weighted": ("a", "b", "a", "c"),
    "regression": ("0.5", "1", "-2", "3"),
    "several labels": (("a", "b"), (), ("b",), ("c", "a")),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def make_task(tokenizer: Tokenizer, kind: str, number: int = 4, **changes: Any) -> Classification:
    values: dict[str, Any] = {"max_length": 24, "regression": kind == "regression", **changes}
    values["multi_label"] = kind == "several labels"
    if kind == "smoothed and weighted":
        values |= {"label_smoothing": 0.1, "class_weights": "a=3"}
    pair = "is it" if kind == "pairs" else None
    rows = [
        ClassificationRow(text, text, pair, None, label)
        if isinstance(label, tuple)
        else ClassificationRow(text, text, pair, label)
        for text, label in zip(TEXTS[:number], LABELS[kind], strict=False)
    ]
    labels = () if kind == "regression" else ("a", "b", "c")
    return Classification(tokenizer, labels, ClassificationSettings(**values), {"train": rows})


def make_model(task: Classification, dropout: float = 0.0, **changes: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **changes}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 48, "initializer_range": 0.3}
    config = EncoderConfig(vocab_size=task.tokenizer.vocab_size, **sizes).with_dropout(dropout, dropout, dropout)
    return task.build(Encoder(replace(config, classifier_dropout=dropout))).train()


def batch_of(task: Any) -> Batch:
    examples = task.examples("train")
    batch: Batch = task.collate(examples.take(range(examples.num_examples(0)), 0))
    return batch


def mixed_target_loss(kind: str, logits: Tensor, own: Tensor, other: Tensor, share: float) -> Tensor:
    """The loss with mixed targets (Zhang et al. 2018, equation 1), by torch."""
    if kind == "regression":
        squares = F.mse_loss(logits[:, 0], share * own + (1 - share) * other, reduction="sum")
        return squares / own.var(correction=0)
    if kind == "several labels":
        return F.binary_cross_entropy_with_logits(logits, share * own + (1 - share) * other, reduction="sum")
    soft = share * F.one_hot(own, 3).float() + (1 - share) * F.one_hot(other, 3).float()
    if kind == "smoothed and weighted":
        weights = torch.tensor([3.0, 1.0, 1.0])
        both = [
            F.cross_entropy(logits, one, label_smoothing=0.1, reduction="none") * weights[one] for one in (own, other)
        ]
        return (share * both[0] + (1 - share) * both[1]).sum()
    return F.cross_entropy(logits, soft, reduction="sum")


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_mixture_is_learnt_with_mixed_targets(tokenizer: Tokenizer, kind: str, pooling: str) -> None:
    task = make_task(tokenizer, kind)
    model, batch = make_model(task, pooling=pooling), batch_of(task)
    torch.manual_seed(3)
    found = Mixup(task, 0.8).loss(model, batch)
    torch.manual_seed(3)
    share = torch.distributions.Beta(0.8, 0.8).sample().item()
    others = torch.randperm(4)
    assert 0.01 < share < 0.99 and others.tolist() != [0, 1, 2, 3]
    of_texts = model.encoder(batch.inputs).split(batch.inputs.lengths)
    vectors = torch.stack([one[0] if pooling == "cls" else one.mean(0) for one in of_texts])
    logits = model.pooled.of_pooled(share * vectors + (1 - share) * vectors[others])
    targets = batch.labels["targets"]
    expected = mixed_target_loss(kind, logits, targets, targets[others], share)
    parameters = [one for one in model.parameters() if one.requires_grad]
    if kind != "regression":  # of squares, only the gradient is the same
        torch.testing.assert_close(found[task.name], expected)
    pairs = [torch.autograd.grad(one, parameters, allow_unused=True) for one in (found[task.name], expected)]
    for own, other in zip(*pairs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_alone_and_without_gradients_nothing_is_mixed(tokenizer: Tokenizer) -> None:
    task = make_task(tokenizer, "labels", number=1)
    model, batch = make_model(task), batch_of(task)
    plain = task.loss(model, batch)[task.name]
    torch.testing.assert_close(Mixup(task, 0.5).loss(model, batch)[task.name], plain)
    task = make_task(tokenizer, "labels")
    model, batch, mixup = make_model(task).eval(), batch_of(task), Mixup(task, 0.5)
    with torch.no_grad():
        assert torch.equal(mixup.loss(model, batch)[task.name], task.loss(model, batch)[task.name])
        assert torch.equal(mixup.predict(model, batch), task.predict(model, batch))
    assert mixup.loss_weights == task.loss_weights


def test_windows_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingsError, match="a text has several: choose one"):
        Mixup(make_task(tokenizer, "labels", long="windows"), 0.2)


def write_rows(folder: Path) -> None:
    lines = [{"text": f"the {('cat', 'city')[i % 2]} is old {i}", "label": "ab"[i % 2]} for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    sentences = [f"the O\nking B-PER\n{i} O\n" for i in range(20)]
    (folder / "rows.conll").write_text("\n".join(sentences), encoding="utf-8")


def settings_for(folder: Path, tiny_tokenizer: Path, out: str, **changes: Any) -> FinetuneSettings:
    write_rows(folder)
    values: dict[str, Any] = {"train": str(folder / "rows.jsonl"), "out": folder / out, "epochs": 2, "batch_size": 8}
    values |= {
        "model": "size:tiny",
        "tokenizer": str(tiny_tokenizer),
        "precision": "fp32",
        "mixup": 0.5,
        "dropout": 0.1,
    }
    return FinetuneSettings(**{**values, "device": "cpu", **changes})


def test_a_run_learns_by_it_and_goes_on_to_the_same_bits(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ClassificationSettings(max_length=24)
    whole = settings_for(tmp_path, tiny_tokenizer, "whole")
    plain = settings_for(tmp_path, tiny_tokenizer, "plain", mixup=None)
    weights = [
        sha256(finetune("classification", one, options, console=QUIET).model / "model.safetensors")
        for one in (whole, plain)
    ]
    assert weights[0] != weights[1]
    steps, loss = 0, Mixup.loss

    def interrupting(self: Mixup, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == 6:
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    monkeypatch.setattr(Mixup, "loss", interrupting)
    parts = replace(whole, out=tmp_path / "parts")
    with pytest.raises(Interrupted):
        finetune("classification", parts, options, console=QUIET)
    with pytest.raises(TrainingError, match=r"mixup was 0\.5 and is now 0\.2"):
        finetune("classification", replace(parts, resume=True, mixup=0.2), options, console=QUIET)
    again = finetune("classification", replace(parts, resume=True), options, console=QUIET)
    assert sha256(again.model / "model.safetensors") == weights[0]


def test_words_have_no_mixture(tmp_path: Path, tiny_tokenizer: Path) -> None:
    own = settings_for(tmp_path, tiny_tokenizer, "run", train=str(tmp_path / "rows.conll"))
    with pytest.raises(SettingsError, match="tagging has no answer for a mixture"):
        finetune("tagging", own, TaggingSettings(max_length=24), console=QUIET)
    assert not own.out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.0}, "mixup must be positive, not 0.0"),
        ({"mixup": 1.0, "r_drop": 1.0}, "r_drop asks about texts: choose one"),
        ({"mixup": 1.0, "adversarial": 1.0}, "adversarial asks about texts: choose one"),
        ({"mixup": 1.0, "teacher": "other"}, "teacher asks about texts: choose one"),
        ({"mixup": 1.0, "micro_batch_size": 1}, "here each has one: give a larger batch_size or micro_batch_size"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FinetuneSettings(model="m", train="t", out=Path("o"), **changes)
