"""Every family and every head against Transformers: logits in both directions, with padding on their side only."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.activations import ACT2FN

from bertsmith.errors import ModelError
from bertsmith.model import attention as attention_module
from bertsmith.model import dropout as dropout_module
from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.config import SAME_ACTIVATIONS, EncoderConfig
from bertsmith.model.encoder import ACTIVATION_FUNCTIONS, Encoder
from bertsmith.model.families import FAMILIES
from bertsmith.model.folder import load_encoder, load_weights, read_config, save_model
from bertsmith.model.heads import DetectionHead, PooledHead, TokenHead, VocabularyHead
from bertsmith.model.sizes import named_size

pytestmark = pytest.mark.conformance

TOLERANCE = 1e-5
NUM_LABELS = 3
LENGTHS = (5, 2, 31, 9, 16, 31)  # beyond the local window of ModernBERT below

COMMON = {"vocab_size": 60, "initializer_range": 0.1, "pad_token_id": 0}
ROBERTA_VALUES = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "hidden_act": "relu",
}
THEIR_CONFIGS: dict[str, Sequence[dict[str, Any]]] = {
    # Of each family one with an activation that is not its own, so that it is seen which heads follow it.
    "bert": [
        {
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "hidden_act": activation,
        }
        for activation in ("gelu", "relu")
    ],
    "roberta": (ROBERTA_VALUES,),
    "xlm-roberta": (ROBERTA_VALUES,),
    "camembert": (ROBERTA_VALUES,),
    "distilbert": [
        {
            "dim": 24,
            "n_heads": 2,
            "hidden_dim": 40,
            "n_layers": 2,
            "max_position_embeddings": 40,
            "activation": activation,
        }
        for activation in ("gelu", "relu")
    ],
    "albert": [
        {
            "embedding_size": 8,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_hidden_groups": groups,
            "hidden_act": activation,
        }
        for groups, activation in ((1, "gelu_new"), (2, "relu"))
    ],
    "electra": [
        {
            "embedding_size": embedding_size,
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "hidden_act": activation,
        }
        for embedding_size, activation in ((8, "gelu"), (24, "relu"))
    ],
    "modernbert": [
        {
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "local_attention": 8,
            "max_position_embeddings": 64,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "classifier_pooling": pooling,
            "hidden_activation": activation,
            "classifier_activation": of_heads,
        }
        for pooling, activation, of_heads in (("cls", "gelu", "gelu"), ("mean", "relu", "silu"))
    ],
    "gpt2": [
        {
            "n_embd": 24,
            "n_head": 3,
            "n_layer": 2,
            "n_positions": 40,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "activation_function": activation,
        }
        for activation in ("gelu_new", "relu")
    ],
}
CASES = [
    pytest.param(model_type, architecture, {**COMMON, **values}, id=f"{architecture}-{number}")
    for model_type, configs in THEIR_CONFIGS.items()
    for number, values in enumerate(configs)
    for architecture in FAMILIES[model_type].heads
]


class Model(nn.Module):
    """The attribute names of all task models, with the heads of one architecture."""

    def __init__(self, config: EncoderConfig, architecture: str) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        row = FAMILIES[config.model_type]
        names = {name.split(".")[0] for name in row.heads[architecture]}
        if "vocabulary" in names or architecture == "GPT2LMHeadModel":
            self.vocabulary = VocabularyHead(config, self.encoder.token_embedding)
        if "pooled" in names:
            of_choices = architecture.endswith("ForMultipleChoice")
            outputs = 1 if of_choices else 2 if architecture.endswith("ForPreTraining") else NUM_LABELS
            self.pooled = PooledHead(config, outputs, of_choices=of_choices)
        if "tokens" in names:
            self.tokens = TokenHead(config, NUM_LABELS if architecture.endswith("ForTokenClassification") else 2)
        if "detection" in names:
            self.detection = DetectionHead(config)

    def outputs(self, batch: PackedBatch) -> list[Tensor]:
        """Flat outputs in the order of `their_outputs`."""
        hidden_TD = self.encoder(batch)
        parts = self._modules
        found = [] if len(parts) > 1 else [hidden_TD]
        if "vocabulary" in parts:
            found.append(self.vocabulary(hidden_TD))
        if "tokens" in parts:
            found.append(self.tokens(hidden_TD))
        if "detection" in parts:
            found.append(self.detection(hidden_TD))
        if "pooled" in parts:
            found.append(self.pooled(hidden_TD, batch))
        return found


def shake(model: nn.Module, seed: int) -> None:
    """Move every weight, so that none is 0 or 1 any more and two that should not be equal are not."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The one output of a choice has to differ from text to text as much as the others do.
            is_of_choice = parameter.ndim == 2 and len(parameter) == 1 and "embedding" not in name
            parameter += (1.5 if is_of_choice else 0.05) * torch.randn_like(parameter)


