"""How the demo is summed up: test scores side by side, report.html, and the last words in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text as ScreenText

from bertsmith.demo.baselines import majority_score
from bertsmith.demo.data import DemoData, TaskData
from bertsmith.screen import say
from bertsmith.tasks.finetune import FinetuneResult
from bertsmith.tasks.pretrain import PretrainResult
from bertsmith.training.progress import duration
from bertsmith.training.report import Bars, Section, Table, Text, data_table, training_sections, write_report


@dataclass(frozen=True)
class Comparison:
    """Test scores of one task in [0, 1]: after pre-training, from random weights, and of the majority."""

    task: str
    metric: str
    pretrained: float
    random: float
    majority: float
    num_train: int
    num_test: int

    @property
    def gain_points(self) -> float:
        """What pre-training adds, in percentage points."""
        return 100 * (self.pretrained - self.random)


@dataclass(frozen=True)
class DemoResult:
    """Where the demo is, what pre-training reached on held-out documents, and what it was good for."""

    folder: Path
    report: Path
    pretraining: Mapping[str, float]
    comparisons: Sequence[Comparison]
    seconds: float


def compare(name: str, data: TaskData, pretrained: FinetuneResult, random: FinetuneResult) -> Comparison:
    """Both models' objective on the test rows, beside the majority's."""
    metric, score = next(iter(pretrained.metrics["test"].items()))
    return Comparison(
        task=name,
        metric=metric,
        pretrained=score,
        random=random.metrics["test"][metric],
        majority=majority_score(name, data.train, data.test),
        num_train=len(data.train),
        num_test=len(data.test),
    )


def write_demo_report(
    out: Path,
    config: Mapping[str, Any],
    data: DemoData,
    pretraining: PretrainResult,
    comparisons: Sequence[Comparison],
    samples: Sequence[Table],
    seconds: float,
) -> Path:
    """`report.html` of the whole demo: the comparison, examples, the curves of pre-training, the data."""
    metrics = pretraining.metrics
    groups = {
        f"{one.task}: {one.metric}": {
            "after pre-training": 100 * one.pretrained,
            "from random weights": 100 * one.random,
            "majority": 100 * one.majority,
        }
        for one in comparisons
    }
    rows = [
        (one.task, one.metric, one.pretrained, one.random, one.majority, one.gain_points, one.num_train, one.num_test)
        for one in comparisons
    ]
    columns = ("task", "metric", "pre-trained", "random", "majority", "gain, points", "train rows", "test rows")
    runs = ["pretrained", *data.tasks, *(f"random/{name}" for name in data.tasks)]
    reports = [f"{run}/report.html" for run in runs]
    files = [file for task in data.tasks.values() for file in (task.train_file, task.test_file)]
    sections: list[Section] = [
        Bars("What pre-training is good for", groups, " %", 100.0, note=_HONESTLY),
        Table("The same in figures", columns, rows),
        *samples,
        *training_sections(out / "pretrained" / "metrics.jsonl"),
        Text("More", [f"Each run has a report of its own: {', '.join(reports)}."]),
        data_table([data.corpus, *files]),
    ]
    facts = {
        "held-out MLM loss, nats": f"{metrics['mlm_loss']:.2f}",
        "of a unigram model": f"{metrics['mlm_loss_baseline']:.2f}",
        "held-out NSP accuracy": f"{metrics.get('nsp_accuracy', float('nan')):.1%}",
        **{f"{one.task}, points gained": f"{one.gain_points:+.1f}" for one in comparisons},
        "tokens pre-trained on": f"{pretraining.training.tokens:,}",
        "the whole demo took": duration(seconds),
    }
    return write_report(out, "A BERT that reads Python's documentation", sections, config=config, facts=facts)


_HONESTLY = (
    "Both models have the same size, vocabulary, rows, epochs and learning rate; they differ in their first weights "
    "only. The test rows come from modules of which neither pre-training nor fine-tuning has seen any text. The "
    "majority of tagging gives each word the tag it has most often; that of answering is the most frequent answer."
)


def show(result: DemoResult, samples: Sequence[Table], screen: Console) -> None:
    """The end of the demo as it is seen in a terminal: examples, the comparison, where things are, what is next."""
    for sample in samples:
        screen.print(_on_screen(replace(sample, rows=sample.rows[:3])))
    comparison = Table(
        "Test scores",
        ("task", "metric", "pre-trained", "random weights", "majority", "gain"),
        [
            (
                one.task,
                one.metric,
                *(f"{value:.1%}" for value in (one.pretrained, one.random, one.majority)),
                f"{one.gain_points:+.1f} points",
            )
            for one in result.comparisons
        ],
    )
    screen.print(_on_screen(comparison))
    metrics = result.pretraining
    lines = [
        f"Held-out documents: MLM loss {metrics['mlm_loss']:.2f} nats (unigram {metrics['mlm_loss_baseline']:.2f}), "
        f"NSP accuracy {metrics.get('nsp_accuracy', float('nan')):.1%}. Everything took {duration(result.seconds)}.",
        "",
        f"Report          {result.report}",
        f"Models          {result.folder}/pretrained  {result.folder}/classification  tagging  answering",
        "",
        "What to type next:",
        f'  bertsmith predict {result.folder}/pretrained "Return a copy of the [MASK] with the given shape."',
        f'  bertsmith predict {result.folder}/tagging "Raises ValueError if n_samples is None."',
        f"  bertsmith pretrain --corpus {result.folder}/corpus --out longer --budget 30m --optimizer muon "
        "--schedule wsd",
        "and on your own text:",
        "  bertsmith tokenizer train TEXT --out tokenizer --vocab-size 8192",
        "  bertsmith corpus build TEXT --tokenizer tokenizer --out corpus",
    ]
    for line in lines:
        say(screen, line)


def _on_screen(table: Table) -> ScreenTable:
    shown = ScreenTable(title=table.title, title_justify="left", show_lines=True, expand=False)
    for column in table.columns:
        shown.add_column(column)
    for row in table.rows:
        shown.add_row(*(ScreenText(str(cell)) for cell in row))
    return shown
