"""A run's `report.html`: one file, no scripts, no fonts or pictures from elsewhere.

Whatever has results to show describes them as sections (tables, curves, bars, a confusion matrix,
paragraphs); this file alone knows HTML. Curves are drawn by matplotlib as inline SVG, and hold
nothing but numbers: every word, in any script, is HTML text and therefore drawn by the reader's
own fonts and escaped. Colours follow the reader's light or dark setting.
"""

import html
import importlib.resources
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from bertsmith.files import atomic_write, sha256
from bertsmith.training.environment import environment
from bertsmith.training.progress import read_metrics

LARGEST_MATRIX = 40
"""Labels; a confusion matrix of more cannot be read."""

_PALETTE = ("#2f7ed8", "#e07b39", "#3a9d5d", "#b0559e", "#a38a1f", "#d04a4a", "#6b6ee0", "#2a9aa5")
_INK = "#010203"  # stands for the page's text colour inside a picture; replaced by `currentColor`
_CURVE_POINTS = 400
_BASELINE = "_baseline"  # ends the name of a metric that is there to be compared with


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are set to the right and shortened to four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis: name -> (x values, y values of the same length).

    A baseline is a dashed horizontal line at a value. Above 400 points a line shows the means of
    400 runs of neighbouring points, so that a noisy loss stays readable. `from_zero` starts the
    y axis at 0, for quantities whose ratio matters.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    baselines: Mapping[str, float] = field(default_factory=dict)
    from_zero: bool = False


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix, `counts[truth][prediction]`; the tint of a cell is its share of the row."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Plain paragraphs."""

    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars: group -> {name -> value}, all on one scale from 0 to `maximum`.

    Without `maximum` the scale ends at the largest value.
    """

    title: str
    groups: Mapping[str, Mapping[str, float]]
    unit: str = ""
    maximum: float | None = None
    note: str = ""


Section = Table | Curves | Matrix | Text | Bars


def no_matrix(num_labels: int) -> str:
    """The sentence that stands where a matrix is left out.

    >>> no_matrix(77)
    'There is no confusion matrix: 77 labels are too many; it can be read up to 40.'
    """
    return f"There is no confusion matrix: {num_labels} labels are too many; it can be read up to {LARGEST_MATRIX}."


def write_report(
    run_folder: Path,
    title: str,
    sections: Sequence[Section],
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, str],
) -> Path:
    """Write the page of `report_page` into a run's folder as `report.html`, atomically.

    Returns:
        The path of the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = run_folder / "report.html"
    atomic_write(path, report_page(title, sections, config=config, facts=facts))
    return path


def report_page(title: str, sections: Sequence[Section], *, config: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """A page that loads nothing from elsewhere.

    Args:
        facts: the closing figures, shown large at the top: caption -> figure, as it should be read.
        config: the resolved settings; nested mappings are shown with dotted names.
    """
    tiles = "".join(f"<div><b>{_escape(value)}</b><span>{_escape(name)}</span></div>" for name, value in facts.items())
    settings = Table("", ("setting", "value"), list(_flat(config).items()))
    style = importlib.resources.files("bertsmith.training").joinpath("report.css").read_text(encoding="utf-8")
    machine = Table("", ("", "value"), list(environment().items()))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n<h1>{_escape(title)}</h1>\n"
        f'<div class="facts">{tiles}</div>\n<div class="sections">\n'
        + "\n".join(_section(section, index) for index, section in enumerate(sections))
        + f"\n</div>\n<details><summary>Settings</summary>{_table(settings)}</details>\n"
        f"<details><summary>Environment</summary>{_table(machine)}</details>\n</main>\n</body>\n</html>\n"
    )


def training_sections(metrics_jsonl: Path, loss_unit: str = "nats") -> list[Section]:
    """Curves of a run: its losses by name, its learning rate, its speed, and each held-out metric.

    Reads the lines a `Reporter` writes. A held-out metric `x` gets a dashed line where its line also
    holds `x_baseline`. Metrics that were measured only once come as a table instead.
    """
    records = read_metrics(metrics_jsonl)
    training = [record for record in records if record["kind"] == "train"]
    heldout = _columns([record for record in records if record["kind"] == "eval"], "metrics")
    sections: list[Section] = []
    if losses := _columns(training, "losses"):
        together = {"all, weighted": _column(training, "loss")} if len(losses) > 1 else {}
        sections.append(Curves("Training loss", "step", loss_unit, {**losses, **together}))
    for title, name, unit in (
        ("Learning rate", "learning_rate", "learning rate"),
        ("Speed", "tokens_per_second", "tokens a second"),
    ):
        steps, values = _column(training, name)
        if steps:
            sections.append(Curves(title, "step", unit, {"this run": (steps, values)}, from_zero=True))
    once: list[tuple[object, ...]] = []
    for name, (steps, values) in heldout.items():
        if name.endswith(_BASELINE):
            continue
        marks = {"baseline": heldout[name + _BASELINE][1][-1]} if name + _BASELINE in heldout else {}
        words = name.replace("_", " ")
        if len(steps) > 1:
            sections.append(Curves(f"Held-out {words}", "step", words, {"this run": (steps, values)}, marks))
        else:
            once.append((words, values[-1], *(marks.values() or ("",))))
    if once:
        sections.append(Table("Held-out figures", ("metric", "value", "baseline"), once))
    return sections


def data_table(paths: Sequence[Path]) -> Table:
    """Names, sizes and SHA-256 of the files a run has learnt from; what is not a file is passed over."""
    files = [path for path in paths if path.is_file()]
    rows = [(str(path), f"{path.stat().st_size:,}", sha256(path)) for path in files]
    return Table("Data", ("file", "bytes", "SHA-256"), rows)


