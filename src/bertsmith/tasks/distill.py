"""Distillation: any task, with a teacher whose answers the student learns beside the labels.

What is learnt of the teacher are its probabilities at a temperature, which say more than the label alone (Hinton
et al. 2015, arXiv 1503.02531); in pre-training also where its last hidden states point to (DistilBERT, Sanh et
al. 2019, arXiv 1910.01108). The losses are those of huggingface/transformers `distiller.py` (with its option
`restrict_ce_to_mask`: the vocabulary at every token would cost seven times as much) and
`run_squad_w_distillation.py`. Those scripts take means of micro-batches, and of padding too; here they are sums, and
the step normalises each by its own count. The teacher is no part of what is trained or saved, and draws nothing: the
student's dropout masks are the same with and without it.
Shape letters: T tokens, M masked positions, D hidden width, C choices, V vocabulary.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import ModelError, SettingsError
from bertsmith.files import sha256
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import load_weights, read_config, resolve
from bertsmith.model.heads import reorder_outputs
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_targets import NumberTarget
from bertsmith.tasks.embed import Embedding
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_task import PretrainLogits, PretrainTask
from bertsmith.tasks.rows import unnamed_labels
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import FinetuneTask, load_task
from bertsmith.tasks.tag import Tagging
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.task import Batch, Task, TaskAround


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum of KL(teacher || student) over rows of logits, at a temperature and times its square.

    The square keeps the gradient's size when the temperature changes (Hinton et al. 2015, section 2).

    Args:
        student: [*, C]; -inf where there is nothing to choose, in both.
        teacher: [*, C].

    Returns:
        A float32 scalar, in nats.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    # Where the teacher's probability is 0 because there is nothing, 0 times infinity would be NaN.
    log_student = log_student.masked_fill(student.isneginf(), 0.0)
    return F.kl_div(log_student, F.softmax(teacher.float() / temperature, dim=-1), reduction="sum") * temperature**2


def cosine_distance(student_TD: Tensor, teacher_TD: Tensor) -> Tensor:
    """Sum over tokens of 1 - cos(student's hidden state, teacher's): a float32 scalar."""
    same_T = student_TD.new_ones(len(student_TD))
    return F.cosine_embedding_loss(student_TD.float(), teacher_TD.float(), same_T, reduction="sum")


@dataclass(frozen=True)
class SoftLoss:
    """One loss against the teacher: a sum over as many items as `count` finds in a batch."""

    name: str
    weight: float
    count: Callable[[Batch], float]
    total: Callable[[Any, Any], Tensor]
    """(student's logits, teacher's logits), as the task's `logits` gives them -> the sum."""


@dataclass(frozen=True)
class Teacher:
    """A finished model, in evaluation mode and without gradients."""

    name: str
    """Its folder's last name, for cards."""
    model: nn.Module
    weights: Mapping[str, str]
    """File name -> SHA-256."""

    @property
    def encoder(self) -> Encoder:
        """Without the head."""
        encoder = self.model.encoder
        assert isinstance(encoder, Encoder)
        return encoder


class Teachable(Task, Protocol):
    """A task that can be asked for logits, and for its losses given them, so that both need one forward pass."""

    def logits(self, model: nn.Module, batch: Batch) -> Any:
        """What the losses are computed from."""

    def loss_from(self, logits: Any, batch: Batch, /) -> dict[str, Tensor]:
        """`loss`, of `logits`."""


