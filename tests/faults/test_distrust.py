"""Files that somebody else made: nothing in them is run, and whatever is in them is read, or refused by a message."""

import copy
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bertsmith.errors import BertsmithError, CorpusError, InputError, ModelError
from bertsmith.files import read_json, sealed, write_json
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_encoder, save_model
from bertsmith.model.sizes import named_size
from bertsmith.settings import read_config
from bertsmith.tasks import answer_data, classify_data, tag_data
from bertsmith.tasks.saved import load_task, save_task
from bertsmith.tasks.tag import Tagging
from bertsmith.text.corpus import open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import load_tokenizer
from bertsmith.training.checkpoint import find_fault, load_checkpoint, read_state, save_checkpoint

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()  # it would be seen
    path.unlink()
    return path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = named_size("tiny", load_tokenizer(tiny_tokenizer).vocab_size)
    save_model(folder, nn.ModuleDict({"encoder": Encoder(config)}), config, "BertModel")
    load_tokenizer(tiny_tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_documents: Path, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("store") / "corpus"
    build_corpus([str(tiny_documents)], tiny_tokenizer, folder, num_workers=1)
    return folder


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Path, str, bytes], Path]:
    """A copy of a folder in which one file has other bytes."""

    def make(folder: Path, name: str, content: bytes) -> Path:
        place = tmp_path / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place, copy_function=os.link)  # the rest is not touched
        (place / name).unlink()
        (place / name).write_bytes(content)
        return place

    return make


def refused_or_read(read: Callable[[], object]) -> None:
    """Any exception but those that users get passes through."""
    try:
        read()
    except BertsmithError as error:
        assert str(error)


# Nothing is run (row 16)


def test_pickles_in_place_of_any_file_are_refused_unread(
    model_folder: Path, store: Path, canary: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    pickled = pickle.dumps(Payload(canary))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = damaged(model_folder, name, pickled)
        with pytest.raises(BertsmithError):
            load_tokenizer(folder) if name == "tokenizer.json" else load_encoder(folder)
        with pytest.raises(BertsmithError):
            load_task(folder)
    for name in ("pytorch_model.bin", "bertsmith.json"):
        folder = damaged(model_folder, "model.safetensors", b"")
        (folder / name).write_bytes(pickled)
        with pytest.raises(BertsmithError):
            load_task(folder)
    # Where there is nothing else, too.
    folder = damaged(model_folder, "model.safetensors", b"")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin, which may run code"):
        load_encoder(folder)
    (folder / "train.csv").write_bytes(pickled)
    with pytest.raises(InputError):
        classify_data.read_rows(str(folder / "train.csv"), classify_data.ClassificationSettings())
    for name in sorted(str(path.relative_to(store)) for path in store.rglob("*.npy")):
        with pytest.raises(CorpusError):
            open_corpus(damaged(store, name, pickled), "heldout" if name.startswith("heldout") else "train")
    assert not canary.exists()


def test_arrays_of_pickled_objects_are_refused_unread(
    store: Path, canary: Path, tmp_path: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    """Of the size that the manifest says, so that numpy is asked."""
    np.save(tmp_path / "objects.npy", np.array([Payload(canary)]), allow_pickle=True)
    content = (tmp_path / "objects.npy").read_bytes()
    for path in sorted(store.glob("train/*/*.npy")):
        size = path.stat().st_size
        folder = damaged(store, str(path.relative_to(store)), content[:size].ljust(size, b"\0"))
        with pytest.raises(CorpusError):
            open_corpus(folder, "train")
    assert not canary.exists()


def test_pickles_in_a_checkpoint_are_refused_unread(toy: SimpleNamespace, canary: Path, tmp_path: Path) -> None:
    model, optimizer = toy.trained()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        path = save_checkpoint(tmp_path / name, 1, model, optimizer, {"step": 1})
        (path / name).write_bytes(pickle.dumps(Payload(canary)))
        assert find_fault(path) is not None  # so that no run goes on from it
        with pytest.raises((BertsmithError, SafetensorError)):
            read_json(path / name) if name == "manifest.json" else read_state(path)
            load_checkpoint(path, model, optimizer)
    assert not canary.exists()


# Whatever is in a file, it is read or refused (rows 15, 17, 18)

ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        10**9,
        10**30,
        1e300,
        float("nan"),
        float("inf"),
        0.5,
        "",
        "x",
        "../x",
        [],
        {},
        [[]],
        ["a"],
    ]
)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which one thing, at any depth, is another, missing, or there twice."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return draw(ODD)
        key = draw(st.sampled_from(keys[:200]))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw(st.booleans()):
            place = inner
            continue
        how = draw(st.sampled_from(("other", "other", "gone", "again")))
        if how == "gone":
            del place[key]
        elif how == "other":
            place[key] = draw(ODD)
        elif isinstance(place, dict):
            place[f"{key} again"] = inner
        else:
            place.append(inner)
        return value


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with a piece of it flipped, cut out, doubled, or put in."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    until = min(len(content), at + draw(st.integers(1, 40)))
    how = draw(st.sampled_from(("flip", "cut", "end", "double", "insert")))
    if how == "flip" and content:
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if how == "cut":
        return content[:at] + content[until:]
    if how == "end":
        return content[:at]
    if how == "double":
        return content[:until] + content[at:]
    return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]


