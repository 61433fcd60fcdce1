"""Frozen dataclasses <-> mappings and YAML, TOML or JSON files: a closed schema, checked strictly.

A settings file is data. An unknown key is an error that names the nearest known one, a value of the
wrong type is an error that names its place, and nothing in a file can name code to be imported.
"""

import json
import re
import tomllib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from bertsmith.errors import SettingsError, did_you_mean
from bertsmith.files import atomic_write

T = TypeVar("T")

_SUFFIXES = (".json", ".toml", ".yaml", ".yml")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "settings") -> T:
    """Build a frozen dataclass, and the dataclasses nested in it, from plain values.

    Whole numbers are taken for floats, lists for tuples, strings for paths and ISO dates stay
    strings; nothing else is converted, so `"3"` is not an int and `1` is not a bool.

    Args:
        values: what a settings file holds; keys are field names, nested dataclasses are mappings.
        where: named in errors, for example `recipe.yaml, pretrain`.

    Raises:
        SettingsError: an unknown or missing key, a value of another type, a choice that is none.
    """
    hints = get_type_hints(cls)
    # typeshed asks for a DataclassInstance here; `cls` is one by contract, and `fields` checks it.
    members = {member.name: member for member in fields(cls) if member.init}  # type: ignore[arg-type]
    for name in values:
        if name not in members:
            raise SettingsError(f'{where}: unknown key "{name}". {did_you_mean(str(name), members)}')
    for name, member in members.items():
        if name not in values and member.default is MISSING and member.default_factory is MISSING:
            raise SettingsError(f'{where}: "{name}" is missing.')
    return cls(**{name: _convert(value, hints[name], f"{where}, {name}") for name, value in values.items()})


def settle_types(settings: Any) -> None:
    """Convert the fields of a frozen dataclass as `from_mapping` does. For `__post_init__`: Python is told, too.

    Raises:
        SettingsError: a value of another type, a choice that is none.
    """
    hints = get_type_hints(type(settings))
    for member in fields(settings):
        value = getattr(settings, member.name)
        object.__setattr__(settings, member.name, _convert(value, hints[member.name], member.name))


def to_mapping(settings: Any) -> dict[str, Any]:
    """A dataclass as what JSON and YAML can hold: tuples become lists, paths strings.

    `from_mapping(type(settings), to_mapping(settings))` gives an equal dataclass again.
    """
    return {member.name: _plain(getattr(settings, member.name)) for member in fields(settings) if member.init}


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML text with keys in the given order and characters as they are."""
    return str(yaml.dump(dict(values), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True))


def save_yaml(path: Path, settings: Any) -> None:
    """Write a dataclass as YAML, atomically; `read_config` and `from_mapping` give it back."""
    atomic_write(path, to_yaml(to_mapping(settings)))


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a .yaml, .yml, .toml or .json file; an empty file is an empty mapping.

    YAML is read by the rules of version 1.2 where 1.1 surprises: `1e-4` is a number, `no` is a
    string, and a key that is there twice is an error.

    Raises:
        SettingsError: no such file, another suffix, or text that cannot be read, with its line.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f'{path}: unknown kind of settings file "{path.suffix}". {did_you_mean("", _SUFFIXES)}')
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        neighbours = [str(other) for suffix in _SUFFIXES for other in path.parent.glob(f"*{suffix}")]
        hint = f" {did_you_mean(str(path), neighbours)}" if neighbours else ""
        raise SettingsError(f"{path}: no such settings file.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    values = _parse(path, text)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: a settings file holds keys and values, not a {_kind(values)}.")
    for key in values:
        if not isinstance(key, str):
            raise SettingsError(f"{path}: a key is a text, and {key} is a {_kind(key)}: put it in quotes.")
    return values


def read_value(text: str) -> Any:
    """One value as a YAML file would hold it, for options of the form KEY=VALUE.

    >>> read_value("256"), read_value("1e-4"), read_value("no"), read_value("[a, b]")
    (256, 0.0001, 'no', ['a', 'b'])

    Raises:
        SettingsError: not YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f'cannot read the value "{text}": {error}') from None


def _parse(path: Path, text: str) -> Any:
    """The value in the text of a settings file, by the file's suffix."""
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        if path.suffix.lower() == ".toml":
            return tomllib.loads(text)
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{path}:{line}: {error.problem}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: cannot be read: nested too deeply") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without the surprises of YAML 1.1, and without silently dropped keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node; a repeated key is an error that names its line."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, name in enumerate(keys):
            if name in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f'the key "{name}" is there twice', mark)
        return super().construct_mapping(node, deep)


