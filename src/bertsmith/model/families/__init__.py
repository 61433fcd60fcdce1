"""The families, a row each: one encoder serves them all by their values."""

from collections.abc import Mapping
from types import MappingProxyType

from bertsmith.errors import ModelError, did_you_mean
from bertsmith.model.families.albert import ALBERT
from bertsmith.model.families.bert import BERT
from bertsmith.model.families.distilbert import DISTILBERT
from bertsmith.model.families.electra import ELECTRA
from bertsmith.model.families.family import Family
from bertsmith.model.families.gpt2 import GPT2
from bertsmith.model.families.modernbert import MODERNBERT
from bertsmith.model.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        row.model_type: row
        for row in (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ALBERT, ELECTRA, MODERNBERT, GPT2)
    }
)


def family(model_type: str) -> Family:
    """The row of a `model_type`.

    Raises:
        ModelError: we have no such row.
    """
    if model_type not in FAMILIES:
        raise ModelError(f'model_type "{model_type}" is not supported. {did_you_mean(model_type, FAMILIES)}')
    return FAMILIES[model_type]
