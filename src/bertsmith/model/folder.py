"""A Hugging Face model folder to our modules and back, without importing Transformers.

Weights come from safetensors only: reading a pickle would run whatever code its author put there. Every
shape is compared with the file's header before anything is allocated for it.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bertsmith.errors import InputError, ModelError, SettingsError, did_you_mean
from bertsmith.files import atomic_write, read_json, write_json
from bertsmith.hub import fetch
from bertsmith.model.config import SAME_ACTIVATIONS, EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.families.family import Family
from bertsmith.settings import from_mapping

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LABELLED = ("ForSequenceClassification", "ForTokenClassification")
"""What the architectures end in whose outputs are named by `id2label`."""
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# The last five are what sentence-transformers keeps beside a model, or reads of its tokenizer.
_HUB_FILES = [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors", "bertsmith.json"]
_HUB_FILES += ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
_HUB_FILES += ["config_sentence_transformers.json", "tokenizer_config.json"]
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_KERNEL_KEYS = ("_attn_implementation", "_attn_implementation_internal")  # a kernel from the Hub, if there is a slash
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
# A field that may be None -> the property with what None means, for who reads the folder.
_MEANT = {"embedding_size": "embedding_width", "embedding_dropout_prob": "embedding_dropout"}
_DTYPES = {"F64", "F32", "F16", "BF16"}


class _Slice(Protocol):
    """What safetensors tells of a tensor before it is read."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _Weights:
    """The tensors of a folder, in one file or several, by name; open inside a `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> "_Weights":
        if not _weight_files(self.folder):
            raise ModelError(_no_weights(self.folder))
        for path in _weight_files(self.folder):
            try:
                file = self._stack.enter_context(safetensors.safe_open(path, framework="pt"))
            except (safetensors.SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a whole safetensors file ({error}); fetch or copy it again") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def names(self) -> set[str]:
        """All tensors of the folder."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header; the tensor is not read.

        Raises:
            ModelError: it does not hold floating-point numbers.
        """
        header: _Slice = self._files[name].get_slice(name)
        if header.get_dtype() not in _DTYPES:
            raise ModelError(f'{self.folder}: tensor "{name}" is {header.get_dtype()}; weights must be floating point')
        return tuple(header.get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor in the dtype of the file."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def resolve(path: str | Path) -> Path:
    """A folder on this machine: the path itself, or the Hub's "organisation/name" fetched into its cache.

    Raises:
        ModelError: neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{folder} is a file. Give a model folder")
    return fetch(str(path), _HUB_FILES, "a model folder")