def their_model(model_type: str, architecture: str, values: dict[str, Any]) -> Any:
    """A small random model of theirs."""
    values = {
        **values,
        "num_labels": 2 if architecture.endswith(("ForQuestionAnswering", "ForPreTraining")) else NUM_LABELS,
    }
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.AutoConfig.for_model(model_type, **values))
    shake(model, 1)
    return model.eval()


def batches(pad: int, segments: int) -> tuple[PackedBatch, dict[str, Tensor]]:
    """Sequences of mixed length, packed for us and padded for them. No token is the padding's."""
    random = np.random.default_rng(0)
    ids = [random.integers(3, 60, length) for length in LENGTHS]
    kinds = [np.sort(random.integers(0, max(segments, 1), length)) for length in LENGTHS]
    longest = max(LENGTHS)

    def padded(rows: list[np.ndarray], value: int) -> Tensor:
        return torch.from_numpy(
            np.stack([np.pad(row, (0, longest - len(row)), constant_values=value) for row in rows]).astype(np.int64)
        )

    theirs = {"input_ids": padded(ids, pad), "attention_mask": padded([np.ones_like(one) for one in ids], 0)}
    if segments > 1:
        theirs["token_type_ids"] = padded(kinds, 0)
    return pack(ids, kinds), theirs


