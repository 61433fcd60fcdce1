"""The tables of docs/families.md are computed from the rows that they describe."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from bertsmith.model.encoder import Encoder
from bertsmith.model.families import FAMILIES
from bertsmith.model.sizes import named_size
from bertsmith.tasks.objectives import OBJECTIVES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
EVERY_FAMILY_HAS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is this: what stands in the first column -> the other cells."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^\| {heading} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.M)
    assert found, heading
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.group(1).splitlines()]
    return {row[0].strip(" `|"): row[1:] for row in rows}


def quoted(cell: str) -> tuple[str, ...]:
    """What stands in backticks."""
    return tuple(re.findall(r"`(.*?)`", cell))


def test_every_family_has_its_lines_and_learns_what_they_say() -> None:
    lines = table("family \\| what for")
    assert {name: quoted(f"{cells[-2]} {cells[-1]}") for name, cells in lines.items()} == dict(OBJECTIVES)
    assert list(lines) == list(table("family \\| tiny")) == list(FAMILIES)


@pytest.mark.parametrize("size", ["tiny", "mini", "base"])
def test_parameters_are_counted(size: str) -> None:
    column = ["tiny", "mini", "base"].index(size)
    with torch.device("meta"):
        counts = {
            name: sum(one.numel() for one in Encoder(named_size(size, 8192, model_type=name)).parameters())
            for name in FAMILIES
        }
    shown = {name: int(cells[column].replace(",", "")) for name, cells in table("family \\| tiny").items()}
    assert shown == counts


def test_classes_are_those_of_transformers() -> None:
    for name, cells in table("family \\| tiny").items():
        (prefix,), kinds = quoted(cells[3]), quoted(cells[4])
        assert {prefix + kind for kind in (*EVERY_FAMILY_HAS, *kinds)} == set(FAMILIES[name].heads)
        for architecture in FAMILIES[name].heads:
            assert getattr(transformers, architecture).config_class.model_type == name


def test_all_that_is_refused_is_listed() -> None:
    listed = {(name, quoted(cells[0])) for name, cells in table("field").items()}
    fixed = {
        (name, (json.dumps(value),)) for family in FAMILIES.values() for name, value in family.fixed_config.items()
    }
    assert listed == fixed
