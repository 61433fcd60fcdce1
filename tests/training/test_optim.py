"""Which parameters an optimizer gets, and how; settings that are refused."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from transformers import BertConfig, BertForPreTraining
from transformers.trainer_pt_utils import get_parameter_names

from bertsmith.errors import SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.training.optim import PRESETS, OptimizerSettings, Preset, build_optimizer
from bertsmith.training.optimizers import BertAdam, Combined, Lamb, StableAdamW


@pytest.mark.conformance
def test_groups_are_those_of_the_transformers_trainer() -> None:
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(config)
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    undecayed = [names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]]
    # transformers.Trainer.get_decay_parameter_names
    expected = get_parameter_names(model, [nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)"])
    # Its list names a tied parameter twice, and `named_parameters` once.
    assert decayed == set(expected) & set(names.values())
    assert sorted([*decayed, *undecayed]) == sorted(names.values())
    assert "bert.embeddings.word_embeddings.weight" in decayed


def test_norms_are_known_by_their_type_and_frozen_parameters_are_left_out() -> None:
    model = nn.ModuleDict({"norm1": nn.LayerNorm([3, 4]), "scale": nn.RMSNorm(3), "out": nn.Linear(3, 2)})
    model["frozen"] = nn.Linear(3, 3).requires_grad_(False)
    model["again"] = model["out"]
    groups = build_optimizer(model, OptimizerSettings()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 4]
    assert groups[0]["params"][0] is model["out"].weight


def test_one_step_decays_by_the_rate_times_the_decay() -> None:
    layer = nn.Linear(2, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = build_optimizer(layer, OptimizerSettings(learning_rate=0.1, weight_decay=0.5))
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", AdamW), ("bert-original", BertAdam), ("stable-adamw", StableAdamW), ("lamb", Lamb)],
)
def test_each_name_has_its_optimizer_with_the_published_constants(name: str, kind: type) -> None:
    optimizer = build_optimizer(nn.Linear(3, 3), OptimizerSettings(learning_rate=0.3, weight_decay=0.2, optimizer=name))
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    beta2 = 0.99 if name == "stable-adamw" else 0.999
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.9, beta2), 1e-6)


def test_what_is_given_goes_before_the_published_constants() -> None:
    settings = OptimizerSettings(optimizer="bert-original", beta1=0.8, epsilon=1e-3, schedule="wsd")
    assert settings.preset == Preset(beta1=0.8, beta2=0.999, epsilon=1e-3, schedule="wsd")
    group = build_optimizer(nn.Linear(3, 3), settings).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.999), 1e-3)
    assert PRESETS["bert-original"] == Preset(schedule="bert-original")


class Model(nn.Module):
    """A gated encoder, whose embeddings are projected, under a head of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
        self.encoder = Encoder(EncoderConfig(vocab_size=20, model_type="modernbert", embedding_size=4, **sizes))
        self.head = nn.Linear(8, 8)


