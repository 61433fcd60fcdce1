"""The files in which sentence-transformers keeps how a text becomes a vector: written, and read as settings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bertsmith.errors import ModelError
from bertsmith.files import read_json, write_json
from bertsmith.model.folder import resolve
from bertsmith.tasks.embed_data import EmbeddingSettings, Pooling
from bertsmith.text.tokenizer import Tokenizer

_MODULES, _POOLING, _NORMALIZE = "modules.json", "1_Pooling", "2_Normalize"
_TRANSFORMER_SETTINGS, _PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
_NORMALIZED = ["Transformer", "Pooling", "Normalize"]
_READ = (_NORMALIZED, _NORMALIZED[:2])
_POOLING_MODES: Mapping[Pooling, str] = {"mean": "mean_tokens", "cls": "cls_token"}


def has_modules(folder: Path) -> bool:
    """Whether sentence-transformers, or its like, wrote down what the folder is for."""
    return (folder / _MODULES).is_file()


def makes_vectors(folder: Path) -> bool:
    """Whether a folder of others is for vectors, whatever its architectures were called before it was made one."""
    if (folder / "bertsmith.json").is_file() or not has_modules(folder):
        return False
    return _module_types(folder) in _READ


def write_sentence_files(folder: Path, settings: EmbeddingSettings, hidden_size: int) -> None:
    """Write what makes a model folder one of sentence-transformers."""
    write_json(
        folder / _MODULES,
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(zip(("", _POOLING, _NORMALIZE), _NORMALIZED, strict=True))
            if settings.normalizes or name != _NORMALIZED[-1]
        ],
    )
    modes = {f"pooling_mode_{_POOLING_MODES[mode]}": mode == settings.pools for mode in _POOLING_MODES}
    write_json(folder / _POOLING / "config.json", {"word_embedding_dimension": hidden_size, **modes})
    write_json(folder / _TRANSFORMER_SETTINGS, {"max_seq_length": settings.max_length, "do_lower_case": False})
    if settings.text_prompt or settings.pair_prompt:
        prompts = {"query": settings.text_prompt or "", "document": settings.pair_prompt or ""}
        default = "query" if settings.text_prompt == settings.pair_prompt else None
        write_json(folder / _PROMPTS, {"prompts": prompts, "default_prompt_name": default})


def read_sentence_files(folder: Path, longest: int) -> dict[str, Any]:
    """Settings of a folder of sentence-transformers: pooling, normalize, max_length and what stands before every text.

    Args:
        longest: how many tokens the model takes.

    Raises:
        ModelError: it makes vectors in a way that ours does not.
    """
    _check_modules(folder)
    is_normalized = _module_types(folder) == _NORMALIZED
    how = {"pooling": read_pooling(folder), "normalize": is_normalized, "max_length": _length(folder, longest)}
    return {**how, **_default_prompts(folder)}


def _default_prompts(folder: Path) -> dict[str, str]:
    """The prompts that sentence-transformers puts before every text; none, if it puts none there unasked."""
    settings = _object_if_there(folder / _PROMPTS)
    name, texts = settings.get("default_prompt_name"), settings.get("prompts")
    prompt = texts.get(name) if isinstance(texts, dict) and isinstance(name, str) else None
    return dict.fromkeys(("text_prompt", "pair_prompt"), prompt) if isinstance(prompt, str) and prompt else {}


def _length(folder: Path, longest: int) -> int:
    """Tokens that sentence-transformers reads of a text. Since version 6 the tokenizer says it."""
    length = _object_if_there(folder / _TRANSFORMER_SETTINGS).get("max_seq_length")
    return length if isinstance(length, int) else tokenizer_length(folder, longest)


def _check_modules(folder: Path) -> None:
    """Raise ModelError where more becomes of a text than ours makes of it."""
    types = _module_types(folder)
    if types not in _READ:
        raise ModelError(
            f"{folder / _MODULES}: the modules are {', '.join(types) or 'none'}; read are {', '.join(_NORMALIZED)}, "
            "with or without the last."
        )
    if _default_prompts(folder) and _object_if_there(folder / _POOLING / "config.json").get("include_prompt") is False:
        raise ModelError(
            f"{folder / _POOLING / 'config.json'}: include_prompt leaves the prompt out of the mean, and here it is "
            "in it."
        )


def tokenizer_length(folder: Path, longest: int) -> int:
    """Tokens that transformers reads of a text, by the tokenizer's settings; at most those that the model takes."""
    given = _object_if_there(folder / "tokenizer_config.json").get("model_max_length")
    # 1e30 stands for none.
    return int(min(given, longest)) if isinstance(given, int | float) and given > 0 else longest


