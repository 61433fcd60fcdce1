"""The verb `predict`: a model folder to answers in the user's own text.

Rows stream: a bounded number is read ahead, put into batches of similar length, and answered in
the order in which they came. A batch that does not fit the memory is cut, as in an evaluation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from bertsmith.errors import InputError, ModelError, SettingsError, collecting, did_you_mean
from bertsmith.files import read_json
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import load_weights, read_config, resolve
from bertsmith.settings import from_mapping
from bertsmith.tasks.answer import Answering
from bertsmith.tasks.classify_data import ClassificationSettings, text_columns
from bertsmith.tasks.mlm import fill_mask, strips_before_mask
from bertsmith.tasks.objectives import pair_question
from bertsmith.tasks.pairs import PairQuestion, judge_pairs
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.rows import ListExamples, Tabular, given_as, is_gap
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import TASKS, FinetuneTask, check_vocabulary, has_answers, load_task, saved_task
from bertsmith.tasks.sentence_folder import makes_vectors
from bertsmith.tasks.tag import Tagging
from bertsmith.tasks.tag_data import as_text
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.device import Precision, ResolvedPrecision, autocast, resolve_device, resolve_precision
from bertsmith.training.evaluate import answer_batch, within_memory
from bertsmith.training.loader import evaluation_batches

T = TypeVar("T")
Value = str | Mapping[str, Any]
"""What a user may ask about: a text, or a row with the columns of the task."""

_PRETRAINED_ROWS = 32  # at once: each may be as long as the model allows
_PAIRS, _MASKS = "ForPreTraining", "ForMaskedLM"  # what the names of architectures end in


@dataclass(frozen=True)
class TableSettings:
    """How rows to answer are read, for models whose own settings do not say it: their labelled data are no tables."""

    text_column: str | None = None
    """The column of the text; by default found by its name, if there is no doubt."""
    pair_column: str | None = None
    """The column of the second text, for a model that judges pairs."""
    columns: str | None = None
    """Names for the columns of a file that has no header line."""
    delimiter: str | None = None
    """The character between columns; by default a comma for .csv, a tab for .tsv."""
    quoting: bool | None = None
    """Whether fields may stand in double quotes; by default yes for .csv, no for .tsv."""


_FORM = ("columns", "delimiter", "quoting")
_READING: Mapping[str, tuple[str, ...]] = {Tagging.name: ("text_column", *_FORM), Answering.name: _FORM}
"""What of `TableSettings` can be said to a model of these tasks; the settings of the others have it all."""


@dataclass(frozen=True)
class Placed:
    """A row that knows where it stands, for messages: `file:line` or alike."""

    value: Value
    where: str


class Predictor(Protocol):
    """Something that answers rows, in order."""

    name: str
    """What it answers: "classification", "tagging", "answering", "choice", "embedding" or "pretraining"."""
    tables: Tabular
    """How tables of rows for it are read."""

    def predict(self, rows: Iterable[Value | Placed], *, read_ahead: int = 256) -> Iterator[dict[str, Any]]:
        """One plain dictionary a row, in the order of the rows.

        Args:
            read_ahead: rows that are taken before the first of them is answered; 1 answers each at once.

        Raises:
            InputError: at once, a single text or row instead of several; a row the task cannot read, once those before
                it are answered: names its place, or its number, counted from 1.
            StepError: memory ran out in a single row.
        """


def load(
    folder: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    top_k: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Predictor:
    """A predictor from a run's folder, a model folder, any Hugging Face BERT with a known head, or a Hub id.

    Classification answers with label, score and scores (with labels and scores, where a text may have several; with
    value, where it is a number); tagging with entities and their character spans; answering with answer, score, start
    and end; a choice with its index and the scores of all; embedding with the embedding of a text, or the similarity
    of a pair, also in a folder of sentence-transformers. A pre-trained model fills the masks of a text, and says of a
    pair whether its second text follows the first, or whether the two are in their order, as it was trained to.

    Args:
        precision: fp32 gives what `transformers` gives; bf16 is faster where the hardware has it.
        top_k: guesses for each mask; None: 5.
        overrides: settings of the task to change, by field name, for example `{"text_column": "review"}`; or those of
            `TableSettings` that it lacks.

    Raises:
        ModelError: no such folder, or a model without a head that could answer anything.
        SettingsError: `top_k` is below 1, or is of a model that fills no masks; an unknown setting in `overrides`.
    """
    if top_k is not None and top_k < 1:
        raise SettingsError(f"top_k must be at least 1, not {top_k}.")
    place = model_folder(folder)
    on = resolve_device(device)
    resolved = resolve_precision(precision, on)
    config, raw = read_config(place)
    architectures = [name for name in raw.get("architectures") or [] if isinstance(name, str)]
    if makes_vectors(resolve(place)):
        architectures = []  # what it was before it was made for vectors, in some folders
    heads = [family(config.model_type).heads.get(name, {}) for name in architectures]
    if any("detection.out" in head for head in heads):
        raise ModelError(
            f"{place}: a discriminator does not say which words it expects. Fine-tune it, or ask its generator, "
            "which a pre-training run keeps in the folder generator."
        )
    if any(name.endswith((_PAIRS, _MASKS)) for name in architectures):
        tables = from_mapping(TableSettings, overrides or {}, f"settings of {place}, which is pre-trained alone")
        tokenizer = load_tokenizer(place)
        check_vocabulary(tokenizer, config.vocab_size, place)
        model = PretrainingModel(Encoder(config), pairs=any(name.endswith(_PAIRS) for name in architectures))
        load_weights(place, model, strict=True)
        return PretrainedPredictor(
            model.to(on).eval(),
            tokenizer,
            on,
            resolved,
            top_k=5 if top_k is None else top_k,
            strips_before=strips_before_mask(place),
            question=pair_question(_objective(resolve(place)), config.model_type),
            tables=tables,
        )
    if not has_answers(resolve(place), architectures):
        raise ModelError(
            f"{place}: a model of architectures {architectures} has no head that answers. Fine-tune it first: "
            "bertsmith finetune classification|tagging|answering|choice|embedding."
        )
    if top_k is not None:
        raise SettingsError(f"top_k is of models that fill masks, and {place} has learnt a task; leave it out.")
    name = saved_task(resolve(place), raw, config.max_sequence_length)[0]
    own, reading = _parted(overrides or {}, name, f"settings of {place}")
    task, module = load_task(place, own)
    return TaskPredictor(task, module.to(on), on, resolved, reading)


def _parted(overrides: Mapping[str, Any], task: str, where: str) -> tuple[dict[str, Any], TableSettings]:
    """The settings to change of a task, and those of tables that it lacks.

    Raises:
        SettingsError: an unknown one; names both kinds.
    """
    names, reading = [field.name for field in fields(TASKS[task].settings)], _READING.get(task, ())
    for name in overrides:
        if name not in (*names, *reading):
            raise SettingsError(f'{where}: unknown key "{name}". {did_you_mean(name, (*names, *reading))}')
    own = {name: value for name, value in overrides.items() if name in names}
    others = {name: value for name, value in overrides.items() if name not in names}
    return own, from_mapping(TableSettings, others, where)


class TaskPredictor:
    """Answers of a fine-tuned model, by the task's own decoding."""

    def __init__(
        self,
        task: FinetuneTask,
        model: nn.Module,
        device: torch.device,
        precision: ResolvedPrecision,
        reading: TableSettings | None = None,
    ) -> None:
        """`model` is in evaluation mode and on `device`; `reading` is for a task that does not say it itself."""
        self.name = task.name
        self.task = task
        self._reading = reading or TableSettings()
        self.tables: Tabular = self._reading if task.name in _READING else task.settings
        self.model = model
        self._device = device
        self._precision = precision

    def predict(self, rows: Iterable[Value | Placed], *, read_ahead: int = 256) -> Iterator[dict[str, Any]]:
        """See `Predictor`; where rows are shown with their neighbours, those that follow are read as well.

        Unless `read_ahead` is 1: then a row is answered at once, from itself and those before it.
        """
        return self._stream(_with_places(rows), read_ahead)

    def _stream(self, rows: Iterator[tuple[Value, str]], read_ahead: int) -> Iterator[dict[str, Any]]:
        bad: list[InputError] = []
        read = _until_bad((self._row(value, where) for value, where in rows), bad)
        around = self.task.num_neighbours
        before: list[Any] = []
        for own, after in _chunks(read, read_ahead, around if read_ahead > 1 else 0):
            examples = self.task.encode([*before, *own, *after])
            yield from self._answer(ListExamples(examples[len(before) : len(before) + len(own)]))
            before = [*before, *own][-around:] if around else []
        if bad:
            raise bad[0]

    def _row(self, value: Value, where: str) -> Any:
        column = self._reading.text_column
        if column is None or isinstance(value, str):
            return self.task.row(value, where)
        return as_text(value, column, where)  # of a tagger, which else looks for words first

    def _answer(self, examples: ListExamples[Any]) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        with torch.inference_mode(), autocast(self._device, self._precision):
            for places, batch in evaluation_batches(examples, self.task.collate):
                decoded = answer_batch(self.model, self.task, batch, self._device)
                answers.update(zip(places, map(self.task.to_json, decoded), strict=True))
        return [answers[place] for place in range(len(answers))]


