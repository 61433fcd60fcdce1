"""What to recommend for a fine-tuning, before anything is measured, and why.

Every rule names what it rests on: a figure of docs/results.md (measured with this program), a recipe that gave such a
figure, or a paper. What is only a habit says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bertsmith.model.config import EncoderConfig
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.start import has_dropout
from bertsmith.tasks.tag_data import TaggingSettings

_LONGEST = 512
_SQUAD_LENGTH = 384
_ROUND_TO = 8
_IN_DOCUMENTS = 256  # tokens of a sentence with its document
_MANY_LONG = 0.05  # of the rows
_FEW_ROWS = 5000
_DEV_ROWS = 2000
_MOST_FREQUENT = 0.8  # of the rows of one label
_UNKNOWN = 0.01  # of the tokens
_LORA_RATE = 10.0
_PAIRS = 64  # of a batch, for embeddings
_FEWEST_STEPS = 24
_FEWEST_OF_LABEL = 8  # rows; of fewer, `check` says that a label is hardly to be learnt


@dataclass(frozen=True)
class Choice:
    """A setting of `finetune` or of the task, with the reason in a sentence."""

    name: str
    value: Any
    why: str

    @property
    def as_default(self) -> str:
        """What is said where it was left to us."""
        return f"{self.name} {self.value:g}, as nothing is said: {self.why}"


@dataclass(frozen=True, eq=False)
class DataFigures:
    """What was read. Lengths are tokens of the sequence that a row would be, special tokens included, uncut."""

    task: str
    rows: Mapping[str, int]
    """By source: "train" before anything is held back, "dev", "test"."""
    lengths: np.ndarray
    """int64 [rows of train]"""
    longest_evaluated: int
    """Of dev and test; 0 where there is neither."""
    labels: Mapping[str, int]
    """Training rows (of tagging: words) of each; empty where labels are no classes."""
    scripts: Mapping[str, float]
    unknown_share: float
    """Of the tokens of training."""
    answer_tokens: int = 0
    """Which 99 % of the answers to training questions have at most; 0 for other tasks."""

    @property
    def percentiles(self) -> tuple[int, int, int]:
        """(median, 95th percentile, longest) of the lengths."""
        median, high = np.percentile(self.lengths, [50, 95], method="lower")
        return int(median), int(high), int(self.lengths.max())


def recommend(data: DataFigures, config: EncoderConfig, options: Any, *, is_random: bool) -> list[Choice]:
    """Everything that needs no measuring. A setting of the task that was given stays, and says so.

    Args:
        options: the task's settings, as they were given.
        is_random: the model starts from random weights.
    """
    choices = list(_of_task(data, config, options))
    given = {field.name for field in fields(options) if getattr(options, field.name) != field.default}
    kept = [
        Choice(choice.name, getattr(options, choice.name), "As you gave it.") if choice.name in given else choice
        for choice in choices
    ]
    return [*kept, *_of_learning(data, config, is_random)]


def fewer_windows(data: DataFigures, choices: Sequence[Choice], options: Any) -> Choice | None:
    """As many windows of a text as 95 % of the rows have, where memory is short and the others have more."""
    chosen = {choice.name: choice.value for choice in choices}
    is_windowed = chosen.get("long", getattr(options, "long", None)) == "windows"
    if not is_windowed or options.max_windows is not None:
        return None
    room = chosen.get("max_length", options.max_length) - 2
    step = min(room, options.doc_stride or room)
    windows = 1 + np.maximum(0, -(-(data.lengths - 2 - room) // step))
    usual, most = int(np.percentile(windows, 95, method="lower")), int(windows.max())
    if usual == most:
        return None
    why = f"Memory is short, and the windows of a text are learnt at once: one has {most:,}, 95 % of the rows no more."
    return Choice("max_windows", usual, why)


def by_size(task: str, number: int, config: EncoderConfig, *, is_random: bool) -> list[Choice]:
    """The learning rate and the epochs for so many training rows: the defaults of `finetune`."""
    return [by_width(config, is_random=is_random), _epochs(task, number)]


def by_width(config: EncoderConfig, *, is_random: bool) -> Choice:
    """The learning rate."""
    width = config.hidden_size
    if width >= 1024:
        rate, why = 2e-5, "the lowest of the paper's three (Devlin et al. 2018, A.3): large models are less steady"
    elif width >= 768:
        rate, why = 3e-5, "the middle of the paper's three for base models (Devlin et al. 2018, A.3)"
    elif width >= 384:
        rate, why = 1e-4, "the rate that reached the figures of docs/results.md; base models want less"
    else:
        rate, why = (
            2e-4,
            "the rate at which BERT-mini learnt hotel reviews (docs/results.md); at 1e-3 it learnt nothing",
        )
    origin = ", from random weights" if is_random else ""
    return Choice("learning_rate", rate, f"For a model {width} wide{origin}, {why}.")


def for_lora(rate: Choice) -> Choice:
    """Another learning rate, where small matrices are trained alone."""
    return Choice(rate.name, rate.value * _LORA_RATE, "lora wants a rate some ten times as high (Hu et al. 2021).")


def _of_task(data: DataFigures, config: EncoderConfig, options: Any) -> Iterator[Choice]:
    limit = min(config.max_sequence_length, _LONGEST)
    if isinstance(options, AnsweringSettings):
        yield from _of_answering(data, limit, options)
        return
    longest, usual = max(data.percentiles[2], data.longest_evaluated), type(options).max_length
    in_documents = isinstance(options, TaggingSettings) and options.context == "document"
    # Never less than is usual: a model is asked about longer texts than it was taught, and would cut them.
    fitting = max(_IN_DOCUMENTS if in_documents else usual, math.ceil(longest / _ROUND_TO) * _ROUND_TO)
    if longest > limit:
        share = float((data.lengths > limit).mean())
        more = "which is all that the model has places for" if limit < _LONGEST else "and more costs time and memory"
        rows = f"{_percent(share)} of the rows" if share > 0 else "Rows of dev or test"
        why = f"{rows} are longer than {limit} tokens, {more}."
    elif in_documents:
        why = f"The longest row has {longest} tokens; what is left is filled with its document and takes time: a habit."
    else:
        why = f"The longest row has {longest} tokens. Batches hold no padding: room costs nothing where rows are short."
    max_length = min(limit, fitting) if options.max_length == usual else options.max_length
    yield Choice("max_length", max_length, why)
    if isinstance(options, TaggingSettings):
        why = "Longer sentences are read in windows that overlap by half; by more takes more time."
        yield Choice("doc_stride", max(1, max_length // 2), why)
    if isinstance(options, ClassificationSettings):
        yield from _of_classification(data, max_length, options)


def _of_answering(data: DataFigures, limit: int, options: AnsweringSettings) -> Iterator[Choice]:
    is_given = options.max_length != AnsweringSettings.max_length
    length = options.max_length if is_given else min(_SQUAD_LENGTH, limit)
    yield Choice("max_length", length, "That of run_squad.py (Devlin et al. 2018), by which SQuAD is 72.5 % F1 here.")
    if length < _SQUAD_LENGTH:
        yield Choice("max_query_length", length // 6, "A sixth of a sequence, as 64 of 384, so that text has room.")
        yield Choice("doc_stride", length // 3, "A third of a sequence, as 128 of 384.")
    if data.answer_tokens > AnsweringSettings.max_answer_length:
        why = "99 % of the answers have at most so many tokens, and longer ones are never given."
        yield Choice("max_answer_length", data.answer_tokens, why)


def _of_classification(data: DataFigures, max_length: int, options: ClassificationSettings) -> Iterator[Choice]:
    share = float((data.lengths > max_length).mean())
    if share >= _MANY_LONG:
        times = float(data.lengths.sum() / np.minimum(data.lengths, max_length).sum())
        yield Choice(
            "long",
            "windows",
            f"{_percent(share)} of the rows do not fit. On 2,000 film reviews windows were right in 90.7 % here, what "
            f"fits of both ends in 85.5 %, the beginning alone in 75.6 %; they take some {times:.1f} times the time.",
        )
    counts = sorted(data.labels.values())
    if counts and not options.multi_label and not options.regression and counts[-1] / sum(counts) >= _MOST_FREQUENT:
        yield Choice(
            "metric",
            "macro_f1",
            f"{_percent(counts[-1] / sum(counts))} have one label: accuracy would hardly see the others when it picks "
            "the checkpoint.",
        )


def _of_learning(data: DataFigures, config: EncoderConfig, is_random: bool) -> Iterator[Choice]:
    number = data.rows["train"]
    if "dev" not in data.rows:
        share = round(min(0.1, max(0.02, _DEV_ROWS / number)), 2)
        yield Choice(
            "dev_share", share, f"Some {round(share * number):,} rows to pick the epoch; equal texts stay on one side."
        )
    yield _batch_size(data.task, number)
    yield by_width(config, is_random=is_random)
    yield Choice(
        "warmup_share", 0.1, "Small rates at the start are what Mosbach et al. 2021 advise against failed runs."
    )
    yield _epochs(data.task, number)


def _batch_size(task: str, number: int) -> Choice:
    if task == "embedding":
        return Choice(
            "batch_size", _PAIRS, "Each pair is learnt against all others of its batch; 64 gave 81.4 % nDCG here."
        )
    if task in ("answering", "choice"):
        return Choice("batch_size", 16, "A row is several sequences; 16 is what recipes/squad.yaml learns with.")
    if number < _FEW_ROWS:
        return Choice("batch_size", 16, "The smaller of the paper's 16 and 32: more updates from few rows.")
    return Choice("batch_size", 32, "The larger of the paper's 16 and 32 (Devlin et al. 2018, A.3): fewer steps.")


def _epochs(task: str, number: int) -> Choice:
    rows = f"{number:,} rows"
    if task == "embedding" and number >= _FEWEST_STEPS * _PAIRS:
        return Choice("epochs", 1.0, "One was enough for 10,649 pairs here (77.6 to 81.4 % nDCG); more is a habit.")
    if task == "embedding":
        passes = float(min(20, math.ceil(_FEWEST_STEPS * _PAIRS / number)))
        return Choice("epochs", passes, f"{rows} are few, and this makes two dozen steps of {_PAIRS} pairs: a habit.")
    if number < 1000:
        return Choice("epochs", 20.0, f"{rows} are few, and more than three passes help then (Mosbach et al. 2021).")
    if number < _FEW_ROWS:
        return Choice(
            "epochs", 10.0, f"{rows} are few, and more than three passes help (Zhang et al. 2021, section 6)."
        )
    if task == "answering":
        return Choice("epochs", 2.0, "As run_squad.py does (google-research/bert).")
    if number < 10_000:
        return Choice("epochs", 6.0, f"{rows}: as recipes/trec.yaml (5,452 questions, 97.0 %).")
    return Choice("epochs", 3.0, f"{rows}: on 67,349 phrases five were no better than three (docs/experiments.md).")


@dataclass(frozen=True)
class Least:
    """What a run that is short of time has at least, as far as there are rows: two dozen steps, and 8 rows a label on
    average.

    Both are habits. A run of less is hardly past its warm-up at the end, and takes as long to start and to save.
    """

    epochs: int
    rows: int
    """Of an epoch."""

    @classmethod
    def of(cls, num_rows: int, num_labels: int, batch_size: int, epochs: float) -> "Least":
        """For so many training rows, of which `epochs` would be best.

        >>> Least.of(10_000, 6, 32, 3.0), Least.of(100, 6, 16, 20.0)
        (Least(epochs=1, rows=768), Least(epochs=4, rows=100))
        """
        rows = min(num_rows, max(_FEWEST_STEPS * batch_size, _FEWEST_OF_LABEL * num_labels))
        steps = math.ceil(rows / batch_size)
        return cls(max(1, min(int(epochs), math.ceil(_FEWEST_STEPS / max(1, steps)))), rows)

    @property
    def why(self) -> str:
        """For those who would have less."""
        return f"less than {_FEWEST_STEPS} steps and {_FEWEST_OF_LABEL} rows a label would teach nothing."


def family_reason(data: DataFigures, config: EncoderConfig) -> str:
    """Whether the model's family suits the data, in a sentence."""
    if config.model_type == "gpt2":
        return (
            "It reads a text in one direction. Another family, which reads both, understands more of it (Devlin et al. "
            "2018, section 5.1)."
        )
    if config.model_type == "modernbert":
        return "It reads both ways, and was made for long text (Warner et al. 2024)."
    if data.percentiles[1] > _LONGEST:
        return f"It reads both ways. Many rows are longer than {_LONGEST} tokens, for which modernbert was made."
    return "It reads a text both ways, which these tasks want (Devlin et al. 2018, section 5.1)."


