"""Values from a settings file under --config; what is given as a flag goes before them.

A file holds the settings of one verb, or a section for each verb of a whole recipe:

    pretrain:
      size: mini
      budget: 10m

The configuration that a run saves can be given back as it is.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from cyclopts import App, ArgumentCollection, Parameter
from cyclopts.config import Dict

from bertsmith.errors import SettingsError, did_you_mean
from bertsmith.settings import read_config

SECTIONS = (
    *("tokenizer", "corpus", "plan", "pretrain", "check", "advise", "finetune", "evaluate", "predict", "demo"),
    "benchmark",
)
"""The sections a recipe may have, named as the first word of their commands."""

Result = TypeVar("Result")
_FRACTION = re.compile(r"\s*[+-]?[0-9]*\.[0-9]+\s*")

ConfigFile = Annotated[
    Path | None,
    Parameter(name="--config", help="YAML, TOML or JSON file with values for these options; flags override it."),
]


def as_verb(
    function: Callable[..., Result], show: Callable[[Result], None], fixed: Mapping[str, Any] | None = None
) -> Callable[..., None]:
    """A library function as a command: the same options and help, and --config; its result is shown.

    The first argument may be given without its name. An argument that is a settings class is one option a field.

    Args:
        fixed: arguments that no command line can give, such as callbacks.
    """
    fixed = fixed or {}
    hints = {
        name: Annotated[hint, Parameter(name="*")] if is_dataclass(hint) else hint
        for name, hint in get_type_hints(function, include_extras=True).items()
    }
    first, *others = (
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in fixed
    )
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in others]
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)

    def verb(*arguments: Any, config: Path | None = None, **options: Any) -> None:
        show(function(*arguments, **options, **fixed))

    verb.__doc__ = function.__doc__
    verb.__annotations__ = {}  # those of the signature count
    verb.__signature__ = inspect.Signature([first, *named, config])  # type: ignore[attr-defined]
    return verb


def section(values: Mapping[str, Any], verb: str, where: str) -> tuple[Mapping[str, Any], str]:
    """The part of a settings file for one verb, and its name for messages.

    Raises:
        SettingsError: a file in sections has one of another name, or none for this verb.
    """
    # A verb has options that are called like a section (`corpus`), but they never hold a mapping.
    mappings = [name for name, value in values.items() if isinstance(value, Mapping)]
    if not mappings or (len(mappings) < len(values) and not set(mappings) & set(SECTIONS)):
        return values, where
    for name, value in values.items():
        if name not in SECTIONS:
            raise SettingsError(f'{where}: unknown section "{name}". {did_you_mean(str(name), SECTIONS)}')
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where}, {name}: a section holds keys and values.")
    if verb not in values:
        raise SettingsError(f'{where}: there is no section "{verb}". {did_you_mean(verb, values)}')
    return values[verb], f"{where}, {verb}"


def apply_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give every option that has no flag its value from the file under --config, if there is one.

    Called by cyclopts between reading the command line and converting the values.

    Raises:
        SettingsError: no such file, or a key that is no option of this verb; names the nearest.
    """
    given = arguments.get("--config", None)
    if given is None or not given.tokens:
        return
    path = Path(given.tokens[0].value).expanduser()
    values, where = section(read_config(path), commands[0], str(path))
    flags: dict[tuple[str, ...], str] = {}
    for argument in arguments:
        if argument is not given and argument.names and not argument.children:
            flag = argument.names[0].removeprefix("--")
            field = argument.keys or (argument.field_info.name,)
            flags |= {field: flag, field[-1:]: flag, (flag.replace("-", "_"),): flag}
    found: dict[str, Any] = {}
    for keys, value in _leaves(values, flags):
        if keys not in flags:
            name = ".".join(keys)
            raise SettingsError(f'{where}: unknown key "{name}". {did_you_mean(name, {key[-1] for key in flags})}')
        found[flags[keys]] = value
    # Put below the commands' names, or cyclopts would drop the option `corpus` for the command `corpus`.
    for name in reversed(commands):
        found = {name: found}
    Dict(found, source=str(path))(app, commands, arguments)


def expand_home(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Let paths from a settings file, or in quotes, begin with ~ as those that a shell has expanded.

    Called by cyclopts as `apply_config`, and after it.
    """
    for argument in arguments:
        if Path in (argument.hint, *get_args(argument.hint)):
            argument.tokens = [token.evolve(value=os.path.expanduser(token.value)) for token in argument.tokens]


def refuse_fractions(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 2.5 where a whole number is wanted, which cyclopts would round.

    Called by cyclopts as `expand_home`.

    Raises:
        SettingsError: names the option and its value.
    """
    for argument in arguments:
        if int not in (argument.hint, *get_args(argument.hint)) or float in get_args(argument.hint):
            continue
        for token in argument.tokens:
            if _FRACTION.fullmatch(token.value) and float(token.value) % 1:
                raise SettingsError(f"{argument.name.removeprefix('--')}: a whole number wanted, not {token.value}.")


def _leaves(
    values: Mapping[str, Any], known: Mapping[tuple[str, ...], str], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each key of nested mappings with its path; a mapping that is itself an option's value stays whole."""
    for name, value in values.items():
        keys = (*above, str(name))
        if isinstance(value, Mapping) and keys not in known:
            yield from _leaves(value, known, keys)
        else:
            yield keys, value
