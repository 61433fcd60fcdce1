"""Regularisers for little labelled data, around any fine-tuning task; each costs a second pass, forward and backward.

R-Drop (Wu et al. 2021, arXiv 2106.14448) asks that two dropout masks give the same answer. Adversarial training (Miyato
et al. 2017, arXiv 1605.07725, section 3; "FGM") asks that the answer survives the step in the word embeddings
that hurts it most, or several steps, each from where the last one led (Madry et al. 2018, arXiv 1706.06083; "PGD").
Both means of the two passes' losses are taken, so a learning rate keeps its meaning.
Shape letters: S sequences, T tokens, E width of the embeddings, C choices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.tasks.distill import as_choices, check_answers_stand_alone, num_targets, number_distance, tells_numbers
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.training.task import Batch, Task, TaskAround

_TINY = 1e-12
_STRIDES = 2.5
"""How far all steps together could go, as a multiple of the size: far enough to get from any place within it to its
edge, and to go on along that."""


class RDrop(TaskAround):
    """A task with the divergence of two passes, each with dropout of its own, as a further loss."""

    def __init__(self, task: FinetuneTask, weight: float) -> None:
        """`weight` is half of the paper's alpha (section 2.2), beside which there is the sum of both passes' losses.

        Raises:
            SettingsError: tagging with crf.
        """
        check_answers_stand_alone(task, "r_drop")
        super().__init__(task)
        self.loss_weights: Mapping[str, float] = {**task.loss_weights, "r_drop": weight}
        self._finetuned = task

    def collate(self, examples: Sequence[Any]) -> Batch:
        """The task's batch, with the count of the divergences."""
        batch = super().collate(examples)
        return Batch(batch.inputs, batch.labels, {**batch.counts, "r_drop": num_targets(batch)}, batch.examples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean of both passes' sums; and (KL(1 || 2) + KL(2 || 1)) / 2, summed over the targets."""
        task = self._finetuned
        first, second = task.logits(model, batch), task.logits(model, batch)
        losses = _mean(task.loss_from(first, batch), task.loss_from(second, batch))
        if tells_numbers(task):
            return {**losses, "r_drop": number_distance(task, first, second) / 2}
        return {**losses, "r_drop": symmetric_divergence(as_choices(task, first), as_choices(task, second))}


class Adversarial(TaskAround):
    """A task that is learnt also from word embeddings moved against it."""

    def __init__(self, task: Task, size: float, steps: int = 1) -> None:
        """`size` is how far a sequence's embeddings are moved at most, as a share of their own length; `steps`, in how
        many steps, each of which is a further pass."""
        super().__init__(task)
        self._size, self._steps = size, steps

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean of the sums with the embeddings as they are and with them moved."""
        if not torch.is_grad_enabled() or not any(batch.counts.values()):
            return self._task.loss(model, batch)
        found: list[Tensor] = []

        def note(embedded_TE: Tensor) -> Tensor:
            found.append(embedded_TE.requires_grad_())  # frozen embeddings would not
            return embedded_TE

        def moved(by_TE: Tensor) -> dict[str, Tensor]:
            return _with_embeddings(model, lambda one: one + by_TE, lambda: self._task.loss(model, batch))

        plain = _with_embeddings(model, note, lambda: self._task.loss(model, batch))
        # With R-Drop there are two passes, which are moved alike.
        gradient_TE = torch.stack(torch.autograd.grad(self._total(plain, batch), found, retain_graph=True)).sum(0)
        embedded_TE, lengths = found[0].detach(), batch.inputs.lengths
        stride = min(self._size, _STRIDES * self._size / self._steps)
        move_TE = adversarial_move(embedded_TE, gradient_TE, lengths, stride)
        for _ in range(self._steps - 1):
            move_TE.requires_grad_()
            (gradient_TE,) = torch.autograd.grad(self._total(moved(move_TE), batch), [move_TE])
            move_TE = move_TE.detach() + adversarial_move(embedded_TE, gradient_TE, lengths, stride)
            move_TE = shortened(move_TE, embedded_TE, lengths, self._size)
        return _mean(plain, moved(move_TE))

    def _total(self, losses: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """What the run's loss is made of, for the batch alone."""
        counts, weights = batch.counts, self.loss_weights
        return torch.stack([losses[name] * (weights[name] / counts[name]) for name in losses if counts[name] > 0]).sum()


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Sum over rows of logits [*, C] of (KL(first || second) + KL(second || first)) / 2, in nats: a float32 scalar.

    -inf stands where there is nothing to choose, in both.
    """
    logs = [F.log_softmax(logits.float(), dim=-1).masked_fill(logits.isneginf(), 0.0) for logits in (first, second)]
    shares = [F.softmax(logits.float(), dim=-1) for logits in (first, second)]
    return ((shares[0] - shares[1]) * (logs[0] - logs[1])).sum() / 2


def adversarial_move(embedded_TE: Tensor, gradient_TE: Tensor, lengths: Sequence[int], size: float) -> Tensor:
    """[T, E]: each sequence's gradient, made `size` times as long as its embeddings (as one vector of length * E)."""
    embedded_S, gradient_S, sequence_T = _norms(embedded_TE, gradient_TE, lengths)
    scale_S = size * embedded_S / gradient_S.clamp_min(_TINY)
    return (gradient_TE * scale_S[sequence_T, None]).to(embedded_TE.dtype)


def shortened(move_TE: Tensor, embedded_TE: Tensor, lengths: Sequence[int], size: float) -> Tensor:
    """[T, E]: a move that in each sequence is at most `size` times as long as its embeddings."""
    embedded_S, move_S, sequence_T = _norms(embedded_TE, move_TE, lengths)
    scale_S = (size * embedded_S / move_S.clamp_min(_TINY)).clamp_max(1.0)
    return (move_TE * scale_S[sequence_T, None]).to(embedded_TE.dtype)


def _norms(first_TE: Tensor, second_TE: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of both, float32 [S], of each sequence as one vector; and int64 [T], the number of each token's sequence."""
    sequence_T = torch.repeat_interleave(torch.tensor(lengths)).to(first_TE.device)
    squares_T2 = torch.stack([values_TE.float().square().sum(-1) for values_TE in (first_TE, second_TE)], dim=-1)
    first_S, second_S = squares_T2.new_zeros(len(lengths), 2).index_add(0, sequence_T, squares_T2).sqrt().unbind(-1)
    return first_S, second_S, sequence_T


def _with_embeddings(
    model: nn.Module, change: Callable[[Tensor], Tensor], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `compute` gives while the output of the model's token embedding goes through `change`."""
    table = model.get_submodule("encoder.token_embedding")
    hook = table.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        return compute()
    finally:
        hook.remove()


def _mean(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (total + second[name]) / 2 for name, total in first.items()}
