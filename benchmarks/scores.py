"""Scores beside Hugging Face's Trainer: the same encoder, rows, epochs and rates, on many data sets and seeds.

    pip install accelerate
    python benchmarks/scores.py --data DATA --model FOLDER --out runs/scores [--only NAME ...] [--sides NAME ...]
        [--chinese FOLDER] [--seeds 5] [--epochs E] [--workers 1] [--known docs/figures/scores.jsonl]

Both sides learn to the last weights, with Trainer's AdamW, a tenth of warm-up, then a linear fall, weight decay of 0.01
and gradients of norm 1 at most. The peer is `AutoModelFor...` in `Trainer` on the rows that our tokenization made,
padded dynamically; its weights are then scored by our code, which tests hold against scikit-learn and the official
scripts: only training differs. Seconds are those of training alone, the peer's without its first two steps. With
`--workers` that many runs share the machine, in the order of their seeds, so that sides are under the same load; a run
that is there already, or among the `--known` of other machines, is not run again. `r-drop` is ours with `--r-drop 1`,
`no-dropout` ours with `--dropout 0`, `all-windows` ours with `--null-windows all`, from which the peer learns.
`--epochs` is for times alone: so many passes, or such a part of one, instead of those of each set, in a folder of their
own.
Sets in Chinese need `--chinese`, a model of our own pre-training. Writes the table, `scores.md`, and all runs that are
in it, `scores.jsonl`.
"""

import argparse
import csv
import hashlib
import json
import lzma
import multiprocessing
import shutil
import statistics
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from finetuning import features
from peer import padded, trainer_seconds

from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config
from bertsmith.settings import from_mapping
from bertsmith.tasks.evaluate import evaluate
from bertsmith.tasks.finetune import finetune
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import choose_rows
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import TASKS, FinetuneTask
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.device import resolve_device, resolve_precision
from bertsmith.training.evaluate import evaluate_task

TRAINER, OURS, ALL_WINDOWS = "trainer", "ours", "all-windows"
SIDES: dict[str, dict[str, Any]] = {
    TRAINER: {},
    OURS: {},
    "r-drop": {"r_drop": 1.0},
    "no-dropout": {"dropout": 0.0},
    ALL_WINDOWS: {},
}
"""Side -> what is added to our settings; ALL_WINDOWS adds EVERY_WINDOW to those of the task."""
PEERS = {
    "classification": transformers.AutoModelForSequenceClassification,
    "tagging": transformers.AutoModelForTokenClassification,
    "answering": transformers.AutoModelForQuestionAnswering,
}
FILLERS = {"input_ids": 0, "token_type_ids": 0}
IGNORED = -100
"""The label of a piece that no word begins with, and of padding, in transformers."""
CHUNK = 512
"""Examples that are made into rows at a time."""
PART = 5
"""Of a file that has no test set of its own one unit in so many is the test: by the hash of its text."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Where rows are, and how they are learnt. Files are of DATA, or made from it in the folder of the runs."""

    task: str
    train: str
    tests: tuple[str, ...] = ()
    """Scored, one after the other. Empty: a part of `train`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of our settings and the peer's: epochs, batch_size, learning_rate."""
    num_rows: int | None = None
    seeds: int | None = None
    """At most so many."""
    chinese: bool = False


