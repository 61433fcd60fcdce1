"""The documentation installed with Python, as English text: no download, nothing imported, nothing run.

Two sources, both parsed with `ast` only:

- the language topics behind `help("assert")` and the like, in the standard library's `pydoc_data`;
- docstrings of modules, and of their public classes, methods and functions, in the standard library
  and in every package of site-packages. pip and setuptools are left out, and so are tests and copies
  of other libraries.

A library is read in the order of its modules' hashes and left after `library_bytes` of docstrings, so
that a large one gives a fair sample of its parts, does not drown the others, and need not be parsed
whole. The same installed files always give the same documentation.
"""

import ast
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertsmith.text.sentences import replace_surrogates

PYTHON = "python"

# Bytes of docstrings after which a library is left. The language topics do not count.
LIBRARY_BYTES = 1_000_000

_NOT_LIBRARIES = frozenset({"bertsmith", "pip", "pkg_resources", "setuptools", "_distutils_hack"})
_NOT_DOCUMENTATION = frozenset(
    # Tests, copies of other libraries, and programs that live in the standard library.
    {"test", "tests", "testing", "idle_test", "_vendor", "vendor", "vendored", "_vendored", "extern", "externals"}
    | {"third_party", "node_modules", "site-packages", "dist-packages", "ensurepip", "idlelib", "lib2to3"}
    | {"pydoc_data", "turtledemo", "__pycache__"}
)

_MODULE_CHARACTERS = 200  # A module with less documentation is no document.
_QUOTED_SHARE = 0.2  # A file with less text in triple quotes is not worth the time to parse it.
_TRIPLE_QUOTES = re.compile(rb'"""|\'\'\'')


@dataclass(frozen=True)
class PythonDoc:
    """One docstring, without its indentation, or one language topic.

    `library` is the top-level package ("python" for the standard library and the topics), `module`
    the dotted name, `name` the name within the module ("Class.method"; empty for the module itself).
    """

    library: str
    module: str
    name: str
    docstring: str


def iter_docstrings(
    *,
    stdlib: Path | None = None,
    site_packages: Sequence[Path] | None = None,
    library_bytes: int = LIBRARY_BYTES,
) -> Iterator[PythonDoc]:
    """Stream all documentation, the docstrings of a module one after the other, in source order.

    A docstring that occurs again, anywhere, is left out, and so is a module with fewer than 200
    characters of docstrings. Files that cannot be parsed are passed over.

    Args:
        stdlib, site_packages: by default those of the running Python.
        library_bytes: UTF-8 bytes of docstrings after which a library is left; the module that
            passes the mark is still given whole.
    """
    root = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    if site_packages is None:
        site_packages = [Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))]

    seen: set[bytes] = set()
    yield from _topics(root / "pydoc_data" / "topics.py", seen)
    yield from _library(PYTHON, _modules(root, ""), library_bytes, seen)
    packages = {library: folder for folder in site_packages for library in _libraries(folder)}
    for library, folder in sorted(packages.items()):
        yield from _library(library, _modules(folder, library), library_bytes, seen)


def _topics(path: Path, seen: set[bytes]) -> Iterator[PythonDoc]:
    """The language reference by topic; nothing where Python was installed without it."""
    tree = _parse(path, quoted_share=0.0)
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in sorted(ast.literal_eval(statement.value).items()):
                docstring = replace_surrogates(text).strip()
                if _digest(docstring) not in seen:
                    seen.add(_digest(docstring))
                    yield PythonDoc(PYTHON, f"pydoc_data.topics.{topic}", topic, docstring)


def _libraries(folder: Path) -> Iterator[str]:
    """Names of the top-level packages and modules of a site-packages folder."""
    try:
        entries = sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        name = entry.removesuffix(".py")
        if name.isidentifier() and name not in _NOT_LIBRARIES | _NOT_DOCUMENTATION:
            yield name


def _modules(folder: Path, library: str) -> list[tuple[str, Path]]:
    """(dotted name, file) of the modules of a library, or of all in `folder`, in the order of hashes."""
    modules = []
    if library and (folder / f"{library}.py").is_file():
        modules.append((library, folder / f"{library}.py"))
    for place, folders, files in os.walk(folder / library):
        folders[:] = [name for name in folders if name.isidentifier() and name not in _NOT_DOCUMENTATION]
        for file in files:
            stem = file.removesuffix(".py")
            is_test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
            if stem != file and stem.isidentifier() and not is_test:
                path = Path(place, file)
                parts = path.relative_to(folder).with_suffix("").parts
                modules.append((".".join(parts[:-1] if stem == "__init__" and len(parts) > 1 else parts), path))
    return sorted(modules, key=lambda found: (_digest(found[0]), found[1]))


def _library(
    library: str, modules: Sequence[tuple[str, Path]], library_bytes: int, seen: set[bytes]
) -> Iterator[PythonDoc]:
    """Documentation of a library until there is enough. `seen` holds hashes of docstrings and grows."""
    size_bytes = 0
    for module, path in modules:
        if size_bytes >= library_bytes:
            return
        tree = _parse(path, _QUOTED_SHARE)
        new: dict[bytes, PythonDoc] = {}
        for name, docstring in _docstrings(tree, "") if tree else ():
            digest = _digest(docstring)
            if digest not in seen:
                new.setdefault(digest, PythonDoc(library, module, name, docstring))
        if sum(len(doc.docstring) for doc in new.values()) >= _MODULE_CHARACTERS:
            seen.update(new)
            size_bytes += sum(len(doc.docstring.encode()) for doc in new.values())
            yield from new.values()


def _parse(path: Path, quoted_share: float) -> ast.Module | None:
    """The syntax tree; None where there is none, or less than this share of text in triple quotes."""
    try:
        source = path.read_bytes()
        quoted = sum(map(len, _TRIPLE_QUOTES.split(source)[1::2]))
        if quoted < quoted_share * len(source):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Invalid escapes in code of others.
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _docstrings(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module or class and what is public in it, in source order."""
    own = _docstring(node)
    if own:
        yield prefix.removesuffix("."), own
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = prefix + statement.name
            if statement.name.startswith("_"):
                continue
            if isinstance(statement, ast.ClassDef):
                yield from _docstrings(statement, f"{name}.")
            elif docstring := _docstring(statement):
                yield name, docstring


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return replace_surrogates(inspect.cleandoc(ast.get_docstring(node, clean=False) or "")).strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
