"""The errors a user can cause. Each says what is wrong, where, and what to do about it.

    BertsmithError            exit code 2, one message, no traceback
    ├── InputError            a file or a row: wrong encoding, unknown column, span outside its text
    ├── SettingsError         an option, a YAML key, a budget that cannot be read
    ├── CorpusError           a store that is empty, damaged, or cannot give what was asked of it
    ├── ModelError            a model folder, a tokenizer, sizes that do not fit together
    ├── TrainingError         a checkpoint of another run; as StepError, a loss that is not finite, or no memory
    ├── StorageError          no space left, a folder that cannot be written
    └── MissingExtraError     an optional dependency; the message ends with the pip command

    Interrupted               Ctrl-C after the checkpoint was saved; exit code 130

Anything else that escapes is a fault of ours: exit code 1, with its traceback.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class BertsmithError(Exception):
    """Base of all errors that the user can mend."""


class InputError(BertsmithError):
    """Bad input data. `where` is `file`, `file:line` or `file:line, field`."""

    def __init__(self, message: str, where: str | None = None) -> None:
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


class SettingsError(BertsmithError):
    """An option or a configuration key that is unknown, missing or out of range."""


class CorpusError(BertsmithError):
    """A token store that cannot be built, opened or used as asked."""


class ModelError(BertsmithError):
    """A model folder or tokenizer that cannot be loaded, or does not fit the rest."""


class TrainingError(BertsmithError):
    """A run that cannot go on, or not be resumed from what is there."""


class StepError(TrainingError):
    """A step that could not be taken: the run diverged, or memory ran out."""


class StorageError(BertsmithError):
    """The disk refused: no space, no permission. Nothing half-written is left behind."""


class MissingExtraError(BertsmithError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self._said = package, extra, purpose
        super().__init__(f'{purpose} needs {package}. Install it with: pip install "bertsmith[{extra}]"')

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, str, str]]:
        """From another process it comes as it was raised there."""
        return type(self), self._said


class Interrupted(Exception):
    """The user pressed Ctrl-C; the run saved a checkpoint and can be resumed."""


@contextmanager
def collecting(bad: list[InputError] | None) -> Iterator[None]:
    """Put an InputError of the block into `bad` and go on behind the block; None: let it pass."""
    try:
        yield
    except InputError as error:
        if bad is None:
            raise
        bad.append(error)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has panicked: that is no Exception, and its class cannot be imported."""
    return type(error).__name__ == "PanicException"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence naming the nearest choice and all choices, to append to an error.

    >>> did_you_mean("sentense", ["sentence", "label"])
    'Did you mean "sentence"? Choices: label, sentence.'
    """
    known = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Choices: {', '.join(known)}."