class _StrictDumper(yaml.SafeDumper):
    """SafeDumper that quotes text which YAML 1.1 or _StrictLoader would take for something else."""


_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$")
_INT_TAG = "tag:yaml.org,2002:int"
_INT = re.compile(r"^[-+]?(?:[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+|0x[0-9a-fA-F]+)$")
"""1.1 takes a date with lines under it for a number, 1:30 for seconds, and 010 for 8."""
_BOOL_TAG = "tag:yaml.org,2002:bool"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")

_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in (_BOOL_TAG, _INT_TAG, _FLOAT_TAG, "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL_TAG, _BOOL, list("tTfF"))
_StrictLoader.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
_StrictLoader.add_constructor(_INT_TAG, lambda _, node: int(node.value, 16 if "x" in node.value else 10))
_StrictLoader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))
_StrictDumper.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
_StrictDumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotation `hint` asks, or SettingsError naming `where`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _convert(value, arguments[0], where)
    if origin in (Union, UnionType):
        return _convert_union(value, arguments, hint, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise SettingsError(f"{where}: {value!r} is not a choice. {did_you_mean(str(value), map(str, arguments))}")
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_mapping(hint, value, where)
    elif origin in (tuple, list, Sequence):
        if isinstance(value, Sequence) and not isinstance(value, str):
            return _convert_items(value, origin, arguments, where)
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            key_hint, value_hint = arguments
            return {
                _convert(key, key_hint, where): _convert(item, value_hint, f"{where}, {key}")
                for key, item in value.items()
            }
    elif hint is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    elif hint is str and isinstance(value, Path):
        return str(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise SettingsError(f"{where}: the number is too large.") from None
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    elif hint is None and value is None:
        return None
    raise SettingsError(f"{where}: {_kind(value)} {value!r} given, {_wanted(hint)} wanted.")


def _convert_union(value: Any, choices: tuple[Any, ...], hint: Any, where: str) -> Any:
    """The first member of a union that takes `value`; an exact type wins over a converted one."""
    exact = [choice for choice in choices if isinstance(choice, type) and type(value) is choice]
    problems = []
    for choice in exact or choices:
        try:
            return _convert(value, choice, where)
        except SettingsError as error:
            problems.append((choice, error))
    wanted = [error for choice, error in problems if choice is not NoneType]
    if len(wanted) == 1:
        raise wanted[0]
    raise SettingsError(f"{where}: {_kind(value)} {value!r} given, {_wanted(hint)} wanted.")


def _convert_items(value: Sequence[Any], origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    """The items of a list as the annotation asks; tuples of fixed length are checked for it."""
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise SettingsError(f"{where}: {len(arguments)} values wanted, {len(value)} given.")
        hints = arguments
    else:
        hints = (arguments[0],) * len(value)
    items = [_convert(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True))]
    return items if origin is list else tuple(items)


def _plain(value: Any) -> Any:
    """A field's value as plain data."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _kind(value: Any) -> str:
    """What a value is, in the words of a settings file rather than Python's."""
    names = {bool: "true/false", int: "whole number", float: "number", str: "text", NoneType: "nothing"}
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, list | tuple):
        return "list"
    return names.get(type(value), type(value).__name__)


def _wanted(hint: Any) -> str:
    """What an annotation asks for, in the words of a settings file."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(choice) for choice in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (tuple, list, Sequence):
        return "a list"
    if origin in (dict, Mapping) or is_dataclass(hint):
        return "a mapping"
    return "nothing" if hint in (None, NoneType) else names.get(hint, str(hint))


def read_size(text: str, name: str) -> int:
    """Bytes, from what a person writes; units of 1000 and of 1024.

    Args:
        name: of the setting, with which errors begin.

    >>> read_size("8GiB", "memory"), read_size("1.5 GB", "memory")
    (8589934592, 1500000000)

    Raises:
        SettingsError: unreadable, or not above zero.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(i?)B", text.strip())
    amount = 0.0
    if match:
        number, unit, is_binary = match.groups()
        amount = float(number) * (1024 if is_binary else 1000) ** ("KMGT".index(unit) + 1)
    if amount <= 0:
        raise SettingsError(
            f'{name}: cannot read the size "{text}". Write a number above 0 with its unit, such as 8GiB or 500MB.'
        )
    return int(amount)
