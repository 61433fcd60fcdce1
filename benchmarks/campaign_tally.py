"""What a campaign did and what of it failed, added up over calls. For kill_campaign.py."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Tally:
    """What was done and what of it failed, a row of the table."""

    done: int = 0
    failures: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)  # "7 of 51": the seventh call of a save that has 51
    longest_seconds: float = 0.0  # from the kill of a rank to the end of the last other

    def check(self, is_right: bool, what: str) -> None:
        """Note a failure."""
        if not is_right:
            self.failures.append(what)
            print(f"FAILED: {what}", flush=True)

    def count(self, name: str) -> None:
        """One more of these."""
        self.counts[name] = self.counts.get(name, 0) + 1


def report(out: Path, arguments: Mapping[str, Any], rows: Mapping[str, Tally]) -> int:
    """Add this call to those before it; print and write the sums. Gives the exit code."""
    path = out / "kill_campaign.json"
    calls = json.loads(path.read_text()) if path.exists() else []
    calls.append(
        {
            "arguments": arguments,
            "rows": {name: vars(tally) for name, tally in rows.items()},
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        }
    )
    path.write_text(json.dumps(calls, indent=1) + "\n")
    sums: dict[str, Tally] = {}
    for name, row in ((name, row) for call in calls for name, row in call["rows"].items()):
        total = sums.setdefault(name, Tally())
        total.done += row["done"]
        total.failures += row["failures"]
        total.places += row["places"]
        total.longest_seconds = max(total.longest_seconds, row.get("longest_seconds", 0.0))
        for count, times in row["counts"].items():
            total.counts[count] = total.counts.get(count, 0) + times
    lines = ["| what | times | failed | of them |", "|---|---:|---:|---|"]
    for name, total in sorted(sums.items()):
        parts = ", ".join(f"{times} {count}" for count, times in sorted(total.counts.items()))
        if total.places:
            parts += f"; {len(set(total.places))} different calls of {total.places[0].rpartition(' ')[2]}"
        if total.longest_seconds:
            parts += f"; the others ended within {total.longest_seconds:.2f} s"
        lines.append(f"| {name} | {total.done} | {len(total.failures)} | {parts} |")
    (out / "kill_campaign.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if any(tally.failures for tally in rows.values()) else 0
