"""The gradient of a pre-training step: that of its whole batch, however it is cut, and that of transformers' logits."""

import itertools
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pretrain_examples import PretrainExample
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.text.corpus import open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.distributed import ALONE
from bertsmith.training.loader import Loader, Step
from bertsmith.training.step import StepResult, take_step

pytestmark = pytest.mark.conformance

BATCH_SIZE = 32
CHANGES: dict[str, dict[str, Any]] = {
    "clean": {"data_mode": "clean"},
    "original": {"data_mode": "original", "mlm_weight": 0.5, "pair_weight": 2.0},
    "sentence order, bernoulli": {"objective": "mlm+sop", "mask_count": "bernoulli"},
}


@pytest.fixture(scope="module")
def store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one to ten sentences: in the clean mode those of one have no pair."""
    folder = tmp_path_factory.mktemp("store")
    short = "\n\n".join(
        f"The {animal} sat alone by the {place}." for animal in ("cat", "dog") for place in ("tree", "river")
    )
    source = folder / "documents.txt"
    source.write_text(f"{short}\n\n{tiny_documents.read_text(encoding='utf-8')}", encoding="utf-8")
    build_corpus(
        [str(source)],
        tiny_tokenizer,
        folder / "store",
        document_separator="blank-lines",
        heldout_share=0.0,
        num_workers=1,
    )
    return folder / "store"


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of transformers, without dropout, with weights large enough for gradients that differ."""
    out = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=load_tokenizer(tiny_tokenizer).vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    transformers.BertForPreTraining(config).save_pretrained(out)
    return out


def make(store: Path, changes: dict[str, Any]) -> PretrainTask:
    settings = with_objective(PretrainSettings(corpus=store, out=store, **changes), "bert")
    task = make_task(settings, 48, load_tokenizer(store / "tokenizer"), {"train": open_corpus(store)})
    assert isinstance(task, PretrainTask)
    return task


def first_step(task: PretrainTask, micro_batch_size: int | None) -> Step:
    loader = Loader(
        task.examples("train"),
        task.collate,
        batch_size=BATCH_SIZE,
        micro_batch_size=micro_batch_size,
        seed=3,
        num_workers=0,
    )
    with closing(loader.steps()) as steps:
        return next(itertools.islice(steps, 1))


def our_gradients(folder: Path, task: PretrainTask, step: Step) -> tuple[dict[str, Tensor], StepResult]:
    model = task.build(Encoder(read_config(folder)[0]))
    load_weights(folder, model, strict=True)
    result = take_step(
        model,
        task,
        step,
        torch.optim.SGD(model.parameters(), lr=0.0),
        counts=step.counts,
        ranks=ALONE,
        learning_rate=0.0,
        max_grad_norm=0.0,
        seed=0,
        number=0,
        device=torch.device("cpu"),
        precision="fp32",
    )
    return gradients(model), result


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def their_losses(theirs: Any, examples: Sequence[PretrainExample]) -> tuple[Tensor, Tensor]:
    """Means over all masked tokens and over all labelled pairs of some examples, padded for transformers."""
    ids = [torch.from_numpy(one.masked.token_ids) for one in examples]
    labels = [torch.full_like(row, -100) for row in ids]
    for row, one in zip(labels, examples, strict=True):
        row[one.masked.positions] = torch.from_numpy(one.masked.labels)
    found = theirs(
        input_ids=pad_sequence(ids, batch_first=True),
        token_type_ids=pad_sequence([torch.from_numpy(one.segment_ids) for one in examples], batch_first=True),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    )
    labels_SL = pad_sequence(labels, batch_first=True, padding_value=-100)
    mlm = F.cross_entropy(found.prediction_logits.flatten(0, 1), labels_SL.flatten())
    labelled = [number for number, one in enumerate(examples) if one.pair_label != NO_PAIR]
    pair_labels = torch.tensor([examples[number].pair_label for number in labelled])
    return mlm, F.cross_entropy(found.seq_relationship_logits[labelled], pair_labels)


def in_our_names(theirs: Any, task: PretrainTask, folder: Path) -> dict[str, Tensor]:
    """Their gradients, which come to us through the same door as their weights."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(folder)
    model = task.build(Encoder(read_config(folder)[0]))
    load_weights(folder, model, strict=True)
    return {name: parameter.data for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_has_one_gradient_however_it_is_cut(store: Path, folder: Path, tmp_path: Path, name: str) -> None:
    task = make(store, CHANGES[name])
    whole = first_step(task, None)
    assert len(whole.micro_batches) == 1
    own, result = our_gradients(folder, task, whole)

    parts = first_step(task, 8)
    assert len(parts.micro_batches) == 4
    counts = [batch.counts for batch in parts.micro_batches]
    for objective in task.loss_weights:
        assert sum(count[objective] for count in counts) == whole.counts[objective] == result.counts[objective]
    assert len({count["mlm"] for count in counts}) > 1
    for micro_batch_size in (8, 1, 13):
        cut, cut_result = our_gradients(folder, task, first_step(task, micro_batch_size))
        assert cut.keys() == own.keys()
        for parameter, gradient in cut.items():
            torch.testing.assert_close(gradient, own[parameter], rtol=1e-5, atol=1e-6, msg=parameter)
        assert cut_result.counts == result.counts
        for objective, total in cut_result.loss_sums.items():
            assert total.item() == pytest.approx(result.loss_sums[objective].item(), rel=1e-5)

    theirs = transformers.BertForPreTraining.from_pretrained(folder).train()
    mlm, pair = their_losses(theirs, whole.micro_batches[0].examples)
    mlm_weight, pair_weight = task.loss_weights.values()
    (mlm_weight * mlm + pair_weight * pair).backward()
    expected = in_our_names(theirs, task, tmp_path / "gradients")
    assert expected.keys() == own.keys()
    for parameter, gradient in own.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-6, msg=parameter)
    for objective, loss in zip(task.loss_weights, (mlm, pair), strict=True):
        assert result.loss_sums[objective].item() / result.counts[objective] == pytest.approx(loss.item(), rel=1e-5)

    # The mean of the micro-batches' means, which is not what is wanted, is far outside these tolerances.
    theirs = transformers.BertForPreTraining.from_pretrained(folder).train()
    for batch in parts.micro_batches:
        mlm, pair = their_losses(theirs, batch.examples)
        ((mlm_weight * mlm + pair_weight * pair) / len(parts.micro_batches)).backward()
    wrong = in_our_names(theirs, task, tmp_path / "means")
    assert max(float((wrong[parameter] - own[parameter]).abs().max()) for parameter in own) > 1e-4


def test_some_samples_have_no_pair(store: Path) -> None:
    task = make(store, CHANGES["clean"])
    labels = first_step(task, None).micro_batches[0].labels["pair_labels"]
    assert 0 < (labels == NO_PAIR).sum() < BATCH_SIZE
