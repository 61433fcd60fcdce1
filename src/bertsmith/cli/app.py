"""The verbs by name, what they exit with, and how errors look.

A verb is registered by the name of its function, and its module is imported only when it is called:
`bertsmith --help` imports neither torch nor the tokenizers, and building a corpus never waits for torch.

Exit codes: 0 done; 1 a fault of ours, with its traceback; 2 something the user can mend; 130 Ctrl-C,
after the checkpoint was saved; 141 the reader of our output has gone (`bertsmith predict ... | head`). Of several
processes that torchrun has started, each exits with its code, and the first speaks for all.
"""

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, default_name_transform
from rich.text import Text

from bertsmith import __version__
from bertsmith.cli.config import apply_config, expand_home, refuse_fractions
from bertsmith.errors import BertsmithError, Interrupted, SettingsError
from bertsmith.files import OF_A_DISK
from bertsmith.screen import progress_screen
from bertsmith.training.launch import Launch, read_launch

_TEXT = "bertsmith.cli.text_verbs"
_MODEL = "bertsmith.cli.model_verbs"
_ADVICE = "bertsmith.cli.advice_verbs"
_SHARED = {"pretrain", "finetune"}
"""Verbs for torchrun."""


def flag_name(field: str) -> str:
    """The flag of a settings field, without its dashes: `from_model` is --from, others as spelt."""
    return "from" if field == "from_model" else default_name_transform(field)


def build_app() -> App:
    """The command line: names, one line of help each, and where each verb lives."""
    app = App(
        name="bertsmith",
        help="Build BERT models from raw text: vocabulary, corpus, pre-training, fine-tuning, answers.",
        version=__version__,
        config=(apply_config, expand_home, refuse_fractions),
        default_parameter=Parameter(name_transform=flag_name, negative_iterable=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    tokenizer = App(name="tokenizer", help="Train a vocabulary, or add words to one.", sort_key=1)
    corpus = App(name="corpus", help="Build and check the token store that pre-training reads.", sort_key=2)
    check = App(name="check", help="Say what is wrong with labelled data, by file and line.", sort_key=4)
    advise = App(name="advise", help="Say with what to fine-tune, why, and what it will take.", sort_key=4)
    finetune = App(name="finetune", help="Teach a model a task on labelled data.", sort_key=5)
    for group in (tokenizer, corpus, check, advise, finetune):
        app.command(group)
    tokenizer.command(f"{_TEXT}:tokenizer_train", name="train", help="Train a WordPiece, BPE or Unigram vocabulary.")
    tokenizer.command(f"{_TEXT}:tokenizer_extend", name="extend", help="Add the words of a domain to a vocabulary.")
    corpus.command(f"{_TEXT}:corpus_build", name="build", help="Tokenize text once into a memory-mapped store.")
    corpus.command(f"{_MODEL}:corpus_check", name="check", help="Say what is in a store before it costs a night.")
    app.command(f"{_ADVICE}:plan", name="plan", help="Say what a pre-training will take.", sort_key=3)
    app.command(f"{_MODEL}:pretrain", name="pretrain", help="Train a BERT on a store, within a budget.", sort_key=3)
    for name, line in (
        ("classification", "Text, or a pair of texts -> a label or a number."),
        ("tagging", "Words -> entities, or a tag each."),
        ("answering", "A question and a context -> the span that answers it, or none."),
        ("choice", "A text, a question and choices -> the right choice."),
        ("embedding", "Texts that belong together -> vectors that are near."),
    ):
        finetune.command(f"{_MODEL}:finetune_{name}", name=name, help=line)
        check.command(f"{_MODEL}:check_{name}", name=name, help=line)
        advise.command(f"{_ADVICE}:advise_{name}", name=name, help=line)
    finetune.command(f"{_MODEL}:finetune_together", name="together", help="Several of these over one encoder.")
    app.command(f"{_MODEL}:evaluate", name="evaluate", help="Score a model on labelled data.", sort_key=6)
    app.command(f"{_MODEL}:predict", name="predict", help="Answers for a line, a file or stdin, as JSONL.", sort_key=7)
    app.command(f"{_MODEL}:demo", name="demo", help="From nothing to three tasks, on text already here.", sort_key=8)
    app.command(f"{_ADVICE}:benchmark", name="benchmark", help="Say how fast this machine is.", sort_key=9)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see the module docstring for the codes.

    Args:
        arguments: what follows `bertsmith` on the command line; by default this process's own.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    launch = Launch()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without a letter is no reason to end
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        launch = read_launch()
        _check_shared(words, launch)
        build_app()(words, exit_on_error=False, print_error=False)
        print(end="", flush=True)  # what the disk refuses is refused here, not when Python exits
    except (BertsmithError, CycloptsError) as error:
        who = "" if launch.is_first else f" on rank {launch.rank}"
        return _say(f"error{who}: {_explained(error)}", "red", 2)
    except Interrupted as message:
        return _say(str(message), "yellow", 130) if launch.is_first else 130
    except KeyboardInterrupt:
        return _say("Stopped.", "yellow", 130)
    except BrokenPipeError:
        _forget_output()
        return 141
    except OSError as error:
        if error.errno not in OF_A_DISK:
            raise
        _forget_output()
        place = f"{error.filename}: " if error.filename else ""  # no name: standard output, or a file that is open
        why = OF_A_DISK[error.errno]
        return _say(f"error: {place}{why}. Free some space where the output goes, or write elsewhere.", "red", 2)
    return 0


def _explained(error: BertsmithError | CycloptsError) -> str:
    """What is wrong. The library says the same of an option that is not there as of one without its value."""
    said = str(error)
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return said
    if error.keyword is None:
        return said.replace(f"parameter {error.argument.name} requires an argument", f"needs {error.argument.name}")
    return f"{said} One that begins with a dash is written behind an equals sign: {error.keyword}=-1."


def _check_shared(words: Sequence[str], launch: Launch) -> None:
    """Refuse a verb that several processes would only do several times."""
    if launch.size > 1 and not {*words[:1]} & _SHARED:
        raise SettingsError(
            f"torchrun has started {launch.size} processes, and only {' and '.join(sorted(_SHARED))} can share their "
            "work. Run the command without it."
        )


def _forget_output() -> None:
    """What is still buffered would fail again when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str, style: str, code: int) -> int:
    """Print to stderr, unwrapped so that paths can be copied, and return the exit code."""
    progress_screen().print(Text(message.strip(), style=style), soft_wrap=True)
    return code
