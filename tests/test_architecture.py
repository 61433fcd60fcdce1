"""The rules of the house, read off the syntax trees: direction of imports, sizes, what is not done here.

Where a rule stands in the way, change the rule here, in the open, with a line that says why.
"""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "bertsmith"
MODULES = {
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

# Imports only ever point up this list; modules of one line may import each other, but never in a circle.
ROOMS = (
    ("errors", "files", "settings", "randomness", "hub", "screen", "locks", "limits"),
    ("text",),
    ("model",),
    ("training",),
    ("tasks",),
    ("deploy",),
    ("demo",),
    ("cli", "__main__"),
)
RANKS = {name: rank for rank, names in enumerate(ROOMS) for name in names}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
LONGER_FILES: dict[str, int] = {}
LONGER_FUNCTIONS: dict[str, int] = {}
LOCAL_IMPORTS: set[tuple[str, str]] = {
    ("bertsmith.text.languages", "py3langid"),
    ("bertsmith.text.daft_engine", "daft"),
    ("bertsmith.text.daft_engine", "ray"),
    ("bertsmith.text.words", "jieba"),
    ("bertsmith.tasks.search", "optuna"),
    ("bertsmith.tasks.benchmark_peer", "transformers"),
    *(
        (f"bertsmith.tasks.{name}", "sklearn")
        for name in ("choose", "classify_targets", "embed", "replaced_tokens", "tag")
    ),
    *((f"bertsmith.tasks.{name}", "scipy") for name in ("classify_targets", "embed")),
    *(("bertsmith.training.report", name) for name in ("matplotlib", "matplotlib.figure", "matplotlib.ticker")),
    ("bertsmith.text.sources", "datasets"),
    ("bertsmith.training.loop", "bertsmith.training.sharding"),
    ("bertsmith.model.encoder", "torch._functorch"),
}
"""(module, imported module): optional extras, and what takes long to import and is not always needed. Nothing is built
on `transformers`; the benchmark races it."""
BROAD_EXCEPT = {"bertsmith.text.tokenizer", "bertsmith.text.daft_engine", "bertsmith.tasks.jobs"}
"""Modules that may catch Exception. The tokenizers library raises nothing more precise for bad files; what a shard ends
with on another machine has to come back as text, and for a lost worker Daft and Ray raise dozens of things; what ends a
run in a process of its own is raised again in the one that started it."""

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "transformers"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "hasattr", "print"}
PRINTING = "bertsmith.cli"
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
IMPORT_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}
UNDECLARED = {"pyarrow": "datasets", "scipy": "scikit-learn"}
"""Imported here, and a hard dependency of something that is declared."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with the module it names; type-only imports count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node, full if full in MODULES else str(node.module)


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition | ast.ClassDef]]:
    """Every class and function with its dotted name inside the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition | ast.ClassDef):
            yield f"{prefix}{node.name}", node
            yield from definitions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from definitions(node, prefix)


def is_public(name: str) -> bool:
    """Whether no part of a dotted name is private; dunder methods count as public."""
    return all(not part.startswith("_") or part.endswith("__") for part in name.split("."))


def nested_in_functions(tree: ast.AST) -> set[ast.AST]:
    """The definitions that stand inside a function: nobody's interface."""
    functions = [outer for _, outer in definitions(tree) if isinstance(outer, Definition)]
    return {inner for outer in functions for _, inner in definitions(outer)}


def internal_imports(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    return {target for _, target in imports(TREES[name]) if target.split(".")[0] == "bertsmith"}


def room(name: str) -> str:
    """errors, text, model, ...: the first part of a module's name below the package."""
    return name.split(".")[1]


def places(broken: list[str]) -> str:
    """One broken place a line, for the failure message."""
    return "\n" + "\n".join(broken)


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in MODULES if "." in name} <= set(RANKS), "a new room needs a place in ROOMS"


def test_imports_point_one_way() -> None:
    broken = [
        f"{name} imports {target}"
        for name in MODULES
        if "." in name
        for target in sorted(internal_imports(name))
        if "." in target and RANKS[room(target)] > RANKS[room(name)]
    ]
    assert not broken, places(broken)


