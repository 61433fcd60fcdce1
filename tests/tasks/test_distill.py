"""Distillation: the losses by the published scripts, whose teacher it may be, and that it teaches."""

import io
import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from bertsmith.errors import Interrupted, ModelError, SettingsError, TrainingError
from bertsmith.files import sha256
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.settings import read_config
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.distill import (
    Distillation,
    Teacher,
    cosine_distance,
    distil,
    distil_pretraining,
    divergence,
    load_pretrained_teacher,
    source_name,
    teacher_names,
)
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.masking import Masked
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pairs import PairClassification
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_examples import PretrainExample
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.tasks.saved import FinetuneTask, load_task, save_task
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.labelled import Answer, Question
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.distributed import ALONE
from bertsmith.training.loader import Step
from bertsmith.training.step import take_step
from bertsmith.training.task import Batch

QUIET = Console(quiet=True)
CPU = torch.device("cpu")
ANIMALS, PLACES = ("cat", "dog", "bird", "fish"), ("river", "house", "city", "tree")
OPTIONS = ClassificationSettings(max_length=24)
MakeFiles = Callable[[dict[str, str | bytes]], Path]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def encoder(tokenizer: Tokenizer, seed: int, width: int = 32, layers: int = 2, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 48, "initializer_range": 0.3}
    return Encoder(EncoderConfig(vocab_size=tokenizer.vocab_size, **{**sizes, **changes}))


def text_of(number: int, label: str) -> str:
    words = ANIMALS if label == "animal" else PLACES
    return f"the {words[number % 4]} is {('old', 'new', 'red', 'blue')[number // 4 % 4]} {number}"


def classification(tokenizer: Tokenizer, labels: Sequence[str] = ("animal", "place")) -> Classification:
    rows = [ClassificationRow(f"r{i}", text_of(i, labels[i % 2]), None, labels[i % 2]) for i in range(6)]
    return Classification(tokenizer, labels, OPTIONS, {"train": rows})


def regression(tokenizer: Tokenizer) -> Classification:
    rows = [ClassificationRow(f"r{i}", text_of(i, "animal"), None, str(i / 4)) for i in range(6)]
    return Classification(tokenizer, (), ClassificationSettings(regression=True, max_length=24), {"train": rows})


def tagging(tokenizer: Tokenizer) -> Tagging:
    words, tags = ("the", "king", "zzq", "sat", "by"), ("O", "B-PER", "I-PER", "O", "O")
    rows = [TaggingRow(f"s{i}", words[: 3 + i], None, tags[: 3 + i]) for i in range(3)]
    return Tagging(tokenizer, ("O", "B-PER", "I-PER"), TaggingSettings(max_length=12, doc_stride=5), {"train": rows})


def answering(tokenizer: Tokenizer, *contexts: str) -> Answering:
    settings = AnsweringSettings(max_length=24, max_query_length=8, doc_stride=8)
    rows = [Question("who sat", one, (Answer("dog", one.index("dog")),), f"q{one}", "x:1") for one in contexts]
    return Answering(tokenizer, (), settings, {"train": rows})


def batch_of(task: Any) -> Batch:
    examples = task.examples("train")
    batch: Batch = task.collate(examples.take(range(examples.num_examples(0)), 0))
    return batch


def saved(task: FinetuneTask, folder: Path, seed: int = 7, **changes: Any) -> str:
    """A teacher's folder: random weights, so that its answers are its own."""
    body = encoder(task.tokenizer, seed, **changes)
    save_task(folder, task, task.build(body), body.config, "", {})
    return str(folder)


