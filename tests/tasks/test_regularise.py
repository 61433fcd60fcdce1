"""R-Drop and adversarial embeddings: the losses by their papers, for every task, and a run with both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from bertsmith.errors import SettingsError, TrainingError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import save_model
from bertsmith.model.sizes import named_size
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationRow, ClassificationSettings
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.regularise import Adversarial, RDrop, adversarial_move, shortened, symmetric_divergence
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.tasks.start import starting_point
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import TaggingRow, TaggingSettings
from bertsmith.text.labelled import Answer, Question
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.task import Batch

NUMBERS = (0.5, 1, -2)
KINDS = ("labels", "regression", "multi-label", "tagging", "answering")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer)


def make_task(tokenizer: Tokenizer, kind: str) -> FinetuneTask:
    texts = ("the king sat by the river", "a dog", "who was the old queen of the city")
    if kind == "tagging":
        rows = [TaggingRow(text, tuple(text.split()), None, ("O",) * len(text.split())) for text in texts]
        return Tagging(tokenizer, ("O", "B-PER"), TaggingSettings(max_length=24), {"train": rows})
    if kind == "answering":
        asked = [Question("who sat", text, (Answer(text[:3], 0),), text, "x:1") for text in texts]
        settings = AnsweringSettings(max_length=24, max_query_length=8, doc_stride=8)
        return Answering(tokenizer, (), settings, {"train": asked})
    labels: dict[str, list[Any]] = {
        "regression": [str(number) for number in NUMBERS],
        "multi-label": [("a", "b"), (), ("b",)],
    }
    of_rows = labels.get(kind, ["a", "b", "a"])
    made = [
        ClassificationRow(text, text, None, label if isinstance(label, str) else None)
        if kind != "multi-label"
        else ClassificationRow(text, text, None, None, label)
        for text, label in zip(texts, of_rows, strict=True)
    ]
    settings_of = ClassificationSettings(
        regression=kind == "regression", multi_label=kind == "multi-label", max_length=24
    )
    return Classification(tokenizer, () if kind == "regression" else ("a", "b"), settings_of, {"train": made})


def make_model(task: FinetuneTask, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 48, "initializer_range": 0.3}
    config = EncoderConfig(vocab_size=task.tokenizer.vocab_size, **sizes).with_dropout(dropout, dropout, dropout)
    return task.build(Encoder(replace(config, classifier_dropout=dropout))).train()


def batch_of(task: Any) -> Batch:
    examples = task.examples("train")
    batch: Batch = task.collate(examples.take(range(examples.num_examples(0)), 0))
    return batch


def test_the_symmetric_divergence_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 7, 3)
    both = [Categorical(logits=logits) for logits in (first, second)]
    expected = (kl_divergence(both[0], both[1]) + kl_divergence(both[1], both[0])).sum() / 2
    torch.testing.assert_close(symmetric_divergence(first, second), expected)


def test_what_cannot_be_chosen_adds_nothing_and_gives_no_gradient() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3, requires_grad=True)
    padding = torch.full((4, 2), -torch.inf)
    padded = symmetric_divergence(torch.cat([first, padding], -1), torch.cat([second, padding], -1))
    plain = symmetric_divergence(first, second)
    torch.testing.assert_close(padded, plain)
    for found, expected in zip(*(torch.autograd.grad(loss, [first, second]) for loss in (padded, plain)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_r_drop_compares_two_passes(tokenizer: Tokenizer, kind: str) -> None:
    task = make_task(tokenizer, kind)
    regularised = RDrop(task, 0.7)
    batch = batch_of(regularised)
    assert batch.counts.keys() == regularised.loss_weights.keys() == {task.name, "r_drop"}
    assert batch.counts["r_drop"] == batch.labels["targets"].numel()
    assert regularised.loss_weights["r_drop"] == 0.7

    still = make_model(task, dropout=0.0)
    found = regularised.loss(still, batch)
    assert found["r_drop"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(found[task.name], task.loss(still, batch)[task.name])

    model = make_model(task, dropout=0.2)
    torch.manual_seed(1)
    found = regularised.loss(model, batch)
    torch.manual_seed(1)
    logits = [task.logits(model, batch) for _ in range(2)]
    assert not torch.equal(*logits)
    means = [task.loss_from(one, batch)[task.name] for one in logits]
    torch.testing.assert_close(found[task.name], (means[0] + means[1]) / 2)
    torch.testing.assert_close(found["r_drop"], expected_divergence(kind, logits))
    found["r_drop"].backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def expected_divergence(kind: str, logits: list[Tensor]) -> Tensor:
    """(KL(1 || 2) + KL(2 || 1)) / 2 by torch.distributions; half the squared difference of numbers."""
    if kind == "regression":
        return (logits[0] - logits[1]).square().sum() / 2 / np.var(NUMBERS)
    if kind == "multi-label":
        both: list[Any] = [torch.distributions.Bernoulli(logits=one) for one in logits]
    else:
        finite = [one.masked_fill(one.isneginf(), -1e9) for one in logits]
        both = [Categorical(logits=one) for one in finite]
    return (kl_divergence(both[0], both[1]) + kl_divergence(both[1], both[0])).sum() / 2


def test_a_move_is_as_long_as_asked_in_every_sequence() -> None:
    torch.manual_seed(0)
    embedded, gradient = torch.randn(2, 9, 4)
    gradient[7:] *= 1e-6
    for move, one, grad in zip(
        *(t.split((5, 2, 2)) for t in (adversarial_move(embedded, gradient, (5, 2, 2), 0.25), embedded, gradient)),
        strict=True,
    ):
        torch.testing.assert_close(move.norm(), 0.25 * one.norm())
        torch.testing.assert_close(torch.cosine_similarity(move.flatten(), grad.flatten(), dim=0), torch.tensor(1.0))
    assert torch.isfinite(adversarial_move(embedded, torch.zeros_like(gradient), (5, 4), 0.25)).all()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adversary_hurts_as_much_as_the_slope_says(tokenizer: Tokenizer, kind: str, frozen: bool) -> None:
    """For a small move, the loss grows by the move's length times the gradient's, sequence by sequence."""
    task, size = make_task(tokenizer, kind), 1e-3
    model, batch = make_model(task, dropout=0.0), batch_of(task)
    table = model.get_submodule("encoder.token_embedding")
    if frozen:
        table.requires_grad_(False)
    plain = task.loss(model, batch)[task.name]
    caught: list[Tensor] = []
    hook = table.register_forward_hook(lambda module, inputs, output: caught.append(output.requires_grad_()))
    loss = task.loss(model, batch)[task.name]
    (gradient,) = torch.autograd.grad(loss, caught)
    hook.remove()
    parts = [one.split(batch.inputs.lengths) for one in (caught[0].detach(), gradient)]
    slope = sum(size * one.norm() * grad.norm() for one, grad in zip(*parts, strict=True))
    found = Adversarial(task, size).loss(model, batch)[task.name]
    assert (found - plain).item() == pytest.approx(float(slope) / 2, rel=0.05)
    found.backward()
    assert (table.weight.grad is None) is frozen
    with torch.no_grad():
        torch.testing.assert_close(Adversarial(task, size).loss(model, batch)[task.name], plain.detach())
    assert not table._forward_hooks


def test_with_r_drop_an_adversary_goes_against_both_passes(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a small move, which both have in common, the loss grows by its length times that of both gradients' sum."""
    task, size = make_task(tokenizer, "labels"), 1e-3
    model, batch = make_model(task, dropout=0.2), batch_of(task)
    both = RDrop(task, 0.7)
    batch = both.collate(task.examples("train").take(range(3), 0))

    def mean(losses: dict[str, Tensor]) -> Tensor:
        return sum(
            (both.loss_weights[name] * loss / batch.counts[name] for name, loss in losses.items()), torch.zeros(())
        )

    caught: list[Tensor] = []
    table = model.get_submodule("encoder.token_embedding")
    hook = table.register_forward_hook(lambda module, inputs, output: caught.append(output.requires_grad_()))
    torch.manual_seed(1)
    plain = mean(both.loss(model, batch))
    gradient = torch.stack(torch.autograd.grad(plain, caught)).sum(0)
    hook.remove()
    parts = [one.split(batch.inputs.lengths) for one in (caught[0].detach(), gradient)]
    slope = sum(size * one.norm() * grad.norm() for one, grad in zip(*parts, strict=True))
    move = adversarial_move(caught[0].detach(), gradient, batch.inputs.lengths, size)
    hook = table.register_forward_hook(lambda module, inputs, output: output + move)
    torch.manual_seed(1)
    moved = mean(both.loss(model, batch))
    hook.remove()
    assert (moved - plain).item() == pytest.approx(float(slope), rel=0.05)
    moves: list[Tensor] = []

    def noted(*given: Any) -> Tensor:
        moves.append(adversarial_move(*given))
        return moves[-1]

    monkeypatch.setattr("bertsmith.tasks.regularise.adversarial_move", noted)
    torch.manual_seed(1)
    Adversarial(both, size).loss(model, batch)
    torch.testing.assert_close(moves, [move], rtol=1e-3, atol=1e-6)


