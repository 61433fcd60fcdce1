"""The fine-tuning tasks by name, and a task with its weights to and from a model folder.

A model folder is a Hugging Face folder with one more file, `bertsmith.json`: which task the weights
were trained for, its labels and settings. A folder without it is understood by the `architectures`
and `id2label` of its `config.json`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from bertsmith import __version__
from bertsmith.errors import InputError, ModelError, SettingsError, did_you_mean
from bertsmith.files import atomic_folder, atomic_write, read_json, write_json
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import FAMILIES, family
from bertsmith.model.folder import load_weights, read_config, resolve, save_model
from bertsmith.settings import from_mapping, to_mapping
from bertsmith.tasks import answer, answer_data, choice_data, classify_data, classify_targets, embed_data, tag_data
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.card import SIMILARITY
from bertsmith.tasks.choose import Choosing
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_targets import NumberTarget
from bertsmith.tasks.embed import Embedding
from bertsmith.tasks.label_sets import LabelSetTarget
from bertsmith.tasks.rows import config_labels
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.sentence_folder import (
    check_case,
    has_modules,
    makes_vectors,
    read_sentence_files,
    tokenizer_length,
    truncates_left,
    write_sentence_files,
)
from bertsmith.tasks.tag import Tagging
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.report import Section
from bertsmith.training.task import Batch, Examples, Task

_FORMAT = 1
_OF_THE_HEAD = ("regression", "multi_label", "crf")
_OF_WINDOWS = ("doc_stride", "max_windows", "window_pooling")
_LONGEST_WINDOW = 384  # tokens, of run_squad.py, for folders that do not say how they were trained


class KeptExamples(Examples, Protocol):
    """A collection that is kept in memory."""

    @property
    def items(self) -> Sequence[Any]:
        """Every example that is in some epoch, each with its `row`."""


class FinetuneTask(Task, Protocol):
    """What fine-tuning, prediction and the server ask of a task beyond the training loop's needs."""

    labels: tuple[str, ...]
    settings: Any
    tokenizer: Tokenizer
    num_neighbours: int
    """Rows on either side of a row that its answer may depend on; 0: each row is answered alone."""

    def examples(self, split: str) -> KeptExamples:
        """As every task's."""

    def row(self, value: str | Mapping[str, Any], where: str) -> Any:
        """A row to predict, from what a user gives."""

    def encode(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Rows as examples, one each, in order."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [*, C], a row of C logits for each of the batch's targets: what a teacher is asked for."""

    def loss_from(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`loss`, of logits that are there already."""

    def notes(self) -> list[str]:
        """Sentences worth reading before training: how long text is cut, and how much of it."""

    def to_json(self, answer: Any) -> dict[str, Any]:
        """An answer as plain values."""

    def sections(self, answers: Sequence[Any], examples: Sequence[Any]) -> list[Section]:
        """What the report shows of a split's answers."""


@dataclass(frozen=True)
class Kind:
    """What there is to know about a fine-tuning task before it is made."""

    settings: type[Any]
    read_rows: Callable[..., tuple[Any, list[Any]]]
    """(source, settings[, list for what is wrong]) -> settings with what was found out, and the rows."""
    find_labels: Callable[[Sequence[Any], Any], tuple[str, ...]]
    """(training rows, settings) -> labels in the order of their ids."""
    make: Callable[[Tokenizer, Sequence[str], Any, Mapping[str, Sequence[Any]]], FinetuneTask]
    """(tokenizer, labels, settings, rows by split) -> the task."""
    architecture: str
    """What the name of its architecture ends in, in any family."""
    pipeline_tag: str


TASKS: Mapping[str, Kind] = {
    Classification.name: Kind(
        classify_data.ClassificationSettings,
        classify_data.read_rows,
        classify_targets.find_labels,
        Classification,
        Classification.architecture,
        "text-classification",
    ),
    Tagging.name: Kind(
        tag_data.TaggingSettings,
        tag_data.read_rows,
        tag_data.find_labels,
        Tagging,
        Tagging.architecture,
        "token-classification",
    ),
    Answering.name: Kind(
        answer_data.AnsweringSettings,
        answer_data.read_rows,
        answer.find_labels,
        Answering,
        Answering.architecture,
        "question-answering",
    ),
    Choosing.name: Kind(
        choice_data.ChoiceSettings,
        choice_data.read_rows,
        choice_data.find_labels,
        Choosing,
        Choosing.architecture,
        "multiple-choice",
    ),
    Embedding.name: Kind(
        embed_data.EmbeddingSettings,
        embed_data.read_rows,
        embed_data.find_labels,
        Embedding,
        Embedding.architecture,
        SIMILARITY,
    ),
}


def task_kind(name: str) -> Kind:
    """The task called `name`.

    Raises:
        SettingsError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise SettingsError(f'there is no task "{name}". {did_you_mean(name, TASKS)}')
    return TASKS[name]


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Refuse a tokenizer whose ids do not all have a row in the model's embedding.

    Raises:
        ModelError: it has more tokens than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size} (vocab_size). "
            "Use the tokenizer that the model was trained with."
        )


def read_training_rows(
    kind: Kind, source: str, options: Any, bad: list[InputError] | None = None
) -> tuple[Any, list[Any]]:
    """As `kind.read_rows`, where a column that was named must have that name. Other files may have another usual one.

    Raises:
        InputError: as `kind.read_rows`, and for a column that was named and is not there.
    """
    found, rows = kind.read_rows(source, options, bad)
    for name in (field.name for field in fields(options) if field.name.endswith("_column")):
        given, used = getattr(options, name), getattr(found, name)
        if given is not None and used != given:
            hint = f'did you mean "{used}"?' if used is not None else "name one that is there, or leave it out."
            raise InputError(f'there is no column "{given}". {name}: {hint}', source)
    return found, rows


def training_rows(task: FinetuneTask) -> list[Any]:
    """Each row that the task learns from once, though it may be several examples."""
    return list({id(item.row): item.row for item in task.examples("train").items}.values())


def save_task(
    folder: Path, task: FinetuneTask, model: nn.Module, config: EncoderConfig, card: str, facts: Mapping[str, Any]
) -> None:
    """Write a finished model folder, all of it or nothing; an older one in its place is replaced.

    Args:
        config: of the encoder, with the dropout that others shall find.
        card: the text of README.md.
        facts: plain values kept in `bertsmith.json` for the record, such as metrics and data hashes.

    Raises:
        StorageError: the disk refused.
    """
    kind = task_kind(task.name)
    problem_type = None
    labels = task.labels
    if isinstance(task, Classification):
        problem_type = task.target.problem_type
        labels = labels or ("LABEL_0",)
    saved = {
        "format": _FORMAT,
        "bertsmith": __version__,
        "task": task.name,
        "labels": list(task.labels),
        "settings": to_mapping(task.settings),
        **({"unit": target.unit} if isinstance(target := getattr(task, "target", None), NumberTarget) else {}),
        **facts,
    }
    with atomic_folder(folder, replace=True) as temporary:
        save_model(
            temporary,
            model,
            config,
            family(config.model_type).architecture(kind.architecture),
            id2label=dict(enumerate(labels)) or None,
            problem_type=problem_type,
        )
        task.tokenizer.save(
            temporary,
            model_max_length=config.max_sequence_length,
            truncation_side="left" if getattr(task.settings, "long", None) == "tail" else "right",
            has_segments=config.type_vocab_size > 1,
        )
        if isinstance(task, Embedding):
            write_sentence_files(temporary, task.settings, config.hidden_size)
        write_json(temporary / "bertsmith.json", saved)
        atomic_write(temporary / "README.md", card)


def load_task(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[FinetuneTask, nn.Module]:
    """The task and the model of a fine-tuned folder, on the CPU in evaluation mode.

    Args:
        folder: of a run, of a model, of any Hugging Face BERT with one of our heads; or a Hub id.
        overrides: settings of the task to change, by field name; for example other column names.

    Raises:
        ModelError: no such folder, weights that do not fit, an architecture that is none of ours.
        SettingsError: an unknown setting in `overrides`, or one that only another head would have.
    """
    place = model_folder(folder)
    config, raw = read_config(place)
    changes = dict(overrides or {})
    name, labels, values = saved_task(resolve(place), raw, config.max_sequence_length, changes)
    kind = TASKS[name]
    if "window_pooling" in values and changes.get("long") not in (None, "windows"):
        values = {
            key: value for key, value in values.items() if key not in ("doc_stride", "max_windows", "window_pooling")
        }
    if changes.get("unanswerable") is False:  # there is nothing then that a threshold of dev could decide
        values = {key: value for key, value in values.items() if key != "no_answer_threshold"}
    settings = from_mapping(kind.settings, {**values, **changes}, f"settings of {place}")
    for one in _OF_THE_HEAD:
        if one in values and getattr(settings, one) != values[one]:
            raise SettingsError(f"{one} is what this model has learnt ({str(values[one]).lower()}); it cannot be set.")
    # A folder of others does not say whether "no answer" is one. Who asks for a threshold does.
    if name == Answering.name and settings.unanswerable is None and settings.no_answer_threshold is not None:
        settings = replace(settings, unanswerable=True)
    tokenizer = load_tokenizer(place)
    check_vocabulary(tokenizer, config.vocab_size, place)
    if name == Embedding.name:
        check_case(resolve(place), tokenizer)
    task = kind.make(tokenizer, labels, settings, {})
    model = task.build(Encoder(config))
    load_weights(place, model, strict=True)
    return task, model.eval()


def saved_unit(folder: Path) -> Mapping[str, float] | None:
    """Mean and deviation of the numbers that a regression of ours has learnt; None where nobody says them."""
    path = folder / "bertsmith.json"
    saved = read_json(path) if path.is_file() else None
    unit = saved.get("unit") if isinstance(saved, dict) else None
    if not isinstance(unit, dict) or not all(isinstance(unit.get(name), float) for name in ("mean", "deviation")):
        return None
    return unit if unit["deviation"] > 0 else None


def reads_pairs(folder: Path) -> bool:
    """Whether a classifier of ours has learnt pairs of texts."""
    saved = read_json(folder / "bertsmith.json")
    return saved["task"] == Classification.name and saved["settings"].get("pair_column") is not None


def is_written_as(kind: Kind, architectures: Sequence[str]) -> bool:
    """Whether a folder of these architectures has this task's head; or, as embeddings want it, none."""
    if kind.architecture == Embedding.architecture:
        return any(row.bare in architectures for row in FAMILIES.values())
    return any(name.endswith(kind.architecture) for name in architectures)


def has_answers(folder: Path, architectures: Sequence[str]) -> bool:
    """Whether a folder, ours or not, is of one of `TASKS`: a bare encoder is where its pooling is written down."""
    if has_modules(folder):
        return True
    return any(is_written_as(kind, architectures) for kind in TASKS.values() if kind.pipeline_tag != SIMILARITY)


def saved_task(
    folder: Path, raw_config: Mapping[str, Any], max_sequence_length: int, changes: Mapping[str, Any] | None = None
) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Task name, labels and settings: as saved by us, else as far as `config.json` tells.

    Args:
        changes: settings that are to be others; `multi_label` says what one output is that nobody has said to be a
            number.

    Raises:
        ModelError: a folder of no task, or of another version.
    """
    if (folder / "bertsmith.json").is_file():
        saved = read_json(folder / "bertsmith.json")
        if isinstance(saved, dict) and saved.get("task") == "pretraining":
            raise ModelError(f"{folder} is pre-trained and has learnt no task yet: bertsmith finetune teaches it one.")
        is_ours = isinstance(saved, dict) and saved.get("format") == _FORMAT and saved.get("task") in TASKS
        if not is_ours or not isinstance(saved.get("labels"), list) or not isinstance(saved.get("settings"), dict):
            raise ModelError(f"{folder / 'bertsmith.json'} is not of this version (format {_FORMAT}) or not of a task.")
        return saved["task"], tuple(saved["labels"]), saved["settings"]
    architectures = raw_config.get("architectures") or []
    name = next((name for name, kind in TASKS.items() if is_written_as(kind, architectures)), None)
    if makes_vectors(folder):
        name = Embedding.name
    if name is None or not has_answers(folder, architectures):
        raise ModelError(
            f"{folder}: architectures is {architectures}, which is no fine-tuned model. "
            f"Choices: {', '.join(kind.architecture for kind in TASKS.values() if kind.pipeline_tag != SIMILARITY)}, "
            f"or a folder of sentence-transformers (modules.json)."
        )
    values: dict[str, Any] = {"max_length": tokenizer_length(folder, max_sequence_length)}
    labels = config_labels(raw_config)
    if name == Embedding.name:
        return name, (), read_sentence_files(folder, max_sequence_length)
    if name == Choosing.name:
        return name, (), values
    if name == "answering":
        longest = min(_LONGEST_WINDOW, max_sequence_length)
        values, labels = {"max_length": longest, "max_query_length": longest // 6}, ()
    problem_type = raw_config.get("problem_type")
    if name == "classification":
        if truncates_left(folder):
            values["long"] = "tail"
        is_number = problem_type is None and len(labels) == 1 and not (changes or {}).get("multi_label")
        values["regression"] = is_number or problem_type == NumberTarget.problem_type
        if problem_type is not None:  # without it several labels may be one of them or a set
            values["multi_label"] = problem_type == LabelSetTarget.problem_type
        if values["regression"]:
            labels = ()
    return name, labels, values
