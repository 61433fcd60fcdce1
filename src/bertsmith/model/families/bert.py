"""BERT (Devlin et al. 2018, arXiv 1810.04805)."""

from collections.abc import Mapping

from bertsmith.model.config import Structure
from bertsmith.model.families.family import Family

CONFIG_NAMES: Mapping[str, str] = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
        "type_vocab_size",
        "initializer_range",
        "layer_norm_eps",
        "pad_token_id",
        "classifier_dropout",
    )
}
FIXED_CONFIG: Mapping[str, object] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
EMBEDDINGS: Mapping[str, tuple[str, ...]] = {
    "token_embedding": ("embeddings.word_embeddings",),
    "position_embedding": ("embeddings.position_embeddings",),
    "segment_embedding": ("embeddings.token_type_embeddings",),
    "embedding_norm": ("embeddings.LayerNorm",),
}
LAYERS: Mapping[str, tuple[str, ...]] = {
    "layers.{i}.qkv": (
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    "layers.{i}.attention_out": ("encoder.layer.{i}.attention.output.dense",),
    "layers.{i}.attention_norm": ("encoder.layer.{i}.attention.output.LayerNorm",),
    "layers.{i}.up": ("encoder.layer.{i}.intermediate.dense",),
    "layers.{i}.down": ("encoder.layer.{i}.output.dense",),
    "layers.{i}.mlp_norm": ("encoder.layer.{i}.output.LayerNorm",),
}
# Folders converted from TensorFlow name the norms' tensors gamma and beta.
NORM_ALIASES = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
_VOCABULARY = {
    "vocabulary.dense": "cls.predictions.transform.dense",
    "vocabulary.norm": "cls.predictions.transform.LayerNorm",
    "vocabulary.bias": "cls.predictions.bias",
}

BERT = Family(
    model_type="bert",
    class_prefix="Bert",
    structure=Structure(),
    config_names=CONFIG_NAMES,
    fixed_config=FIXED_CONFIG,
    prefix="bert.",
    encoder={**EMBEDDINGS, **LAYERS},
    pooler={"pooled.dense": "pooler.dense"},
    heads={
        "BertModel": {},
        "BertForPreTraining": {**_VOCABULARY, "pooled.out": "cls.seq_relationship"},
        "BertForMaskedLM": _VOCABULARY,
        "BertForSequenceClassification": {"pooled.out": "classifier"},
        "BertForMultipleChoice": {"pooled.out": "classifier"},
        "BertForTokenClassification": {"tokens.out": "classifier"},
        "BertForQuestionAnswering": {"tokens.out": "qa_outputs"},
    },
    # Some folders hold the decoder's bias only under the decoder's name.
    aliases=(*NORM_ALIASES, (r"^cls\.predictions\.bias$", "cls.predictions.decoder.bias")),
)
