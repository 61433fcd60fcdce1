"""The commands that need a model: corpus check, pretrain, finetune, evaluate, predict, demo."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from cyclopts import Parameter
from rich.text import Text

from bertsmith.cli.config import ConfigFile, as_verb
from bertsmith.cli.predict_rows import given_rows, rows_of_file
from bertsmith.demo.run import run_demo
from bertsmith.demo.summary import DemoResult
from bertsmith.deploy.predict import load
from bertsmith.errors import InputError, SettingsError
from bertsmith.files import atomic_file, refuse_overwriting
from bertsmith.screen import output_screen
from bertsmith.settings import read_value
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.data_check import CheckSettings, DataReport, check_data
from bertsmith.tasks.data_check import render as render_check
from bertsmith.tasks.embed_data import EmbeddingSettings
from bertsmith.tasks.evaluate import evaluate as evaluate_model
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.masking import MaskUnit
from bertsmith.tasks.pretrain import pretrain as pretrain_model
from bertsmith.tasks.pretrain_examples import DataMode
from bertsmith.tasks.pretrain_settings import PretrainSettings, check_max_length
from bertsmith.tasks.run_folder import model_folder, own_files
from bertsmith.tasks.run_settings import check_seed
from bertsmith.tasks.samples import describe_samples
from bertsmith.tasks.saved import TASKS, reads_pairs
from bertsmith.tasks.seeds import Spread, spread
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.tasks.together import TogetherSettings
from bertsmith.tasks.together import finetune_together as learn_together
from bertsmith.text.corpus import open_corpus
from bertsmith.text.doctor import check_corpus, render
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import Precision
from bertsmith.training.launch import read_launch

_FLAT = Parameter(name="*")
_TEXTS = {one.name for kind in TASKS.values() for one in fields(kind.settings) if one.type in (str, str | None)}
"""Settings of tasks that are text, whatever it looks like."""


def corpus_check(
    store: Path,
    *,
    samples: int = 3,
    max_length: int = 128,
    data_mode: DataMode = "clean",
    mask_unit: MaskUnit = "piece",
    seed: int = 0,
    verify: bool = False,
    config: ConfigFile = None,
) -> None:
    """Say what anyone should know about a store before training on it, and show samples as training sees them.

    Args:
        store: The folder that `corpus build` made.
        samples: How many samples to show.
        max_length: Tokens in a sample.
        data_mode: How samples are cut, as for pretrain.
        mask_unit: What is hidden together, as for pretrain.
        seed: Other seeds show other samples.
        verify: Also compare every file with its SHA-256.
    """
    check_max_length(max_length)
    check_seed(seed)
    if samples < 0:
        raise SettingsError(f"samples must not be negative, not {samples}.")
    screen = output_screen()
    screen.print(render(check_corpus(store, verify=verify)))
    corpus = open_corpus(store, "train")
    if samples < 1:
        return
    if corpus.num_documents < 2 and not data_mode.endswith("sentences"):
        screen.print(
            "\nNo samples: the store has one document, and the random sentences of next sentence prediction come from "
            "others. See running text with --data-mode full-sentences.",
            soft_wrap=True,
        )
        return
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    for text in describe_samples(
        corpus, tokenizer, number=samples, max_length=max_length, mode=data_mode, seed=seed, mask_unit=mask_unit
    ):
        screen.print(Text(f"\n{text}"), soft_wrap=True)


def pretrain(*, settings: Annotated[PretrainSettings, _FLAT], config: ConfigFile = None) -> None:
    """Train a BERT on a token store, within a budget of time, tokens, steps or epochs."""
    result = pretrain_model(settings)
    if read_launch().is_first:
        _show_metrics("held-out", result.metrics)
        guesser = {"rtd": settings.out / "generator", "clm": None}.get(result.objective, settings.out)
        _show_run(settings.out, guesser, "Text with a [MASK].")


def check_classification(
    *,
    settings: Annotated[CheckSettings, _FLAT],
    options: Annotated[ClassificationSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say what is wrong with texts and their labels: bad rows, copies, leaks, contradictions, lengths."""
    _show_check(check_data("classification", settings, options), settings)