def test_muon_gets_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimizerSettings(learning_rate=0.1, weight_decay=0.2, optimizer="muon"))
    assert isinstance(optimizer, Combined)
    muon, adamw = optimizer.optimizers
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = {names[id(p)]: group["num_parts"] for group in muon.param_groups for p in group["params"]}
    kinds = {"qkv": 3, "attention_out": 1, "up": 2, "down": 1}
    assert parts == {f"encoder.layers.{i}.{kind}.weight": n for i in range(2) for kind, n in kinds.items()}
    decay = {names[id(p)]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert parts.keys() | decay.keys() == set(names.values())
    assert not parts.keys() & decay.keys()
    for name in ("encoder.token_embedding.weight", "encoder.embedding_projection.weight", "head.weight"):
        assert decay[name] == 0.2
    assert decay["encoder.layers.1.mlp_norm.weight"] == decay["head.bias"] == 0.0
    assert {group["weight_decay"] for group in muon.param_groups} == {0.2}
    assert {(group["betas"], group["eps"]) for group in adamw.param_groups} == {((0.9, 0.95), 1e-8)}
    # One list of groups and one memory, so that the step, the clipping and the checkpoint see all of it.
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = 0.7
    assert (muon.param_groups[0]["lr"], adamw.param_groups[-1]["lr"]) == (0.7, 0.7)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {names[id(parameter)]: set(state) for parameter, state in optimizer.state.items()} == {
        name: {"momentum_buffer"} if name in parts else {"step", "exp_avg", "exp_avg_sq"} for name in names.values()
    }


def test_muon_leaves_out_what_is_frozen_and_needs_layers() -> None:
    model = Model()
    model.encoder.layers[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerSettings(optimizer="muon"))
    assert all(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])
    only = nn.ModuleList([model.encoder.layers[1]])
    for parameter in only.parameters():
        parameter.requires_grad_(parameter.ndim == 2)
    assert len(build_optimizer(only, OptimizerSettings(optimizer="muon")).optimizers) == 1
    with pytest.raises(SettingsError, match="this model trains none"):
        build_optimizer(nn.Linear(3, 3), OptimizerSettings(optimizer="muon"))


def rates(model: nn.Module, optimizer: Any) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["adamw", "bert-original", "stable-adamw", "lamb", "muon"])
def test_the_rate_of_each_layer_is_a_share_of_that_above(name: str) -> None:
    model = Model()
    settings = OptimizerSettings(learning_rate=0.1, layer_decay=0.5, optimizer=name)
    optimizer = build_optimizer(model, settings)
    found = rates(model, optimizer)
    assert found.keys() == dict(model.named_parameters()).keys()
    by_part = {"head": 0.1, "encoder.final_norm": 0.1, "encoder.layers.1": 0.05, "encoder.layers.0": 0.025}
    for parameter, value in found.items():
        expected = next((rate for part, rate in by_part.items() if parameter.startswith(part)), 0.0125)
        assert value == pytest.approx(expected), parameter
    # Decay is still decided by the kind of parameter, and every part of Muon's matrices is known.
    plain = build_optimizer(model, OptimizerSettings(optimizer=name))
    for key in ("weight_decay", "num_parts"):
        assert {id(p): group.get(key) for group in optimizer.param_groups for p in group["params"]} == {
            id(p): group.get(key) for group in plain.param_groups for p in group["params"]
        }


def test_layers_that_share_their_weights_are_one_step_below_the_head() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 12}
    config = EncoderConfig(vocab_size=20, model_type="albert", embedding_size=4, num_hidden_groups=1, **sizes)
    model = nn.ModuleDict({"encoder": Encoder(config), "head": nn.Linear(8, 2)})
    found = rates(model, build_optimizer(model, OptimizerSettings(learning_rate=1.0, layer_decay=0.5)))
    assert found["head.weight"] == 1.0
    assert {rate for name, rate in found.items() if name.startswith("encoder.layers.0.")} == {0.5}
    assert {rate for name, rate in found.items() if "embedding" in name} == {0.25}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adam"}, 'optimizer "adam" is not known. Did you mean "adamw"?'),
        ({"schedule": "cosin"}, 'schedule "cosin" is not known. Did you mean "cosine"?'),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        OptimizerSettings(**wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", math.inf),
        ("weight_decay", -0.1),
        ("beta2", 1.0),
        ("epsilon", 0.0),
        ("epsilon", math.nan),
        ("max_grad_norm", -1.0),
        ("warmup_share", 1.0),
        ("warmup_steps", -1),
        ("decay_share", 1.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"^{field} is "):
        OptimizerSettings(**{field: value})


def test_a_share_of_a_schedule_that_has_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="decay_share is of the schedule wsd, and this one is cosine"):
        OptimizerSettings(schedule="cosine", decay_share=0.5)
    with pytest.raises(SettingsError, match="this one is linear"):
        OptimizerSettings(decay_share=0.5)
    assert OptimizerSettings(optimizer="muon", schedule="wsd", decay_share=0.5).decay_share == 0.5
