"""ALBERT (Lan et al. 2019, arXiv 1909.11942): narrow embeddings, and layers that share their weights."""

from collections.abc import Mapping
from typing import Any

from bertsmith.model.config import Structure
from bertsmith.model.families.bert import CONFIG_NAMES, EMBEDDINGS
from bertsmith.model.families.family import Family

_LAYER = "encoder.albert_layer_groups.{i}.albert_layers.0"
_VOCABULARY = {
    "vocabulary.dense": "predictions.dense",
    "vocabulary.norm": "predictions.LayerNorm",
    "vocabulary.bias": "predictions.bias",
}
_FACTS: Mapping[str, Any] = {
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.1,
    "embedding_size": 128,
    "num_hidden_groups": 1,
}

ALBERT = Family(
    model_type="albert",
    class_prefix="Albert",
    structure=Structure(always_projects_embeddings=True),
    config_names={
        **CONFIG_NAMES,
        "classifier_dropout": "classifier_dropout_prob",
        "embedding_size": "embedding_size",
        "num_hidden_groups": "num_hidden_groups",
    },
    fixed_config={"inner_group_num": 1, "position_embedding_type": "absolute", "tie_word_embeddings": True},
    prefix="albert.",
    encoder={
        **EMBEDDINGS,
        "embedding_projection": ("encoder.embedding_hidden_mapping_in",),
        "layers.{i}.qkv": (f"{_LAYER}.attention.query", f"{_LAYER}.attention.key", f"{_LAYER}.attention.value"),
        "layers.{i}.attention_out": (f"{_LAYER}.attention.dense",),
        "layers.{i}.attention_norm": (f"{_LAYER}.attention.LayerNorm",),
        "layers.{i}.up": (f"{_LAYER}.ffn",),
        "layers.{i}.down": (f"{_LAYER}.ffn_output",),
        "layers.{i}.mlp_norm": (f"{_LAYER}.full_layer_layer_norm",),
    },
    pooler={"pooled.dense": "pooler"},
    heads={
        "AlbertModel": {},
        "AlbertForPreTraining": {**_VOCABULARY, "pooled.out": "sop_classifier.classifier"},
        "AlbertForMaskedLM": _VOCABULARY,
        "AlbertForSequenceClassification": {"pooled.out": "classifier"},
        "AlbertForMultipleChoice": {"pooled.out": "classifier"},
        "AlbertForTokenClassification": {"tokens.out": "classifier"},
        "AlbertForQuestionAnswering": {"tokens.out": "qa_outputs"},
    },
    # Those of ALBERT-xxlarge.
    defaults={**_FACTS, "hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384},
    new=_FACTS,
    aliases=((r"^predictions\.bias$", "predictions.decoder.bias"),),
)
