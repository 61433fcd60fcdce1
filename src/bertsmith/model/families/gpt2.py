"""GPT-2 (Radford et al. 2019): a token sees only what is before it. Here to compare with, and as an encoder."""

from typing import Any

from bertsmith.model.config import Structure
from bertsmith.model.families.family import Family


def _understand(raw: dict[str, Any]) -> dict[str, Any]:
    """`n_inner` is null where the feed-forward network has the usual four times the width."""
    width = raw.get("n_embd", 768)
    # A width that is no number is for the schema to refuse.
    is_usual = raw.get("n_inner") is None and isinstance(width, int)
    return {**raw, "n_inner": 4 * width} if is_usual else raw


GPT2 = Family(
    model_type="gpt2",
    class_prefix="GPT2",
    structure=Structure(
        is_pre_norm=True,
        has_embedding_norm=False,
        is_causal=True,
        pooled_activation=None,
        vocabulary_is_bare=True,
    ),
    config_names={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "hidden_dropout_prob": "resid_pdrop",
        "attention_probs_dropout_prob": "attn_pdrop",
        "embedding_dropout_prob": "embd_pdrop",
        "max_position_embeddings": "n_positions",
        "initializer_range": "initializer_range",
        "layer_norm_eps": "layer_norm_epsilon",
        "pad_token_id": "pad_token_id",
    },
    also_called={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    fixed_config={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    prefix="transformer.",
    encoder={
        "token_embedding": ("wte",),
        "position_embedding": ("wpe",),
        "layers.{i}.attention_norm": ("h.{i}.ln_1",),
        "layers.{i}.qkv": ("h.{i}.attn.c_attn",),
        "layers.{i}.attention_out": ("h.{i}.attn.c_proj",),
        "layers.{i}.mlp_norm": ("h.{i}.ln_2",),
        "layers.{i}.up": ("h.{i}.mlp.c_fc",),
        "layers.{i}.down": ("h.{i}.mlp.c_proj",),
        "final_norm": ("ln_f",),
    },
    heads={
        "GPT2Model": {},
        "GPT2LMHeadModel": {},
        "GPT2ForSequenceClassification": {"pooled.out": "score"},
        "GPT2ForTokenClassification": {"tokens.out": "classifier"},
        "GPT2ForQuestionAnswering": {"tokens.out": "qa_outputs"},
    },
    defaults={
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 1024,
        "pad_token_id": None,
        "pooling": "last",
        "embedding_dropout_prob": 0.1,
    },
    new={
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new",
        "pooling": "last",
        "embedding_dropout_prob": 0.1,
    },
    understand=_understand,
    transposed=("layers.{i}.qkv", "layers.{i}.attention_out", "layers.{i}.up", "layers.{i}.down"),
)