def test_a_move_that_is_too_long_is_shortened_and_others_are_left() -> None:
    embedded, move = torch.tensor([[3.0], [4.0], [0.6], [0.8]]), torch.tensor([[30.0], [40.0], [0.03], [0.04]])
    expected = torch.tensor([[1.5], [2.0], [0.03], [0.04]])
    torch.testing.assert_close(shortened(move, embedded, (2, 2), 0.5), expected)
    assert torch.isfinite(shortened(torch.zeros_like(move), embedded, (2, 2), 0.5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_in_steps_an_adversary_goes_where_projected_gradients_lead(tokenizer: Tokenizer, kind: str) -> None:
    """Madry et al. 2018: moved up the slope where it is, then brought back to within the size; here one sequence after
    the other. It hurts more than the one step, and the gradient that is learnt from is that of the end alone."""
    task, size, steps = make_task(tokenizer, kind), 0.3, 4
    model, batch = make_model(task, dropout=0.0), batch_of(task)
    table = model.get_submodule("encoder.token_embedding")
    embedded = table(batch.inputs.token_ids).detach().split(batch.inputs.lengths)

    def loss_at(moves: list[Tensor]) -> Tensor:
        hook = table.register_forward_hook(lambda module, inputs, output: output + torch.cat(moves))
        try:
            return task.loss(model, batch)[task.name]
        finally:
            hook.remove()

    moves = [torch.zeros_like(one) for one in embedded]
    for _ in range(steps):
        at = [move.clone().requires_grad_() for move in moves]
        for number, slope in enumerate(torch.autograd.grad(loss_at(at), at)):
            limit = size * embedded[number].norm()
            move = moves[number] + 2.5 * limit / steps * slope / slope.norm().clamp_min(1e-12)
            moves[number] = move * min(1.0, (limit / move.norm().clamp_min(1e-12)).item())
    plain, one_step = (
        found[task.name] for found in (task.loss(model, batch), Adversarial(task, size).loss(model, batch))
    )
    found = Adversarial(task, size, steps).loss(model, batch)[task.name]
    torch.testing.assert_close(found, (plain + loss_at(moves)) / 2, rtol=1e-4, atol=1e-5)
    assert found > one_step

    found.backward()
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    used = [one for one in model.parameters() if one.grad is not None]
    expected = torch.autograd.grad((task.loss(model, batch)[task.name] + loss_at(moves)) / 2, used)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def write_rows(folder: Path) -> Path:
    lines = [json.dumps({"text": f"the {('cat', 'city')[i % 2]} is old {i}", "label": "ab"[i % 2]}) for i in range(40)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings_for(tmp_path: Path, tiny_tokenizer: Path, out: str, **changes: Any) -> FinetuneSettings:
    rows = write_rows(tmp_path)
    settings = FinetuneSettings(
        model="size:tiny", tokenizer=str(tiny_tokenizer), train=str(rows), out=tmp_path / out, epochs=2, batch_size=8
    )
    return replace(settings, **{"r_drop": 1.0, "adversarial": 0.1, "precision": "fp32", **changes})


def test_a_run_with_both_learns_by_both_and_resumes_with_neither_changed(tmp_path: Path, tiny_tokenizer: Path) -> None:
    options, quiet = ClassificationSettings(max_length=24), Console(quiet=True)
    whole = finetune("classification", settings_for(tmp_path, tiny_tokenizer, "whole"), options, console=quiet)
    lines = map(json.loads, (tmp_path / "whole/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert {frozenset(line["losses"]) for line in lines if "losses" in line} == {
        frozenset(("classification", "r_drop"))
    }
    plain = finetune(
        "classification",
        settings_for(tmp_path, tiny_tokenizer, "plain", r_drop=None, adversarial=None),
        options,
        console=quiet,
    )
    weights = [(run.model / "model.safetensors").read_bytes() for run in (whole, plain)]
    assert weights[0] != weights[1]
    for changes in ({"r_drop": 2.0}, {"adversarial": None}, {"adversarial_steps": 3}):
        again = settings_for(tmp_path, tiny_tokenizer, "whole", resume=True, **changes)
        with pytest.raises(TrainingError, match=next(iter(changes))):
            finetune("classification", again, options, console=quiet)


def test_r_drop_without_any_dropout_is_refused(tmp_path: Path, tiny_tokenizer: Path) -> None:
    config = named_size("tiny", load_tokenizer(tiny_tokenizer).vocab_size).with_dropout(0.0, 0.0, 0.0)
    save_model(tmp_path, nn.ModuleDict({"encoder": Encoder(config)}), config, "BertModel")
    load_tokenizer(tiny_tokenizer).save(tmp_path)
    own = settings_for(tmp_path, tiny_tokenizer, "run", model=str(tmp_path), tokenizer=None)
    with pytest.raises(SettingsError, match="this model has none: give dropout"):
        finetune("classification", own, ClassificationSettings(max_length=24), console=Console(quiet=True))
    starting_point(replace(own, dropout=0.1), 24)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r_drop": 0.0}, "r_drop must be positive, not 0.0"),
        ({"adversarial": -1.0}, "adversarial must be positive, not -1.0"),
        ({"adversarial": 0.1, "adversarial_steps": 0}, "adversarial_steps must be at least 1, not 0"),
        ({"adversarial_steps": 3}, "adversarial_steps is how adversarial goes: give it as well"),
        ({"r_drop": 1.0, "dropout": 0.0}, "r_drop compares passes with different dropout"),
        ({"r_drop": 1.0, "teacher": "other"}, "choose one"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FinetuneSettings(model="m", train="t", out=Path("o"), **changes)
