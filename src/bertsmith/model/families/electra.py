"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): the discriminator; the generator is a masked language model."""

from typing import Any

from bertsmith.model.config import Structure
from bertsmith.model.families.bert import CONFIG_NAMES, EMBEDDINGS, FIXED_CONFIG, LAYERS, NORM_ALIASES
from bertsmith.model.families.family import Family


def _understand(raw: dict[str, Any]) -> dict[str, Any]:
    """Where embeddings are as wide as the layers there is no projection, and for us no `embedding_size`."""
    hidden_size, embedding_size = raw.get("hidden_size", 256), raw.get("embedding_size", 128)
    return {**raw, "embedding_size": None if embedding_size == hidden_size else embedding_size}


ELECTRA = Family(
    model_type="electra",
    class_prefix="Electra",
    structure=Structure(pooled_activation="gelu", drops_before_pooling=True, vocabulary_activation="gelu"),
    config_names={**CONFIG_NAMES, "embedding_size": "embedding_size"},
    fixed_config=FIXED_CONFIG,
    prefix="electra.",
    encoder={**EMBEDDINGS, "embedding_projection": ("embeddings_project",), **LAYERS},
    heads={
        "ElectraModel": {},
        "ElectraForPreTraining": {
            "detection.dense": "discriminator_predictions.dense",
            "detection.out": "discriminator_predictions.dense_prediction",
        },
        "ElectraForMaskedLM": {
            "vocabulary.dense": "generator_predictions.dense",
            "vocabulary.norm": "generator_predictions.LayerNorm",
            "vocabulary.bias": "generator_lm_head.bias",
        },
        "ElectraForSequenceClassification": {"pooled.dense": "classifier.dense", "pooled.out": "classifier.out_proj"},
        "ElectraForMultipleChoice": {"pooled.dense": "sequence_summary.summary", "pooled.out": "classifier"},
        "ElectraForTokenClassification": {"tokens.out": "classifier"},
        "ElectraForQuestionAnswering": {"tokens.out": "qa_outputs"},
    },
    defaults={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    understand=_understand,
    aliases=NORM_ALIASES,
)
