"""The command line: its surface, its errors and exit codes, settings files, and what predict reads and writes.

`python tests/test_cli.py` writes the snapshot of the surface anew; its difference belongs into the review.
"""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cyclopts import App, Argument
from torch import nn

import bertsmith
from bertsmith.cli import main, model_verbs
from bertsmith.cli.app import build_app
from bertsmith.cli.config import SECTIONS
from bertsmith.deploy.predict import Placed, TableSettings, TaskPredictor
from bertsmith.errors import InputError, Interrupted
from bertsmith.model.encoder import Encoder
from bertsmith.model.sizes import named_size
from bertsmith.settings import save_yaml
from bertsmith.tasks.choice_data import ChoiceSettings
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_data import ClassificationSettings
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.rows import Tabular
from bertsmith.tasks.saved import save_task, task_kind
from bertsmith.text.tokenizer import load_tokenizer

SURFACE = Path(__file__).with_name("cli_surface.txt")

Value = str | Mapping[str, Any]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("predict", "model")` gives exit code, standard output and standard error."""

    def run_one(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_one


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[PretrainSettings]:
    """The settings that `bertsmith pretrain` was called with; nothing is trained."""
    calls: list[PretrainSettings] = []

    class Result:
        metrics: Mapping[str, float] = {}
        objective = "mlm"

    def record(settings: PretrainSettings) -> Result:
        calls.append(settings)
        return Result()

    monkeypatch.setattr(model_verbs, "pretrain_model", record)
    return calls


def options(verb: App) -> list[Argument]:
    """The options of a command as its users see them."""
    inherited = build_app().default_parameter
    found = verb.assemble_argument_collection(default_parameter=inherited, parse_docstring=True)
    return [argument for argument in found if argument.names and not argument.children]


def verbs(app: App, name: str = "") -> Iterator[tuple[str, App]]:
    """Every command of an app that does something, with its full name."""
    for key in app:
        if not key.startswith("-"):
            below = list(verbs(app[key], f"{name}{key} "))
            yield from below or [(f"{name}{key}", app[key])]


def surface() -> str:
    """Every command with its options and defaults, one a line."""
    lines = []
    for name, verb in verbs(build_app()):
        lines.append(name)
        for argument in options(verb):
            default = "required" if argument.required else repr(argument.field_info.default)
            lines.append(f"  {' '.join(argument.names)} {default}")
    return "\n".join(lines) + "\n"


def test_the_surface_is_as_reviewed() -> None:
    assert surface() == SURFACE.read_text(encoding="utf-8"), "run: python tests/test_cli.py, and review the difference"


def test_every_option_has_a_line_of_help() -> None:
    silent = [
        f"{name} {argument.names[0]}"
        for name, verb in verbs(build_app())
        for argument in options(verb)
        if not argument.parameter.help
    ]
    assert silent == []


def test_help_speaks_of_options_not_of_python() -> None:
    """What happens without an option is "by default", as no None can be given on a command line."""
    of_python = [
        f"{name} {argument.names[0]}"
        for name, verb in verbs(build_app())
        for argument in options(verb)
        if re.search(r"\bNone\b", str(argument.parameter.help))
    ]
    assert of_python == []


def test_sections_are_the_first_words_of_the_verbs() -> None:
    assert set(SECTIONS) == {name.split()[0] for name, _ in verbs(build_app())}


def test_help_waits_for_no_library() -> None:
    program = (
        "import sys\nfrom bertsmith.cli import main\n"
        "assert main(['--help']) == 0 and main(['finetune', '--help']) == 0 and main(['--version']) == 0\n"
        "slow = {'torch', 'numpy', 'tokenizers', 'datasets', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name.split()[0] in done.stdout for name, _ in verbs(build_app()))
    assert bertsmith.__version__ in done.stdout


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "bertsmith", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, bertsmith.__version__)


def test_exported_names_are_there_and_sorted() -> None:
    assert bertsmith.__all__ == sorted(bertsmith.__all__) == dir(bertsmith)
    for name in bertsmith.__all__:
        assert getattr(bertsmith, name).__name__ == name if name != "__version__" else bertsmith.__version__
    with pytest.raises(AttributeError, match="pretrian"):
        bertsmith.pretrian  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], 'Did you mean "pretrain"?'),
        (["corpus", "biuld"], 'Did you mean "build"?'),
        (["pretrain", "--corpus", "c", "--out", "o", "--learning-rat", "1"], "Did you mean --learning-rate?"),
        (["pretrain", "--corpus", "c"], 'Command "pretrain" needs --out.'),
        (["pretrain", "--corpos", "c", "--out", "o"], "needs --corpus. Did you mean --corpus instead of --corpos?"),
        (
            ["pretrain", "--budget", "-3 steps"],
            "One that begins with a dash is written behind an equals sign: --budget=-1.",
        ),
        (["pretrain", "--corpus", "c", "--out", "o", "--precision", "bf61"], 'Did you mean "bf16"?'),
        (["pretrain", "--corpus", "c", "--out", "o", "--seed", "x"], "--seed"),
        (["pretrain", "--corpus", "c"], "--out"),
        (["tokenizer", "train", "a.txt", "--out", "t", "--kind", "wordpeice"], 'Did you mean "wordpiece"?'),
        (["finetune", "tagging", "--model", "m", "--train", "t", "--out", "o", "--tag-colum", "1"], "--tag-column"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err and out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such column.", "a.csv:3"), 2, "error: a.csv:3: no such column."),
        (Interrupted("Saved. Go on with --resume."), 130, "Saved. Go on with --resume."),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_exit_codes(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str) -> None:
    def demo() -> None:
        raise error

    monkeypatch.setattr(model_verbs, "demo", demo)
    assert run("demo") == (code, "", message + "\n")


def test_faults_of_ours_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def demo() -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(model_verbs, "demo", demo)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("demo")


def test_long_messages_are_not_wrapped(run: Run, tmp_path: Path) -> None:
    path = tmp_path / ("long" * 40) / "config.yaml"
    code, _, err = run("pretrain", "--corpus", "c", "--out", "o", "--config", path)
    assert code == 2 and str(path) in err


def test_a_reader_that_leaves_is_no_error() -> None:
    program = (
        "import sys, types\n"
        "verbs = types.ModuleType('bertsmith.cli.model_verbs')\n"
        "def demo() -> None:\n"
        "    while True: print('x' * 1000, flush=True)\n"
        "verbs.demo = demo\n"
        "sys.modules['bertsmith.cli.model_verbs'] = verbs\n"
        "from bertsmith.cli import main\n"
        "sys.exit(main(['demo']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(), errors) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_in_one_line() -> None:
    program = (
        "import sys, types\n"
        "verbs = types.ModuleType('bertsmith.cli.model_verbs')\n"
        "verbs.demo = lambda: print('x')\n"
        "sys.modules['bertsmith.cli.model_verbs'] = verbs\n"
        "from bertsmith.cli import main\n"
        "sys.exit(main(['demo']))\n"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left. Free some space")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EFBIG, "files may not be as large here (a limit of the system or of ulimit)"),
        (errno.EIO, "the disk reported an error"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_what_else_a_disk_refuses_is_said_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def demo() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("bertsmith.cli.app._forget_output", lambda: None)
    monkeypatch.setattr(model_verbs, "demo", demo)
    advice = "Free some space where the output goes, or write elsewhere."
    assert run("demo") == (2, "", f"error: {message}. {advice}\n")


def test_flags_go_before_the_file(run: Run, pretrained: list[PretrainSettings], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 1e-4\nseed: 3\nresume: true\nlong_length: null\nfrom: models/a\nbudget: 10m\n")
    code, _, err = run("pretrain", "--corpus", "c", "--out", "o", "--seed", 7, "--config", config)
    assert code == 0, err
    (settings,) = pretrained
    assert (settings.seed, settings.learning_rate, settings.resume) == (7, 1e-4, True)
    assert (settings.long_length, settings.from_model, settings.budget) == (None, "models/a", "10m")


def test_a_section_a_verb(run: Run, pretrained: list[PretrainSettings], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[tokenizer]\nvocab_size = 100\n[pretrain]\nseed = 5\nfrom_model = 'm'\n")
    code, _, err = run("pretrain", "--corpus", "c", "--out", "o", "--config", config)
    assert code == 0, err
    assert (pretrained[0].seed, pretrained[0].from_model) == (5, "m")


def test_the_configuration_of_a_run_can_be_given_back(
    run: Run, pretrained: list[PretrainSettings], tmp_path: Path
) -> None:
    settings = PretrainSettings(
        corpus=Path("store"), out=Path("out"), from_model="m", long_length=256, learning_rate=1e-5
    )
    save_yaml(tmp_path / "config.yaml", settings)
    code, _, err = run("pretrain", "--config", tmp_path / "config.yaml")
    assert code == 0, err
    assert pretrained == [settings]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("mlm+nsp", 'predict o "Text'),
        ("rtd", 'predict o/generator "Text'),
        ("clm", "finetune classification --model o"),
    ],
)
def test_what_to_try_next_can_be_done(run: Run, monkeypatch: pytest.MonkeyPatch, objective: str, said: str) -> None:
    result = SimpleNamespace(metrics={}, objective=objective)
    monkeypatch.setattr(model_verbs, "pretrain_model", lambda settings: result)
    assert f"Try: bertsmith {said}" in run("pretrain", "--corpus", "c", "--out", "o")[1]


@pytest.mark.parametrize("value", ["2.5", ".5", "-0.1"])
def test_whole_numbers_are_not_rounded(
    run: Run, pretrained: list[PretrainSettings], tmp_path: Path, value: str
) -> None:
    given = ("pretrain", "--corpus", "c", "--out", "o")
    for flag in ("--batch-size", "--micro-batch-size"):
        code, _, err = run(*given, flag, value)
        assert code == 2 and f"{flag.removeprefix('--')}: a whole number wanted, not {value}" in err
    (tmp_path / "c.yaml").write_text(f"batch_size: {value}\n")
    code, _, err = run(*given, "--config", tmp_path / "c.yaml")
    assert code == 2 and "batch-size: a whole number wanted" in err
    assert run(*given, "--batch-size", "8.0", "--warmup-share", "0.5")[0] == 0
    assert pretrained[0].batch_size == 8


def test_paths_may_begin_with_the_home_folder(
    run: Run, pretrained: list[PretrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("out: ~/run\n", encoding="utf-8")
    code, _, err = run("pretrain", "--corpus", "~/store", "--config", "~/c.yaml")
    assert code == 0, err
    assert (pretrained[0].corpus, pretrained[0].out) == (tmp_path / "store", tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sede: 3\n", 'c.yaml: unknown key "sede". Did you mean "seed"?'),
        ("pretrain:\n  sede: 3\n", 'c.yaml, pretrain: unknown key "sede". Did you mean "seed"?'),
        ("pretrain:\n  seed: x\n", "Invalid value for [seed] from "),
        ("pretrain:\n  precision: bf61\n", 'Did you mean "bf16"?'),
        ("pretain:\n  seed: 3\n", 'unknown section "pretain". Did you mean "pretrain"?'),
        ("pretrain: {}\ntokeniser: {}\n", 'unknown section "tokeniser". Did you mean "tokenizer"?'),
        ("tokenizer:\n  vocab_size: 3\n", 'there is no section "pretrain". Choices: tokenizer.'),
        ("pretrain: 3\n", 'unknown key "pretrain"'),
        ("pretrain: {}\ncorpus: 3\n", "a section holds keys and values"),
        ("trainer:\n  seed: 3\nseed: 4\n", 'unknown key "trainer.seed"'),
    ],
)
def test_wrong_keys_are_answered_with_the_right_ones(run: Run, tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content)
    code, _, err = run("pretrain", "--corpus", "c", "--out", "o", "--config", config)
    assert code == 2
    assert message in err


class Echo:
    """A predictor that answers with what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.read_ahead = 0
        self.overrides: Mapping[str, Any] = {}
        self.tables: Tabular = TableSettings()

    def predict(self, rows: Iterable[Value | Placed], *, read_ahead: int = 256) -> Iterator[dict[str, Any]]:
        """One answer a row."""
        self.read_ahead = read_ahead
        for row in rows:
            value, where = (row.value, row.where) if isinstance(row, Placed) else (row, "row")
            if value == "bad":
                raise InputError("cannot be read.", where)
            yield {"asked": value}


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """What `bertsmith predict` loads, whatever the model."""
    predictor = Echo()

    def load(folder: str, *, device: str, precision: str, top_k: int, overrides: Mapping[str, Any]) -> Echo:
        predictor.overrides = overrides
        return predictor

    monkeypatch.setattr(model_verbs, "load", load)
    return predictor


def asked(output: str) -> list[Value]:
    """What an echo was asked."""
    return [json.loads(line)["asked"] for line in output.split("\n") if line]


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        (["A text, 中文."], "A text, 中文."),
        (["A", "--pair", "B"], {"text": "A", "pair": "B"}),
        (["Text.", "--question", "Q?"], {"question": "Q?", "context": "Text."}),
        (['{"a": 1}'], {"a": 1}),
        (["{a: 1}"], "{a: 1}"),
    ],
)
def test_predict_a_line(
    echo: Echo, capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str], row: Value
) -> None:
    assert main(["predict", "model", *arguments]) == 0
    assert asked(capfdbinary.readouterr().out.decode()) == [row]


def test_predict_standard_input(
    echo: Echo, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    give(monkeypatch, '\ufeffone\r\n  {"text": "two\\ud800"}\n{not json}\n[3]\n\n{"a":' + "[" * 100_000 + "\nlast")
    assert main(["predict", "model"]) == 0
    first, row, *others, deep, last = asked(capfdbinary.readouterr().out.decode())
    assert (first, row) == ("one", {"text": "two\ufffd"})
    assert others == ["{not json}", "[3]", ""] and len(deep) > 100_000 and last == "last"
    assert echo.read_ahead > 1


def give(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Standard input, in a locale that is not UTF-8."""
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


def test_predict_standard_input_that_is_not_utf8(run: Run, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, "one\ncafé\n".encode("latin-1"))
    code, _, err = run("predict", "model")
    assert code == 2 and "standard input:2: byte 0xe9 at place 4 of the line is not UTF-8" in err


def test_predict_a_command_line_that_is_not_utf8(echo: Echo, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["predict", "model", "caf\udce9", "--pair", "\udce9"]) == 0
    assert asked(capfdbinary.readouterr().out.decode()) == [{"text": "caf\ufffd", "pair": "\ufffd"}]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", "one\r\ntwo\u2028still two\n", ["one", "two\u2028still two"]),
        ("a.csv", 'text,label\n"a, b",1\n', [{"text": "a, b", "label": "1"}]),
        ("a.jsonl", '{"words": ["a", "b"]}\n', [{"words": ["a", "b"]}]),
    ],
)
def test_predict_a_file_to_a_file(run: Run, echo: Echo, tmp_path: Path, name: str, content: str, rows: Any) -> None:
    (tmp_path / name).write_bytes(content.encode())
    code, out, err = run("predict", "model", "--file", tmp_path / name, "--out", tmp_path / "out" / "answers.jsonl")
    assert (code, out) == (0, ""), err
    assert asked((tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8")) == rows


@pytest.fixture
def classifier(tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> TaskPredictor:
    """What `bertsmith predict` loads: it reads rows as a classifier does, and answers with their texts."""
    settings = ClassificationSettings(
        text_column="text", label_column="label", columns="label, text", delimiter=";", quoting=False
    )
    task = Classification(load_tokenizer(tiny_tokenizer), ("a", "b"), settings, {})
    predictor = TaskPredictor(task, nn.Identity(), torch.device("cpu"), "fp32")
    monkeypatch.setattr(model_verbs, "load", lambda *_, **__: predictor)
    monkeypatch.setattr(predictor, "_answer", lambda examples: [{"asked": one.row.text} for one in examples.items])
    return predictor


def test_predict_reads_tables_as_the_fine_tuning_did(run: Run, classifier: TaskPredictor, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a;"the cat\nb;a dog\n')
    code, out, err = run("predict", "model", "--file", tmp_path / "a.csv", "--out", tmp_path / "answers.jsonl")
    assert (code, out) == (0, ""), err
    assert asked((tmp_path / "answers.jsonl").read_text(encoding="utf-8")) == ['"the cat', "a dog"]


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("classification", ["--pair", "b"], 'this model reads one text; leave "pair" out.'),
        ("classification", ["--question", "b"], "this model does not answer questions; give a text alone."),
        ("pairs", ["--question", "b"], 'does not answer questions; give a row with "text" and "pair".'),
        ("pairs", [], 'this model reads pairs; give a row with "text" and "pair" (on the command line --pair).'),
        ("tagging", ["--pair", "b"], 'this model reads one text; leave "pair" out.'),
        ("tagging", ["--question", "b"], "this model does not answer questions; give a text"),
        ("answering", ["--pair", "b"], 'this model answers questions; give a row with "question" and "context".'),
        ("choice", ["--pair", "b"], 'this model chooses; give a row with "text", "question" and "choices".'),
        ("choice", ["--question", "b"], 'this model chooses; give a row with "text", "question" and "choices".'),
        ("embedding", ["--question", "b"], "this model does not answer questions; give a text"),
    ],
)
def test_predict_refuses_what_the_model_would_not_read(
    run: Run, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, task: str, arguments: list[str], message: str
) -> None:
    given: dict[str, Any] = {
        "classification": ClassificationSettings(text_column="text", label_column="label"),
        "pairs": ClassificationSettings(text_column="text", pair_column="pair", label_column="label"),
    }
    kind = task_kind("classification" if task == "pairs" else task)
    labels = ("O", "B-X", "I-X") if task == "tagging" else ("a", "b")
    work = kind.make(load_tokenizer(tiny_tokenizer), labels, given.get(task, kind.settings()), {})
    predictor = TaskPredictor(work, nn.Identity(), torch.device("cpu"), "fp32")
    monkeypatch.setattr(model_verbs, "load", lambda *_, **__: predictor)
    code, out, err = run("predict", "model", "a", *arguments)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "a"}\n\n{"txt": "b"}\n{"text": "c"}\n',
            ':3: this row has no field "text". Did you mean "txt"?',
        ),
        ("a.txt", 'a\n{"txt": "b"}\nc\n', ':2: there is no column "text". Did you mean "txt"?'),
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', ":3: not JSON"),
    ],
)
def test_predict_names_file_and_line_and_answers_what_stands_before(
    classifier: TaskPredictor, capfdbinary: Any, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["predict", "model", "--file", str(tmp_path / name)]) == 2
    out, err = capfdbinary.readouterr()
    assert asked(out.decode()) == ["a"]
    assert f"{tmp_path / name}{message}" in err.decode()


def test_predict_does_not_answer_labelled_data_line_by_line(
    classifier: TaskPredictor, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.conll").write_text("The O\n")
    code, out, err = run("predict", "model", "--file", tmp_path / "a.conll", "--out", tmp_path / "out.jsonl")
    assert (code, out) == (2, "") and "bertsmith evaluate RUN FILE --predictions answers.jsonl" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_predict_names_the_line_of_standard_input(
    classifier: TaskPredictor, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    give(monkeypatch, 'a\n{"txt": "b"}\n')
    assert main(["predict", "model"]) == 2
    out, err = capfdbinary.readouterr()
    assert asked(out.decode()) == ["a"] and 'standard input:2: there is no column "text"' in err.decode()


def test_predict_leaves_no_half_file(run: Run, echo: Echo, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good\nbad\n")
    code, _, err = run("predict", "model", "--file", tmp_path / "a.txt", "--out", tmp_path / "answers.jsonl")
    assert code == 2 and f"{tmp_path / 'a.txt'}:2: cannot be read." in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_predict_passes_settings(run: Run, echo: Echo) -> None:
    marks = [("delimiter=;", ";"), ("delimiter=|", "|"), ("delimiter=\t", "\t"), ("delimiter=,", ",")]
    for given, mark in marks:
        code, _, err = run(
            "predict", "model", "a", "--set", given, "--set", "text-column=body", "--set", "max_length=9"
        )
        assert code == 0, err
        assert echo.overrides == {"delimiter": mark, "text_column": "body", "max_length": 9}
    code, _, err = run("predict", "model", "a", "--set", "delimiter")
    assert code == 2 and "write KEY=VALUE" in err


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ("text_column=Review #1", "Review #1"),
        ("text_column=#1", "#1"),
        ("text_column=2020", "2020"),
        ("text_column=@x: y", "@x: y"),
        ('text_column="2020"', "2020"),
        ("label_separator=, ", ", "),
        ("columns=null", None),
        ("text_column=", None),
        ("tag_column=1", 1),
        ("threshold=0.3", 0.3),
    ],
)
def test_what_is_set_is_text_where_the_setting_is(run: Run, echo: Echo, given: str, setting: object) -> None:
    code, _, err = run("predict", "model", "a", "--set", given)
    assert code == 0, err
    assert list(echo.overrides.values()) == [setting]


def test_predict_reads_tables_of_choices_as_the_fine_tuning_did(
    run: Run, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ChoiceSettings(question_column="question", choices_column="first,second", delimiter=";")
    predictor = TaskPredictor(
        task_kind("choice").make(load_tokenizer(tiny_tokenizer), (), settings, {}),
        nn.Identity(),
        torch.device("cpu"),
        "fp32",
    )
    monkeypatch.setattr(model_verbs, "load", lambda *_, **__: predictor)
    monkeypatch.setattr(predictor, "_answer", lambda examples: [{"asked": one.row.texts} for one in examples.items])
    (tmp_path / "a.csv").write_text("question;first;second\nwho;a cat;a dog\n")
    code, _, err = run("predict", "model", "--file", tmp_path / "a.csv", "--out", tmp_path / "answers.jsonl")
    assert code == 0, err
    assert asked((tmp_path / "answers.jsonl").read_text(encoding="utf-8")) == [["who", "a cat", "a dog"]]


@pytest.fixture
def folders(tiny_tokenizer: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Folders of small models with random weights, by what they do."""
    encoder = Encoder(named_size("tiny", vocab_size=load_tokenizer(tiny_tokenizer).vocab_size))

    def make(name: str) -> Path:
        kind = task_kind(name)
        labels = {"tagging": ("O", "B-X", "I-X"), "classification": ("a", "b")}.get(name, ())
        settings = {"classification": ClassificationSettings(text_column="sentence", label_column="label")}
        task = kind.make(load_tokenizer(tiny_tokenizer), labels, settings.get(name, kind.settings()), {})
        save_task(tmp_path / name, task, task.build(encoder), encoder.config, "", {})
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("name", "content", "options", "equal"),
    [
        ("tagging", "id,review\n7,the cat\n", [], {"text": "the cat"}),
        ("tagging", "id;body\n7;the cat\n", ["delimiter=;", "text_column=body"], {"text": "the cat"}),
        ("tagging", "7,the cat\n", ["columns=id,body", "text_column=body"], {"text": "the cat"}),
        ("tagging", 'id,text\n7,"the cat\n', ["quoting=false"], {"text": '"the cat'}),
        (
            "answering",
            "question;context\nwho ?;the cat\n",
            ["delimiter=;"],
            {"question": "who ?", "context": "the cat"},
        ),
        (
            "answering",
            "who ?;the cat\n",
            ["delimiter=;", "columns=q,body", "question_column=q", "context_column=body"],
            {"question": "who ?", "context": "the cat"},
        ),
        ("classification", "content,label\nthe cat,a\n", [], {"text": "the cat"}),
    ],
)
def test_predict_reads_a_table_as_it_is_told(
    run: Run,
    folders: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    content: str,
    options: list[str],
    equal: dict[str, str],
) -> None:
    """Whatever the task: some say in their own settings how tables are read, the others have no labelled tables."""
    (tmp_path / "a.csv").write_text(content)
    (tmp_path / "a.jsonl").write_text(json.dumps(equal))
    model = folders(name)
    said = [argument for option in options for argument in ("--set", option)]
    code, out, err = run("predict", model, "--file", tmp_path / "a.csv", "--device=cpu", *said)
    assert code == 0, err
    assert out == run("predict", model, "--file", tmp_path / "a.jsonl", "--device=cpu")[1] and out.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tagging", "id;text\n7;the cat\n", '--set text_column=NAME. Columns: id;text. If ";" parts them'),
        ("tagging", "id,body\n7,the cat\n", "--set text_column=NAME. Columns: id, body."),
        ("answering", "question;context\nwho ?;the cat\n", '(evaluate and predict: --set delimiter=";")'),
        ("answering", "question,body\nwho ?,the cat\n", "(evaluate and predict: --set context_column=NAME)"),
        ("classification", "body,label\nthe cat,a\n", "(evaluate and predict: --set text_column=NAME)"),
    ],
)
def test_predict_says_how_to_name_what_a_table_lacks(
    run: Run, folders: Callable[[str], Path], tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    code, out, err = run("predict", folders(name), "--file", tmp_path / "a.csv", "--device=cpu")
    assert (code, out) == (2, "") and message in err and "a.csv:2: " in err


def test_predict_does_not_write_over_what_is_read(
    run: Run, echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "run" / "model").mkdir(parents=True)
    settings = tmp_path / "run" / "model" / "config.json"
    settings.write_text("{}")
    for given, out in (
        (tmp_path / "a.csv", tmp_path / "a.csv"),
        ("~/a.csv", tmp_path / "a.csv"),
        ("~/a.csv", "~/a.csv"),
    ):
        code, shown, err = run("predict", "model", "--file", given, "--out", out)
        assert (code, shown) == (2, "") and "a.csv would be overwritten, and" in err
    for model in ("run", "run/model"):
        code, shown, err = run("predict", tmp_path / model, "x", "--out", settings)
        assert (code, shown) == (2, "") and "config.json lies in" in err
    assert (settings.read_text(), (tmp_path / "a.csv").read_text()) == ("{}", "text\na\n")
    code, _, err = run("predict", tmp_path / "run", "x", "--out", tmp_path / "run" / "answers.jsonl")
    assert code == 0, err
    code, _, err = run("predict", tmp_path / "run", "--file", tmp_path / "a.csv", "--out", "/dev/null")
    assert code == 0, err


@pytest.mark.parametrize("name", ["a.json", "A.JSON", "a.json.gz"])
def test_predict_does_not_answer_json_line_by_line(
    run: Run, classifier: TaskPredictor, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('[{"text": "a"}]')
    code, out, err = run("predict", "model", "--file", tmp_path / name, "--out", tmp_path / "out.jsonl")
    assert (code, out) == (2, "") and f"jq -c '.[]' {name} > " in err
    assert not (tmp_path / "out.jsonl").exists()


def test_predict_says_what_to_do_with_json_of_squad(
    run: Run, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = task_kind("answering")
    work = kind.make(load_tokenizer(tiny_tokenizer), (), kind.settings(), {})
    predictor = TaskPredictor(work, nn.Identity(), torch.device("cpu"), "fp32")
    monkeypatch.setattr(model_verbs, "load", lambda *_, **__: predictor)
    (tmp_path / "dev.json").write_text('{"data": []}')
    code, out, err = run("predict", "model", "--file", tmp_path / "dev.json")
    assert (code, out) == (2, "") and "bertsmith evaluate RUN FILE --predictions answers.jsonl" in err
    assert "question, context: $context}' dev.json > dev.jsonl" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair", "B"], "go with a TEXT"),
        (["A", "--file", "a.txt"], "not both"),
        (["A", "--pair", "B", "--question", "C"], "give --pair or --question, not both"),
        (["--file", "missing.txt"], "missing.txt"),
    ],
)
def test_predict_says_what_does_not_go_together(run: Run, echo: Echo, arguments: list[str], message: str) -> None:
    code, _, err = run("predict", "model", *arguments)
    assert code == 2 and message in err


def test_evaluate_prints_json_and_passes_settings(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def evaluate(model: str, data: str, **options: Any) -> dict[str, float]:
        calls.append({"model": model, "data": data, **options})
        return {"accuracy": 0.5}

    monkeypatch.setattr(model_verbs, "evaluate_model", evaluate)
    code, out, err = run("evaluate", "m", "d.csv", "--set", "text-column=review", "--set", "max_length=64")
    assert code == 0, err
    assert json.loads(out) == {"accuracy": 0.5}
    assert calls[0]["overrides"] == {"text_column": "review", "max_length": 64}
    code, _, err = run("evaluate", "m", "d.csv", "--set", "max_length")
    assert code == 2 and "write KEY=VALUE" in err


@pytest.fixture
def tiny_store(tiny_tokenizer: Path, tiny_documents: Path, tmp_path: Path, run: Run) -> Path:
    """A token store of 40 short documents, made by the command."""
    blank_lines = ("--document-separator", "blank-lines", "--heldout-share", 0.1)
    code, out, err = run(
        "corpus", "build", tiny_documents, "--tokenizer", tiny_tokenizer, "--out", tmp_path / "store", *blank_lines
    )
    assert code == 0, err
    assert "train: 3" in out and "heldout: " in out and "40 documents" in err
    return tmp_path / "store"


def test_corpus_check_shows_samples_as_training_sees_them(run: Run, tiny_store: Path) -> None:
    code, out, err = run("corpus", "check", tiny_store, "--samples", 5, "--max-length", 32, "--verify")
    assert code == 0, err
    assert "duplicate sentences" in out and "very few to pre-train on" in out
    assert out.count("  A  [CLS] ") == 5 == out.count("B follows A") + out.count("B is random")
    assert " -> [MASK]}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-length", 4], "max_length 4 leaves no room"),
        (["--max-length", 2, "--data-mode", "full-sentences"], "max_length 2 leaves no room"),
        (["--seed", -1], "seed must be at least 0"),
        (["--samples", -1], "samples must not be negative"),
    ],
)
def test_corpus_check_refuses_what_training_would(
    run: Run, tmp_path: Path, arguments: list[object], message: str
) -> None:
    code, _, err = run("corpus", "check", tmp_path, *arguments)
    assert code == 2 and message in err


def test_corpus_check_says_why_there_are_no_samples(run: Run, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The old king sat by the river. A small cat saw the bird. " * 20)
    build = ("--tokenizer", tiny_tokenizer, "--out", tmp_path / "store", "--heldout-share", 0)
    code, _, err = run("corpus", "build", tmp_path / "one.txt", *build)
    assert code == 0, err
    code, out, err = run("corpus", "check", tmp_path / "store")
    assert code == 0 and "No samples: the store has one document" in out, err
    code, out, err = run("corpus", "check", tmp_path / "store", "--data-mode", "full-sentences", "--max-length", 32)
    assert code == 0 and out.count("  A  [CLS] ") == 3, err


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_out_of_range_are_named(run: Run, tmp_path: Path, seed: int) -> None:
    out = ("--out", tmp_path / "out")
    for verb in (
        ("pretrain", "--corpus", "c"),
        ("finetune", "tagging", "--model", "m", "--train", "t.conll"),
        ("demo",),
    ):
        code, _, err = run(*verb, *out, "--seed", seed)
        assert code == 2 and "seed must be at least 0 and below 2^63" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bertsmith", "pretrain", "--corpus", tiny_store, "--out", tmp_path / "run"]
    options = ["--size", "tiny", "--budget", "10m", "--max-length", "32", "--evaluation-samples", "4"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "loss" in line:
                process.send_signal(signal.SIGINT)
                break
        seen.append(process.stderr.read())
    assert process.returncode == 130, "".join(seen)
    assert "--resume" in seen[-1] and "Traceback" not in seen[-1]
    assert list((tmp_path / "run" / "checkpoints").iterdir())


if __name__ == "__main__":
    SURFACE.write_text(surface(), encoding="utf-8")
