import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bertsmith.errors import ModelError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_encoder, load_weights, read_config, save_model
from bertsmith.model.heads import PooledHead, TokenHead, VocabularyHead

CONFIG = EncoderConfig(30, 16, 2, 2, 24, max_position_embeddings=10)


class Model(nn.Module):
    """An encoder with any heads under the names that the folder knows."""

    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.encoder = Encoder(CONFIG)
        for name, head in heads.items():
            self.add_module(name, head)


def classifier(outputs: int = 3) -> Model:
    return Model(pooled=PooledHead(CONFIG, outputs))


def tagger(outputs: int = 3) -> Model:
    return Model(tokens=TokenHead(CONFIG, outputs))


def pretraining() -> Model:
    model = Model(pooled=PooledHead(CONFIG, 2))
    model.vocabulary = VocabularyHead(CONFIG, model.encoder.token_embedding)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier of three labels."""
    save_model(tmp_path, classifier(), CONFIG, "BertForSequenceClassification", problem_type="regression")
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Replace or (None) remove tensors; dots in names are written as `__`."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    safetensors.torch.save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def same(one: nn.Module, other: nn.Module, prefix: str) -> bool:
    others = other.state_dict()
    return all(torch.equal(v, others[k]) for k, v in one.state_dict().items() if k.startswith(prefix))


def test_what_is_written(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertForSequenceClassification"] and config["model_type"] == "bert"
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert (config["problem_type"], config["dtype"], config["hidden_size"]) == ("regression", "float32", 16)
    read, raw = read_config(folder)
    assert read == CONFIG and raw == config


def test_a_bf16_model_is_written_in_fp32(tmp_path: Path) -> None:
    model = tagger().bfloat16()
    save_model(tmp_path, model, CONFIG, "BertForTokenClassification")
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    again = tagger()
    load_weights(tmp_path, again, strict=True)
    assert same(model.float(), again, "")


def test_the_encoder_of_any_folder(folder: Path) -> None:
    encoder, config = load_encoder(folder)
    model = classifier()
    load_weights(folder, model, strict=True)
    assert config == CONFIG and not encoder.training
    assert same(encoder, model.encoder, "")


def test_as_a_bare_model_heads_stay_behind(tmp_path: Path) -> None:
    model = pretraining()
    save_model(tmp_path, model, CONFIG, "BertModel")
    names = set(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert "pooler.dense.weight" in names and not any(name.startswith(("cls", "bert")) for name in names)
    again = pretraining()
    assert load_weights(tmp_path, again, strict=False) == [
        name for name in again.state_dict() if name.startswith(("pooled.out", "vocabulary"))
    ]
    assert same(model, again, "encoder.") and same(model, again, "pooled.dense")


def test_a_new_head_on_a_pretrained_encoder(tmp_path: Path) -> None:
    """A pre-trained pair head has two outputs, as many classifiers have: it must not slip in."""
    save_model(tmp_path, pretraining(), CONFIG, "BertForPreTraining")
    model = classifier(2)
    fresh = model.pooled.out.weight.clone()
    assert load_weights(tmp_path, model, strict=False) == ["pooled.out.weight", "pooled.out.bias"]
    assert torch.equal(model.pooled.out.weight, fresh)
    with pytest.raises(ModelError, match=r"no tensor pooled\.out\.weight|no tensor classifier\.weight"):
        load_weights(tmp_path, model, strict=True)


def test_the_head_of_another_kind_does_not_slip_in(folder: Path) -> None:
    assert load_weights(folder, tagger(3), strict=False) == ["tokens.out.weight", "tokens.out.bias"]


def test_another_number_of_labels_is_a_new_head_unless_strict(folder: Path) -> None:
    assert load_weights(folder, classifier(5), strict=False) == ["pooled.out.weight", "pooled.out.bias"]
    message = r"classifier\.weight has the shape \[3, 16\], where the model has \[5, 16\]"
    with pytest.raises(ModelError, match=message):
        load_weights(folder, classifier(5), strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, 'model_type "bart" is not supported'),
        ({"model_type": None}, 'no "model_type"'),
        ({"architectures": "BertModel"}, 'architectures must be a list of names, not "BertModel"'),
        ({"architectures": [5]}, r"architectures must be a list of names, not \[5\]"),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type is "relative_key"; only "absolute"'),
        ({"is_decoder": True}, "is_decoder is true; only false"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false; only true"),
        ({"hidden_act": "quick_gelu"}, 'hidden_act "quick_gelu" is unknown'),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"num_attention_heads": 3}, "num_attention_heads must divide it"),
        (
            {"vocab_size": 10**8},
            r"word_embeddings\.weight has the shape \[30, 16\], where the model has \[100000000, 16\]",
        ),
        ({"hidden_size": 10**8}, r"word_embeddings\.weight has the shape \[30, 16\]"),
        ({"intermediate_size": 10**18}, "intermediate_size must be at least 1 and at most 536870912"),
        ({"type_vocab_size": 10**30}, "type_vocab_size must be at least 0 and at most 536870912"),
        ({"initializer_range": 10**400}, "initializer_range: the number is too large"),
        ({"num_hidden_layers": 10**8}, "says num_hidden_layers 100000000, the weights have 2"),
        ({"num_hidden_layers": 1}, "says num_hidden_layers 1, the weights have 2"),
        ({"max_position_embeddings": 12}, r"position_embeddings\.weight has the shape \[10, 16\]"),
    ],
)
def test_configs_that_cannot_be_honoured(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(ModelError, match=message):
        load_weights(folder, classifier(), strict=False)


def test_harmless_fields_are_ignored(folder: Path) -> None:
    change_config(folder, gradient_checkpointing=False, use_cache=True, position_embedding_type=None, favourite="blue")
    assert read_config(folder)[0] == CONFIG


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bert__embeddings__LayerNorm__bias": None}, r"no tensor embeddings\.LayerNorm\.bias"),
        ({"bert__encoder__layer__1__attention__self__key__weight": None}, r"no tensor .*attention\.self\.key\.weight"),
        ({"bert__encoder__layer__0__output__dense__bias": torch.zeros(17)}, r"\[17\], where the model has \[16\]"),
        ({"bert__embeddings__LayerNorm__bias": torch.zeros(16, dtype=torch.int64)}, "must be floating point"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, tensors: dict[str, Tensor | None], message: str) -> None:
    change_tensors(folder, **tensors)
    with pytest.raises(ModelError, match=message):
        load_weights(folder, classifier(), strict=False)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin.*Convert it.*save_pretrained"):
        load_weights(folder, classifier(), strict=False)
    (folder / "pytorch_model.bin").unlink()
    # From the Hub, pickles are not even fetched.
    with pytest.raises(ModelError, match=r"no model\.safetensors.*on the Hub has only pytorch_model\.bin.*Convert it"):
        load_encoder(folder)


def test_damaged_files(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[:-100], whole[:5], b"", b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            load_encoder(folder)
    for text in ('{"model_type": ', "[" * 100_000, f'{{"vocab_size": {"9" * 5000}}}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"not JSON.*A model folder holds config\.json"):
            load_encoder(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../outside.safetensors"}}, "'../outside.safetensors' is not the name of a file"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "missing, though"),
        ({"weights": {}}, "not an index"),
        ([], "not an index"),
    ],
)
def test_indexes_that_cannot_be_followed(folder: Path, index: Any, message: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load_encoder(folder)


def test_places_that_are_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such file or folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no such file.*A model folder holds"):
        read_config(tmp_path)
    with pytest.raises(
        ModelError, match="nobody/nothing: no such file or folder here, and none came from the Hugging Face Hub"
    ):
        read_config("nobody/nothing")


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("BertForSequenceClasification", {}, 'Did you mean "BertForSequenceClassification"'),
        ("BertForTokenClassification", {}, "BertForTokenClassification has no place for this model's pooled"),
        ("BertForPreTraining", {}, "needs cls.predictions"),
        ("BertForSequenceClassification", {"problem_type": "regresion"}, 'Did you mean "regression"'),
        ("BertForSequenceClassification", {"id2label": {0: "no", 1: "yes"}}, "but the model has 3"),
        ("BertForSequenceClassification", {"id2label": {1: "a", 2: "b", 3: "c"}}, "counted from 0"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, architecture: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        save_model(tmp_path / "out", classifier(), CONFIG, architecture, **arguments)
    assert not (tmp_path / "out").exists()
