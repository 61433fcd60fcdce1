"""One kind of trouble in labelled data: how much of it, and where it is."""

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN_PLACES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of trouble in one split: how many rows have it, and the first places."""

    split: str
    kind: str
    count: int
    message: str
    places: tuple[str, ...]


def finding(kind: str, message: str, places: Sequence[str]) -> list[Finding]:
    """The finding, if there is a place; its split is filled in by who knows it."""
    return [Finding("", kind, len(places), message, tuple(places[:_SHOWN_PLACES]))] if places else []


def share(part: int, whole: int) -> str:
    """How many rows of how many."""
    return f"{part:,} of {whole:,} rows ({part / whole:.1%})"
