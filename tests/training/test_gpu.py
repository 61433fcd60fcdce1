"""What is the same on a CUDA device as on the CPU; and what is only there: compiled layers on flat batches."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.encoder import Encoder, compile_layers
from bertsmith.model.folder import save_model
from bertsmith.model.heads import VocabularyHead
from bertsmith.model.sizes import named_size
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.cross_entropy import summed_cross_entropy
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.progress import read_metrics
from bertsmith.training.step import update_unless_bad

VOCABULARY = 1003  # not a multiple of 64
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def batch_of(lengths: tuple[int, ...]) -> PackedBatch:
    random = np.random.default_rng(sum(lengths))
    return pack([random.integers(0, VOCABULARY, length) for length in lengths])


def gradients(
    encoder: Encoder, head: VocabularyHead, batch: PackedBatch, positions: Tensor, *, half: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """Loss of every token as its own label, and the gradient of each parameter."""
    device = batch.token_ids.device
    encoder.zero_grad()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        logits = head(encoder(batch, positions))
        assert logits.shape == (len(positions), VOCABULARY)
        loss = summed_cross_entropy(logits, batch.token_ids[positions])
    loss.backward()
    return float(loss.detach()), {name: p.grad.cpu() for name, p in encoder.named_parameters() if p.grad is not None}


class Whole(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder


def models(dropout: float = 0.0) -> tuple[Encoder, VocabularyHead]:
    torch.manual_seed(5)
    config = named_size("tiny", VOCABULARY).with_dropout(dropout, dropout, None)
    encoder = Encoder(config)
    return encoder, VocabularyHead(config, encoder.token_embedding)


# torch looks at every argument's gradient while it compiles, and warns of what it does itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_device_or_a_compiler_changes_nothing_but_rounding(is_compiled: bool) -> None:
    expected_encoder, expected_head = models()
    encoder, head = (module.to(CUDA) for module in models())
    if is_compiled:
        compile_layers(encoder)
    for lengths in ((5, 17, 9), (33, 2), (16, 16, 16, 16)):
        positions = torch.arange(0, sum(lengths), 3)
        batch = batch_of(lengths)
        expected, expected_gradients = gradients(expected_encoder, expected_head, batch, positions)
        found, found_gradients = gradients(encoder, head, batch.to(CUDA), positions.to(CUDA))
        assert found == pytest.approx(expected, rel=1e-4)
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=2e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# torch looks at every argument's gradient while it compiles, and warns of what it does itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_bf16_is_near_and_dropout_follows_the_seed(is_compiled: bool) -> None:
    exact, head = (module.to(CUDA) for module in models())
    lengths = (5, 17, 9, 64)
    batch, positions = batch_of(lengths).to(CUDA), torch.arange(0, sum(lengths), 3, device=CUDA)
    expected, expected_gradients = gradients(exact, head, batch, positions)
    if is_compiled:
        compile_layers(exact)
    found, found_gradients = gradients(exact, head, batch, positions, half=True)
    assert found == pytest.approx(expected, rel=0.01)
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).norm() <= 0.05 * gradient.norm() + 1e-3, name

    dropped, head = (module.to(CUDA) for module in models(dropout=0.3))
    if is_compiled:
        compile_layers(dropped)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(gradients(dropped, head, batch, positions, half=True)[0])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=on_gpu)])
@pytest.mark.parametrize("fault", [[5.0, 1.0], [math.inf, 1.0], [1.0, math.nan]])
def test_a_bad_update_changes_nothing_though_it_is_launched_before_that_is_known(
    fault: list[float], device: torch.device
) -> None:
    def trained(figures: list[list[float]]) -> Tensor:
        parameter = nn.Parameter(torch.ones(5, 3, device=device))
        optimizer = AdamW([parameter], lr=0.1, fused=True)
        for norm, loss in figures:
            parameter.grad = torch.full_like(parameter, norm)
            read = update_unless_bad(optimizer, torch.tensor([norm, loss], device=device), spike_norm=4.0)
            torch.testing.assert_close(read, [norm, loss], equal_nan=True)
        return parameter.detach().cpu()

    good = [[1.0, 2.0], [3.0, 1.0]]
    weights = trained(good)
    # Neither the weights nor the moments, and the number of steps that they count, or the last step would differ.
    assert torch.equal(trained([good[0], fault, good[1]]), weights)
    assert not torch.equal(trained([*good, good[1]]), weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# torch looks at every argument's gradient while it compiles, and warns of what it does itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_run_learns_is_resumed_and_loads(
    tiny_documents: Path, tiny_tokenizer: Path, tmp_path: Path, is_compiled: bool
) -> None:
    texts = tiny_documents.read_text(encoding="utf-8").split("\n\n")
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    build_corpus([str(source)], tiny_tokenizer, tmp_path / "store", heldout_share=0.2, num_workers=1)
    out = tmp_path / "run"

    def run(budget: str, resume: bool = False) -> dict[str, float]:
        settings = PretrainSettings(
            corpus=tmp_path / "store",
            out=out,
            size="tiny",
            budget=budget,
            schedule="constant",
            max_length=32,
            batch_size=8,
            learning_rate=3e-3,
            evaluation_samples=20,
            device="cuda",
            compile=is_compiled,
            resume=resume,
        )
        result = pretrain(settings)
        assert result.training.step == int(budget.split()[0])
        return result.metrics

    run("30 steps")
    metrics = run("60 steps", resume=True)
    assert metrics["mlm_loss"] < math.log(130)
    lines = read_metrics(out / "metrics.jsonl")
    assert any(line["kind"] == "compile" for line in lines) == is_compiled
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "changes", [{}, {"r_drop": 1.0, "dropout": 0.01}, {"adversarial": 0.1}, {"lora": 4}, {"freeze": 1}]
)
def test_a_fine_tuning_that_is_replayed_learns_the_same(
    changes: dict[str, float], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    words = "the cat sat at the river a dog she saw the old house in the city".split()
    rows = [{"text": " ".join(words[start : start + 4 + start % 5]), "label": str(start % 2)} for start in range(11)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")

    encoder, _ = models()
    save_model(tmp_path / "model", Whole(encoder), encoder.config, "BertModel")
    load_tokenizer(tiny_tokenizer).save(tmp_path / "model", 512)

    def losses(is_replayed: bool) -> list[float]:
        settings = FinetuneSettings(
            model=str(tmp_path / "model"),
            train=str(data),
            out=tmp_path / str(is_replayed),
            dev_share=0.0,
            epochs=5,
            batch_size=8,
            learning_rate=1e-3,
            device="cuda",
            cuda_graphs=is_replayed,
            **{"dropout": 0.0, **changes},
        )
        finetune("classification", settings, ClassificationSettings(max_length=32))
        lines = read_metrics(settings.out / "metrics.jsonl")
        return [line["losses"]["classification"] for line in lines if line["kind"] == "train"]

    assert losses(True) == pytest.approx(losses(False), rel=0.05, abs=0.02)
