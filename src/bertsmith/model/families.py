"""One row a family: what a Hugging Face folder calls our config fields and tensors, and what it must say.

A family is values, not code: `folder.py` reads and writes every family by its row. Names are reversible:
each of our tensors is one of theirs, or several of theirs laid on top of each other (queries, keys, values).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bertsmith.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Family:
    """How one kind of encoder is written down.

    Names stand for everything below them: "pooler.dense" is both its weight and its bias. In names of
    the encoder, `{i}` is the number of a layer.
    """

    model_type: str
    config_names: Mapping[str, str]
    """Our config field -> theirs."""
    fixed_config: Mapping[str, Any]
    """Fields that change the arithmetic -> the only value with which it is what our encoder does."""
    bare: str
    """The architecture without a head."""
    prefix: str
    """Before the bare model's names in folders of all other architectures."""
    encoder: Mapping[str, tuple[str, ...]]
    """Our names inside `Encoder` -> theirs in the bare model; several are concatenated."""
    pooler: Mapping[str, str]
    """Our names of the pooler -> theirs in the bare model."""
    heads: Mapping[str, Mapping[str, str]]
    """Architecture -> our names of what it has beyond encoder and pooler -> theirs."""
    labelled: tuple[str, ...]
    """Architectures whose outputs are named by `id2label`."""
    aliases: tuple[tuple[str, str], ...]
    """(pattern, replacement): how older folders spell a name."""

    def theirs(self, architecture: str, name: str) -> tuple[str, ...]:
        """Their names for one of our tensors; empty if this architecture has no such tensor."""
        prefix = "" if architecture == self.bare else self.prefix
        if name.startswith("encoder."):
            return tuple(prefix + found for found in _below(self.encoder, name.removeprefix("encoder.")))
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
        outside = [name for name in names if not name.startswith("encoder.")]
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


_SAME_NAMES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "classifier_dropout",
)
_VOCABULARY = {
    "vocabulary.dense": "cls.predictions.transform.dense",
    "vocabulary.norm": "cls.predictions.transform.LayerNorm",
    "vocabulary.bias": "cls.predictions.bias",
}

BERT = Family(
    model_type="bert",
    config_names=MappingProxyType({name: name for name in _SAME_NAMES}),
    fixed_config=MappingProxyType(
        {
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }
    ),
    bare="BertModel",
    prefix="bert.",
    encoder=MappingProxyType(
        {
            "token_embedding": ("embeddings.word_embeddings",),
            "position_embedding": ("embeddings.position_embeddings",),
            "segment_embedding": ("embeddings.token_type_embeddings",),
            "embedding_norm": ("embeddings.LayerNorm",),
            "layers.{i}.qkv": (
                "encoder.layer.{i}.attention.self.query",
                "encoder.layer.{i}.attention.self.key",
                "encoder.layer.{i}.attention.self.value",
            ),
            "layers.{i}.attention_out": ("encoder.layer.{i}.attention.output.dense",),
            "layers.{i}.attention_norm": ("encoder.layer.{i}.attention.output.LayerNorm",),
            "layers.{i}.up": ("encoder.layer.{i}.intermediate.dense",),
            "layers.{i}.down": ("encoder.layer.{i}.output.dense",),
            "layers.{i}.output_norm": ("encoder.layer.{i}.output.LayerNorm",),
        }
    ),
    pooler=MappingProxyType({"pooled.dense": "pooler.dense"}),
    heads=MappingProxyType(
        {
            "BertModel": MappingProxyType({}),
            "BertForPreTraining": MappingProxyType({**_VOCABULARY, "pooled.out": "cls.seq_relationship"}),
            "BertForMaskedLM": MappingProxyType(_VOCABULARY),
            "BertForSequenceClassification": MappingProxyType({"pooled.out": "classifier"}),
            "BertForTokenClassification": MappingProxyType({"tokens.out": "classifier"}),
            "BertForQuestionAnswering": MappingProxyType({"tokens.out": "qa_outputs"}),
        }
    ),
    labelled=("BertForSequenceClassification", "BertForTokenClassification"),
    # Folders converted from TensorFlow name the norms' tensors gamma and beta; some hold the decoder's
    # bias only under the decoder's name.
    aliases=(
        (r"LayerNorm\.weight$", "LayerNorm.gamma"),
        (r"LayerNorm\.bias$", "LayerNorm.beta"),
        (r"^cls\.predictions\.bias$", "cls.predictions.decoder.bias"),
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in (BERT,)})


def family(model_type: str) -> Family:
    """The row of a `model_type`.

    Raises:
        ModelError: we have no such row.
    """
    if model_type not in FAMILIES:
        raise ModelError(f'model_type "{model_type}" is not supported. {did_you_mean(model_type, FAMILIES)}')
    return FAMILIES[model_type]