def _columns(records: Sequence[Mapping[str, Any]], group: str) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> (steps, values) of every figure in the mapping `group` of the records that have it."""
    inner = [{"step": record["step"], **record[group]} for record in records if isinstance(record.get(group), Mapping)]
    names = dict.fromkeys(name for record in inner for name in record if name != "step")
    return {name: column for name in names if (column := _column(inner, name))[0]}


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one figure; a record in which it is missing or null (not finite) is left out."""
    found = [record for record in records if record.get(name) is not None]
    return [float(record["step"]) for record in found], [float(record[name]) for record in found]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _section(section: Section, index: int) -> str:
    match section:
        case Curves():
            kind, body = "half", _curves(section, index)
        case Table():
            kind, body = "wide", _table(section)
        case Matrix():
            kind, body = "wide", _matrix(section)
        case Bars():
            kind, body = "wide", _bars(section)
        case Text():
            kind, body = "wide", "".join(f"<p>{_escape(paragraph)}</p>" for paragraph in section.paragraphs)
        case _:
            assert_never(section)
    return f'<section class="{kind}"><h2>{_escape(section.title)}</h2>{body}</section>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{_escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{_note(table.note)}'


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number">{_number(value)}</td>'
    return f"<td>{_escape(str(value))}</td>"


def _matrix(matrix: Matrix) -> str:
    head = "".join(
        f'<th class="turned" title="{_escape(label)}"><span>{_escape(label)}</span></th>' for label in matrix.labels
    )
    rows = []
    for label, counts in zip(matrix.labels, matrix.counts, strict=True):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="number" style="background:rgba(47,126,216,{0.75 * count / total:.2f})">{count or ""}</td>'
            for count in counts
        )
        rows.append(f"<tr><th>{_escape(label)}</th>{cells}</tr>")
    note = _note(" ".join(filter(None, ("Rows: what it is. Columns: what was predicted.", matrix.note))))
    return f'<div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>{note}'


def _bars(bars: Bars) -> str:
    values = [value for group in bars.groups.values() for value in group.values() if math.isfinite(value)]
    maximum = bars.maximum or max([value for value in values if value > 0], default=1.0)
    names = list(dict.fromkeys(name for group in bars.groups.values() for name in group))
    colours = {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}
    parts = []
    for group, members in bars.groups.items():
        parts.append(f"<h3>{_escape(group)}</h3>")
        for name, value in members.items():
            width = min(100.0, max(0.0, 100 * value / maximum)) if math.isfinite(value) else 0.0
            parts.append(
                f'<div class="bar"><span>{_escape(name)}</span><i><u style="width:{width:.2f}%;'
                f'background:{colours[name]}"></u></i><b>{_number(value)}{_escape(bars.unit)}</b></div>'
            )
    return "".join(parts) + _note(bars.note)


def _curves(curves: Curves, index: int) -> str:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"section-{index}", "font.size": 11}):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        # The page's own background shows through.
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        for number, (x, y) in enumerate(curves.series.values()):
            shown_x, shown_y = _thinned(x), _thinned(y)
            marker = "o" if len(shown_x) < 30 else None
            colour = _PALETTE[number % len(_PALETTE)]
            axes.plot(shown_x, shown_y, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        for value in curves.baselines.values():
            axes.axhline(value, color=_INK, linestyle=(0, (4, 3)), linewidth=1.2)
        if curves.from_zero:
            axes.set_ylim(bottom=0)
        axes.grid(color=_INK, alpha=0.12)
        axes.tick_params(colors=_INK, length=0)
        if all(float(one).is_integer() for x, _ in curves.series.values() for one in x):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _number(float(value))))
        for spine in axes.spines.values():
            spine.set_visible(False)
        picture = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(picture, format="svg", metadata=nothing)
    drawing = picture.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    # Several pictures share one page: their ids must not meet.
    drawing = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>s{index}-", drawing)
    label = _escape(f"{curves.title}: {curves.y_label} by {curves.x_label}")
    return f'<figure role="img" aria-label="{label}">{_legend(curves)}{drawing}</figure>'


def _legend(curves: Curves) -> str:
    """Names, colours and closing values: in HTML, so that any script and any reader can see them."""
    items = []
    for number, (name, (_, y)) in enumerate(curves.series.items()):
        closing = f" {_number(y[-1])}" if len(y) else ""
        items.append(
            f'<span><i style="background:{_PALETTE[number % len(_PALETTE)]}"></i>{_escape(name)}{closing}</span>'
        )
    items += [f'<span><i class="dash"></i>{_escape(name)} {_number(y)}</span>' for name, y in curves.baselines.items()]
    return f"<figcaption>{''.join(items)}<em>{_escape(curves.y_label)} by {_escape(curves.x_label)}</em></figcaption>"


def _thinned(values: Sequence[float]) -> np.ndarray:
    """float64 [min(n, 400)]: means of neighbouring values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= _CURVE_POINTS:
        return array
    return np.array([part.mean() for part in np.array_split(array, _CURVE_POINTS)])


def _number(value: float) -> str:
    """At most four significant digits, thousands separated; integers whole.

    >>> _number(1234567), _number(0.123456), _number(2e-05)
    ('1,234,567', '0.1235', '2e-05')
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _note(text: str) -> str:
    return f'<p class="note">{_escape(text)}</p>' if text else ""


def _escape(text: str) -> str:
    """Safe as element text and as an attribute value."""
    return html.escape(text, quote=True)
