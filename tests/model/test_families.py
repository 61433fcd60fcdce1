import pytest

from bertsmith.errors import ModelError
from bertsmith.model.families import BERT, FAMILIES, family
from bertsmith.model.families.family import Family


@pytest.mark.parametrize(
    ("architecture", "ours", "theirs"),
    [
        (
            "BertForMaskedLM",
            "encoder.layers.11.qkv.weight",
            (
                "bert.encoder.layer.11.attention.self.query.weight",
                "bert.encoder.layer.11.attention.self.key.weight",
                "bert.encoder.layer.11.attention.self.value.weight",
            ),
        ),
        ("BertModel", "encoder.layers.0.mlp_norm.bias", ("encoder.layer.0.output.LayerNorm.bias",)),
        ("BertModel", "encoder.token_embedding.weight", ("embeddings.word_embeddings.weight",)),
        ("BertModel", "pooled.dense.bias", ("pooler.dense.bias",)),
        ("BertModel", "pooled.out.bias", ()),
        ("BertForPreTraining", "pooled.out.weight", ("cls.seq_relationship.weight",)),
        ("BertForPreTraining", "vocabulary.bias", ("cls.predictions.bias",)),
        ("BertForMaskedLM", "pooled.dense.weight", ()),
        ("BertForSequenceClassification", "pooled.out.weight", ("classifier.weight",)),
        ("BertForSequenceClassification", "pooled.dense.weight", ("bert.pooler.dense.weight",)),
        ("BertForQuestionAnswering", "tokens.out.bias", ("qa_outputs.bias",)),
        ("BertForQuestionAnswering", "encoder.unknown.weight", ()),
    ],
)
def test_names(architecture: str, ours: str, theirs: tuple[str, ...]) -> None:
    assert BERT.theirs(architecture, ours) == theirs


@pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)
def test_no_two_of_our_names_share_one_of_theirs(row: Family) -> None:
    for architecture, head in row.heads.items():
        stems = [stem.replace("{i}", "3") for stem in row.encoder]
        heads = {*head, *(row.pooler if architecture == row.bare or "pooled.out" in head else ())}
        theirs = [row.theirs(architecture, one) for one in [*(f"encoder.{stem}.weight" for stem in stems), *heads]]
        assert all(theirs)
        names = [name for several in theirs for name in several]
        assert len(set(names)) == len(names) >= len(stems) + len(heads)


@pytest.mark.parametrize(
    ("names", "written_as", "architecture"),
    [
        (["encoder.embedding_norm.weight"], [], "BertModel"),
        (["pooled.dense.weight", "pooled.out.weight"], [], "BertForSequenceClassification"),
        (["tokens.out.weight", "tokens.out.bias"], ["BertForQuestionAnswering"], "BertForQuestionAnswering"),
        (["tokens.out.weight", "tokens.out.bias"], ["BertForMaskedLM"], "BertForTokenClassification"),
        (["vocabulary.dense.weight", "vocabulary.norm.bias", "vocabulary.bias"], [], "BertForMaskedLM"),
    ],
)
def test_architecture_by_heads(names: list[str], written_as: list[str], architecture: str) -> None:
    assert BERT.architecture_of(names, written_as) == architecture


def test_heads_of_no_architecture() -> None:
    with pytest.raises(ModelError, match=r"just these heads: mystery\.weight"):
        BERT.architecture_of(["encoder.embedding_norm.weight", "mystery.weight"], [])


def test_a_classifier_is_only_taken_from_its_own_kind() -> None:
    kind, name = "BertForSequenceClassification", "pooled.out.weight"
    assert BERT.sources(kind, [kind], name) == ("classifier.weight",)
    assert BERT.sources(kind, ["BertForTokenClassification"], name) == ()
    assert BERT.sources("BertForMaskedLM", ["Unheard"], "vocabulary.bias") == ("cls.predictions.bias",)


def test_spellings_of_older_folders() -> None:
    spellings = BERT.spellings("bert.embeddings.LayerNorm.weight")
    assert spellings[0] == "bert.embeddings.LayerNorm.weight"
    assert "embeddings.LayerNorm.gamma" in spellings and "bert.embeddings.LayerNorm.gamma" in spellings


def test_layers_are_counted() -> None:
    names = ["bert.encoder.layer.0.attention.self.query.weight", "encoder.layer.11.output.dense.bias", "cls.bias"]
    assert BERT.count_layers(names) == 12
    assert BERT.count_layers(["encoder.layer.many.output.dense.bias"]) == 0


def test_an_unknown_family() -> None:
    with pytest.raises(ModelError, match=r'model_type "bart" is not supported.*"bert"'):
        family("bart")
