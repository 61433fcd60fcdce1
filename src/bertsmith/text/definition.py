"""What a tokenizer is on disk: a `tokenizer.json`, or a `vocab.txt` that stands for BERT's pipeline.

Everything here ends in the same two values, the text of a `tokenizer.json` and the names of the
special tokens; `tokenizer.py` makes a Tokenizer of them. Vocabularies are split on "\\n" only:
`str.splitlines` also breaks at U+0085 and U+2028, which are tokens of bert-base-chinese.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bertsmith.errors import InputError, ModelError
from bertsmith.files import read_json
from bertsmith.hub import fetch

_ADDED = "added_tokens.json"
_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", _ADDED)
OF_A_TOKENIZER = (*_FILES, "training.json", "extension.json")
"""All that a folder of a tokenizer holds that was trained or extended here."""
_USUAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_END_OF_TEXT = ("<|endoftext|>",)
# Fields of BertNormalizer, and what tokenizer_config.json calls them.
_BERT_OPTIONS = {
    "lowercase": "do_lower_case",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "strip_accents": "strip_accents",
}
# What transformers calls tokenizers that read a vocab.txt as BERT's does, without "Tokenizer" or "TokenizerFast".
_AS_BERT = frozenset(
    "Bert DistilBert Electra MobileBert ConvBert LayoutLM Lxmert SqueezeBert RetriBert Realm DPRContextEncoder "
    "DPRQuestionEncoder DPRReader".split()
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SpecialTokens:
    """Which token plays which of BERT's parts; the names of other families ("<s>") fit as well."""

    pad: str = "[PAD]"
    unk: str | None = "[UNK]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    mask: str = "[MASK]"

    def names(self) -> list[str]:
        """The tokens in the order pad, unk, cls, sep, mask, without a missing unk."""
        return [name for name in (self.pad, self.unk, self.cls, self.sep, self.mask) if name is not None]


def read_definition(path: str | Path) -> tuple[str, SpecialTokens]:
    """The `tokenizer.json` and special tokens of a folder, a file or a repository on the Hub.

    Args and errors as in `tokenizer.load_tokenizer`.
    """
    place = Path(path).expanduser()
    if not place.exists():
        place = fetch(str(path), _FILES, "a tokenizer folder, a vocab.txt or a tokenizer.json")
    try:
        if place.is_file():
            if place.suffix == ".json":
                return _from_json(place, {})
            return _from_vocab(place, _settings_in(place.parent))
        if (place / "tokenizer.json").is_file():
            return _from_json(place / "tokenizer.json", _settings_in(place))
        if (place / "vocab.txt").is_file():
            return _from_vocab(place / "vocab.txt", _settings_in(place))
        if (place / "model" / "tokenizer.json").is_file():  # a run's folder
            return _from_json(place / "model" / "tokenizer.json", _settings_in(place / "model"))
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
    raise ModelError(
        f"{place}: no tokenizer.json or vocab.txt in this folder. "
        "Train one with `bertsmith tokenizer train`, or give another folder, a vocab.txt or a tokenizer.json."
    )


