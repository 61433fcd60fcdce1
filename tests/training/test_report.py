"""The report: well-formed, self-contained, escaped, and true to its numbers."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from bertsmith.training.environment import environment
from bertsmith.training.progress import Reporter
from bertsmith.training.report import (
    Bars,
    Curves,
    Matrix,
    Section,
    Table,
    Text,
    data_table,
    training_sections,
    write_report,
)

_VOID = {"meta", "br", "hr", "img", "input", "link"}
_NASTY = "<script>alert('演示 & \"x\"')</script>"


class _Page(HTMLParser):
    """Checks that tags nest, and collects text, ids and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "data", "action"}:
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def _sections() -> list[Section]:
    return [
        Table(_NASTY, ["a", _NASTY], [[_NASTY, 0.123456], ["b", 1234567]], note=_NASTY),
        Curves(_NASTY, _NASTY, _NASTY, {_NASTY: ([1, 2, 3], [3.0, float("nan"), 1.0])}, {_NASTY: 2.5}),
        Curves("second", "x", "y", {"one": ([1], [3.0]), "none": ([], [])}, from_zero=True),
        Matrix(_NASTY, ["正", _NASTY], [[3, 1], [0, 0]]),
        Text(_NASTY, [_NASTY]),
        Bars(_NASTY, {_NASTY: {_NASTY: 50.0, "worse": float("nan"), "less": -3.0}}, _NASTY, 100.0, _NASTY),
    ]


def test_page_is_self_contained_and_escapes_every_text(tmp_path: Path) -> None:
    path = write_report(tmp_path, _NASTY, _sections(), config={"a": {_NASTY: _NASTY}}, facts={_NASTY: _NASTY})
    page = _read(path)
    assert path == tmp_path / "report.html"
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", path.read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    # Title, h1, fact, fact's name, and one at least for each section and the settings.
    assert sum(_NASTY in text for text in page.texts) >= 4 + 6 + 1
    assert {"0.1235", "1,234,567", f"a.{_NASTY}"} <= set(page.texts)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_curve_goes_through_its_points(tmp_path: Path) -> None:
    """The polyline's pixels are an affine image of the data, in both directions."""
    x, y = [0.0, 10.0, 20.0, 40.0], [4.0, 1.0, 3.0, 2.0]
    path = write_report(tmp_path, "t", [Curves("c", "x", "y", {"s": (x, y)})], config={}, facts={})
    drawing = re.search(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), re.S)
    assert drawing is not None
    root = ElementTree.fromstring(drawing.group(0))
    strokes = [node.get("d", "") for node in root.iter() if "stroke: #2f7ed8" in (node.get("style") or "")]
    points = next(
        p for p in (np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", d), float) for d in strokes) if len(p) == 4
    )
    assert np.corrcoef(points[:, 0], x)[0, 1] == pytest.approx(1.0)
    assert np.corrcoef(points[:, 1], y)[0, 1] == pytest.approx(-1.0)


def test_long_curves_are_averaged_not_sampled(tmp_path: Path) -> None:
    noise = np.tile([0.0, 2.0], 40_000)
    path = write_report(
        tmp_path, "t", [Curves("c", "x", "y", {"s": (list(range(80_000)), noise.tolist())})], config={}, facts={}
    )
    assert path.stat().st_size < 60_000
    line = re.search(r'd="([^"]*)"[^>]*stroke: #2f7ed8', path.read_text(encoding="utf-8"))
    assert line is not None
    heights = {height for _, height in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.group(1))}
    assert len(heights) == 1


def test_matrix_tint_is_the_share_of_the_row(tmp_path: Path) -> None:
    path = write_report(tmp_path, "t", [Matrix("m", ["a", "b"], [[3, 1], [0, 0]])], config={}, facts={})
    tints = re.findall(r"rgba\(47,126,216,([\d.]+)\)", path.read_text(encoding="utf-8"))
    assert [float(tint) / 0.75 for tint in tints] == pytest.approx([0.75, 0.25, 0, 0], abs=0.01)


def test_bars_share_one_scale(tmp_path: Path) -> None:
    bars = Bars("b", {"g": {"x": 20.0, "y": 5.0}, "h": {"x": 40.0, "z": float("nan")}})
    text = write_report(tmp_path, "t", [bars], config={}, facts={}).read_text(encoding="utf-8")
    assert re.findall(r"width:([\d.]+)%;background", text) == ["50.00", "12.50", "100.00", "0.00"]


def test_training_sections_of_a_run(tmp_path: Path) -> None:
    with Reporter(tmp_path, console=Console(quiet=True)) as reporter:
        for step in range(1, 5):
            figures = {"loss": 10.0 - step, "losses": {"mlm": 9.0 - step, "nsp": 0.7}, "seconds": 1.0}
            reporter.train(step, step / 4, figures | {"learning_rate": 1e-3, "tokens_per_second": 5000.0})
            if step % 2 == 0:
                metrics = {"mlm_loss": 8.0 - step, "mlm_loss_baseline": 6.5}
                reporter.evaluation(step, metrics | ({"f1": 0.5, "f1_baseline": 0.25} if step == 4 else {}), 0.1, True)
        reporter.train(5, 1.0, {**figures, "loss": math.nan, "learning_rate": 0.0, "tokens_per_second": math.inf})
        reporter.write("end", 5, {"metrics": {"mlm_loss": 4.0, "f1": 0.5}})  # of the best weights, not of this step
    sections = training_sections(tmp_path / "metrics.jsonl")
    titles = ["Training loss", "Learning rate", "Speed", "Held-out mlm loss", "Held-out figures"]
    assert [section.title for section in sections] == titles
    loss, rate, speed, heldout, figure = sections
    assert isinstance(loss, Curves) and isinstance(heldout, Curves) and isinstance(figure, Table)
    assert isinstance(rate, Curves) and isinstance(speed, Curves)
    assert loss.series["mlm"] == ([1, 2, 3, 4, 5], [8, 7, 6, 5, 5])
    assert loss.series["all, weighted"] == ([1, 2, 3, 4], [9, 8, 7, 6])
    assert (rate.series["this run"][0], speed.series["this run"][0]) == ([1, 2, 3, 4, 5], [1, 2, 3, 4])
    assert heldout.series["this run"] == ([2, 4], [6, 4])
    assert heldout.baselines == {"baseline": 6.5}
    assert figure.rows == [("f1", 0.5, 0.25)]


def test_a_run_without_lines_has_no_sections(tmp_path: Path) -> None:
    assert training_sections(tmp_path / "metrics.jsonl") == []


def test_data_table_and_environment(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    table = data_table([tmp_path / "a.txt", tmp_path / "missing", tmp_path])
    # The value of FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert table.rows == [(str(tmp_path / "a.txt"), "3", digest)]
    facts = environment()
    assert float(facts["memory"].split()[0]) > float(facts["most memory used"].split()[0]) > 0
    assert int(facts["cores"].split()[0]) >= 1