def read_config(path: str | Path) -> tuple[EncoderConfig, dict[str, Any]]:
    """The encoder's config, and all of config.json (`architectures`, `id2label`, ...).

    Fields that would change the arithmetic into something we do not do are refused; others are ignored, those that
    name code with a warning.
    Where there are weights, the config must fit them: so that nobody allocates what a wrong number asks for.

    Raises:
        ModelError: no such folder or file, an unknown family, a field with a value we cannot honour, a
            tensor of another shape than the config says.
    """
    file = resolve(path) / CONFIG_FILE
    try:
        raw = read_json(file)
    except InputError as error:
        raise ModelError(f"{error}. A model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ModelError(f'{file}: no "model_type"; is this the config of a model?')
    code = [key for key in _CODE_KEYS if raw.get(key)] + [key for key in _KERNEL_KEYS if "/" in str(raw.get(key))]
    if code:
        warnings.warn(
            f"{file}: {', '.join(code)} may make other programs run code from there or from elsewhere; here nothing is "
            "run, and the model is read as what its model_type says",
            RuntimeWarning,
            stacklevel=2,
        )
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(f"{file}: architectures must be a list of names, not {json.dumps(architectures)}")
    try:
        row = family(raw["model_type"])
        for field, allowed in row.fixed_config.items():
            if raw.get(field) is not None and raw[field] != allowed:
                raise ModelError(f"{field} is {json.dumps(raw[field])}; only {json.dumps(allowed)} is supported")
        also = {theirs: raw[other] for other, theirs in row.also_called.items() if other in raw}
        understood = row.understand({**raw, **also})
        values = {ours: understood[theirs] for ours, theirs in row.config_names.items() if theirs in understood}
        for name in {"hidden_act", "head_activation"} & values.keys():
            values[name] = SAME_ACTIVATIONS.get(str(values[name]), values[name])
        config = from_mapping(EncoderConfig, {**row.defaults, **values, "model_type": row.model_type}, CONFIG_FILE)
        if row.offsets_positions:
            config = replace(config, position_offset=(config.pad_token_id or 0) + 1)
    except (ModelError, SettingsError) as error:
        raise ModelError(f"{file.parent}: {error}") from error
    if _weight_files(file.parent):
        _check_sizes(file.parent, row, config)
    return config, raw


def load_encoder(path: str | Path) -> tuple[Encoder, EncoderConfig]:
    """The encoder of a folder of any architecture, in fp32 and in evaluation mode, without its heads.

    Raises:
        ModelError: as `read_config` and `load_weights`.
    """
    folder = resolve(path)
    config, _ = read_config(folder)
    model = nn.ModuleDict({"encoder": Encoder(config)})
    load_weights(folder, model, strict=True)
    encoder = model["encoder"]
    assert isinstance(encoder, Encoder)
    return encoder.eval(), config


def load_weights(path: str | Path, model: nn.Module, *, strict: bool) -> list[str]:
    """Fill one of our models from a folder; 16-bit weights become the model's dtype.

    Heads whose names several architectures use for different things ("classifier") are only taken from
    a folder whose `architectures` says the same as the model's heads.

    Args:
        model: a module with `encoder` and any of `pooled`, `tokens`, `vocabulary`, `detection`.
        strict: every tensor of the model must be in the folder. Otherwise those of the heads may be
            missing, or have another shape (a different number of labels), and keep their values.

    Returns:
        Our names of the tensors that kept their values; empty if `strict`.

    Raises:
        ModelError: no weights that can be read, a tensor missing, a tensor of another shape.
    """
    folder = resolve(path)
    _, raw = read_config(folder)
    row = family(raw["model_type"])
    with _Weights(folder) as weights:
        sources, kept = _match(row, raw.get("architectures") or [], model, weights, strict)
        with torch.no_grad():
            for name, parameter in model.state_dict(keep_vars=True).items():
                if name in sources:
                    for part, source in zip(parameter.chunk(len(sources[name])), sources[name], strict=True):
                        read = weights.read(source)
                        part.copy_(read.T if row.is_transposed(name) else read)
    return kept


def save_model(
    folder: Path,
    model: nn.Module,
    config: EncoderConfig,
    architecture: str,
    *,
    id2label: Mapping[int, str] | None = None,
    problem_type: str | None = None,
) -> None:
    """Write config.json and model.safetensors so that Transformers' `from_pretrained` gives the same logits.

    Weights are written in fp32. As "BertModel", only the encoder (and the pooler, if there is one) is.

    Args:
        architecture: a key of the family's `heads`, for example "BertForTokenClassification".
        id2label: a name for every output of a classifier; "LABEL_0", ... if not given.
        problem_type: one of PROBLEM_TYPES, for "BertForSequenceClassification".

    Raises:
        ModelError: the architecture is unknown or does not fit the model, or the labels do not.
        StorageError: the disk refused; each file is either the old or the new one.
    """
    row = family(config.model_type)
    if architecture not in row.heads:
        raise ModelError(f'no architecture "{architecture}". {did_you_mean(architecture, row.heads)}')
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ModelError(f'no problem_type "{problem_type}". {did_you_mean(problem_type, PROBLEM_TYPES)}')
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        theirs = row.theirs(architecture, name)
        if not theirs and architecture != row.bare:
            raise ModelError(f"{architecture} has no place for this model's {name}")
        # Without a copy the parts of a fused tensor share memory, which safetensors refuses.
        parts = tensor.detach().chunk(len(theirs)) if theirs else ()
        for part_name, part in zip(theirs, parts, strict=True):
            laid = part.T if row.is_transposed(name) else part
            tensors[part_name] = laid.to("cpu", torch.float32, copy=True).contiguous()
    missing = [stem for stem in row.heads[architecture].values() if not any(name.startswith(stem) for name in tensors)]
    if missing:
        raise ModelError(f"{architecture} needs {' and '.join(missing)}, for which this model has nothing")
    values: dict[str, Any] = {"architectures": [architecture], "model_type": row.model_type, "dtype": "float32"}
    values |= {theirs: getattr(config, _MEANT.get(ours, ours)) for ours, theirs in row.config_names.items()}
    values |= row.fixed_config
    if architecture.endswith(LABELLED):
        outputs = len(next(tensor for name, tensor in model.state_dict().items() if name.endswith(".out.weight")))
        values |= _labels(outputs, id2label)
    if problem_type is not None:
        values["problem_type"] = problem_type
    atomic_write(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG_FILE, values)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, none if it has none.

    Raises:
        ModelError: the index names a file outside the folder, or one that is missing.
    """
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        return []
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (InputError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: {name!r} is not the name of a file beside the index")
        if not (folder / name).exists():
            raise ModelError(f"{folder / name}: missing, though {INDEX_FILE} names it; fetch or copy the folder again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    pickled = [name for name in _PICKLES if (folder / name).exists()]
    if pickled:
        return f"{folder}: only {pickled[0]}, which may run code when it is read. {_how_to_convert(str(folder))}"
    # From the Hub no pickle is fetched, so that a repository of nothing else looks empty.
    return (
        f"{folder}: no {WEIGHTS_FILE} here. If its repository on the Hub has only {_PICKLES[0]}: this may run code "
        f"when it is read. {_how_to_convert('organisation/name')}"
    )


def _how_to_convert(place: str) -> str:
    return (
        "Convert it once, where you trust it: "
        f"python -c \"import transformers as t; name = t.AutoConfig.from_pretrained('{place}').architectures[0]; "
        f"getattr(t, name).from_pretrained('{place}').save_pretrained('{place}-safe')\""
    )


def _check_sizes(folder: Path, row: Family, config: EncoderConfig) -> None:
    """Compare the config with the headers of the weights, at no cost in memory."""
    with _Weights(folder) as weights:
        layers = row.count_layers(weights.names())
        if layers != config.num_distinct_layers:
            field = "num_hidden_layers" if config.num_hidden_groups is None else "num_hidden_groups"
            raise ModelError(
                f"{folder}: {CONFIG_FILE} says {field} {config.num_distinct_layers}, the weights have {layers}"
            )
        with torch.device("meta"):
            model = nn.ModuleDict({"encoder": Encoder(config)})
        _match(row, [], model, weights, strict=True)


def _match(
    row: Family, written_as: Sequence[str], model: nn.Module, weights: _Weights, strict: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Which tensors of the folder make each of ours, and which of ours keep their values."""
    state = model.state_dict()
    names = weights.names()
    architecture = row.architecture_of(state, written_as)
    sources: dict[str, list[str]] = {}
    kept = []
    for name, tensor in state.items():
        theirs = row.sources(architecture, written_as, name)
        found = [next((known for known in row.spellings(part) if known in names), "") for part in theirs]
        must_fit = strict or name.startswith("encoder.")
        if not theirs or not all(found):
            if must_fit:
                missing = [part for part, known in zip(theirs, found, strict=True) if not known] or [name]
                raise ModelError(f"{weights.folder}: no tensor {' and '.join(missing)} in the weights")
            kept.append(name)
            continue
        wanted = (tensor.shape[0] // len(found), *tensor.shape[1:])
        if row.is_transposed(name):
            wanted = wanted[::-1]
        unfit = [known for known in found if weights.shape(known) != wanted]
        if unfit and must_fit:
            raise ModelError(
                f"{weights.folder}: {unfit[0]} has the shape {list(weights.shape(unfit[0]))}, "
                f"where the model has {list(wanted)}"
            )
        if unfit:
            kept.append(name)
        else:
            sources[name] = found
    return sources, kept


def _labels(outputs: int, id2label: Mapping[int, str] | None) -> dict[str, dict[str, Any]]:
    """The two label tables of config.json."""
    labels = {i: f"LABEL_{i}" for i in range(outputs)} if id2label is None else dict(sorted(id2label.items()))
    if list(labels) != list(range(outputs)):
        raise ModelError(f"id2label names the outputs {list(labels)}, but the model has {outputs}, counted from 0")
    return {
        "id2label": {str(i): label for i, label in labels.items()},
        "label2id": {label: i for i, label in labels.items()},
    }