def bert_definition(
    tokens: Sequence[str],
    special: SpecialTokens,
    *,
    lowercase: bool,
    tokenize_chinese_chars: bool = True,
    strip_accents: bool | None = None,
) -> str:
    """The `tokenizer.json` of BERT's own pipeline for a WordPiece vocabulary, ids in the order given.

    Words over 100 characters become the unknown token, as in transformers (google-research/bert
    says 200 since 2018-11-23). A token given twice has the later id, as in both.

    Args:
        strip_accents: None means when lower-casing, as in BERT.
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    missing = [name for name in special.names() if name not in vocabulary]
    if missing or special.unk is None:
        raise ModelError(f"the vocabulary has no {', '.join(missing) or '[UNK]'}; BERT tasks need these special tokens")
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special.unk, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=tokenize_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return finish_definition(backend, special)


def finish_definition(backend: Any, special: SpecialTokens, before: Sequence[Any] = ()) -> str:
    """Mark the special tokens and add the template [CLS] A [SEP] B [SEP] with segments 0 and 1.

    Args:
        backend: a `tokenizers.Tokenizer` whose vocabulary has the special tokens.
        before: post-processors that run before the template (byte-level offsets).
    """
    # Byte-level words begin with their space, and so does a mask that stands for one, as in RoBERTa's tokenizer.
    takes_space = {special.mask} if before else set()
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(name, normalized=False, special=True, lstrip=name in takes_space)
            for name in special.names()
        ]
    )
    template = pair_template(backend, special)
    backend.post_processor = processors.Sequence([*before, template]) if before else template
    definition: str = backend.to_str()
    return definition


def pair_template(backend: Any, special: SpecialTokens) -> Any:
    """The post-processor that gives transformers [CLS] A [SEP] and [CLS] A [SEP] B [SEP]."""
    return processors.TemplateProcessing(
        single=f"{special.cls} $A {special.sep}",
        pair=f"{special.cls} $A {special.sep} $B:1 {special.sep}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in (special.cls, special.sep)],
    )


def _from_json(path: Path, settings: Mapping[str, Any]) -> tuple[str, SpecialTokens]:
    """Where tokenizer_config.json and the normalizer of BERT disagree, the first wins, as in transformers."""
    try:
        parts = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}", f"{path}:{error.lineno}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of more digits than Python reads
        raise InputError(f"not JSON: {error}", str(path)) from None
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        raise ModelError('not a tokenizer.json: it has no "model" section')
    normalizer = parts.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        for field, option in _BERT_OPTIONS.items():
            normalizer[field] = settings.get(option, normalizer.get(field))
    return json.dumps(parts), _special_tokens(settings, _tokens_in(parts))


def _tokens_in(parts: Mapping[str, Any]) -> set[str]:
    """Every token of a `tokenizer.json`. What is not as it should be is for the library to refuse."""
    vocabulary, added = parts["model"].get("vocab"), parts.get("added_tokens")
    known = set(vocabulary) if isinstance(vocabulary, dict) else set()
    if isinstance(vocabulary, list):  # of pairs of a token and its score
        known = {str(entry[0]) for entry in vocabulary if isinstance(entry, list) and entry}
    entries = added if isinstance(added, list) else []
    return known | {str(entry.get("content")) for entry in entries if isinstance(entry, dict)}


def _from_vocab(path: Path, settings: Mapping[str, Any]) -> tuple[str, SpecialTokens]:
    name = settings.get("tokenizer_class")
    if name is not None and str(name).removesuffix("Fast").removesuffix("Tokenizer") not in _AS_BERT:
        raise ModelError(
            f"tokenizer_class in tokenizer_config.json is {name}, and of a vocab.txt only BERT's WordPiece is read. "
            "Load it in transformers and save it again: if that writes a tokenizer.json, it is read. Say BertTokenizer "
            "if it is BERT's after all."
        )
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if lines and all(line.endswith("\r") for line in lines):
        lines = [line[:-1] for line in lines]
    lowercase = settings.get("do_lower_case")
    if lowercase is None:
        ordinary = (token for token in lines if not re.fullmatch(r"\[.+\]|<.+>", token))
        lowercase = all(token == token.lower() for token in ordinary)
    special = _special_tokens(settings, set(lines))
    definition = bert_definition(
        lines,
        special,
        lowercase=bool(lowercase),
        tokenize_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
    )
    return _with_added(definition, path.parent / _ADDED, settings), special


def _with_added(definition: str, file: Path, settings: Mapping[str, Any]) -> str:
    """With the tokens that were added to a vocab.txt, found in a text before any word is, as in transformers."""
    given = settings.get("added_tokens_decoder")  # newer versions of transformers have them here, with all flags
    if given is None:
        ids = read_json(file) if file.is_file() else {}
        if not isinstance(ids, dict):
            raise ModelError(f"{_ADDED} must give each token its id, and is a {type(ids).__name__}")
        special = _named_special(settings)
        given = {str(token_id): {"content": token, "special": token in special} for token, token_id in ids.items()}
    if not isinstance(given, dict) or not all(isinstance(one, dict) and "content" in one for one in given.values()):
        raise ModelError("added_tokens_decoder in tokenizer_config.json must give each id its token, with its content")
    if not all(token_id.isdecimal() for token_id in given):
        raise ModelError(f"the ids of added tokens must be whole numbers, not {', '.join(given)}")
    backend: Any = tokenizers.Tokenizer.from_str(definition)
    for token_id, entry in sorted((int(token_id), entry) for token_id, entry in given.items()):
        flags = {name: entry[name] for name in _FLAGS if isinstance(entry.get(name), bool)}
        token = tokenizers.AddedToken(str(entry["content"]), **flags)
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        place = backend.token_to_id(token.content)
        if place != token_id:
            raise ModelError(
                f'the added token "{token.content}" has the id {token_id}, and {place} by its place behind vocab.txt; '
                "load the folder in transformers and save it again as a tokenizer.json"
            )
    with_added: str = backend.to_str()
    return with_added


def _named_special(settings: Mapping[str, Any]) -> set[str]:
    """Every token that the settings give a part, and those beside them ("additional_special_tokens")."""
    named = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        named += settings[key] if isinstance(settings.get(key), list) else []
    return {str(one.get("content") if isinstance(one, dict) else one) for one in named}


def _special_tokens(settings: Mapping[str, Any], known: set[str]) -> SpecialTokens:
    """The tokens that the settings name ("cls_token"), else the usual names that the vocabulary has."""

    def named(role: str, usual: Sequence[str]) -> str | None:
        given = settings.get(f"{role}_token")
        if isinstance(given, dict):  # an AddedToken, written out
            given = given.get("content")
        if given is not None and not isinstance(given, str):
            raise ModelError(f"{role}_token in tokenizer_config.json must be a text, not {json.dumps(given)}")
        return given if given is not None else next((name for name in usual if name in known), None)

    pad, unk, cls, sep, mask = (named(role, usual) for role, usual in _USUAL_NAMES.items())
    end = named("eos", _END_OF_TEXT)
    if cls is None and sep is None and end is not None:
        # GPT-2 has this one token for everything; it is never masked, so nothing is mistaken for the mask.
        return SpecialTokens(pad or end, unk, end, end, mask or end)
    if pad is None or cls is None or sep is None or mask is None:
        found = {"[PAD]": pad, "[CLS]": cls, "[SEP]": sep, "[MASK]": mask}
        missing = [name for name, value in found.items() if value is None]
        raise ModelError(
            f"no token plays the part of {', '.join(missing)}. "
            "BERT tasks need these: name them in tokenizer_config.json or use another vocabulary."
        )
    return SpecialTokens(pad, unk, cls, sep, mask)


def _settings_in(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json where it says nothing; {} without either."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            if not isinstance(content, dict):
                raise InputError("not a JSON object", str(folder / name))
            merged.update({key: value for key, value in content.items() if value is not None})
    return merged


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: {error.reason} at byte {error.start}", str(path)) from None


def types_in(part: Any) -> dict[str, dict[str, Any]]:
    """All components of a (nested) normalizer or pre-tokenizer by their type."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(part, dict):
        if "type" in part:
            found[str(part["type"])] = part
        for value in part.values():
            found |= types_in(value)
    elif isinstance(part, list):
        for value in part:
            found |= types_in(value)
    return found