def remarks(data: DataFigures, config: EncoderConfig, options: Any) -> Iterator[str]:
    """What no setting says: whether the model suits the data, and what else may be worth a try.

    Args:
        config: of the model.
        options: the task's settings.
    """
    is_weighted = data.task == "classification" and (options.multi_label or options.class_weights != "none")
    if data.unknown_share >= _UNKNOWN:
        script = next(iter(data.scripts), "other")
        yield (
            f"{_percent(data.unknown_share)} of the tokens are unknown to this model, and the text is mostly {script}: "
            "take a model that was pre-trained on such text, or give its tokenizer words (tokenizer extend)."
        )
    if data.rows["train"] < _FEW_ROWS:
        yield (
            "On so few rows another seed gives other figures: --seeds 3 shows by how much (Dodge et al. 2020), in "
            "three times the time; --jobs 2 runs two at a time."
        )
    counts = sorted(data.labels.values())
    if data.task == "classification" and not is_weighted and counts and counts[-1] >= 10 * counts[0]:
        yield (
            f"The most frequent label has {counts[-1]:,} rows, the rarest {counts[0]:,}: --class-weights auto makes "
            "all count the same. Nobody has measured here that it helps; compare macro_f1."
        )
    if data.task in ("classification", "tagging", "answering") and not getattr(options, "crf", False):
        how = "--r-drop 1" if has_dropout(config) else "--r-drop 1 --dropout 0.1"
        yield (
            f"{how} takes some twice the time. It was better in 12 of 17 data sets here, most with one seed, and "
            "in three of four on 500 rows (docs/results.md): compare on yours."
        )
    if data.task == "tagging" and data.rows["train"] < _FEW_ROWS and not getattr(options, "crf", False):
        yield "--label-smoothing 0.1 gained 1.7 points of entity F1 on 500 sentences of WNUT-17: compare on yours."
    if data.task == "classification" and data.rows["train"] < _FEW_ROWS:
        yield (
            "--adversarial 0.01 gained 2.0 points on 500 Chinese hotel reviews, 0.5 on TREC, and lost 0.9 on SST-2: "
            "compare on yours."
        )
    if "test" not in data.rows:
        yield "Give --test for a figure that chose nothing: that of dev has picked the epoch."


def _percent(share: float) -> str:
    return f"{share:.1%}".replace(".0%", "%").replace("%", " %")