class PretrainedPredictor:
    """Fills masks, and judges pairs where the model was trained to."""

    name = "pretraining"

    def __init__(
        self,
        model: PretrainingModel,
        tokenizer: Tokenizer,
        device: torch.device,
        precision: ResolvedPrecision,
        *,
        top_k: int,
        strips_before: bool,
        question: PairQuestion,
        tables: TableSettings,
    ) -> None:
        """`model` is in evaluation mode and on `device`.

        Args:
            top_k: guesses for each mask.
            strips_before: see `strips_before_mask`.
            question: what the model was asked about pairs.
            tables: how rows are read.
        """
        self.tables: Tabular = tables
        self._columns = ClassificationSettings(text_column=tables.text_column, pair_column=tables.pair_column)
        self.model = model
        self.tokenizer = tokenizer
        self._top_k = top_k
        self._strips_before = strips_before
        self._question = question
        self._device = device
        self._precision = precision

    def predict(self, rows: Iterable[Value | Placed], *, read_ahead: int = 256) -> Iterator[dict[str, Any]]:
        """See `Predictor`; for a text or `{"text"}` the guesses for its masks, for a pair what `judge_pairs` says.

        Their columns are found as a classifier finds them.

        `{"guesses": [{"token", "score", "text"}, ...]}` for one mask, and a list of such lists, one a mask, for
        several, as the fill-mask pipeline of transformers has it.
        """
        return self._stream(_with_places(rows), read_ahead)

    def _stream(self, rows: Iterator[tuple[Value, str]], read_ahead: int) -> Iterator[dict[str, Any]]:
        bad: list[InputError] = []
        read = _until_bad((self._read(value, where) for value, where in rows), bad)
        for texts, _ in _chunks(read, min(read_ahead, _PRETRAINED_ROWS)):
            with torch.inference_mode(), autocast(self._device, self._precision):
                paired = [(text, pair) for text, pair in texts if pair is not None]
                pairs = iter(within_memory(self._judge, paired, lambda both: _characters(*both)))
                masked = iter(within_memory(self._fill, [text for text, pair in texts if pair is None], _characters))
            yield from (next(masked if pair is None else pairs) for _, pair in texts)
        if bad:
            raise bad[0]

    def _read(self, value: Value, where: str) -> tuple[str, str | None]:
        """The text and, for a judgement, the pair of a row."""
        named = (self._columns.text_column, self._columns.pair_column)
        if given_as(value, named) == "question":
            raise InputError("a model that is pre-trained alone does not answer questions. Fine-tune it first.", where)
        text, pair = (value, None) if isinstance(value, str) else self._texts(value, where)
        mask = self.tokenizer.tokens([self.tokenizer.mask_id])[0]
        if isinstance(pair, str) and self.model.pooled is None:
            raise InputError(
                'this model has not learnt to judge pairs (--objective mlm+nsp teaches it); leave "pair" out, or name '
                "the column of one text: --set text_column=NAME.",
                where,
            )
        if not isinstance(text, str) or not (isinstance(pair, str) or (pair is None and mask in text)):
            raise InputError(f'give a text that holds {mask}, or {{"text": ..., "pair": ...}}.', where)
        return text, pair

    def _texts(self, row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
        """What stands in the columns of the text and the pair of a row."""
        text, pair = text_columns(row, self._columns, where)
        return row[text], None if pair is None or is_gap(row[pair]) else row[pair]

    def _fill(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        if not texts:
            return []
        filled = fill_mask(self.model, self.tokenizer, texts, self._top_k, strips_before=self._strips_before)
        by_mask = [[[asdict(guess) for guess in guesses] for guesses in masks] for masks in filled]
        return [{"guesses": masks[0] if len(masks) == 1 else masks} for masks in by_mask]

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        if not pairs:
            return []
        return [dict(answer) for answer in judge_pairs(self.model, self.tokenizer, pairs, self._question)]


def _characters(*texts: str) -> str:
    return f"{sum(map(len, texts)):,} characters"


def _objective(folder: Path) -> object:
    """What a folder of ours says it was pre-trained with; None for those of others."""
    path = folder / "bertsmith.json"
    saved = read_json(path) if path.is_file() else None
    return saved.get("objective") if isinstance(saved, dict) else None


def _with_places(rows: Iterable[Value | Placed]) -> Iterator[tuple[Value, str]]:
    """Each row with its place: its own, else its number.

    Raises:
        InputError: at once, what is a single text or row; later, with its place, what is neither text nor row.
    """
    kind = type(rows).__name__
    # Iterating over these gives characters, keys, names of columns.
    if isinstance(rows, str | bytes | Mapping) or kind == "DataFrame" or not isinstance(rows, Iterable):
        records = ' (those of a pandas table: .to_dict("records"))' if kind == "DataFrame" else ""
        raise InputError(f"give a list of texts, or of rows{records}; {kind} found.")
    return (_placed(row, number) for number, row in enumerate(rows, start=1))


def _placed(row: Value | Placed, number: int) -> tuple[Value, str]:
    value, where = (row.value, row.where) if isinstance(row, Placed) else (row, f"row {number}")
    if not isinstance(value, str | Mapping):
        raise InputError(f'a text wanted, or a row such as {{"text": ...}}; {type(value).__name__} found.', where)
    if isinstance(value, Mapping):
        names: Iterable[Any] = value
        nameless = next((name for name in names if not isinstance(name, str)), None)
        if nameless is not None:
            raise InputError(
                f"the name of a column is {nameless!r}, which is no text. Give columns names (in pandas: header=None "
                "makes numbers of them; names=[...] gives names).",
                where,
            )
    return value, where


def _until_bad(rows: Iterable[T], bad: list[InputError]) -> Iterator[T]:
    """The rows before the first that cannot be read, which `bad` gets: they can be answered first."""
    with collecting(bad):
        yield from rows


def _chunks(rows: Iterable[T], size: int, num_following: int = 0) -> Iterator[tuple[list[T], list[T]]]:
    """At most `size` rows at a time, and as many as there are of those that follow."""
    if size < 1:
        raise SettingsError(f"read_ahead is {size}; at least 1 row must be read to be answered.")
    source = iter(rows)
    read = list(islice(source, size + num_following))
    while chunk := read[:size]:
        following = read[size:]
        yield chunk, following
        read = [*following, *islice(source, size + num_following - len(following))]
