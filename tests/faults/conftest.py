"""The toy task of tests/training, for runs in which something goes wrong."""

import importlib.util
from pathlib import Path

# Neither folder is a package, so that its fixtures can only be had from the file.
_spec = importlib.util.spec_from_file_location("toy_task", Path(__file__).parents[1] / "training" / "conftest.py")
assert _spec is not None and _spec.loader is not None
toy_task = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy_task)
toy, seeded = toy_task.toy, toy_task.seeded