EVERY_WINDOW = {"null_windows": "all"}
LARGE = {"batch_size": 64, "learning_rate": 1.5e-4}
ANSWERS = {"max_length": 384, "doc_stride": 128}
SETS = {
    "sst2": DataSet(
        task="classification",
        train="classify/sst2-train.tsv.xz",
        tests=("classify/sst2-dev.tsv",),
        options={"text_column": "sentence", "label_column": "label", "max_length": 64},
        changes={"epochs": 2, **LARGE},
    ),
    "trec": DataSet(
        task="classification",
        train="classify/trec-train.tsv",
        tests=("classify/trec-test.tsv",),
        options={"max_length": 64},
        changes={"epochs": 6},
    ),
    "cola": DataSet(
        task="classification",
        train="classify/cola-in_domain_train.tsv",
        tests=("cola-dev.tsv",),
        options={"columns": "source,label,star,text", "text_column": "text", "label_column": "label", "metric": "mcc"},
        changes={"epochs": 4},
    ),
    "banking77": DataSet(
        task="classification",
        train="classify/banking77-train.csv",
        tests=("classify/banking77-test.csv",),
        options={"text_column": "text", "label_column": "category", "max_length": 64},
        changes={"epochs": 6},
    ),
    "sms": DataSet(task="classification", train="classify/sms-spam-train.tsv", changes={"epochs": 4}),
    "qnli": DataSet(
        task="classification",
        train="pairs/qnli-style-train.tsv.xz",
        tests=("pairs/qnli-style-dev.tsv.xz",),
        options={"text_column": "question", "pair_column": "sentence", "label_column": "label"},
        changes={"epochs": 2, **LARGE},
    ),
    "wnut17": DataSet(
        task="tagging",
        train="tag/wnut17-train.conll",
        tests=("tag/wnut17-test.conll",),
        options={"scheme": "iob2"},
        changes={"epochs": 6},
    ),
    "wikigold": DataSet(
        task="tagging",
        train="tag/wikigold.conll",
        options={"scheme": "iob1"},
        changes={"epochs": 10, "batch_size": 16},
    ),
    "ud-ewt-pos": DataSet(
        task="tagging",
        train="tag/ud-ewt-train.conllu.xz",
        tests=("tag/ud-ewt-dev.conllu",),
        options={"tag_column": "upos", "scheme": "none"},
        changes={"epochs": 3},
    ),
    "squad-20k": DataSet(
        task="answering",
        train="answer/squad-v1.1-train.json.xz",
        tests=("answer/squad-v1.1-dev-a.json.xz", "answer/xquad.en.json"),
        options=ANSWERS,
        changes={"epochs": 1, "batch_size": 16},
        num_rows=20_000,
        seeds=3,
    ),
    "squad": DataSet(
        task="answering",
        train="answer/squad-v1.1-train.json.xz",
        tests=("answer/squad-v1.1-dev-a.json.xz", "answer/xquad.en.json"),
        options=ANSWERS,
        changes={"epochs": 2, **LARGE},
        seeds=1,
    ),
    "squad2": DataSet(
        task="answering",
        train="answer/squad-v2.0-dev-a.json.xz",
        options=ANSWERS,
        changes={"epochs": 3, "batch_size": 16},
    ),
    "hotel-zh": DataSet(
        task="classification",
        train="classify/chnsenticorp-hotel.zh.csv.xz",
        options={"text_column": "review", "label_column": "label"},
        changes={"epochs": 4, "learning_rate": 2e-4},
        chinese=True,
    ),
    "cold-zh": DataSet(
        task="classification",
        train="classify/cold-train.zh.csv.xz",
        tests=("classify/cold-dev.zh.csv.xz",),
        options={"text_column": "TEXT", "label_column": "label"},
        changes={"epochs": 3, "batch_size": 64, "learning_rate": 3e-4},
        chinese=True,
    ),
    "uner-zh": DataSet(
        task="tagging",
        train="tag/uner-zh-gsdsimp-train.iob2.xz",
        tests=("tag/uner-zh-gsdsimp-dev.iob2",),
        options={"scheme": "iob2"},
        changes={"epochs": 10, "learning_rate": 3e-4},
        chinese=True,
    ),
    "qnli-zh": DataSet(
        task="classification",
        train="pairs/qnli-style-train.zh.tsv.xz",
        tests=("pairs/qnli-style-dev.zh.tsv.xz",),
        options={"text_column": "question", "pair_column": "sentence", "label_column": "label"},
        changes={"epochs": 4, "learning_rate": 3e-4},
        chinese=True,
    ),
    "cmrc-zh": DataSet(
        task="answering",
        train="answer/cmrc2018-dev.zh.json.xz",
        tests=("answer/cmrc2018-trial.zh.json",),
        options={"max_length": 128, "max_query_length": 32, "doc_stride": 48, "language": "zh", "lenient": True},
        changes={"epochs": 3, "learning_rate": 3e-4},
        chinese=True,
    ),
    "drcd-zh": DataSet(
        task="answering",
        train="answer/drcd-dev.zh.json.xz",
        options={"max_length": 128, "max_query_length": 32, "doc_stride": 48, "language": "zh", "lenient": True},
        changes={"epochs": 3, "learning_rate": 3e-4},
        chinese=True,
    ),
}
DEFAULTS = {"batch_size": 32, "learning_rate": 1e-4}
EPSILON = 1e-8
"""Of AdamW, in Trainer; ours has BERT's otherwise."""