_UNMARKED: Mapping[str, Mapping[str, Any]] = {
    "ByteLevel": {"add_prefix_space": False},
    "Metaspace": {"prepend_scheme": "never"},
}


def without_space(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer that puts no space before the first word of a text; before others there is theirs.

    Args:
        definition: of a `tokenizer.json`.
    """
    whole = definition["pre_tokenizer"]
    parts = whole["pretokenizers"] if (whole or {}).get("type") == "Sequence" else [whole] if whole else []
    if any(one["type"] == "Whitespace" for one in parts):  # where every piece of a word is marked
        return dict(definition)
    kept = [{**one, **_UNMARKED.get(one["type"], {})} for one in parts]
    if kept == parts:
        return dict(definition)
    normalizer = definition["normalizer"]
    if any(one["type"] == "WhitespaceSplit" for one in kept):  # which leaves no spaces to mark the next words by
        kept = [one for one in kept if one["type"] != "WhitespaceSplit"]
        single = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
        normalizer = {"type": "Sequence", "normalizers": [*([normalizer] if normalizer else []), single]}
    return {**definition, "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": kept}}


def lowers(normalizer: Any) -> bool:
    """Whether a normalizer makes text lower-case."""
    kinds = types_in(normalizer)
    return "Lowercase" in kinds or bool(kinds.get("BertNormalizer", {}).get("lowercase"))
