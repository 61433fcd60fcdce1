"""The page "Add a family" does what it says: its Python runs as it stands, and its row holds for every architecture."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from bertsmith.errors import ModelError
from bertsmith.model import families
from bertsmith.model.families.family import Family
from bertsmith.tasks import objectives

pytestmark = pytest.mark.conformance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-family.md"
VALUES = {
    "vocab_size": 60,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The row of the page, entered where the page enters it."""
    defined: dict[str, Any] = {}
    exec(blocks("python")[0], defined)
    made: Family = defined["MEGATRON_BERT"]
    assert made.model_type not in families.FAMILIES, "we have it now: choose another family for the page"
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, made.model_type: made})
    return made


@pytest.mark.usefixtures("row")
def test_the_check_of_the_page_passes() -> None:
    _, check = blocks("python")
    exec(check, {})


@pytest.mark.parametrize("mistake", ["is_pre_norm=False", "has_embedding_norm=True"])
def test_the_check_of_the_page_finds_a_wrong_row(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    definition, check = blocks("python")
    name, _, _ = mistake.partition("=")
    wrong = re.sub(rf"{name}=\w+", mistake, definition)
    assert wrong != definition
    defined: dict[str, Any] = {}
    exec(wrong, defined)
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, "megatron-bert": defined["MEGATRON_BERT"]})
    with pytest.raises((AssertionError, ModelError)):
        exec(check, {})


def test_every_architecture_of_the_row_is_the_same_there(row: Family, tmp_path: Path) -> None:
    compare = runpy.run_path(str(Path(__file__).with_name("test_families.py")))
    for architecture in row.heads:
        for direction in ("their_folder_gives_their_logits_here", "our_folder_gives_our_logits_there"):
            folder = tmp_path / architecture / direction
            compare[f"test_{direction}"](row.model_type, architecture, VALUES, folder)


def test_the_objectives_of_the_page_have_heads(row: Family) -> None:
    shown = re.search(r'\+\s+"megatron-bert": \((.*)\),\n', blocks("diff")[0])
    assert shown
    for objective in re.findall(r'"(.*?)"', shown.group(1)):
        assert row.architecture(objectives.architecture_kind(objective))
