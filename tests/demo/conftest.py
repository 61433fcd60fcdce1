"""A small piece of the installed documentation, so that the demo's tests take seconds."""

import importlib.util
from pathlib import Path

import pytest

from bertsmith.text.python_docs import PythonDoc, iter_docstrings

LIBRARIES = ("networkx", "pandas", "sklearn")


@pytest.fixture(scope="session")
def some_docs(tmp_path_factory: pytest.TempPathFactory) -> list[PythonDoc]:
    """About 150 KB of docstrings of each of three libraries."""
    site_packages = tmp_path_factory.mktemp("site-packages")
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        (site_packages / name).symlink_to(Path(spec.origin).parent)
    return list(iter_docstrings(stdlib=site_packages, site_packages=[site_packages], library_bytes=150_000))
