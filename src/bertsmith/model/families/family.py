"""What there is to know about a family: its structure, and what a Hugging Face folder calls our fields and tensors.

A family is values, not code: `folder.py` reads and writes every family by its row. Names are reversible:
each of our tensors is one of theirs, or several of theirs laid on top of each other (queries, keys, values).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bertsmith.errors import ModelError
from bertsmith.model.config import Structure

RawConfig = dict[str, Any]

_OWN = ("crf.",)
"""What models of ours have and no architecture does: it is saved under our names, and Transformers passes it over."""


def _as_it_is(raw: RawConfig) -> RawConfig:
    return raw


@dataclass(frozen=True)
class Family:
    """How one kind of encoder is written down.

    Names stand for everything below them: "pooler.dense" is both its weight and its bias. In names of
    the encoder, `{i}` is the number of a layer.
    """

    model_type: str
    class_prefix: str
    """What the names of all architectures of the family begin with: "Bert" of "BertForMaskedLM"."""
    structure: Structure
    config_names: Mapping[str, str]
    """Our config field -> theirs."""
    fixed_config: Mapping[str, Any]
    """Fields that change the arithmetic -> the only value with which it is what our encoder does."""
    prefix: str
    """Before the bare model's names in folders of all other architectures."""
    encoder: Mapping[str, tuple[str, ...]]
    """Our names inside `Encoder` -> theirs in the bare model; several are concatenated."""
    heads: Mapping[str, Mapping[str, str]]
    """Architecture -> our names of what it has beyond encoder and pooler -> theirs."""
    pooler: Mapping[str, str] = field(default_factory=dict)
    """Our names of the pooler -> theirs in the bare model; empty if that has none."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Our config field -> what a folder means that does not say; besides the defaults of `EncoderConfig`."""
    new: Mapping[str, Any] = field(default_factory=dict)
    """Our config field -> its value in a new model of a named size; besides the defaults of `EncoderConfig`."""
    also_called: Mapping[str, str] = field(default_factory=dict)
    """Other names of their config fields -> theirs: the `attribute_map` of Transformers. The other name wins."""
    understand: Callable[[RawConfig], RawConfig] = _as_it_is
    """Their config.json in other spellings -> in the one that `config_names` knows."""
    offsets_positions: bool = False
    """Positions are counted from pad_token_id + 1."""
    transposed: tuple[str, ...] = ()
    """Our names inside `Encoder` of matrices that the folder holds transposed."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement): how older folders spell a name."""

    @property
    def bare(self) -> str:
        """The architecture without a head."""
        return f"{self.class_prefix}Model"

    def architecture(self, kind: str) -> str:
        """The family's name for a kind of model, such as "ForTokenClassification".

        Raises:
            ModelError: it has none.
        """
        name = f"{self.class_prefix}{kind}"
        if name not in self.heads:
            raise ModelError(
                f"{self.model_type} models have no {kind} architecture. They have: {', '.join(self.heads)}."
            )
        return name

    def is_transposed(self, name: str) -> bool:
        """Whether the folder holds our tensor `name` with its two dimensions exchanged."""
        names = {stem: (stem,) for stem in self.transposed}
        return name.endswith(".weight") and bool(_below(names, name.removeprefix("encoder.")))

    def theirs(self, architecture: str, name: str) -> tuple[str, ...]:
        """Their names for one of our tensors; empty if this architecture has no such tensor."""
        prefix = "" if architecture == self.bare else self.prefix
        if name.startswith("encoder."):
            return tuple(prefix + found for found in _below(self.encoder, name.removeprefix("encoder.")))
        if architecture != self.bare and name.startswith(_OWN):
            return (name,)
        head = self.heads[architecture]
        if architecture == self.bare or "pooled.out" in head:
            pooler = _below({ours: (theirs,) for ours, theirs in self.pooler.items()}, name)
            if pooler:
                return tuple(prefix + found for found in pooler)
        return _below({ours: (theirs,) for ours, theirs in head.items()}, name)

    def sources(self, architecture: str, written_as: Sequence[str], name: str) -> tuple[str, ...]:
        """As `theirs`, for a folder of the architectures `written_as`: empty if the name may mean something else there.

        A "classifier" of sentences is no classifier of tokens, whatever its shape.
        """
        found = self.theirs(architecture, name)
        if ".out." not in name:
            return found
        meanings = {
            ours
            for head in self.heads.values()
            for ours, theirs in head.items()
            if found and _is_below(found[0], theirs)
        }
        return found if len(meanings) < 2 or architecture in written_as else ()

    def spellings(self, name: str) -> tuple[str, ...]:
        """All names under which a folder may hold the tensor that `theirs` calls `name`."""
        bare = name.removeprefix(self.prefix)
        names = [name, bare, self.prefix + bare]
        for pattern, replacement in self.aliases:
            names += [re.sub(pattern, replacement, known) for known in names]
        return tuple(dict.fromkeys(names))

    def architecture_of(self, names: Iterable[str], written_as: Sequence[str]) -> str:
        """The architecture of a model with tensors of these names: of several, the one the folder was written as."""
        outside = [name for name in names if not name.startswith(("encoder.", *_OWN))]
        heads = {name for name in outside if not any(_is_below(name, ours) for ours in self.pooler)}
        fitting = [
            architecture
            for architecture, head in self.heads.items()
            if all(any(_is_below(name, ours) for ours in head) for name in heads)
            and all(any(_is_below(name, ours) for name in heads) for ours in head)
        ]
        if not fitting:
            raise ModelError(f"no architecture of {self.model_type} has just these heads: {', '.join(sorted(heads))}")
        return next((architecture for architecture in fitting if architecture in written_as), fitting[0])

    def count_layers(self, names: Iterable[str]) -> int:
        """How many layers a folder with tensors of these names has."""
        patterns = [
            re.compile(f"({re.escape(self.prefix)})?{re.escape(theirs).replace(_LAYER, '([0-9]+)')}[.]")
            for several in self.encoder.values()
            for theirs in several
            if "{i}" in theirs
        ]
        matches = (pattern.match(name) for name in names for pattern in patterns)
        return max((int(match.group(2)) + 1 for match in matches if match), default=0)


_LAYER = re.escape("{i}")


def _is_below(name: str, stem: str) -> bool:
    return name == stem or name.startswith(f"{stem}.")


def _below(names: Mapping[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """Their names for ours: the stem is looked up (with `{i}` for a number), what is below it stays."""
    number = re.search(r"(?<=[.])[0-9]+(?=[.])", name)
    layer = number.group() if number else ""
    pattern = f"{name[: number.start()]}{{i}}{name[number.end() :]}" if number else name
    for stem, theirs in names.items():
        if _is_below(pattern, stem):
            return tuple(found.replace("{i}", layer) + pattern.removeprefix(stem) for found in theirs)
    return ()