def finetune_classification(
    *,
    settings: Annotated[FinetuneSettings, _FLAT],
    options: Annotated[ClassificationSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model to tell labels (or a number) from a text, or from a pair of texts."""
    _show_finetuned(finetune("classification", settings, options), "A text.")


def check_tagging(
    *,
    settings: Annotated[CheckSettings, _FLAT],
    options: Annotated[TaggingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say what is wrong with tagged sentences: bad tags, copies, leaks, contradictions, lengths."""
    _show_check(check_data("tagging", settings, options), settings)


def finetune_tagging(
    *,
    settings: Annotated[FinetuneSettings, _FLAT],
    options: Annotated[TaggingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model to find entities, or to tag every word."""
    _show_finetuned(finetune("tagging", settings, options), "A text.")


def check_answering(
    *,
    settings: Annotated[CheckSettings, _FLAT],
    options: Annotated[AnsweringSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say what is wrong with questions and their answers: misplaced answers, copies, leaks, lengths."""
    _show_check(check_data("answering", settings, options), settings)


def finetune_answering(
    *,
    settings: Annotated[FinetuneSettings, _FLAT],
    options: Annotated[AnsweringSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model to answer questions with a span of a text, or to say that there is no answer."""
    _show_finetuned(finetune("answering", settings, options), "The text.", '--question "A question?" ')


def check_choice(
    *,
    settings: Annotated[CheckSettings, _FLAT],
    options: Annotated[ChoiceSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say what is wrong with questions and their choices: bad rows, copies, leaks, contradictions, lengths."""
    _show_check(check_data("choice", settings, options), settings)


def check_embedding(
    *,
    settings: Annotated[CheckSettings, _FLAT],
    options: Annotated[EmbeddingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Say what is wrong with pairs of texts: bad rows, copies, leaks, lengths."""
    _show_check(check_data("embedding", settings, options), settings)


def finetune_choice(
    *,
    settings: Annotated[FinetuneSettings, _FLAT],
    options: Annotated[ChoiceSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model to choose the right one of several answers to a question about a text."""
    _show_finetuned(finetune("choice", settings, options), "questions.jsonl", "--file ")


def finetune_embedding(
    *,
    settings: Annotated[FinetuneSettings, _FLAT],
    options: Annotated[EmbeddingSettings | None, _FLAT] = None,
    config: ConfigFile = None,
) -> None:
    """Teach a model to give texts that belong together vectors that are near, for search and comparison."""
    _show_finetuned(finetune("embedding", settings, options), "A text.")


def finetune_together(*, settings: Annotated[TogetherSettings, _FLAT], config: ConfigFile = None) -> None:
    """Teach one model several tasks, of which each gets a folder of its own."""
    for name, metrics in learn_together(settings).metrics.items():
        for split, values in metrics.items():
            _show_metrics(f"{name}, {split}", values)
        print(f"Model: {settings.out / name / 'model'}")
    print(f"Report: {settings.out / 'report.html'}")


def _show_check(report: DataReport, settings: CheckSettings) -> None:
    output_screen().print(render_check(report), soft_wrap=True)
    if settings.strict and report.findings:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in report.findings))
        raise InputError(f"something was found, and --strict was given: {kinds}.")


def evaluate(
    model: str,
    data: str,
    *,
    override: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
    predictions: Path | None = None,
    report: Path | None = None,
    precision: Precision = "auto",
    device: str = "auto",
    config: ConfigFile = None,
) -> None:
    """Score a fine-tuned model on labelled data, and print the metrics as JSON.

    Args:
        model: A run's folder, a model folder, or a Hub id.
        data: What the model's task reads.
        override: KEY=VALUE, a setting of the task to change, such as text_column=review; may be repeated.
        predictions: Write every answer there beside what is given, a JSON object a line.
        report: Write a page there (.html) with figures by label, mistakes and the like, as that of a run.
        precision: bf16 autocast where the hardware has it, unless said otherwise.
        device: auto, cpu, cuda or cuda:N.
    """
    overrides = dict(_key_and_value(item) for item in override)
    metrics = evaluate_model(
        model, data, overrides=overrides, predictions=predictions, report=report, precision=precision, device=device
    )
    print(json.dumps(metrics, indent=2))


def predict(
    model: str,
    text: str | None = None,
    *,
    pair: str | None = None,
    question: str | None = None,
    file: str | None = None,
    out: Path | None = None,
    override: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
    top_k: int | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    config: ConfigFile = None,
) -> None:
    """Answer a text, every row of a file, or every line of standard input: a JSON object a line, in order.

    A line that holds a JSON object is a row with the task's columns; any other line is a text.

    Args:
        model: A run's folder, a model folder, or a Hub id.
        text: What to answer, or a row as a JSON object; without it and --file, standard input is read.
        pair: The second text, for a model that reads pairs, or judges the next sentence or the order of two.
        question: The question; TEXT is then the context that answers it.
        file: Lines of text, CSV, TSV, JSONL, Parquet or hub:NAME; tables are read as those of the fine-tuning were.
        out: Write there instead of to standard output; the file appears when all is answered.
        override: KEY=VALUE, a setting of the task to change, or how its rows are read, such as delimiter=";" and
            text_column=review; may be repeated.
        top_k: Guesses for each [MASK], 5 unless given. A text with several gets a list for each, the others masked.
        precision: fp32 gives what transformers gives; bf16 is faster where the hardware has it.
        device: auto, cpu, cuda or cuda:N.
    """
    if text is None and (pair is not None or question is not None):
        raise SettingsError("--pair and --question go with a TEXT on the command line.")
    if pair is not None and question is not None:
        raise SettingsError("give --pair or --question, not both.")
    if text is not None and file is not None:
        raise SettingsError("give a TEXT or --file, not both.")
    if out is not None:
        refuse_overwriting(out, (model_folder(model), *own_files(model), *([] if file is None else [file])))
    overrides = dict(_key_and_value(item) for item in override)
    predictor = load(model, device=device, precision=precision, top_k=top_k, overrides=overrides)
    rows = given_rows(text, pair, question) if file is None else rows_of_file(file, predictor)
    is_typed = text is None and file is None and sys.stdin.isatty()
    with nullcontext(sys.stdout.buffer) if out is None else atomic_file(out) as stream:
        for answer in predictor.predict(rows, read_ahead=1 if is_typed else 256):
            _write_line(stream, answer, is_flushed=out is None)


def _show_nothing(result: DemoResult) -> None:
    """The demo has told everything itself."""


demo = as_verb(run_demo, _show_nothing, fixed={"settings": None, "docs": None, "console": None})


def _write_line(stream: BinaryIO, answer: Mapping[str, Any], *, is_flushed: bool) -> None:
    stream.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
    if is_flushed:
        stream.flush()


def _key_and_value(item: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    if not equals:
        raise SettingsError(f'--set "{item}": write KEY=VALUE.')
    name = name.strip().replace("-", "_")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    # To YAML a column "Review #1" is "Review", "2020" a number, and a delimiter "|" the begin of a text.
    is_literal = name in _TEXTS and not is_quoted and value not in ("", "null", "~")
    return name, value if is_literal else read_value(value)


def _show_finetuned(result: FinetuneResult, text: str, more: str = "") -> None:
    if not read_launch().is_first:
        return
    if result.predictions is not None:
        for split, spreads in spread(result.seeds).items():
            _show_spread(split, f"{len(result.seeds)} folds", spreads)
        print(f"Report: {result.folder / 'report.html'}")
        print(f"Every row, by the model that did not learn from it: {result.predictions}")
        return
    chosen = ""
    if len(result.seeds) == 1:
        for split, metrics in result.metrics.items():
            _show_metrics(split, metrics)
    else:
        for split, spreads in spread(result.seeds).items():
            _show_spread(split, f"{len(result.seeds)} seeds", spreads)
        best = next(run.seed for run in result.seeds if run.training == result.training)
        chosen = f" (seed {best}, the best on dev)"
    if reads_pairs(result.model):
        more = '--pair "Another." '
    _show_run(result.folder, result.folder, text, more, chosen)


def _show_spread(split: str, runs: str, spreads: Mapping[str, Spread]) -> None:
    figures = ", ".join(f"{name} {one.mean:.4g} ± {one.deviation:.2g}" for name, one in spreads.items())
    print(f"{split}, {runs}: {figures}")


def _show_metrics(split: str, metrics: Mapping[str, float]) -> None:
    print(f"{split}: " + (", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "nothing to evaluate"))


def _show_run(folder: Path, answering: Path | None, text: str, more: str = "", chosen: str = "") -> None:
    """Where things are, and what to type next: what answers, or how a model is taught that does not."""
    print(f"Report: {folder / 'report.html'}")
    print(f"Model: {folder / 'model'}{chosen}")
    if answering is None:
        print(f"Try: bertsmith finetune classification --model {folder} --train FILE --out FOLDER")
    else:
        print(f'Try: bertsmith predict {answering} {more}"{text}"')