def their_outputs(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of one of their models at the real tokens, flat; of each sequence as the only choice there is."""
    if type(model).__name__.endswith("ForMultipleChoice"):
        return [model(**{name: values[:, None] for name, values in inputs.items()}).logits]
    found = model(**inputs)
    is_token = inputs["attention_mask"].bool()
    if "start_logits" in found:
        return [torch.stack([found.start_logits, found.end_logits], dim=-1)[is_token]]
    if "last_hidden_state" in found:
        return [found.last_hidden_state[is_token]]
    if "prediction_logits" in found:
        pairs = found.seq_relationship_logits if "seq_relationship_logits" in found else found.sop_logits
        return [found.prediction_logits[is_token], pairs]
    is_by_token = found.logits.shape[:2] == is_token.shape
    return [found.logits[is_token] if is_by_token else found.logits]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert other.std() > 0.05
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("model_type", "architecture", "values"), CASES)
@torch.no_grad()
def test_their_folder_gives_their_logits_here(
    model_type: str, architecture: str, values: dict[str, Any], tmp_path: Path
) -> None:
    theirs = their_model(model_type, architecture, values)
    theirs.save_pretrained(tmp_path)
    config, _ = read_config(tmp_path)
    ours = Model(config, architecture)
    assert load_weights(tmp_path, ours, strict=True) == []
    packed, padded = batches(values["pad_token_id"], config.type_vocab_size)
    assert_same(ours.eval().outputs(packed), their_outputs(theirs, padded))


@pytest.mark.parametrize(("model_type", "architecture", "values"), CASES)
@torch.no_grad()
def test_our_folder_gives_our_logits_there(
    model_type: str, architecture: str, values: dict[str, Any], tmp_path: Path
) -> None:
    # The config of a folder of theirs, new weights of ours.
    transformers.AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path / "config")
    config, _ = read_config(tmp_path / "config")
    ours = Model(config, architecture).eval()
    shake(ours, 2)
    save_model(tmp_path, ours, config, architecture)
    theirs, info = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])  # theirs is made anew where ours has none
    packed, padded = batches(values["pad_token_id"], config.type_vocab_size)
    assert_same(ours.outputs(packed), their_outputs(theirs.eval(), padded))
    assert read_config(tmp_path)[0] == config
    assert theirs.dtype == torch.float32


@pytest.mark.parametrize("pad_token_id", [5, None])
@torch.no_grad()
def test_a_text_that_ends_with_the_paddings_token(pad_token_id: int | None, tmp_path: Path) -> None:
    """As GPT-2's do, in most folders: what is classified is the last token before, as Transformers has it."""
    values = {**COMMON, **THEIR_CONFIGS["gpt2"][0], "eos_token_id": 5, "pad_token_id": pad_token_id}
    theirs = their_model("gpt2", "GPT2ForSequenceClassification", values)
    theirs.save_pretrained(tmp_path)
    ours = Model(read_config(tmp_path)[0], "GPT2ForSequenceClassification").eval()
    load_weights(tmp_path, ours, strict=True)
    rows = [np.array(row) for row in ([5, 9, 8, 5], [7, 5, 8], [9, 5, 5], [5, 5, 5], [6])]
    expected = torch.cat([theirs(input_ids=torch.from_numpy(row)[None]).logits for row in rows])
    assert_same(ours.outputs(pack(rows)), [expected])


PROBABILITIES = {
    "hidden_dropout_prob": 0.1,  # GPT-2's token classifier has 0.1, whatever the config says
    "embedding_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "classifier_dropout": 0.4,
}
# Their ALBERT leaves out the dropout that google-research/albert has after the feed-forward network.
OTHER_PROBABILITIES = {"albert": {"hidden_dropout_prob": 0.0}}


def stand_in(shape: Sequence[int], probability: float, dtype: torch.dtype) -> Tensor:
    """Instead of a mask: what it does is always the same, and in another place would do something else."""
    return (1 - probability * (torch.arange(shape[-1]) % 2)).to(dtype).expand(tuple(shape)).contiguous()


@pytest.mark.parametrize(
    ("model_type", "architecture", "values"),
    # Not those in which our tasks set the dropout themselves.
    [case for case in CASES if not str(case.values[1]).endswith(("ForQuestionAnswering", "ForPreTraining"))],
)
@torch.no_grad()
def test_dropout_is_where_theirs_is(
    model_type: str, architecture: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, given = FAMILIES[model_type].config_names, PROBABILITIES | OTHER_PROBABILITIES.get(model_type, {})
    dropouts = {names[field]: probability for field, probability in given.items() if field in names}
    theirs = their_model(model_type, architecture, {**values, **dropouts, "attn_implementation": "eager"}).train()
    theirs.save_pretrained(tmp_path)
    ours = Model(read_config(tmp_path)[0], architecture).train()
    load_weights(tmp_path, ours, strict=True)

    def drop(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return values * stand_in(values.shape, p, values.dtype) if training else values

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    monkeypatch.setattr(dropout_module, "keep_mask", stand_in)
    monkeypatch.setattr(attention_module, "keep_mask", stand_in)
    packed, padded = batches(values["pad_token_id"], ours.encoder.config.type_vocab_size)
    found = ours.outputs(packed)
    assert_same(found, their_outputs(theirs, padded))
    assert not torch.allclose(found[0], ours.eval().outputs(packed)[0], atol=0.01)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "albert", "modernbert"])
@torch.no_grad()
def test_attention_maps_are_theirs(model_type: str, tmp_path: Path) -> None:
    values = {**COMMON, **THEIR_CONFIGS[model_type][0], "attn_implementation": "eager"}
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **values)).eval()
    shake(theirs, 1)
    theirs.save_pretrained(tmp_path)
    ours, _ = load_encoder(tmp_path)
    ids = np.arange(3, 25)
    expected = theirs(input_ids=torch.from_numpy(ids)[None], output_attentions=True).attentions
    found = ours.attention_maps(pack([ids]))
    assert len(found) == len(expected) == ours.config.num_hidden_layers
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_new_model_of_a_named_size_is_the_same_there(model_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(named_size("tiny", 60, model_type=model_type, max_length=32, pad_token_id=2), num_hidden_layers=4)
    ours = Model(config, FAMILIES[model_type].bare).eval()
    save_model(tmp_path, ours, config, FAMILIES[model_type].bare)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    packed, padded = batches(2, config.type_vocab_size)
    torch.testing.assert_close(ours.outputs(packed), their_outputs(theirs, padded), rtol=0, atol=TOLERANCE)
    assert config.max_sequence_length == 32
    assert load_encoder(tmp_path)[1] == config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_config_does_not_say_is_what_they_take_it_for(model_type: str, tmp_path: Path) -> None:
    theirs = transformers.AutoConfig.for_model(model_type)
    theirs.to_json_file(tmp_path / "config.json", use_diff=False)
    everything, raw = read_config(tmp_path)
    said = {name: raw[name] for name in ("model_type", "vocab_size")}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert read_config(tmp_path)[0] == everything


@pytest.mark.parametrize("name", sorted(SAME_ACTIVATIONS))
def test_an_activation_of_another_name_is_the_same(name: str) -> None:
    inputs = torch.linspace(-6, 6, 401)
    expected = ACT2FN[name](inputs)
    torch.testing.assert_close(ACTIVATION_FUNCTIONS[SAME_ACTIVATIONS[name]](inputs), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "distance"),
    [
        ({"sliding_window": 3}, 3),
        ({"sliding_window": 9}, 9),
        ({"sliding_window": 9, "local_attention": 19}, 9),
        ({"local_attention": 7}, 3),
        ({}, 64),
    ],
)
@torch.no_grad()
def test_the_window_of_modernbert_is_theirs_by_either_name(said: dict[str, int], distance: int, tmp_path: Path) -> None:
    values = {**COMMON, **THEIR_CONFIGS["modernbert"][0], "num_hidden_layers": 3}
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("modernbert", **values))
    shake(theirs, 1)
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["local_attention"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, **said}))
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert theirs.config.sliding_window == distance
    ours, config = load_encoder(tmp_path)
    assert config.local_attention is not None and config.local_attention // 2 == distance
    ids = [np.random.default_rng(number).integers(3, 60, length) for number, length in enumerate((40, 12))]
    for one, hidden in zip(ids, ours(pack(ids)).split([40, 12]), strict=True):
        expected = theirs(input_ids=torch.from_numpy(one)[None]).last_hidden_state[0]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_by_their_other_names(model_type: str, tmp_path: Path) -> None:
    others = FAMILIES[model_type].also_called
    theirs = transformers.AutoConfig.for_model(model_type, **{**COMMON, **THEIR_CONFIGS[model_type][0]})
    assert others == theirs.attribute_map
    theirs.save_pretrained(tmp_path)
    expected, raw = read_config(tmp_path)
    renamed = {name: value for name, value in raw.items() if name not in others.values()}
    renamed |= {other: raw[name] for other, name in others.items()}
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    assert read_config(tmp_path)[0] == expected


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("albert", {"inner_group_num": 2}, "inner_group_num is 2; only 1 is supported"),
        ("albert", {"num_hidden_groups": 3}, "num_hidden_groups"),
        ("modernbert", {"attention_bias": True}, "attention_bias is true"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 4}, "layer_types must be full_attention in every n-th"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, 'type "yarn" are not supported'),
        (
            "modernbert",
            {"rope_parameters": {"sliding_attention": {"type": "linear"}}},
            'type "linear" are not supported',
        ),
        ("modernbert", {"rope_parameters": "linear"}, 'rope_parameters must be a mapping, not "linear"'),
        ("modernbert", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters, rope_type must be a mapping"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_theta": None}}}, "global_rope_theta is null"),
        ("modernbert", {"rope_parameters": None, "local_rope_theta": None}, "local_rope_theta is null"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling is {"type": "linear"'),
        ("modernbert", {"layer_types": 3}, "layer_types must be a list, not 3"),
        ("modernbert", {"sliding_window": 9.0}, "sliding_window must be a whole number, not 9.0"),
        ("modernbert", {"sliding_window": 9}, "sliding_window is 9, and half of local_attention is 4; they must be"),
        ("modernbert", {"sliding_window": 0, "local_attention": 1}, "local_attention must be at least 2, not 1"),
        ("modernbert", {"classifier_pooling": "max"}, 'pooling "max" is unknown'),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", {"n_embd": None}, "hidden_size: nothing None given, a whole number wanted"),
        ("gpt2", {"num_attention_heads": None}, "num_attention_heads: nothing None given"),
        ("roberta", {"is_decoder": True}, "is_decoder is true"),
        ("distilbert", {"activation": "mish"}, 'hidden_act "mish" is unknown'),
    ],
)
def test_what_the_encoder_does_not_do_is_refused_by_its_field(
    model_type: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {**COMMON, **THEIR_CONFIGS[model_type][0]}
    transformers.AutoConfig.for_model(model_type, **values).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)