@dataclass(frozen=True)
class Run:
    """One side with one seed on one set, and where it is written."""

    name: str
    side: str
    seed: int
    model: str
    data: Path
    out: Path
    epochs: float | None = None
    """Passes over the rows, if not those of the set."""

    @property
    def changes(self) -> dict[str, Any]:
        """Of our settings and the peer's."""
        asked = {} if self.epochs is None else {"epochs": self.epochs}
        return {**DEFAULTS, **SETS[self.name].changes, **asked}

    @property
    def result(self) -> Path:
        """Its figures; there once it has ended."""
        return self.out / self.name / self.side / f"seed-{self.seed}.json"


def main() -> None:
    """Run what is not there yet and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--chinese")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(SETS), choices=SETS)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--known", type=Path)
    arguments = parser.parse_args()
    if arguments.epochs is not None:
        if arguments.known:
            parser.error("--known are whole runs, and --epochs makes parts of some: choose one")
        arguments.out /= f"epochs-{arguments.epochs:g}"  # never taken for whole runs
    runs = []
    for seed in range(arguments.seeds):  # all sets with one seed first: a table of few seeds is worth reading, too
        for name in arguments.only:
            model = arguments.chinese if SETS[name].chinese else arguments.model
            if model is None or seed >= (SETS[name].seeds or arguments.seeds):
                continue
            sides = [side for side in arguments.sides if side != ALL_WINDOWS or SETS[name].task == "answering"]
            runs += [Run(name, side, seed, model, arguments.data, arguments.out, arguments.epochs) for side in sides]
    for name in dict.fromkeys(run.name for run in runs):
        files(name, arguments.data, arguments.out)
    known = read_lines(arguments.known) if arguments.known else {}
    runs = [run for run in runs if not run.result.exists() and (run.name, run.side, run.seed) not in known]
    if arguments.workers == 1:
        for run in runs:
            carry_out(run)
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["accelerate", "transformers", "bertsmith.tasks.finetune"])  # imported once
        with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
            for future in as_completed([pool.submit(carry_out, run) for run in runs]):
                future.result()
    write_table(arguments.out, known)


def carry_out(run: Run) -> None:
    """One run, unless it is there; one that fails says so, and the others go on."""
    try:
        figures = theirs(run) if run.side == TRAINER else ours(run)
    except Exception:
        print(f"{run.name}, {run.side}, seed {run.seed}:\n{traceback.format_exc()}", flush=True)
        return
    run.result.parent.mkdir(parents=True, exist_ok=True)
    described = {"name": run.name, "side": run.side, "seed": run.seed, **figures}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    described |= {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    run.result.write_text(json.dumps(described, indent=1) + "\n")
    metric, value = next(iter(figures["metrics"][0].items()))
    print(f"{run.name}, {run.side}, seed {run.seed}: {metric} {value:.4f}, {figures['seconds']:.0f} s", flush=True)


def ours(run: Run) -> dict[str, Any]:
    """By `finetune`, as its verb does it."""
    one, (train, tests) = SETS[run.name], files(run.name, run.data, run.out)
    folder = run.out / run.name / run.side / f"seed-{run.seed}"
    settings = FinetuneSettings(
        model=run.model,
        train=train,
        test=tests[0],
        out=folder,
        dev_share=0.0,
        max_train_examples=one.num_rows,
        seed=run.seed,
        epsilon=EPSILON,
        overwrite=True,
        **{**run.changes, **SIDES[run.side]},
    )
    options = one.options | (EVERY_WINDOW if run.side == ALL_WINDOWS else {})
    learnt = finetune(one.task, settings, from_mapping(TASKS[one.task].settings, options, "options"))
    metrics = [learnt.metrics["test"], *(evaluate(learnt.model, test) for test in tests[1:])]
    shutil.rmtree(folder)
    return {"metrics": metrics, "seconds": learnt.training.seconds}


def theirs(run: Run) -> dict[str, Any]:
    """By `Trainer`, on the rows of our tokenization."""
    one, (_, tests) = SETS[run.name], files(run.name, run.data, run.out)
    task, rows = prepared(run.name, run.model, run.data, run.out)
    transformers.set_seed(run.seed)
    sizes = {"num_labels": len(task.labels)} if task.labels else {}
    model = PEERS[one.task].from_pretrained(model_folder(run.model), **sizes)
    changes = run.changes
    seconds = trainer_seconds(
        model,
        rows,
        partial(padded, fillers=FILLERS | ({"labels": IGNORED} if one.task == "tagging" else {})),
        batch_size=changes["batch_size"],
        learning_rate=changes["learning_rate"],
        precision=resolve_precision("auto", resolve_device()),
        order="random",
        num_workers=0,
        epochs=changes["epochs"],
        warmup_share=0.1,
        seed=run.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.cpu().save_pretrained(folder)
        metrics = score(task, folder, len(tests))
    return {"metrics": metrics, "seconds": seconds}


@cache
def prepared(name: str, model: str, data: Path, out: Path) -> tuple[FinetuneTask, list[dict[str, Any]]]:
    """Our task with the tokenized tests; and the training rows as the peer takes them."""
    one, (train, tests) = SETS[name], files(name, data, out)
    kind = TASKS[one.task]
    asked = one.options | (EVERY_WINDOW if one.task == "answering" else {})  # as run_qa.py
    options, found = kind.read_rows(train, from_mapping(kind.settings, asked, "options"))
    if one.num_rows is not None:
        found = choose_rows(found, one.num_rows)
    splits = {f"test-{number}": kind.read_rows(test, options)[1] for number, test in enumerate(tests)}
    task = kind.make(
        load_tokenizer(model_folder(model)), kind.find_labels(found, options), options, {"train": found} | splits
    )
    examples = task.examples("train")
    rows, num_examples = [], examples.num_examples(0)
    for start in range(0, num_examples, CHUNK):
        batch = task.collate(examples.take(range(start, min(start + CHUNK, num_examples)), 0))
        rows += word_features(batch) if one.task == "tagging" else features(batch)
    return task, rows


def word_features(batch: Any) -> list[dict[str, Any]]:
    """The windows of sentences as the peer takes them: the label at the first piece of each word."""
    labels = torch.full_like(batch.inputs.token_ids, IGNORED)
    labels[batch.labels["word_positions"]] = batch.labels["targets"]
    lengths = list(batch.inputs.lengths)
    names = {"input_ids": batch.inputs.token_ids, "token_type_ids": batch.inputs.segment_ids, "labels": labels}
    parts = {name: torch.split(values, lengths) for name, values in names.items()}
    rows = [{name: part[number].tolist() for name, part in parts.items()} for number in range(len(lengths))]
    return [row for row in rows if any(label != IGNORED for label in row["labels"])]


def score(task: FinetuneTask, folder: str, num_tests: int) -> list[dict[str, float]]:
    """What the weights of a folder come to on each test."""
    device = resolve_device()
    model = task.build(Encoder(read_config(folder)[0]))
    load_weights(folder, model, strict=True)
    model.to(device)
    precision = resolve_precision("auto", device)
    return [
        evaluate_task(model, task, f"test-{number}", device=device, precision=precision).metrics
        for number in range(num_tests)
    ]


def files(name: str, data: Path, out: Path) -> tuple[str, tuple[str, ...]]:
    """The training file and the tests of a set; what DATA does not have in this form is made first."""
    one, made = SETS[name], out / "data"
    made.mkdir(parents=True, exist_ok=True)
    if name == "cola":
        both = [data / f"classify/cola-{domain}_domain_dev.tsv" for domain in ("in", "out_of")]
        (made / one.tests[0]).write_text("".join(path.read_text() for path in both))
        return str(data / one.train), (str(made / one.tests[0]),)
    if one.tests:
        return str(data / one.train), tuple(str(data / test) for test in one.tests)
    kind = one.train.removesuffix(".xz").rpartition(".")[2]
    train, test = (made / f"{name}-{part}.{kind}" for part in ("train", "test"))
    if not test.exists():
        divide(data / one.train, kind, train, test)
    return str(train), (str(test),)


def divide(path: Path, kind: str, train: Path, test: Path) -> None:
    """One unit in PART to `test`, by the hash of its text: a row, a sentence with its tags, an article."""
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        text = file.read()
    if kind == "json":
        whole = json.loads(text)
        for part, chosen in parted(whole["data"], lambda article: json.dumps(article, sort_keys=True), train, test):
            part.write_text(json.dumps({**whole, "data": chosen}))
    elif kind == "conll":
        sentences = [block for block in text.split("\n\n") if block.strip()]
        for part, chosen in parted(sentences, str, train, test):
            part.write_text("\n\n".join(chosen) + "\n")
    else:
        delimiter = "," if kind == "csv" else "\t"
        head, *rows = csv.reader(
            text.splitlines(keepends=True),
            delimiter=delimiter,
            quoting=csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE,
        )
        for part, chosen in parted(rows, lambda row: row[-1], train, test):
            with part.open("w", newline="") as file:
                if kind == "csv":
                    csv.writer(file).writerows([head, *chosen])
                else:
                    file.writelines("\t".join(row) + "\n" for row in [head, *chosen])


def parted(units: Sequence[Any], text: Any, train: Path, test: Path) -> Iterator[tuple[Path, list[Any]]]:
    """(file, its units), the test last, so that its being there says that both are."""
    is_test = [int(hashlib.sha256(text(unit).encode()).hexdigest(), 16) % PART == 0 for unit in units]
    yield train, [unit for unit, chosen in zip(units, is_test, strict=True) if not chosen]
    yield test, [unit for unit, chosen in zip(units, is_test, strict=True) if chosen]


def read_lines(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(set, side, seed) -> a run that was written as a line."""
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    return {(run["name"], run["side"], run["seed"]): run for run in runs}