def truncates_left(folder: Path) -> bool:
    """Whether transformers cuts a long text at its beginning, by the tokenizer's settings."""
    return _object_if_there(folder / "tokenizer_config.json").get("truncation_side") == "left"


def read_pooling(folder: Path) -> Pooling:
    """What stands for a text, as `EmbeddingSettings` has it.

    Raises:
        ModelError: something else than these, or nothing that can be read.
    """
    path = folder / _POOLING / "config.json"
    pooling = _object(path)
    active = [pooling.get("pooling_mode")]  # since version 6; before it a field for each
    if active == [None]:
        active = [name for name, is_on in pooling.items() if name.startswith("pooling_mode_") and is_on]
    for mode, name in _POOLING_MODES.items():
        if active in ([mode], [f"pooling_mode_{name}"]):
            return mode
    raise ModelError(f"{path}: read are the mean of the tokens and the first token.")


def as_before(options: Any, weights: str | None, tokenizer: Tokenizer) -> Any:
    """The options of a task that goes on from a folder; those of embeddings with its pooling, prompts and
    length of vectors, unless they name others.

    Args:
        weights: the folder or Hub id; None: random weights.

    Raises:
        ModelError: that folder makes its vectors in another way than ours does.
    """
    if not isinstance(options, EmbeddingSettings):
        return options
    if weights is None:
        return replace(options, pooling=options.pools)
    folder = resolve(weights)
    known = _known(folder)
    options = replace(options, **{name: one for name, one in known.items() if getattr(options, name) is None})
    if options.pooling is not None:
        return options
    if not (has_modules(folder) or (folder / _POOLING).is_dir()):
        return replace(options, pooling=options.pools)
    try:
        if has_modules(folder):
            _check_modules(folder)
            check_case(folder, tokenizer)
        return replace(options, pooling=read_pooling(folder))
    except ModelError as error:
        raise ModelError(f"{error} Give pooling to go on from its encoder alone.") from error


def _known(folder: Path) -> dict[str, Any]:
    """What else the folder of a model says of its vectors: prompts, and whether they have length 1."""
    if not (folder / "bertsmith.json").is_file():
        has_length = has_modules(folder) and _module_types(folder) == _READ[1]
        return {**_default_prompts(folder), **({"normalize": False} if has_length else {})}
    settings = _object(folder / "bertsmith.json").get("settings")
    found = settings if isinstance(settings, dict) else {}
    return {name: found[name] for name in ("text_prompt", "pair_prompt", "normalize") if found.get(name) is not None}


def folder_notes(options: Any, weights: str | None, longest: int) -> list[str]:
    """What the folder that is gone on from does, and the model to be saved will not.

    Args:
        longest: how many tokens the encoder takes.
    """
    if not isinstance(options, EmbeddingSettings) or weights is None or not has_modules(resolve(weights)):
        return []
    folder, notes = resolve(weights), []
    before = min(_length(folder, longest), longest)
    if before > options.max_length:
        notes.append(
            f"{weights} reads {before} tokens of a text, and what is learnt will read max_length {options.max_length}: "
            f"give max_length {before} to keep its own."
        )
    prompts = _object_if_there(folder / _PROMPTS).get("prompts")
    named = {name: text for name, text in prompts.items() if text} if isinstance(prompts, dict) else {}
    if named and options.text_prompt is None and options.pair_prompt is None:
        listed = ", ".join(f"{name} {text!r}" for name, text in named.items())
        notes.append(f"{weights} knows prompts ({listed}): give text_prompt and pair_prompt to learn with them.")
    return notes


def check_case(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse a folder whose texts are lower-cased before its tokenizer sees them, if that does not do it itself.

    Raises:
        ModelError: it is one.
    """
    path = folder / _TRANSFORMER_SETTINGS
    if _object_if_there(path).get("do_lower_case") and not tokenizer.lowercase:
        raise ModelError(
            f"{path}: do_lower_case is true, and the tokenizer does not lower-case. Set do_lower_case to true in "
            "tokenizer_config.json, which the tokenizer of a BERT follows; or to false here, and lower-case the texts."
        )


def _module_types(folder: Path) -> list[str]:
    modules = read_json(folder / _MODULES)
    listed = modules if isinstance(modules, list) else []
    return [str(module.get("type")).rpartition(".")[2] for module in listed if isinstance(module, dict)]


def _object_if_there(path: Path) -> dict[str, Any]:
    return _object(path) if path.is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file holds something else, or is not there.
    """
    value = read_json(path) if path.is_file() else None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: a JSON object is wanted.")
    return value
