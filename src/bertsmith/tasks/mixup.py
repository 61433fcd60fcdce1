"""Mixup for texts: what stands for one text before the head, mixed with what stands for another.

Mixup (Zhang et al. 2018, arXiv 1710.09412) makes examples between two others. Words cannot be mixed, hidden states can:
here those that the head gets of a sequence, as Mixup-Transformer does (Sun et al. 2020, arXiv 2010.02394, section 2).
Shape letters: S sequences, D hidden width, C outputs.
"""

import torch
from torch import Tensor, nn

from bertsmith.errors import SettingsError
from bertsmith.tasks.classify import Classification, SequenceClassifier, sequence_vectors
from bertsmith.tasks.saved import FinetuneTask
from bertsmith.training.task import Batch, TaskAround


class Mixup(TaskAround):
    """Classification of texts that are each mixed with another text of their micro-batch."""

    def __init__(self, task: FinetuneTask, alpha: float) -> None:
        """`alpha` is that of the weight's distribution, Beta(alpha, alpha): small ones hardly mix.

        Raises:
            SettingsError: the task's answers belong to words or choices, or its texts are read in windows.
        """
        if not isinstance(task, Classification):
            raise SettingsError(
                f"mixup mixes whole texts, for classification; {task.name} has no answer for a mixture."
            )
        if task.settings.long == "windows":
            raise SettingsError("mixup mixes one vector a text, and with long windows a text has several: choose one.")
        super().__init__(task)
        self._classification = task
        self._alpha = alpha

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The sums of both texts' losses on their mixture, by their shares in it; without gradients the task's own.

        One weight for a micro-batch, as in the authors' code (facebookresearch/mixup-cifar10). Being linear in the
        target, it is also the cross-entropy with mixed targets; of squares it has the same gradient.
        """
        if not torch.is_grad_enabled():
            return self._classification.loss(model, batch)
        assert isinstance(model, SequenceClassifier)
        vectors_SD = sequence_vectors(model, batch.inputs)
        # On the CPU, whose generator the step has seeded, so that every device draws the same and none is waited for.
        share = float(torch.distributions.Beta(self._alpha, self._alpha).sample())
        others_S = torch.randperm(len(vectors_SD)).to(vectors_SD.device)
        logits_SC = model.pooled.of_pooled(torch.lerp(vectors_SD[others_S], vectors_SD, share))
        targets = batch.labels["targets"]
        other = Batch(batch.inputs, {**batch.labels, "targets": targets[others_S]}, batch.counts, batch.examples)
        own_sums, other_sums = (self._classification.loss_from(logits_SC, one) for one in (batch, other))
        return {name: share * total + (1 - share) * other_sums[name] for name, total in own_sums.items()}