def write_table(out: Path, known: Mapping[tuple[str, str, int], dict[str, Any]]) -> None:
    """All runs there are so far, as Markdown and as lines."""
    made = [json.loads(path.read_text()) for path in sorted(out.glob("*/*/seed-*.json"))]
    runs = list({**known, **{(run["name"], run["side"], run["seed"]): run for run in made}}.values())
    sides = [side for side in SIDES if any(run["side"] == side for run in runs)]
    lines = [f"| | metric | seeds | {' | '.join(sides)} | seconds |", f"|---|---|---:|{'---:|' * len(sides)}---:|"]
    first: dict[tuple[str, str], dict[int, float]] = {}
    for name, one in SETS.items():
        own = {side: [run for run in runs if (run["name"], run["side"]) == (name, side)] for side in sides}
        if not any(own.values()):
            continue
        for number, test in enumerate(one.tests or ("",)):
            found = {side: {run["seed"]: run["metrics"][number] for run in own[side]} for side in sides}
            metric = next(next(iter(metrics)) for of_seeds in found.values() for metrics in of_seeds.values())
            values = {side: {seed: metrics[metric] for seed, metrics in found[side].items()} for side in sides}
            if number == 0:
                first |= {(name, side): of_seeds for side, of_seeds in values.items()}
            cells = [
                name if number == 0 else f"{name}: {Path(test).name}",
                metric,
                " / ".join(str(len(own[side])) for side in sides),
                *(shown(list(values[side].values())) for side in sides),
                " / ".join(mean_seconds(own[side]) for side in sides),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    verdicts = [verdict(side, first) for side in sides if side != TRAINER and TRAINER in sides]
    (out / "scores.md").write_text("\n".join([*lines, "", *verdicts]) + "\n")
    (out / "scores.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    print((out / "scores.md").read_text())


def mean_seconds(runs: Sequence[Mapping[str, Any]]) -> str:
    """Of training."""
    return f"{statistics.mean(run['seconds'] for run in runs):.0f}" if runs else "-"


def verdict(side: str, values: Mapping[tuple[str, str], Mapping[int, float]]) -> str:
    """How a side stands beside the peer, over the seeds that both have; a set counts where there are two or more."""
    above = steadier = below = compared = 0
    for name in SETS:
        ours, theirs = values.get((name, side), {}), values.get((name, TRAINER), {})
        seeds = sorted(set(ours) & set(theirs))
        if len(seeds) < 2:
            continue
        own, peer = ([of_seeds[seed] for seed in seeds] for of_seeds in (ours, theirs))
        deviations = statistics.stdev(own), statistics.stdev(peer)
        compared += 1
        above += statistics.mean(own) > statistics.mean(peer)
        steadier += deviations[0] < deviations[1]
        below += statistics.mean(own) < statistics.mean(peer) - max(deviations)
    return (
        f"{side}: of {compared} sets above {TRAINER} in {above}, with less deviation in {steadier}, below by more than "
        f"the larger deviation in {below}."
    )


def shown(values: Sequence[float]) -> str:
    """A cell: mean and sample standard deviation, in per cent."""
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
