"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without segments and without a pooler."""

from bertsmith.model.config import Structure
from bertsmith.model.families.family import Family

DISTILBERT = Family(
    model_type="distilbert",
    class_prefix="DistilBert",
    structure=Structure(pooled_activation="relu", attention_out_dropout=None, classifier_dropout_is_of_sequences=True),
    config_names={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "max_position_embeddings": "max_position_embeddings",
        "initializer_range": "initializer_range",
        "pad_token_id": "pad_token_id",
        "classifier_dropout": "seq_classif_dropout",
    },
    also_called={"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    fixed_config={"tie_word_embeddings": True},
    prefix="distilbert.",
    encoder={
        "token_embedding": ("embeddings.word_embeddings",),
        "position_embedding": ("embeddings.position_embeddings",),
        "embedding_norm": ("embeddings.LayerNorm",),
        "layers.{i}.qkv": (
            "transformer.layer.{i}.attention.q_lin",
            "transformer.layer.{i}.attention.k_lin",
            "transformer.layer.{i}.attention.v_lin",
        ),
        "layers.{i}.attention_out": ("transformer.layer.{i}.attention.out_lin",),
        "layers.{i}.attention_norm": ("transformer.layer.{i}.sa_layer_norm",),
        "layers.{i}.up": ("transformer.layer.{i}.ffn.lin1",),
        "layers.{i}.down": ("transformer.layer.{i}.ffn.lin2",),
        "layers.{i}.mlp_norm": ("transformer.layer.{i}.output_layer_norm",),
    },
    heads={
        "DistilBertModel": {},
        "DistilBertForMaskedLM": {
            "vocabulary.dense": "vocab_transform",
            "vocabulary.norm": "vocab_layer_norm",
            "vocabulary.bias": "vocab_projector.bias",
        },
        "DistilBertForSequenceClassification": {"pooled.dense": "pre_classifier", "pooled.out": "classifier"},
        "DistilBertForMultipleChoice": {"pooled.dense": "pre_classifier", "pooled.out": "classifier"},
        "DistilBertForTokenClassification": {"tokens.out": "classifier"},
        "DistilBertForQuestionAnswering": {"tokens.out": "qa_outputs"},
    },
    defaults={"type_vocab_size": 0, "num_hidden_layers": 6, "classifier_dropout": 0.2},
    new={"type_vocab_size": 0, "classifier_dropout": 0.2},
)
