"""The stages of the demo, each through the same functions as the commands.

out/
    report.html                          figures, curves and examples of everything below
    data/                                JSON Lines: documents to pre-train on, rows of the three tasks
    tokenizer/  corpus/                  the vocabulary and the token store
    pretrained/                          the pre-training run, its model in pretrained/model
    classification/  tagging/  answering/       fine-tuned from it
    random/classification/  ...          the same from random weights, to compare with
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bertsmith.demo.data import DataSettings, DemoData, TaskData, prepare_data
from bertsmith.demo.samples import answers_table, labels_table, masks_table, tags_table
from bertsmith.demo.summary import DemoResult, compare, show, write_demo_report
from bertsmith.errors import Interrupted, SettingsError
from bertsmith.files import refusals_explained, write_json
from bertsmith.screen import progress_screen, say
from bertsmith.settings import to_mapping
from bertsmith.tasks.answer_data import AnsweringSettings
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.finetune import FinetuneResult, finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.pretrain import PretrainResult, pretrain
from bertsmith.tasks.pretrain_settings import PositionInit, PretrainSettings
from bertsmith.tasks.run_settings import check_seed
from bertsmith.tasks.tag_data import TaggingSettings
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.python_docs import PythonDoc, iter_docstrings
from bertsmith.text.tokenizer_training import train_tokenizer
from bertsmith.training.optim import OptimizerName, ScheduleName
from bertsmith.training.progress import duration
from bertsmith.training.report import Table
from bertsmith.training.schedule import Budget

_MARKER = "demo.json"
_NUM_STAGES = 6
_NUM_SAMPLES = 5


@dataclass(frozen=True)
class DemoSettings:
    """What makes the demo fit into eight minutes on two processor cores and still learn something."""

    data: DataSettings = field(default_factory=DataSettings)
    """How many labelled rows there are."""
    vocab_size: int = 8192
    """Pieces of the WordPiece vocabulary, lower case."""
    heldout_share: float = 0.03
    """Share of the documents on which pre-training is evaluated."""
    size: str = "tiny"
    """The model: 2 layers of width 128."""
    initializer_range: float = 0.06
    """Larger than BERT's 0.02, which is for a width of 768; the figures of both are in docs/experiments.md."""
    pretrain_position_init: PositionInit = "sinusoidal"
    """Of two heads a layer none can be spared for the neighbours without loss to pairs (docs/experiments.md)."""
    pretrain_length: int = 64
    """Tokens in a sequence while pre-training."""
    pretrain_batch_size: int = 32
    """Sequences in a step while pre-training."""
    pretrain_learning_rate: float | None = None
    """Peak of the schedule; by default that of the size."""
    pretrain_optimizer: OptimizerName = "muon"
    """Fewer steps in the time than with AdamW, but pairs are learnt sooner (docs/experiments.md)."""
    pretrain_schedule: ScheduleName = "wsd"
    """The learning rate stays at its peak for nearly half of the time (docs/experiments.md)."""
    pretrain_decay_share: float = 0.5
    """Share of the run over which the rate falls."""
    pretrain_warmup_share: float = 0.05
    """Share of the run over which it rises."""
    pretrain_mask_probability: float = 0.2
    """BERT hides 0.15 of the tokens; in so short a time more to predict teaches more (docs/experiments.md)."""
    pretrain_dropout: float = 0.0
    """None is needed: no text is seen twice in so short a time."""
    pretrain_evaluations: str = "25%"
    """Interval between evaluations on held-out documents."""
    evaluation_samples: int = 1000
    """Held-out pairs of an evaluation."""
    classification_epochs: float = 4.0
    """Passes over the rows of each task; the same for both models."""
    tagging_epochs: float = 4.0
    answering_epochs: float = 4.0
    finetune_batch_size: int = 32
    """Rows in a step of fine-tuning."""
    finetune_learning_rate: float = 3e-4
    """Small models take more than the 5e-5 of the large ones."""