# ---------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_divergence_is_that_of_a_textbook(temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 5, 7)) * 3
    p, q = (np.exp(one / temperature) / np.exp(one / temperature).sum(-1, keepdims=True) for one in (teacher, student))
    expected = (p * np.log(p / q)).sum() * temperature**2
    found = divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    soft_student, soft_teacher = torch.tensor(student) / temperature, torch.tensor(teacher) / temperature
    per_row = nn.KLDivLoss(reduction="batchmean")(soft_student.log_softmax(-1), soft_teacher.softmax(-1))
    assert float(found) == pytest.approx(float(per_row) * 5 * temperature**2, rel=1e-5)
    assert float(divergence(torch.tensor(student), torch.tensor(student), temperature)) == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_chosen_adds_nothing_and_gives_no_gradient() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    padded = torch.cat([logits, torch.full((3, 2), -torch.inf)], dim=-1)
    loss = divergence(padded, torch.cat([teacher, torch.full((3, 2), -torch.inf)], dim=-1), 2.0)
    torch.testing.assert_close(loss, divergence(logits, teacher, 2.0))
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(divergence(logits, teacher, 2.0), logits)
    torch.testing.assert_close(gradient, expected)


def test_the_square_of_the_temperature_keeps_the_gradient() -> None:
    """For a high temperature the gradient tends to that of half the squared error of centred logits, over C."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(divergence(logits, teacher, 200.0), logits)
    centred = [one - one.mean(-1, keepdim=True) for one in (logits.detach(), teacher)]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / 6, rtol=0.05, atol=2e-3)


def test_the_cosine_distance_is_a_sum_over_tokens() -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(2, 9, 5)).astype(np.float32)
    norms = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    expected = (1 - (student * teacher).sum(1) / norms).sum()
    assert float(cosine_distance(torch.tensor(student), torch.tensor(teacher))) == pytest.approx(expected, rel=1e-5)


def step_loss(task: Distillation, model: nn.Module, batch: Batch) -> Tensor:
    """What `take_step` minimises, for a step of one batch."""
    sums = task.loss(model, batch)
    assert sums.keys() == batch.counts.keys() == task.loss_weights.keys()
    return torch.stack([sums[name] / batch.counts[name] * task.loss_weights[name] for name in sums]).sum()


def pretraining_batch(tokenizer: Tokenizer, task: Any, lengths: Sequence[int] = (9, 14, 6)) -> Batch:
    random = np.random.default_rng(0)
    examples = []
    for number, length in enumerate(lengths):
        ids = random.integers(5, tokenizer.vocab_size, length)
        positions = np.sort(random.permutation(length)[: 2 + number])
        hidden = ids.copy()
        hidden[positions] = tokenizer.mask_id
        examples.append(PretrainExample(Masked(hidden, positions, ids[positions]), np.zeros_like(ids), number % 2))
    batch: Batch = task.collate(examples)
    return batch


def teacher_of(model: nn.Module) -> Teacher:
    return Teacher("teacher", model.eval().requires_grad_(False), {})


def mlm_task(pair: PairClassification | None = None, weight: float = 2.0) -> PretrainTask:
    return PretrainTask({}, None, masked_language_model=MaskedLanguageModel(weight), pair=pair, keeps_hidden=True)


def distilled(task: PretrainTask, teacher: nn.Module, tokenizer: Tokenizer, **changes: Any) -> Distillation:
    values = {"weight": 5.0, "cosine_weight": 1.0, "temperature": 2.0, "hidden_size": 32}
    return distil_pretraining(task, teacher_of(teacher), num_tokens=tokenizer.vocab_size, **{**values, **changes})


def distilberts_loss(
    s_logits: Tensor, t_logits: Tensor, s_hidden: Tensor, t_hidden: Tensor, lm_labels: Tensor
) -> Tensor:
    """`Distiller.step` of huggingface/transformers, examples/research_projects/distillation/distiller.py, with
    alpha_ce 5, alpha_mlm 2, alpha_cos 1, temperature 2 and restrict_ce_to_mask; no token is padding."""
    temperature = 2.0
    mask = (lm_labels > -1).unsqueeze(-1).expand_as(s_logits)
    s_chosen = torch.masked_select(s_logits, mask).view(-1, s_logits.size(-1))
    t_chosen = torch.masked_select(t_logits, mask).view(-1, s_logits.size(-1))
    loss_ce = (
        nn.KLDivLoss(reduction="batchmean")(
            nn.functional.log_softmax(s_chosen / temperature, dim=-1),
            nn.functional.softmax(t_chosen / temperature, dim=-1),
        )
        * temperature**2
    )
    loss_mlm = nn.CrossEntropyLoss(ignore_index=-100)(s_logits.view(-1, s_logits.size(-1)), lm_labels.view(-1))
    target = s_hidden.new(s_hidden.size(0)).fill_(1)
    loss_cos = nn.CosineEmbeddingLoss(reduction="mean")(s_hidden, t_hidden, target)
    return 5.0 * loss_ce + 2.0 * loss_mlm + 1.0 * loss_cos


def test_pretraining_minimises_the_loss_of_distilbert(tokenizer: Tokenizer) -> None:
    student = PretrainingModel(encoder(tokenizer, 1, layers=1), pairs=False).eval()
    teacher = PretrainingModel(encoder(tokenizer, 2, layers=3), pairs=False).eval()
    task = distilled(mlm_task(), teacher, tokenizer)
    batch = pretraining_batch(tokenizer, task)
    assert batch.counts == {"mlm": 9.0, "soft": 9.0, "cosine": 29.0}
    hidden = [model.encoder(batch.inputs) for model in (student, teacher)]
    logits = [model.vocabulary(one)[None] for model, one in zip((student, teacher), hidden, strict=True)]
    lm_labels = torch.full((1, 29), -100)
    lm_labels[0, batch.labels["masked_positions"]] = batch.labels["masked_labels"]
    torch.testing.assert_close(step_loss(task, student, batch), distilberts_loss(*logits, *hidden, lm_labels))


def test_next_sentences_are_learnt_of_the_labels_alone(tokenizer: Tokenizer) -> None:
    student = PretrainingModel(encoder(tokenizer, 1), pairs=True).eval()
    plain = mlm_task(PairClassification("nsp", 1.0))
    teacher = PretrainingModel(encoder(tokenizer, 2), pairs=False)
    task = distilled(plain, teacher, tokenizer)
    batch = pretraining_batch(tokenizer, task)
    with_teacher, without = task.loss(student, batch), plain.loss(student, batch)
    assert task.loss_weights == {"mlm": 2.0, "nsp": 1.0, "soft": 5.0, "cosine": 1.0}
    assert all(torch.equal(with_teacher[name], without[name]) for name in ("mlm", "nsp"))


def test_a_teacher_of_another_width_teaches_no_hidden_states(tokenizer: Tokenizer) -> None:
    student = PretrainingModel(encoder(tokenizer, 1), pairs=False)
    wider = PretrainingModel(encoder(tokenizer, 2, width=48), pairs=False)
    task = distilled(mlm_task(), wider, tokenizer)
    assert task.loss(student, pretraining_batch(tokenizer, task)).keys() == {"mlm", "soft"}
    assert "hidden states are not learnt: the student's are 32 wide" in task.notes()[-1]
    off = distilled(mlm_task(), PretrainingModel(encoder(tokenizer, 2), pairs=False), tokenizer, cosine_weight=0.0)
    assert "cosine" not in off.loss_weights and len(off.notes()) == 1


def test_rows_beyond_the_vocabulary_are_no_words(tokenizer: Tokenizer) -> None:
    """Embeddings are often padded to a multiple of 64, as of bert-base in other hands."""
    student = PretrainingModel(encoder(tokenizer, 1), pairs=False).eval()
    teacher = PretrainingModel(encoder(tokenizer, 2), pairs=False)
    task = distilled(mlm_task(), teacher, tokenizer)
    batch = pretraining_batch(tokenizer, task)
    expected = task.loss(student, batch)["soft"]
    padded = encoder(tokenizer, 2)
    padded.token_embedding.weight = nn.Parameter(torch.cat([padded.token_embedding.weight, torch.ones(6, 32) * 9]))
    other = PretrainingModel(padded, pairs=False)
    state = {**teacher.state_dict(), "encoder.token_embedding.weight": padded.token_embedding.weight}
    other.vocabulary.bias = nn.Parameter(torch.zeros(len(padded.token_embedding.weight)))
    other.load_state_dict({**state, "vocabulary.bias": other.vocabulary.bias})
    torch.testing.assert_close(distilled(mlm_task(), other, tokenizer).loss(student, batch)["soft"], expected)


def test_classification_mixes_labels_and_teacher(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = classification(tokenizer)
    student = task.build(encoder(tokenizer, 1)).eval()
    taught = distil(task, saved(task, tmp_path / "t", layers=3), weight=0.3, temperature=4.0)
    batch = batch_of(taught)
    assert batch.counts == {"classification": 6.0, "soft": 6.0}
    with torch.inference_mode():
        mine, theirs = (task.logits(model, batch) for model in (student, taught.teachers[0].model))
    hard = nn.CrossEntropyLoss()(mine, batch.labels["targets"])
    soft = nn.KLDivLoss(reduction="batchmean")((mine / 4).log_softmax(-1), (theirs / 4).softmax(-1)) * 16
    torch.testing.assert_close(step_loss(taught, student, batch), 0.7 * hard + 0.3 * soft)


def test_of_several_teachers_the_mean_of_their_probabilities_is_learnt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = classification(tokenizer)
    student = task.build(encoder(tokenizer, 1)).eval()
    folders = ", ".join(saved(task, tmp_path / name, layers=layers) for name, layers in (("a", 3), ("b", 2)))
    taught = distil(task, folders, weight=0.3, temperature=4.0)
    assert "a has 3 layers" in taught.notes()[0] and "the teacher b has 2 layers" in taught.notes()[0]
    batch = batch_of(taught)
    mine = task.logits(student, batch)
    with torch.no_grad():
        first, second = (task.logits(one.model, batch) for one in taught.teachers)
    assert not torch.allclose(first, second)
    both = ((first / 4).softmax(-1) + (second / 4).softmax(-1)) / 2
    hard = nn.CrossEntropyLoss()(mine, batch.labels["targets"])
    soft = nn.KLDivLoss(reduction="batchmean")((mine / 4).log_softmax(-1), both) * 16
    weights = list(student.parameters())
    expected = torch.autograd.grad(0.7 * hard + 0.3 * soft, weights, allow_unused=True, retain_graph=True)
    found = torch.autograd.grad(step_loss(taught, student, batch), weights, allow_unused=True)
    torch.testing.assert_close(found, expected)


def test_a_regression_learns_the_teachers_number(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = regression(tokenizer)
    student = task.build(encoder(tokenizer, 1)).eval()
    taught = distil(task, saved(task, tmp_path / "t"), weight=0.25, temperature=4.0)
    batch = batch_of(taught)
    with torch.inference_mode():
        mine, theirs = (task.logits(model, batch)[:, 0] for model in (student, taught.teachers[0].model))
    expected = 0.75 * nn.MSELoss()(mine, batch.labels["targets"]) + 0.25 * nn.MSELoss()(mine, theirs)
    expected /= np.var([i / 4 for i in range(6)])
    torch.testing.assert_close(step_loss(taught, student, batch), expected)


def test_tagging_learns_at_the_first_piece_of_every_word(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = tagging(tokenizer)
    student = task.build(encoder(tokenizer, 1)).eval()
    taught = distil(task, saved(task, tmp_path / "t"), weight=0.5, temperature=2.0)
    batch = batch_of(taught)
    assert batch.counts["soft"] == 3 + 4 + 5 < len(batch.inputs.token_ids)
    at = batch.labels["word_positions"]
    with torch.inference_mode():
        mine, theirs = (one.tokens(one.encoder(batch.inputs))[at] for one in (student, taught.teachers[0].model))
    hard = nn.CrossEntropyLoss()(mine, batch.labels["targets"])
    soft = nn.KLDivLoss(reduction="batchmean")((mine / 2).log_softmax(-1), (theirs / 2).softmax(-1)) * 4
    torch.testing.assert_close(step_loss(taught, student, batch), 0.5 * hard + 0.5 * soft)


def test_answering_minimises_the_loss_of_run_squad_w_distillation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Equal lengths first: the script's softmax is also over padding, ours is not. Then each sequence for itself."""
    task = answering(tokenizer, "the dog sat", "the old dog sat by the river")
    student = task.build(encoder(tokenizer, 1)).eval()
    taught = distil(task, saved(task, tmp_path / "t"), weight=0.4, temperature=3.0)
    examples = taught.examples("train").take(range(2), 0)
    expected = []
    for example in examples:
        batch = taught.collate([example])
        with torch.inference_mode():
            mine, theirs = (task.predict(one, batch) for one in (student, taught.teachers[0].model))
        (start, end), divide = batch.labels["targets"][0], nn.KLDivLoss(reduction="batchmean")
        parts = []
        for column, target in ((0, start), (1, end)):
            s, t = mine[None, :, column], theirs[None, :, column]
            soft = divide((s / 3).log_softmax(-1), (t / 3).softmax(-1)) * 9
            parts.append(0.4 * soft + 0.6 * nn.CrossEntropyLoss()(s, target[None]))
        expected.append((parts[0] + parts[1]) / 2)
        torch.testing.assert_close(step_loss(taught, student, batch), expected[-1])
    both = taught.collate(examples)
    assert len(set(both.inputs.lengths)) == 2 and both.counts == {"answering": 2.0, "soft": 4.0}
    torch.testing.assert_close(step_loss(taught, student, both), (expected[0] + expected[1]) / 2)


