"""What `benchmark` says: lines for the screen, `benchmark.json`, and bars in `report.html`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertsmith.files import atomic_folder, write_json
from bertsmith.settings import to_mapping
from bertsmith.tasks.advice_text import Sheet
from bertsmith.tasks.benchmark import BenchmarkResult, LeftOut, Timed
from bertsmith.training.report import Bars, Section, Table, write_report

_GIGA = 1e9
_HOW = (
    "Medians of the rounds. Operations are those of the matrix products by formula, a multiplication and an addition "
    "being two: forward and backward pass in training, without padding, the vocabulary at masked positions only, and "
    "the last layer as if all of it were asked for."
)


def benchmark_sheets(result: BenchmarkResult) -> list[Sheet]:
    """The machine, then a sheet for each kind of work."""
    sheets = [Sheet("The machine", list(_machine(result)))]
    works = [one.work for one in result.timed] + [one.work for one in result.left_out]
    for work in dict.fromkeys(works):
        lines = [(one.model, speed_of(one), _beside(result, one)) for one in result.timed if one.work == work]
        lines += [(one.model, "left out", one.reason) for one in result.left_out if one.work == work]
        sheets.append(Sheet(work.capitalize(), lines))
    return sheets


def progress_line(outcome: Timed | LeftOut) -> str:
    """One work that is over."""
    said = speed_of(outcome) if isinstance(outcome, Timed) else f"left out: {outcome.reason}"
    return f"{outcome.work}, {outcome.model}: {said}"


def speed_of(timed: Timed) -> str:
    """Of ours, for people."""
    return f"{_figure(timed.speed)} {timed.item}/s"


def to_json(result: BenchmarkResult) -> dict[str, Any]:
    """All figures, in plain types; rounds in their order."""
    return {
        "machine": result.machine,
        "device": result.device,
        "precision": result.precision,
        "threads": result.threads,
        "matrix_product_operations_per_second": result.matrix_product,
        "timed": [
            {
                "work": one.work,
                "model": one.model,
                "parameters": one.num_parameters,
                "batch_size" if one.work != "inference" else "sentences_in_round": one.size,
                "unit": f"{one.item}/s",
                "operations_per_item": one.operations_per_item,
                "share_of_matrix_product": result.share(one),
                "ours": {"median": one.speed, "rounds": list(one.ours)},
                "peer": {"median": one.peer_speed, "rounds": list(one.theirs)} if one.theirs else None,
                "ratio": one.ratio,
            }
            for one in result.timed
        ],
        "left_out": [{"work": one.work, "model": one.model, "reason": one.reason} for one in result.left_out],
        "settings": to_mapping(result.settings),
        "seconds": result.seconds,
    }


def write_benchmark(result: BenchmarkResult, folder: Path) -> None:
    """`benchmark.json` and `report.html` in a new folder.

    Raises:
        StorageError: the folder exists, or the disk refused.
    """
    with atomic_folder(folder) as place:
        write_json(place / "benchmark.json", to_json(result))
        facts = {"largest matrix product": _operations(result.matrix_product), "precision": result.precision}
        config = to_mapping(result.settings)
        write_report(place, "What this machine does", list(_sections(result)), config=config, facts=facts)


def _machine(result: BenchmarkResult) -> Iterator[tuple[str, str, str]]:
    machine = result.machine
    yield "device", result.device if result.device != "cpu" else machine["processor"], ""
    yield "precision", result.precision, ""
    yield "threads", str(result.threads), machine["cores"].split(",")[0]
    yield "torch", machine["torch"], ""
    if "transformers" in machine:
        yield "transformers", machine["transformers"], ""
    yield "largest matrix product", _operations(result.matrix_product), ""
    yield "measured in", f"{result.seconds:.0f} s", f"of {result.settings.budget}"


def _beside(result: BenchmarkResult, one: Timed) -> str:
    size = f"{one.size} sentences a round" if one.work == "inference" else f"batches of {one.size}"
    parts = [f"{result.share(one):.0%} of the matrix product, {size}, {len(one.ours)} rounds"]
    if one.peer_speed is not None and one.ratio is not None:
        parts.append(f"transformers {_figure(one.peer_speed)}: {one.ratio:.2f} times as fast")
    return "; ".join(parts)


def _sections(result: BenchmarkResult) -> Iterator[Section]:
    for item in dict.fromkeys(one.item for one in result.timed):
        groups = {
            f"{one.work}, {one.model}": {
                "bertsmith": one.speed,
                **({} if one.peer_speed is None else {"transformers": one.peer_speed}),
            }
            for one in result.timed
            if one.item == item
        }
        yield Bars(f"{item.capitalize()} a second", groups)
    columns = ("work", "model", "parameters", "at once", "a second", "of the matrix product", "transformers", "ratio")
    rows = [
        (
            one.work,
            one.model,
            one.num_parameters,
            one.size,
            speed_of(one),
            f"{result.share(one):.0%}",
            "" if one.peer_speed is None else one.peer_speed,
            "" if one.ratio is None else one.ratio,
        )
        for one in result.timed
    ]
    yield Table("In figures", columns, rows, note=_HOW)
    if result.left_out:
        reasons = [(one.work, one.model, one.reason) for one in result.left_out]
        yield Table("Left out", ("work", "model", "reason"), reasons)


def _operations(a_second: float) -> str:
    """Operations a second, for people.

    >>> _operations(2.5e11), _operations(7.5e14)
    ('250 GFLOP/s', '750 TFLOP/s')
    """
    giga = a_second / _GIGA
    return f"{giga / 1000:,.0f} TFLOP/s" if giga >= 10_000 else f"{giga:,.0f} GFLOP/s"


def _figure(value: float) -> str:
    """A speed, for people.

    >>> _figure(12345.6), _figure(7.234)
    ('12,346', '7.2')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