def run_demo(
    out: Path = Path("demo"),
    budget: str = "3m",
    seed: int = 0,
    *,
    settings: DemoSettings | None = None,
    docs: Iterable[PythonDoc] | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Build a BERT from zero on the documentation of this machine, and show what it is good for.

    Args:
        out: the folder of the demo; an earlier demo in it is replaced.
        budget: how long to pre-train: 3m, "500 steps", "2M tokens", "1 epochs".
        seed: of weights, masks, order and dropout; the data and its split are always the same.
        settings: everything else.
        docs: what to read instead of the installed documentation.
        console: where it tells what it does; None is standard error.

    Raises:
        SettingsError: `out` holds something that is not a demo, the budget cannot be read, or the seed is none.
        InputError: there is not enough documentation.
        Interrupted: Ctrl-C. A demo is not resumed, it begins anew.
    """
    Budget.parse(budget, "budget")
    check_seed(seed)
    settings = settings or DemoSettings()
    screen = console or progress_screen()
    began = time.monotonic()
    _claim(out)
    try:
        data, pretraining, tuned = _stages(out, budget, seed, settings, docs, screen)
        with _stage(screen, 6, "Looking at what was learnt"):
            comparisons = [compare(name, data.tasks[name], *results) for name, results in tuned.items()]
            samples = _samples(out, data, seed)
            config = {"budget": budget, "seed": seed, **to_mapping(settings)}
            seconds = time.monotonic() - began
            report = write_demo_report(out, config, data, pretraining, comparisons, samples, seconds)
    except Interrupted:
        raise Interrupted(
            f"Stopped. What is finished is in {out}; the demo begins anew when it is run again."
        ) from None
    result = DemoResult(out, report, pretraining.metrics, comparisons, time.monotonic() - began)
    write_json(out / _MARKER, {"finished": True, "seconds": result.seconds, "settings": to_mapping(settings)})
    show(result, samples, screen)
    return result


def _claim(out: Path) -> None:
    """Make sure that `out` is ours, and empty."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MARKER).is_file())):
        raise SettingsError(f"{out} holds something that is not a demo. Name another folder with --out.")
    with refusals_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in out.iterdir():  # the folder itself may be where we are
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_json(out / _MARKER, {"finished": False})


@contextmanager
def _stage(screen: Console, number: int, title: str) -> Iterator[None]:
    """Announce a stage, and say how long it took."""
    began = time.monotonic()
    screen.print(f"[bold]{number}/{_NUM_STAGES} {title}[/bold]", highlight=False)
    yield
    screen.print(f"    [dim]{duration(time.monotonic() - began)}[/dim]", highlight=False)


def _stages(
    out: Path, budget: str, seed: int, settings: DemoSettings, docs: Iterable[PythonDoc] | None, screen: Console
) -> tuple[DemoData, PretrainResult, dict[str, tuple[FinetuneResult, FinetuneResult]]]:
    """Everything that costs time: (data, pre-training, task -> (from the pre-trained model, from random weights))."""
    with _stage(screen, 1, "Reading the documentation that is installed with Python"):
        data = prepare_data(iter_docstrings() if docs is None else docs, out / "data", settings.data)
        _say(screen, f"{data.corpus_characters:,} characters in {data.num_train_modules:,} modules to learn from")
        _say(screen, f"{data.num_test_modules:,} other modules are kept for testing")
    with _stage(screen, 2, "Making a vocabulary"):
        tokenizer = train_tokenizer([str(data.corpus)], out / "tokenizer", vocab_size=settings.vocab_size)
        _say(screen, f"{tokenizer.vocab_size:,} pieces")
    with _stage(screen, 3, "Writing the corpus as tokens"):
        manifest = build_corpus(
            [str(data.corpus)], out / "tokenizer", out / "corpus", heldout_share=settings.heldout_share
        )
        _say(screen, f"{manifest.splits['train'].num_tokens:,} tokens")
    with _stage(screen, 4, f"Pre-training for {budget}: hidden words and next sentences"):
        pretraining = pretrain(_pretrain_settings(out, budget, seed, settings), console=screen)
    with _stage(screen, 5, "Fine-tuning for three tasks, with and without pre-training"):
        tuned = {}
        for name, task_data in data.tasks.items():
            tuned[name] = (
                _finetune(name, task_data, str(out / "pretrained"), out / name, seed, settings, out),
                _finetune(name, task_data, f"size:{settings.size}", out / "random" / name, seed, settings, out),
            )
            metric, with_it = next(iter(tuned[name][0].metrics["test"].items()))
            without = tuned[name][1].metrics["test"][metric]
            _say(screen, f"{name}: test {metric} {with_it:.1%} after pre-training, {without:.1%} without")
    return data, pretraining, tuned


def _pretrain_settings(out: Path, budget: str, seed: int, settings: DemoSettings) -> PretrainSettings:
    return PretrainSettings(
        corpus=out / "corpus",
        out=out / "pretrained",
        size=settings.size,
        initializer_range=settings.initializer_range,
        position_init=settings.pretrain_position_init,
        budget=budget,
        max_length=settings.pretrain_length,
        batch_size=settings.pretrain_batch_size,
        learning_rate=settings.pretrain_learning_rate,
        optimizer=settings.pretrain_optimizer,
        schedule=settings.pretrain_schedule,
        decay_share=settings.pretrain_decay_share,
        warmup_share=settings.pretrain_warmup_share,
        mask_probability=settings.pretrain_mask_probability,
        dropout=settings.pretrain_dropout,
        evaluate_every=settings.pretrain_evaluations,
        evaluation_samples=settings.evaluation_samples,
        seed=seed,
    )


def _finetune(
    name: str, data: TaskData, model: str, run: Path, seed: int, settings: DemoSettings, out: Path
) -> FinetuneResult:
    """One fine-tuning; no rows are held back, because nothing is chosen by looking at them."""
    options: dict[str, tuple[float, Any]] = {
        "classification": (settings.classification_epochs, ClassificationSettings(max_length=128)),
        "tagging": (settings.tagging_epochs, TaggingSettings(max_length=128)),
        "answering": (settings.answering_epochs, AnsweringSettings(max_length=256, max_query_length=32)),
    }
    epochs, task_settings = options[name]
    return finetune(
        name,
        FinetuneSettings(
            model=model,
            tokenizer=str(out / "tokenizer"),
            train=str(data.train_file),
            test=str(data.test_file),
            dev_share=0.0,
            out=run,
            epochs=epochs,
            batch_size=settings.finetune_batch_size,
            learning_rate=settings.finetune_learning_rate,
            seed=seed,
        ),
        task_settings,
        console=Console(quiet=True),
    )


def _samples(out: Path, data: DemoData, seed: int) -> list[Table]:
    """What the models say about text they have never seen."""
    test = {name: task.test for name, task in data.tasks.items()}
    return [
        masks_table(out / "pretrained", test["classification"], _NUM_SAMPLES, seed),
        labels_table(out / "classification", test["classification"], _NUM_SAMPLES, seed),
        tags_table(out / "tagging", test["tagging"], _NUM_SAMPLES, seed),
        answers_table(out / "answering", test["answering"], _NUM_SAMPLES, seed),
    ]


def _say(screen: Console, text: str) -> None:
    say(screen, f"    {text}")
