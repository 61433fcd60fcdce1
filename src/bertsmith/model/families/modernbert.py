"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): norms first, rotary positions, gates, local and global layers."""

import json
from collections.abc import Mapping
from typing import Any

from bertsmith.errors import ModelError
from bertsmith.model.config import Structure
from bertsmith.model.families.family import Family

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_THETAS: Mapping[str, float] = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
_DEFAULTS: Mapping[str, Any] = {
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "embedding_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
    "rope_theta": _THETAS["global_rope_theta"],
    "local_rope_theta": _THETAS["local_rope_theta"],
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
}


def _understand(raw: dict[str, Any]) -> dict[str, Any]:
    """The nested spellings of Transformers 5 -> the flat ones of ModernBERT's own config.json.

    Raises:
        ModelError: a pattern of layers that is not "every n-th is global", two windows, scaled rotary positions, or
            none.
    """
    plain = dict(raw)
    side = plain.pop("sliding_window", None)
    if side is not None:
        # What Transformers 5 calls half of the window. Where both are there and differ, it depends on the version which
        # one a model has learnt with.
        if type(side) is not int:
            raise ModelError(f"sliding_window must be a whole number, not {json.dumps(side)}")
        both = plain.setdefault("local_attention", 2 * side)
        if isinstance(both, int) and both // 2 != side:
            raise ModelError(
                f"sliding_window is {side}, and half of local_attention is {both // 2}; they must be equal"
            )
    kinds = plain.pop("layer_types", None)
    if kinds is not None:
        if not isinstance(kinds, list):
            raise ModelError(f"layer_types must be a list, not {json.dumps(kinds)}")
        later = [layer for layer, kind in enumerate(kinds) if kind == _GLOBAL and layer > 0]
        every = later[0] if later else max(len(kinds), 1)
        if kinds != [_LOCAL if layer % every else _GLOBAL for layer in range(len(kinds))]:
            raise ModelError(f"layer_types must be {_GLOBAL} in every n-th layer from the first, else {_LOCAL}")
        plain["global_attn_every_n_layers"] = every
    parameters = _mapping(plain.pop("rope_parameters", None), "rope_parameters")
    nested = {kind: _mapping(values, f"rope_parameters, {kind}") for kind, values in parameters.items()}
    for kind, name in ((_GLOBAL, "global_rope_theta"), (_LOCAL, "local_rope_theta")):
        values = nested.get(kind, {})
        rope_type = values.get("rope_type") or values.get("type") or "default"
        if rope_type != "default":
            raise ModelError(f'rope_parameters of type "{rope_type}" are not supported; only "default" is')
        plain[name] = values.get("rope_theta", plain.get(name, _THETAS[name]))
        # To our encoder, None would be a layer without rotation.
        if plain[name] is None:
            raise ModelError(f"{name} is null; it must be a number")
    return plain


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ModelError(f"{name} must be a mapping, not {json.dumps(value)}")
    return value or {}


MODERNBERT = Family(
    model_type="modernbert",
    class_prefix="ModernBert",
    structure=Structure(
        is_pre_norm=True,
        has_bias=False,
        is_gated=True,
        head_has_norm=True,
        attention_out_dropout="attention_probs_dropout_prob",
        drops_inside_feed_forward=True,
    ),
    config_names={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "hidden_act": "hidden_activation",
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "embedding_dropout_prob": "embedding_dropout",
        "max_position_embeddings": "max_position_embeddings",
        "initializer_range": "initializer_range",
        "layer_norm_eps": "norm_eps",
        "pad_token_id": "pad_token_id",
        "classifier_dropout": "classifier_dropout",
        "pooling": "classifier_pooling",
        "head_activation": "classifier_activation",
        "rope_theta": "global_rope_theta",
        "local_rope_theta": "local_rope_theta",
        "local_attention": "local_attention",
        "global_attn_every_n_layers": "global_attn_every_n_layers",
    },
    fixed_config={
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
    prefix="model.",
    encoder={
        "token_embedding": ("embeddings.tok_embeddings",),
        "embedding_norm": ("embeddings.norm",),
        "layers.{i}.attention_norm": ("layers.{i}.attn_norm",),
        "layers.{i}.qkv": ("layers.{i}.attn.Wqkv",),
        "layers.{i}.attention_out": ("layers.{i}.attn.Wo",),
        "layers.{i}.mlp_norm": ("layers.{i}.mlp_norm",),
        "layers.{i}.up": ("layers.{i}.mlp.Wi",),
        "layers.{i}.down": ("layers.{i}.mlp.Wo",),
        "final_norm": ("final_norm",),
    },
    heads={
        "ModernBertModel": {},
        "ModernBertForMaskedLM": {
            "vocabulary.dense": "head.dense",
            "vocabulary.norm": "head.norm",
            "vocabulary.bias": "decoder.bias",
        },
        "ModernBertForSequenceClassification": {
            "pooled.dense": "head.dense",
            "pooled.norm": "head.norm",
            "pooled.out": "classifier",
        },
        "ModernBertForMultipleChoice": {
            "pooled.dense": "head.dense",
            "pooled.norm": "head.norm",
            "pooled.out": "classifier",
        },
        "ModernBertForTokenClassification": {
            "tokens.dense": "head.dense",
            "tokens.norm": "head.norm",
            "tokens.out": "classifier",
        },
        "ModernBertForQuestionAnswering": {
            "tokens.dense": "head.dense",
            "tokens.norm": "head.norm",
            "tokens.out": "classifier",
        },
    },
    defaults={
        **_DEFAULTS,
        "num_hidden_layers": 22,
        "intermediate_size": 1152,
        "max_position_embeddings": 8192,
        "pad_token_id": 50283,
    },
    new={**_DEFAULTS, "pooling": "mean"},
    understand=_understand,
)