class Distillation(TaskAround):
    """A task with further losses against a teacher; in all else the task itself, and so are its saved models."""

    def __init__(
        self,
        task: Teachable,
        teachers: Sequence[Teacher],
        soft_losses: Sequence[SoftLoss],
        *,
        hard_weight: float = 1.0,
        temperature: float,
        remarks: Sequence[str] = (),
    ) -> None:
        """`hard_weight` multiplies the weights of the task's own losses; `remarks` are added to the notes.

        Of several teachers the soft losses are the means, whose gradient is that of the loss against the mean of what
        they say: of their probabilities, or numbers.
        """
        super().__init__(task)
        self.teachers = teachers
        self._taught = task
        self._soft_losses = soft_losses
        self._temperature = temperature
        self._remarks = remarks
        self.loss_weights: Mapping[str, float] = {
            **{name: weight * hard_weight for name, weight in task.loss_weights.items()},
            **{one.name: one.weight for one in soft_losses},
        }

    @property
    def fingerprint(self) -> str:
        """What a run must be resumed with unchanged."""
        weights = [one.weights for one in self.teachers]
        values = [weights[0] if len(weights) == 1 else weights, self._temperature, self.loss_weights]
        return json.dumps(values, sort_keys=True)

    def notes(self) -> list[str]:
        """What is learnt of whom."""
        weights = ", ".join(f"{name} {weight:g}" for name, weight in self.loss_weights.items())
        sizes = [
            f"{one.name} has {one.encoder.config.num_hidden_layers} layers of width {one.encoder.config.hidden_size}"
            for one in self.teachers
        ]
        return [
            f"The teacher {', the teacher '.join(sizes)}; temperature {self._temperature:g}, weights of the losses: "
            f"{weights}.",
            *self._remarks,
        ]

    def collate(self, examples: Sequence[Any]) -> Batch:
        """The task's batch, with the counts of the soft losses."""
        batch = super().collate(examples)
        counts = {**batch.counts, **{one.name: one.count(batch) for one in self._soft_losses}}
        return Batch(batch.inputs, batch.labels, counts, batch.examples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The task's sums and the soft ones, from one pass through the student and one through each teacher."""
        student = self._taught.logits(model, batch)
        device = batch.inputs.token_ids.device
        with torch.no_grad():
            teachers = [self._taught.logits(one.model.to(device), batch) for one in self.teachers]
        losses = self._taught.loss_from(student, batch)
        for one in self._soft_losses:
            losses[one.name] = torch.stack([one.total(student, teacher) for teacher in teachers]).mean()
        return losses


def distil(task: FinetuneTask, folders: str, *, weight: float, temperature: float) -> Distillation:
    """A fine-tuning task with a teacher that was trained for it, or several.

    Classification and tagging learn the probabilities of the labels, of each text or labelled word; answering those
    of start and end, over the tokens of a sequence; embedding those of which text belongs to which; a regression, and
    pairs with scores, learn the number, by its squared error and without temperature.

    Args:
        task: of the student; its settings and data are what counts.
        folders: of the teacher: a run's, a model's, or a Hub id; of several, with commas between.
        weight: in [0, 1], of the soft targets; the labels have the rest.

    Raises:
        ModelError: no such model; another task, tokenizer or labels; too few positions for the student's
            sequences.
        SettingsError: tagging with crf, here or there.
    """
    check_answers_stand_alone(task, "teacher")
    teachers = [_teacher(folder, _model_for(task, folder)) for folder in teacher_names(folders)]
    soft = SoftLoss("soft", weight, num_targets, partial(_between_answers, task, temperature))
    return Distillation(task, teachers, [soft], hard_weight=1 - weight, temperature=temperature)


def _between_answers(task: FinetuneTask, temperature: float, student: Tensor, teacher: Tensor) -> Tensor:
    """The soft loss between logits of two models, or numbers."""
    if tells_numbers(task):
        return number_distance(task, student, teacher)
    return divergence(as_choices(task, student), as_choices(task, teacher), temperature)


def teacher_names(folders: str) -> list[str]:
    """What `teacher` names: a folder, with a comma in its name or not, or a Hub id; or several with commas between.

    Raises:
        SettingsError: one of them is empty.
    """
    names = [folders] if Path(folders).exists() else [folder.strip() for folder in folders.split(",")]
    if not all(names):
        raise SettingsError(f'teacher "{folders}" has an empty name; give folders with single commas between.')
    return names


def _model_for(task: FinetuneTask, folder: str) -> nn.Module:
    """A teacher's model, if it can answer the task as the student has it."""
    theirs, model = load_task(folder)
    where = f"teacher {folder}"
    check_answers_stand_alone(theirs, "teacher")
    if theirs.name != task.name:
        raise ModelError(f"{where}: it was trained for {theirs.name}, not for {task.name}")
    _check_tokenizer(where, task.tokenizer, theirs.tokenizer)
    _check_length(where, model, task.settings.max_length)
    if theirs.labels != task.labels:
        _reorder_labels(where, model, theirs.labels, task.labels)
    if isinstance(task, Classification) and isinstance(theirs, Classification):
        kinds = theirs.target.problem_type, task.target.problem_type
        if kinds[0] != kinds[1]:
            raise ModelError(f"{where}: its problem_type is {kinds[0]}, the student's {kinds[1]}")
    return model


def tells_numbers(task: FinetuneTask) -> bool:
    """Whether a task's logits are numbers, a regression's or the cosines of pairs with scores, and no choice."""
    if isinstance(task, Embedding):
        return task.settings.score_column is not None
    return isinstance(task, Classification) and task.settings.regression


def number_distance(task: FinetuneTask, first: Tensor, second: Tensor) -> Tensor:
    """Sum of the squares between two models' numbers, in the unit of the task's loss."""
    squares = F.mse_loss(first, second, reduction="sum")
    if isinstance(task, Classification) and isinstance(task.target, NumberTarget):
        return squares / task.target.variance
    return squares


def check_answers_stand_alone(task: FinetuneTask, name: str) -> None:
    """Refuse the setting `name`, which compares answers one by one, where only a whole sentence has a probability.

    Raises:
        SettingsError: tagging with crf.
    """
    if isinstance(task, Tagging) and task.settings.crf:
        raise SettingsError(f"{name} compares the probabilities of single words, and crf has those of whole sentences.")


def as_choices(task: FinetuneTask, logits: Tensor) -> Tensor:
    """A task's logits as rows whose softmax is what it says: of several labels a text, each one and its complement."""
    if isinstance(task, Classification) and task.settings.multi_label:
        return torch.stack([logits, torch.zeros_like(logits)], -1).flatten(0, 1)
    return logits


def load_pretrained_teacher(folder: str, tokenizer: Tokenizer, max_length: int) -> Teacher:
    """The teacher of a pre-training: a model with a masked-language-model head; whether it judges pairs is no matter.

    Args:
        folder: of a run, of a model, or a Hub id.
        tokenizer: the corpus's.
        max_length: of the longest sequence to come.

    Raises:
        ModelError: no such model, one without that head or causal; another tokenizer; too few positions.
        SettingsError: several teachers.
    """
    if len(teacher_names(folder)) > 1:
        raise SettingsError(f"teacher {folder}: a pre-training has one teacher; only fine-tuning may have several.")
    where, place = f"teacher {folder}", model_folder(folder)
    config, _ = read_config(place)
    if family(config.model_type).structure.is_causal:
        raise ModelError(f"{where}: a {config.model_type} model predicts the next token, not masked ones")
    _check_tokenizer(where, tokenizer, load_tokenizer(place))
    model = PretrainingModel(Encoder(config), pairs=False)
    _check_length(where, model, max_length)
    try:
        load_weights(place, model, strict=True)
    except ModelError as error:
        raise ModelError(f"{where}: pre-training needs one with a masked-language-model head ({error})") from error
    return _teacher(folder, model)


def distil_pretraining(
    task: PretrainTask,
    teacher: Teacher,
    *,
    weight: float,
    cosine_weight: float,
    temperature: float,
    hidden_size: int,
    num_tokens: int,
) -> Distillation:
    """Pre-training with a teacher: its probabilities at the masked positions, and its last hidden states of all tokens.

    Next sentence prediction, or sentence order, stays as it is.

    Args:
        weight: of the probabilities; DistilBERT's is 5, beside 2 for the masked language model.
        cosine_weight: of the hidden states, which are left out where the student's are not as wide; DistilBERT's is 1.
        hidden_size: the student's.
        num_tokens: of the vocabulary. Either model may have more rows, which mean nothing.
    """

    def of_vocabulary(student: PretrainLogits, found: PretrainLogits) -> Tensor:
        return divergence(student.masked_MV[:, :num_tokens], found.masked_MV[:, :num_tokens], temperature)

    def of_hidden(student: PretrainLogits, found: PretrainLogits) -> Tensor:
        assert student.hidden_TD is not None and found.hidden_TD is not None
        return cosine_distance(student.hidden_TD, found.hidden_TD)

    soft_losses = [SoftLoss("soft", weight, lambda batch: num_targets(batch, "masked_labels"), of_vocabulary)]
    remarks = []
    if hidden_size != teacher.encoder.config.hidden_size:
        remarks = [f"Its hidden states are not learnt: the student's are {hidden_size} wide."]
    elif cosine_weight:
        soft_losses.append(SoftLoss("cosine", cosine_weight, lambda batch: float(sum(batch.inputs.lengths)), of_hidden))
    return Distillation(task, [teacher], soft_losses, temperature=temperature, remarks=remarks)


def source_name(folder: str) -> str:
    """What a card calls a model: the name of its folder, or of its run's, without the way there."""
    name, at, revision = folder.partition("@") if not Path(folder).exists() else (folder, "", "")
    path = Path(name)
    return f"{path.parent.name if path.name == 'model' else path.name}{at}{revision}"


def weight_hashes(folder: str) -> dict[str, str]:
    """File name -> SHA-256 of the weights in a model folder, or of a Hub id."""
    return {path.name: sha256(path) for path in sorted(resolve(folder).glob("*.safetensors"))}


def _teacher(folder: str, model: nn.Module) -> Teacher:
    return Teacher(source_name(folder), model.eval().requires_grad_(False), weight_hashes(model_folder(folder)))


def num_targets(batch: Batch, name: str = "targets") -> float:
    """How many rows of logits a batch has, one for each label; 0 where there are none to learn."""
    return float(batch.labels[name].numel()) if name in batch.labels else 0.0


def _check_tokenizer(where: str, ours: Tokenizer, theirs: Tokenizer) -> None:
    if ours.fingerprint != theirs.fingerprint:
        raise ModelError(
            f"{where}: it has another tokenizer than the student ({theirs.vocab_size} and {ours.vocab_size} tokens, "
            f"fingerprints {theirs.fingerprint[:12]} and {ours.fingerprint[:12]}), and would not know its tokens. "
            "Give the student the teacher's tokenizer, or choose another teacher."
        )


def _check_length(where: str, model: nn.Module, max_length: int) -> None:
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    longest = encoder.config.max_sequence_length
    if max_length > longest:
        raise ModelError(
            f"{where}: it takes {longest} tokens, the student {max_length} (max_length). Give a smaller one."
        )


def _reorder_labels(where: str, model: nn.Module, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Put the outputs of the teacher's head into the order of the student's labels."""
    unknown, unused = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if unknown or unused:
        raise ModelError(
            f"{where}: it tells other labels apart. Only the student has: {', '.join(unknown) or 'none'}; only the "
            f"teacher has: {', '.join(unused) or 'none'}.{unnamed_labels(theirs)}"
        )
    reorder_outputs(model, [list(theirs).index(label) for label in ours])
