"""How near `advise` and `plan` come to what runs then take: forecast and measured time and memory, case by case.

    python benchmarks/forecasts.py --model FOLDER --data FOLDER --corpus STORE --out runs/forecasts [--case NAME ...]

For each case the forecast is made first, then the command that was planned is run as it is, in a process of its own
whose wall time and peak memory are taken from outside. Cases: short texts, pairs, long texts, tagged sentences and
questions from the model FOLDER (a BERT such as MiniLM) and the data sets of docs/results.md; pre-training of
BERT-tiny, BERT-mini and BERT-base on the store. Each takes some two minutes. Nothing else should run on the machine.
Writes `forecasts.json` and `forecasts.md`; cases that are in the former already and not asked for again are kept.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertsmith.cli.advice_verbs import command
from bertsmith.tasks.advise import AdviceSettings, advise
from bertsmith.tasks.forecast import Forecast
from bertsmith.tasks.plan_run import PlanSettings, plan
from bertsmith.tasks.saved import task_kind
from bertsmith.training.environment import environment

_POLL_SECONDS = 0.1
_TOLERANCE = 0.25

Case = Callable[[argparse.Namespace, Path], tuple[Forecast | None, str]]


def finetuning(task: str, train: str, budget: str, **options: Any) -> Case:
    """A case of `advise`, on a file of the data folder."""

    def case(arguments: argparse.Namespace, run: Path) -> tuple[Forecast | None, str]:
        settings = AdviceSettings(model=str(arguments.model), train=str(arguments.data / train), budget=budget, run=run)
        advice = advise(task, settings, task_kind(task).settings(**options))
        return advice.forecast, command(["finetune", task], advice.settings, advice.options)

    return case


def pretraining(size: str, budget: str, **options: Any) -> Case:
    """A case of `plan`."""

    def case(arguments: argparse.Namespace, run: Path) -> tuple[Forecast | None, str]:
        planned = plan(PlanSettings(corpus=arguments.corpus, size=size, budget=budget, run=run, **options))
        return planned.forecast, command(["pretrain"], planned.settings)

    return case


CASES: dict[str, Case] = {
    "short": finetuning("classification", "classify/trec-train.tsv", "90s"),
    "pair": finetuning(
        "classification", "pairs/qnli-style-train.tsv.xz", "90s", text_column="question", pair_column="sentence"
    ),
    "long": finetuning("classification", "classify/movie-reviews-long.jsonl.xz", "90s", max_length=256),
    "tagging": finetuning("tagging", "tag/wnut17-train.conll", "90s"),
    "answering": finetuning("answering", "answer/xquad.en.json", "90s"),
    "pre-train tiny": pretraining("tiny", "300 steps", batch_size=16),
    "pre-train mini": pretraining("mini", "150K tokens", batch_size=16, dropout=0.0),
    "pre-train base": pretraining("base", "12 steps", batch_size=4, evaluation_samples=20),
}


def main() -> None:
    """Forecast, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "forecasts.json"
    results: dict[str, Any] = json.loads(path.read_text())["cases"] if path.is_file() else {}
    for name in arguments.case:
        results[name] = compare(name, arguments)
        print(f"{name}: {results[name]}")
        ordered = {case: results[case] for case in CASES if case in results}
        path.write_text(json.dumps({"environment": environment(), "cases": ordered}, indent=1) + "\n")
        (arguments.out / "forecasts.md").write_text(table(ordered))
    print(table(results))


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Forecast and measured figures of one case, and their ratios (forecast / measured)."""
    run = arguments.out / name.replace(" ", "-")
    began = time.perf_counter()
    forecast, line = CASES[name](arguments, run)
    assert forecast is not None, f"{name} does not fit the memory"
    forecast_took = time.perf_counter() - began
    shutil.rmtree(run, ignore_errors=True)
    seconds, peak_bytes = measure([sys.executable, "-m", "bertsmith", *shlex.split(line)[1:]])
    shutil.rmtree(run, ignore_errors=True)
    return {
        "command": line,
        "forecast_took_seconds": forecast_took,
        "seconds": {"forecast": forecast.seconds, "measured": seconds, "ratio": forecast.seconds / seconds},
        "peak_bytes": {
            "forecast": forecast.peak_bytes,
            "measured": peak_bytes,
            "ratio": forecast.peak_bytes / peak_bytes,
        },
    }


def measure(words: list[str]) -> tuple[float, int]:
    """Wall time of a command and the most memory that its process had resident (Linux)."""
    began = time.perf_counter()
    peak_kib = 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"^VmHWM:\s*([0-9]+) kB$", status, re.M):
                peak_kib = max(peak_kib, int(found.group(1)))
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - began
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{shlex.join(words)} ended with {process.returncode}: {said.read()}")
    return seconds, peak_kib * 1024


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a case."""
    lines = [
        "| case | time: forecast | measured | ratio | memory: forecast | measured | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        seconds, peak = result["seconds"], result["peak_bytes"]
        lines.append(
            f"| {name} | {seconds['forecast']:.0f} s | {seconds['measured']:.0f} s | {seconds['ratio']:.2f} "
            f"| {peak['forecast'] / 2**30:.2f} GiB | {peak['measured'] / 2**30:.2f} GiB | {peak['ratio']:.2f} |"
        )
    outside = [
        name
        for name, result in results.items()
        if any(abs(result[figure]["ratio"] - 1) > _TOLERANCE for figure in ("seconds", "peak_bytes"))
    ]
    verdict = f"beyond {_TOLERANCE:.0%} of the measured: {', '.join(outside) or 'none'}"
    return "\n".join([*lines, "", f"{len(results)} cases; {verdict}.", ""])


if __name__ == "__main__":
    main()