@FUZZ
@given(data=st.data())
def test_any_config_is_read_or_refused(
    data: st.DataObject, model_folder: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    content = json.dumps(data.draw(changed_json(config))).encode()
    folder = damaged(model_folder, "config.json", content)
    refused_or_read(lambda: load_encoder(folder))


def test_code_that_a_config_names_is_not_run(
    model_folder: Path, canary: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    """Keys at which Transformers would import a file of the folder, or a kernel from the Hub (row 17)."""
    config = json.loads((model_folder / "config.json").read_text())
    config |= {
        "auto_map": {name: "canary.Model" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")},
        "trust_remote_code": True,
        "_attn_implementation": "organisation/kernel",
        "_attn_implementation_internal": "organisation/kernel",
        "custom_pipelines": {"classification": {"impl": "canary.Model", "pt": ["AutoModel"]}},
    }
    folder = damaged(model_folder, "config.json", json.dumps(config).encode())
    (folder / "canary.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Model: pass\n")
    with pytest.warns(
        RuntimeWarning, match=r"config.json: auto_map, custom_pipelines, trust_remote_code, _attn_implementation, "
    ):
        encoder, found = load_encoder(folder)
    plain, expected = load_encoder(model_folder)
    assert found == expected
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    load_tokenizer(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": -32}, "hidden_size must be at least 1"),
        ({"hidden_size": 10**9}, "hidden_size must be at least 1 and at most"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be positive"),
        ({"hidden_dropout_prob": float("nan")}, r"hidden_dropout_prob must be in \[0, 1\)"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(
    model_folder: Path, damaged: Callable[[Path, str, bytes], Path], changes: dict[str, Any], message: str
) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    folder = damaged(model_folder, "config.json", json.dumps({**config, **changes}).encode())
    with pytest.raises(ModelError, match=message):
        load_encoder(folder)


def test_a_config_of_many_levels_is_refused(model_folder: Path, damaged: Callable[[Path, str, bytes], Path]) -> None:
    folder = damaged(model_folder, "config.json", b'{"model_type": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    with pytest.raises(ModelError, match="nested too deeply"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "inner/outside.safetensors", ".."])
def test_an_index_names_nothing_outside_its_folder(
    model_folder: Path, damaged: Callable[[Path, str, bytes], Path], name: str
) -> None:
    """Whole weights are there, so that it would be read (row 18)."""
    folder = damaged(model_folder, "model.safetensors", b"")
    (folder / "model.safetensors").unlink()
    if name.endswith("safetensors"):
        place = folder.parent / "outside.safetensors"
        if name.startswith("inner"):
            place = folder / name
            place.parent.mkdir()
        elif name.startswith("/"):
            name = str(place)
        shutil.copyfile(model_folder / "model.safetensors", place)
    names = load_file(model_folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    with pytest.raises(ModelError, match=r"is not the name of a file beside the index|not a whole safetensors file"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["../00000", "/", "a/b"])
def test_a_store_names_nothing_outside_its_folder(
    store: Path, damaged: Callable[[Path, str, bytes], Path], name: str
) -> None:
    """With a hash that is right, which whoever changes a manifest can write."""
    whole = json.loads((store / "manifest.json").read_text())
    del whole["sha256"]
    tokenizer, shard = copy.deepcopy(whole), copy.deepcopy(whole)
    tokenizer["tokenizer_sha256"][name] = "0"
    shard["splits"]["train"]["shards"][0]["name"] = name
    for manifest in (tokenizer, shard):
        folder = damaged(store, "manifest.json", b"")
        write_json(folder / "manifest.json", sealed(manifest))
        with pytest.raises(CorpusError, match=r"names of files|a shard's folder"):
            open_corpus(folder, "train")


MALFORMED: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "a header larger than the file": lambda header, data: (2**40).to_bytes(8, "little") + b"{}" + data,
    "parts that overlap": lambda header, data: packed(
        {name: {**entry, "data_offsets": [0, size(entry)]} for name, entry in header.items()}, data
    ),
    "a part behind the end": lambda header, data: packed(
        {**header, "more": {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}}, data
    ),
    "a shape of more than is there": lambda header, data: packed(
        {name: {**entry, "shape": [2**40, *entry["shape"]]} for name, entry in header.items()}, data
    ),
    "bytes that nobody owns": lambda header, data: packed(header, data + b"more"),
}


def size(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end - start)


def packed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_weights_are_refused_with_their_path(
    model_folder: Path, damaged: Callable[[Path, str, bytes], Path], what: str
) -> None:
    content = (model_folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    folder = damaged(model_folder, "model.safetensors", MALFORMED[what](header, content[8 + length :]))
    with pytest.raises(ModelError, match=r"damaged/model\.safetensors: not a whole safetensors file"):
        load_encoder(folder)


@FUZZ
@given(data=st.data())
def test_any_weights_are_read_or_refused(
    data: st.DataObject, model_folder: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    content = (model_folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = data.draw(changed_json(json.loads(content[8 : 8 + size])) | st.none())
    if header is None:
        content = data.draw(changed_bytes(content[: 8 + size])) + content[8 + size :]
    else:
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    folder = damaged(model_folder, "model.safetensors", content)
    refused_or_read(lambda: load_encoder(folder))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A tagger of whole sentences, with 3 labels."""
    folder = tmp_path_factory.mktemp("tagger") / "model"
    tokenizer = load_tokenizer(tiny_tokenizer)
    config = named_size("tiny", tokenizer.vocab_size)
    task = Tagging(tokenizer, ("O", "B-X", "I-X"), tag_data.TaggingSettings(scheme="iob2", crf=True), {})
    save_task(folder, task, task.build(Encoder(config)), config, "", {})
    return folder


@settings(FUZZ, max_examples=20)
@given(
    name=st.sampled_from(("crf.start", "crf.transitions", "crf.end")),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.int64, torch.bool)),
)
def test_scores_between_labels_fit_or_are_refused_by_name(
    tagger: Path, damaged: Callable[[Path, str, bytes], Path], name: str, shape: list[int], dtype: torch.dtype
) -> None:
    tensors = {**load_file(tagger / "model.safetensors"), name: torch.zeros(shape, dtype=dtype)}
    folder = damaged(tagger, "model.safetensors", save(tensors))
    if dtype.is_floating_point and shape == ([3, 3] if name == "crf.transitions" else [3]):
        load_task(folder)
        return
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_task(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@FUZZ
@given(data=st.data())
def test_any_tokenizer_is_read_or_refused(
    name: str, data: st.DataObject, model_folder: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    whole = (model_folder / name).read_bytes()
    changed = changed_json(json.loads(whole)).map(lambda value: json.dumps(value).encode()) | changed_bytes(whole)
    folder = damaged(model_folder, name, data.draw(changed))
    refused_or_read(lambda: load_tokenizer(folder).encode("the cat sat ."))


@FUZZ
@given(data=st.data())
def test_every_change_in_a_store_is_found(
    data: st.DataObject, store: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    names = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    whole = (store / name).read_bytes()
    content = data.draw(changed_bytes(whole).filter(lambda content: content != whole))
    split = "heldout" if name.startswith("heldout") else "train"
    message = name if name.endswith(".npy") else name.partition("/")[0]
    with pytest.raises(CorpusError, match=message.replace(".", r"\.")):
        open_corpus(damaged(store, name, content), split, verify=True)


@pytest.mark.parametrize(
    "change", [lambda content: content[:-1], lambda content: content + b"\0"], ids=["cut", "longer"]
)
def test_a_file_of_another_size_is_found_whenever_a_store_is_opened(
    store: Path, damaged: Callable[[Path, str, bytes], Path], change: Callable[[bytes], bytes]
) -> None:
    """Without a look at the hashes, and before anything is read (row 15)."""
    for path in sorted(store.glob("train/*/*.npy")):
        name = str(path.relative_to(store))
        folder = damaged(store, name, change(path.read_bytes()))
        with pytest.raises(CorpusError, match=rf"{re.escape(name)} has \d+ bytes, the manifest says \d+"):
            open_corpus(folder, "train")


@pytest.mark.parametrize(
    ("array", "place", "value"),
    [
        ("sentences", 0, 1),
        ("sentences", 1, -1),
        ("sentences", 2, 10**9),
        ("sentences", -1, 10**9),
        ("documents", 0, 1),
        ("documents", -1, 10**9),
    ],
)
def test_offsets_that_do_not_fit_are_found_whenever_a_store_is_opened(
    store: Path, damaged: Callable[[Path, str, bytes], Path], array: str, place: int, value: int
) -> None:
    """Without a look at the hashes: what they point to would be outside of the tokens (row 15)."""
    name = f"train/00000/{array}.npy"
    offsets = np.load(store / name)
    offsets[place] = value
    content = io.BytesIO()
    np.save(content, offsets)
    folder = damaged(store, name, content.getvalue())
    with pytest.raises(CorpusError, match=rf"{array}\.npy is damaged: its offsets do not rise from 0 to \d+"):
        open_corpus(folder, "train")


@FUZZ
@given(data=st.data())
def test_every_change_in_a_manifest_is_found(
    data: st.DataObject, store: Path, damaged: Callable[[Path, str, bytes], Path]
) -> None:
    whole = (store / "manifest.json").read_bytes()
    changed = changed_json(json.loads(whole)).map(lambda value: json.dumps(value).encode()) | changed_bytes(whole)
    folder = damaged(store, "manifest.json", data.draw(changed))
    if (folder / "manifest.json").read_bytes() == whole:
        open_corpus(folder, "train")
        return
    with pytest.raises(CorpusError):
        open_corpus(folder, "train")


@FUZZ
@given(data=st.data())
def test_every_change_in_a_checkpoint_is_found(data: st.DataObject, toy: SimpleNamespace, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    path = save_checkpoint(tmp_path / "whole", 1, *toy.trained(), {"step": 1})
    name = data.draw(st.sampled_from(("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")))
    whole = (path / name).read_bytes()
    (path / name).write_bytes(data.draw(changed_bytes(whole).filter(lambda content: content != whole)))
    fault = find_fault(path)
    assert fault is not None and (name in fault or name == "manifest.json")


LABELLED: dict[str, tuple[bytes, Callable[[str], object]]] = {
    "a.csv": (
        b'text,label\n"one, two",a\nthree,b\n',
        lambda path: classify_data.read_rows(path, classify_data.ClassificationSettings()),
    ),
    "a.jsonl": (
        b'{"text": "one", "label": "a"}\n{"text": "two", "label": 1}\n',
        lambda path: classify_data.read_rows(path, classify_data.ClassificationSettings()),
    ),
    "a.conll": (
        "the O\nking B-PER\n\nK\u00f6ln B-LOC\n".encode(),
        lambda path: tag_data.read_rows(path, tag_data.TaggingSettings()),
    ),
    "a.conllu": (
        b"# sent_id = 1\n1\tthe\tthe\tDET\tDT\t_\t2\tdet\t_\t_\n2\tcat\tcat\tNOUN\tNN\t_\t0\troot\t_\t_\n\n",
        lambda path: tag_data.read_rows(path, tag_data.TaggingSettings()),
    ),
    "a.iob2": (
        b"1\tthe\tO\n2\tking\tB-PER\n\n1\tred\tO\n",
        lambda path: tag_data.read_rows(path, tag_data.TaggingSettings()),
    ),
    "a.json": (
        json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": "the red house",
                                "qas": [
                                    {"id": "1", "question": "which ?", "answers": [{"text": "red", "answer_start": 4}]},
                                    {"id": "2", "question": "who ?", "answers": [], "is_impossible": True},
                                ],
                            }
                        ]
                    }
                ]
            }
        ).encode(),
        lambda path: answer_data.read_rows(path, answer_data.AnsweringSettings()),
    ),
}


@pytest.mark.parametrize("name", LABELLED)
@FUZZ
@given(data=st.data())
def test_any_labelled_data_is_read_or_refused(name: str, data: st.DataObject, tmp_path: Path) -> None:
    whole, read = LABELLED[name]
    content = changed_bytes(whole)
    if name == "a.json":
        content |= changed_json(json.loads(whole)).map(lambda value: json.dumps(value).encode())
    (tmp_path / name).write_bytes(data.draw(content))
    refused_or_read(lambda: read(str(tmp_path / name)))


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
@FUZZ
@given(data=st.data())
def test_any_settings_file_is_read_or_refused(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    whole = {
        "yaml": b"pretrain:\n  size: mini\n  budget: 10m\n  dropout: 0.0\n",
        "json": b'{"pretrain": {"size": "mini", "dropout": 0.0}}',
        "toml": b'[pretrain]\nsize = "mini"\ndropout = 0.0\n',
    }[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(data.draw(changed_bytes(whole)))
    refused_or_read(lambda: read_config(tmp_path / f"a.{suffix}"))


def test_yaml_makes_no_objects(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"size: !!python/object/apply:pathlib.Path.touch [{canary}]\n")
    with pytest.raises(BertsmithError):
        read_config(tmp_path / "a.yaml")
    assert not canary.exists()


def test_a_config_that_asks_for_too_much_is_refused_before_it_is_allocated(
    model_folder: Path, damaged: Callable[[Path, str, bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((model_folder / "config.json").read_text())

    def allocate(tensor: Tensor, **_: Any) -> Tensor:
        assert tensor.is_meta  # which has a shape, and no memory
        return tensor

    for changes in (
        {"hidden_size": 10**6, "num_attention_heads": 1},
        {"vocab_size": 10**9},
        {"num_hidden_layers": 10**5},
    ):
        folder = damaged(model_folder, "config.json", json.dumps({**config, **changes}).encode())
        with monkeypatch.context() as patch, pytest.raises(ModelError):
            patch.setattr(torch.nn.init, "trunc_normal_", allocate)
            load_encoder(folder)