def test_no_circle_of_imports() -> None:
    # The package's own __init__ names what it exports for type checkers and imports it only when used.
    graph = {name: internal_imports(name) - {"bertsmith"} for name in MODULES if name != "bertsmith"}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_stand_at_the_top() -> None:
    broken = [
        f"{name}.{function} imports {target}"
        for name, tree in TREES.items()
        for function, node in definitions(tree)
        if isinstance(node, Definition)
        for _, target in imports(node)
        if (name, target) not in LOCAL_IMPORTS
    ]
    assert not broken, places(broken)


def test_text_never_waits_for_torch() -> None:
    text = [name for name in MODULES if name.startswith("bertsmith.text")] + ["bertsmith.cli.text_verbs"]
    program = (
        "import importlib, sys\n"
        f"for name in {text!r}: importlib.import_module(name)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "torch was imported"


def test_what_takes_long_to_import_waits_until_it_is_used() -> None:
    """Beside torch itself a second or more, which `predict`, `check` and every `--help` of a task would wait for."""
    program = (
        "import sys, bertsmith.tasks.finetune, bertsmith.deploy.predict, bertsmith.tasks.data_check\n"
        "slow = {'sklearn', 'scipy', 'datasets', 'pandas', 'matplotlib', 'torch._dynamo', 'torch.distributed.fsdp'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[<>=!~\[; ]", line)[0].lower() for line in project["dependencies"]]
    declared = {IMPORT_NAMES.get(name, name) for name in names} | set(UNDECLARED)
    assert set(UNDECLARED.values()) <= set(names)
    # What is imported where it is used may be an extra.
    extras = {line.split(">")[0] for lines in project["optional-dependencies"].values() for line in lines}
    declared |= {target for _, target in LOCAL_IMPORTS} & extras
    used = {target.split(".")[0] for tree in TREES.values() for _, target in imports(tree)}
    assert used - set(sys.stdlib_module_names) - {"bertsmith"} <= declared


def test_files_and_functions_are_short() -> None:
    broken = []
    for name, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGER_FILES.get(name, MAX_FILE_LINES):
            broken.append(f"{name}: {lines} lines")
        for function, node in definitions(TREES[name]):
            if isinstance(node, Definition):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGER_FUNCTIONS.get(f"{name}.{function}", MAX_FUNCTION_LINES):
                    broken.append(f"{name}.{function}: {length} lines")
    assert not broken, places(broken)


def test_everything_public_says_what_it_is() -> None:
    broken = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    for name, tree in TREES.items():
        nested = nested_in_functions(tree)
        for member, node in definitions(tree):
            # What a dunder method does is fixed by the language.
            is_exempt = "__" in member or node in nested
            if is_public(member) and not is_exempt and not ast.get_docstring(node):
                broken.append(f"{name}.{member}")
    assert not broken, places(broken)


def test_public_functions_name_all_their_arguments() -> None:
    broken = [
        f"{name}.{function}(**{node.args.kwarg.arg})"
        for name, tree in TREES.items()
        for function, node in definitions(tree)
        if isinstance(node, Definition) and node.args.kwarg and is_public(function)
        if node not in nested_in_functions(tree)
    ]
    assert not broken, places(broken)


def test_nothing_swallows_all_errors() -> None:
    broken = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and name not in BROAD_EXCEPT:
                caught = ast.unparse(node.type) if node.type else "everything"
                raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if re.search(r"\b(Exception|BaseException|everything)\b", caught) and not raises_again:
                    broken.append(f"{name}:{node.lineno} catches {caught}")
    assert not broken, places(broken)


def test_what_is_not_done_here() -> None:
    broken = []
    for name, tree in TREES.items():
        for node, target in imports(tree):
            if target.split(".")[0] in FORBIDDEN_IMPORTS and (name, target) not in LOCAL_IMPORTS:
                broken.append(f"{name}:{node.lineno} imports {target}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                if node.func.id != "print" or not name.startswith(PRINTING):
                    broken.append(f"{name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in FORBIDDEN_ATTRIBUTES:
                    broken.append(f"{name}:{node.lineno} uses {node.value.id}.{node.attr}")
    assert not broken, places(broken)


def test_numpy_files_are_read_without_pickle() -> None:
    broken = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load"
        if not any(word.arg == "allow_pickle" and ast.unparse(word.value) == "False" for word in node.keywords)
    ]
    assert not broken, places(broken)


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    broken = [
        f"{name}:{number}"
        for name, path in MODULES.items()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        if words.search(line)
    ]
    assert not broken, places(broken)


def test_tests_mirror_the_package() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= rooms | {"conformance", "faults", "golden"}
