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
_READ = ["Transformer", "Pooling", "Normalize"]
_POOLING_MODES: Mapping[Pooling, str] = {"mean": "mean_tokens", "cls": "cls_token"}


def has_modules(folder: Path) -> bool:
    """Whether sentence-transformers, or its like, wrote down what the folder is for."""
    return (folder / _MODULES).is_file()


def makes_vectors(folder: Path) -> bool:
    """Whether a folder of others is for vectors, whatever its architectures were called before it was made one."""
    if (folder / "bertsmith.json").is_file() or not has_modules(folder):
        return False
    return _module_types(folder) in (_READ, _READ[:2])


def write_sentence_files(folder: Path, settings: EmbeddingSettings, hidden_size: int) -> None:
    """Write what makes a model folder one of sentence-transformers."""
    write_json(
        folder / _MODULES,
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(zip(("", _POOLING, _NORMALIZE), _READ, strict=True))
        ],
    )
    modes = {f"pooling_mode_{_POOLING_MODES[mode]}": mode == settings.pools for mode in _POOLING_MODES}
    write_json(folder / _POOLING / "config.json", {"word_embedding_dimension": hidden_size, **modes})
    write_json(folder / _TRANSFORMER_SETTINGS, {"max_seq_length": settings.max_length, "do_lower_case": False})


def read_sentence_files(folder: Path, longest: int) -> dict[str, Any]:
    """Settings of a folder of sentence-transformers: pooling and max_length.

    Args:
        longest: how many tokens the model takes.

    Raises:
        ModelError: it makes vectors in a way that ours does not.
    """
    types = _module_types(folder)
    if types != _READ:
        raise ModelError(
            f"{folder / _MODULES}: the modules are {', '.join(types) or 'none'}; read are {', '.join(_READ)}."
        )
    prompts = _object_if_there(folder / _PROMPTS)
    name, texts = prompts.get("default_prompt_name"), prompts.get("prompts")
    prompt = texts.get(name) if isinstance(texts, dict) and isinstance(name, str) else None
    if prompt:
        raise ModelError(
            f"{folder / _PROMPTS}: default_prompt_name puts {prompt!r} before every text, and here nothing is put "
            "there. Set it to null, and begin the texts with it yourself."
        )
    # Since version 6 the length is that of the tokenizer.
    length = _object_if_there(folder / _TRANSFORMER_SETTINGS).get("max_seq_length")
    if not isinstance(length, int):
        length = tokenizer_length(folder, longest)
    return {"pooling": read_pooling(folder), "max_length": length}


def tokenizer_length(folder: Path, longest: int) -> int:
    """Tokens that transformers reads of a text, by the tokenizer's settings; at most those that the model takes."""
    given = _object_if_there(folder / "tokenizer_config.json").get("model_max_length")
    # 1e30 stands for none.
    return int(min(given, longest)) if isinstance(given, int | float) and given > 0 else longest


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


def with_pooling(options: Any, weights: str | None) -> Any:
    """The options of a task that goes on from a folder; those of embeddings with its pooling, unless they name one.

    Args:
        weights: the folder or Hub id; None: random weights.

    Raises:
        ModelError: a text of that folder is neither the mean of its tokens nor the first token.
    """
    if not isinstance(options, EmbeddingSettings) or options.pooling is not None:
        return options
    if weights is None or not (resolve(weights) / _POOLING / "config.json").is_file():
        return replace(options, pooling=options.pools)
    try:
        return replace(options, pooling=read_pooling(resolve(weights)))
    except ModelError as error:
        raise ModelError(f"{error} Give pooling to learn another than the model's.") from error


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
