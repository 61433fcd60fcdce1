"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's arithmetic, other heads, and positions behind the padding's.

XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116) and CamemBERT (Martin et al. 2019, arXiv 1911.03894) are the same
in a hundred languages and in French, under names of their own.
"""

from typing import Any

from bertsmith.model.config import Structure
from bertsmith.model.families.bert import CONFIG_NAMES, EMBEDDINGS, FIXED_CONFIG, LAYERS, NORM_ALIASES
from bertsmith.model.families.family import Family

_VOCABULARY = {
    "vocabulary.dense": "lm_head.dense",
    "vocabulary.norm": "lm_head.layer_norm",
    "vocabulary.bias": "lm_head.bias",
}
_FACTS: dict[str, Any] = {"layer_norm_eps": 1e-5, "type_vocab_size": 1}


def _row(model_type: str, class_prefix: str) -> Family:
    heads = {
        "Model": {},
        "ForMaskedLM": _VOCABULARY,
        "ForSequenceClassification": {"pooled.dense": "classifier.dense", "pooled.out": "classifier.out_proj"},
        "ForMultipleChoice": {"pooled.dense": "roberta.pooler.dense", "pooled.out": "classifier"},
        "ForTokenClassification": {"tokens.out": "classifier"},
        "ForQuestionAnswering": {"tokens.out": "qa_outputs"},
    }
    return Family(
        model_type=model_type,
        class_prefix=class_prefix,
        structure=Structure(vocabulary_activation="gelu", drops_before_pooling=True),
        config_names=CONFIG_NAMES,
        fixed_config=FIXED_CONFIG,
        prefix="roberta.",
        encoder={**EMBEDDINGS, **LAYERS},
        heads={f"{class_prefix}{kind}": names for kind, names in heads.items()},
        defaults={"pad_token_id": 1},
        new=_FACTS,
        offsets_positions=True,
        aliases=(*NORM_ALIASES, (r"^lm_head\.bias$", "lm_head.decoder.bias")),
    )


ROBERTA = _row("roberta", "Roberta")
XLM_ROBERTA = _row("xlm-roberta", "XLMRoberta")
CAMEMBERT = _row("camembert", "Camembert")