# ------------------------------------------------------------------------------------- student and teacher


def take_one_step(task: Any, model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    # Of Adam's first step only the gradients' signs are left.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values: Mapping[str, Any] = {"learning_rate": 0.1, "max_grad_norm": 1.0, "seed": 3, "number": 0, "ranks": ALONE}
    step = Step(0, 0, 0.0, batches, [])
    take_step(model, task, step, optimizer, counts=step.counts, device=CPU, precision="fp32", **values)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_teacher_learns_nothing_and_is_not_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = classification(tokenizer)
    taught = distil(task, saved(task, tmp_path / "t", layers=3), weight=1.0, temperature=2.0)
    teacher = taught.teachers[0].model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = taught.build(encoder(tokenizer, 1))
    names = set(student.state_dict())
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    after = take_one_step(taught, student, [batch_of(taught)])
    assert set(after) == names == set(task.build(encoder(tokenizer, 1)).state_dict())
    assert not torch.equal(after["encoder.layers.0.qkv.weight"], start["encoder.layers.0.qkv.weight"])
    assert not teacher.training and all(one.grad is None and not one.requires_grad for one in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_micro_batches_change_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = answering(tokenizer, "the dog sat", "the old dog sat by the river", "a dog", "by the tree the dog sat")
    folder = saved(task, tmp_path / "t")
    results = []
    for cut in ((4,), (1, 3), (1, 1, 2)):
        taught = distil(task, folder, weight=0.5, temperature=2.0)
        examples = taught.examples("train").take(range(4), 0)
        ends = np.cumsum(cut)
        batches = [taught.collate(examples[end - size : end]) for end, size in zip(ends, cut, strict=True)]
        still = encoder(tokenizer, 1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        results.append(take_one_step(taught, taught.build(still), batches))
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_students_dropout_is_the_same_with_a_teacher(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = classification(tokenizer)
    taught = distil(task, saved(task, tmp_path / "t"), weight=0.0, temperature=2.0)
    results = []
    for one in (task, taught):
        torch.manual_seed(4)
        results.append(take_one_step(one, one.build(encoder(tokenizer, 1)), [batch_of(one)]))
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())


def test_labels_in_another_order_are_put_right(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task, other = classification(tokenizer), classification(tokenizer, labels=("place", "animal"))
    folder = saved(other, tmp_path / "t")
    taught = distil(task, folder, weight=0.5, temperature=2.0)
    _, theirs = load_task(folder)
    batch = batch_of(task)
    with torch.inference_mode():
        expected = other.logits(theirs, batch)
        torch.testing.assert_close(task.logits(taught.teachers[0].model, batch), expected[:, [1, 0]])
    assert not torch.allclose(expected[:, 0], expected[:, 1])


def test_teachers_that_do_not_fit_are_refused(tokenizer: Tokenizer, tmp_path: Path, make_files: MakeFiles) -> None:
    task = classification(tokenizer)
    values = {"weight": 0.5, "temperature": 2.0}
    with pytest.raises(ModelError, match="Only the student has: place; only the teacher has: thing"):
        distil(task, saved(classification(tokenizer, labels=("animal", "thing")), tmp_path / "labels"), **values)
    with pytest.raises(ModelError, match="Only the student has: animal, place; only the teacher has: none"):
        distil(task, saved(regression(tokenizer), tmp_path / "number"), **values)
    with pytest.raises(ModelError, match=r"teacher .*tags: it was trained for tagging, not for classification"):
        distil(task, saved(tagging(tokenizer), tmp_path / "tags"), **values)
    with pytest.raises(ModelError, match=r"it takes 16 tokens, the student 24 \(max_length\)"):
        short = Classification(tokenizer, task.labels, ClassificationSettings(max_length=16), {})
        distil(task, saved(short, tmp_path / "short", max_position_embeddings=16), **values)
    vocabulary = make_files({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n"}) / "vocab.txt"
    with pytest.raises(ModelError, match="another tokenizer than the student"):
        distil(task, saved(classification(load_tokenizer(vocabulary)), tmp_path / "words"), **values)
    with pytest.raises(ModelError, match="nowhere"):
        distil(task, str(tmp_path / "nowhere"), **values)


def test_teachers_of_pretraining_that_do_not_fit_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, model, architecture in (
        ("mlm", PretrainingModel(encoder(tokenizer, 2), pairs=False), "BertForMaskedLM"),
        ("both", PretrainingModel(encoder(tokenizer, 2), pairs=True), "BertForPreTraining"),
    ):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, model, model.encoder.config, architecture)
        tokenizer.save(tmp_path / name, model_max_length=48)
        teacher = load_pretrained_teacher(str(tmp_path / name), tokenizer, 48)
        assert teacher.name == name and teacher.weights.keys() == {"model.safetensors"}
    causal = encoder(tokenizer, 2, model_type="gpt2", type_vocab_size=0, layer_norm_eps=1e-5)
    (tmp_path / "gpt").mkdir()
    save_model(tmp_path / "gpt", PretrainingModel(causal, pairs=False), causal.config, "GPT2LMHeadModel")
    with pytest.raises(ModelError, match="a gpt2 model predicts the next token"):
        load_pretrained_teacher(str(tmp_path / "gpt"), tokenizer, 48)
    with pytest.raises(ModelError, match="it takes 48 tokens, the student 49"):
        load_pretrained_teacher(str(tmp_path / "mlm"), tokenizer, 49)
    classifier = saved(classification(tokenizer), tmp_path / "classifier")
    with pytest.raises(ModelError, match="pre-training needs one with a masked-language-model head"):
        load_pretrained_teacher(classifier, tokenizer, 24)


def test_cards_call_a_model_by_its_run() -> None:
    names = [source_name(folder) for folder in ("runs/sst2", "/a/runs/sst2/model", "org/bert", "org/bert@refs/pr/3")]
    assert names == ["sst2", "sst2", "bert", "bert@refs/pr/3"]


# ------------------------------------------------------------------------------------------- the verbs


def settings(folder: Path, own_tokenizer: Path, **changes: object) -> FinetuneSettings:
    base = FinetuneSettings(
        model="size:tiny",
        tokenizer=str(own_tokenizer),
        train=str(folder / "train.csv"),
        out=folder / "teacher",
        dev_share=0.0,
        epochs=6,
        batch_size=16,
        learning_rate=1e-3,
        dropout=0.0,
        precision="fp32",
        device="cpu",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def csv(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with their labels, the same with every second label wrong, and others to test on."""
    folder = tmp_path_factory.mktemp("data")
    labels = [("animal", "place")[number % 2] for number in range(96)]
    texts = [text_of(number // 2, label) for number, label in enumerate(labels)]
    csv(folder / "train.csv", list(zip(texts, labels, strict=True)))
    flipped = [("place", "animal")[number // 2 % 2] for number in range(96)]
    csv(folder / "wrong.csv", list(zip(texts, flipped, strict=True)))
    csv(folder / "test.csv", [(text_of(200 + number, label), label) for number, label in enumerate(labels[:40])])
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tiny_tokenizer: Path) -> FinetuneResult:
    result = finetune("classification", settings(data, tiny_tokenizer), OPTIONS, console=QUIET)
    assert evaluate(result.folder, str(data / "test.csv"), device="cpu")["accuracy"] == 1.0
    return result


def test_a_student_learns_what_the_labels_do_not_say(
    run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    figures = []
    for name, changes in (("taught", {"teacher": str(run.folder), "distill_weight": 1.0}), ("alone", {})):
        changed = settings(data, tiny_tokenizer, train=str(data / "wrong.csv"), out=tmp_path / name, **changes)
        student = finetune("classification", changed, OPTIONS, console=QUIET)
        figures.append(evaluate(student.folder, str(data / "test.csv"), device="cpu")["accuracy"])
    assert figures[0] == 1.0 and figures[1] < 0.8, "half of the labels are wrong"


def test_a_student_with_fewer_layers_is_an_ordinary_model(run: FinetuneResult, data: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    changed = settings(data, tmp_path, model=str(run.folder), tokenizer=None, layers=1, teacher=str(run.folder))
    changed = replace(changed, out=tmp_path / "student", epochs=2, test=str(data / "test.csv"))
    student = finetune("classification", changed, OPTIONS, console=Console(file=screen, width=200))
    assert student.metrics["test"]["accuracy"] > 0.9
    assert "The teacher teacher has 2 layers of width 128; temperature 2, weights of the losses" in screen.getvalue()
    assert AutoModelForSequenceClassification.from_pretrained(student.model).config.num_hidden_layers == 1
    _, model = load_task(student.folder)
    assert {name.split(".")[2] for name in model.state_dict() if ".layers." in name} == {"0"}
    facts = json.loads((student.model / "bertsmith.json").read_text())
    assert facts["teacher"] == "teacher" and facts["new_tensors"] == [] and facts["temperature"] == 2.0
    card = (student.model / "README.md").read_text()
    assert "from `teacher`, taught by `teacher`." in card and "distill_weight: 0.5" in card
    assert str(data) not in card
    assert read_config(student.folder / "config.yaml")["teacher"] == str(run.folder)
    lines = [json.loads(line) for line in (student.folder / "metrics.jsonl").read_text().splitlines()]
    losses = next(line["losses"] for line in lines if line["kind"] == "train")
    assert losses.keys() == {"classification", "soft"}
    metrics = evaluate(student.folder, str(data / "test.csv"), precision="fp32", device="cpu")
    assert metrics == pytest.approx(student.metrics["test"])


def test_several_teachers_are_on_the_card_and_what_no_folder_is_called_is_refused(
    run: FinetuneResult, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "a, b"  # a comma in a name is no border
    shutil.copytree(run.folder, other)
    assert teacher_names(str(other)) == [str(other)]
    both = f"{run.folder},{shutil.copytree(run.folder, tmp_path / 'other')}"
    changed = settings(
        data, tmp_path, model=str(run.folder), tokenizer=None, teacher=both, epochs=1, out=tmp_path / "s"
    )
    student = finetune("classification", changed, OPTIONS, console=QUIET)
    assert json.loads((student.model / "bertsmith.json").read_text())["teacher"] == "teacher, other"
    assert "from `teacher`, taught by `teacher`, `other`." in (student.model / "README.md").read_text()
    assert finetune("classification", replace(changed, resume=True), OPTIONS, console=QUIET).metrics == student.metrics
    with pytest.raises(SettingsError, match="has an empty name"):
        finetune("classification", replace(changed, teacher=f"{run.folder},", overwrite=True), OPTIONS, console=QUIET)
    with pytest.raises(SettingsError, match="a pre-training has one teacher"):
        load_pretrained_teacher(both, load_tokenizer(run.model), 16)


def test_layers_of_random_weights_are_a_number(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    deep = settings(data, tiny_tokenizer, layers=3, epochs=0.1, out=tmp_path / "deep")
    _, model = load_task(finetune("classification", deep, OPTIONS, console=QUIET).folder)
    assert len(model.encoder.layers) == 3


def test_an_interrupted_run_resumes_to_the_same_weights(
    run: FinetuneResult, data: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings(data, tiny_tokenizer, out=tmp_path / "whole", epochs=1, dropout=0.1, teacher=str(run.folder))
    finetune("classification", whole, OPTIONS, console=QUIET)
    steps, loss = 0, Distillation.loss

    def interrupting(self: Distillation, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(self, model, batch)

    parts = replace(whole, out=tmp_path / "parts")
    monkeypatch.setattr(Distillation, "loss", interrupting)
    with pytest.raises(Interrupted, match="--resume"):
        finetune("classification", parts, OPTIONS, console=QUIET)
    for changes in ({"temperature": 3.0}, {"distill_weight": 0.4}, {"teacher": None}):
        with pytest.raises(TrainingError, match=r"cannot resume .*: teacher was"):
            finetune("classification", replace(parts, resume=True, **changes), OPTIONS, console=QUIET)  # type: ignore[arg-type]
    finetune("classification", replace(parts, resume=True), OPTIONS, console=QUIET)
    assert sha256(parts.out / "model" / "model.safetensors") == sha256(whole.out / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"distill_weight": 1.5}, r"distill_weight must be in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
    ],
)
def test_settings_out_of_range(data: Path, tiny_tokenizer: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(data, tiny_tokenizer, **changes)
    if "distill_weight" not in changes:
        with pytest.raises(SettingsError, match=message):
            PretrainSettings(corpus=data, out=data, **changes)


@pytest.mark.parametrize("changes", [{"temperature": 3.0}, {"distill_weight": 0.9}])
def test_without_a_teacher_nothing_weighs_what_it_says(
    data: Path, tiny_tokenizer: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="is of what a teacher says: give teacher"):
        settings(data, tiny_tokenizer, **changes)


def test_a_teacher_that_does_not_fit_leaves_nothing_behind(data: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    changed = settings(data, tiny_tokenizer, out=tmp_path / "run", teacher=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        finetune("classification", changed, OPTIONS, console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    texts = tiny_documents.read_text(encoding="utf-8").split("\n\n")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_corpus([str(folder / "texts.jsonl")], tiny_tokenizer, folder / "store", heldout_share=0.2, num_workers=1)
    return folder / "store"


def test_pretraining_in_half_the_layers(store: Path, tmp_path: Path) -> None:
    base = PretrainSettings(
        corpus=store,
        out=tmp_path / "big",
        size="tiny",
        budget="12 steps",
        max_length=32,
        batch_size=8,
        precision="fp32",
    )
    pretrain(base, console=QUIET)
    screen = io.StringIO()
    small = replace(base, out=tmp_path / "small", size="mini", from_model=str(base.out), layers=1)
    small = replace(small, teacher=str(base.out), max_length=16, long_length=32, long_share=0.5)
    result = pretrain(small, console=Console(file=screen, width=200))
    assert "weights of the losses: mlm 2, nsp 1, soft 5, cosine 1." in screen.getvalue()
    config = json.loads((result.model / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["architectures"] == ["BertForPreTraining"]
    assert json.loads((result.model / "bertsmith.json").read_text())["teacher"] == "big"
    assert "from `big`, taught by `big`, on" in (result.model / "README.md").read_text()
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            losses, weights = line["losses"], {"mlm": 2, "nsp": 1, "soft": 5, "cosine": 1}
            assert line["loss"] == pytest.approx(sum(weights[name] * value for name, value in losses.items()))
    with pytest.raises(TrainingError, match="teacher was"):
        pretrain(replace(small, temperature=3.0, resume=True), console=QUIET)
    narrow = replace(small, out=tmp_path / "narrow", size="mini", from_model=None, budget="1 steps", mlm_weight=1.0)
    said = io.StringIO()
    pretrain(narrow, console=Console(file=said, width=200))
    assert "mlm 1, nsp 1, soft 5." in said.getvalue() and "student's are 256 wide" in said.getvalue()
