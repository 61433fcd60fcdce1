"""A model of another depth, with more tokens or positions: what parts start from, compute with it, and keep."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertModel,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from bertsmith.errors import ModelError
from bertsmith.model.batch import pack, split
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import load_encoder, load_weights, read_config, save_model
from bertsmith.model.resize import Extension, extend_positions, grow_rows, layer_sources, load_resized
from bertsmith.model.sizes import named_size
from bertsmith.tasks.classify import SequenceClassifier
from bertsmith.tasks.pretrain_model import PretrainingModel

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}
TEXTS = [np.arange(5, 14), np.arange(20, 24), np.array([59])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained BERT of four layers, written by transformers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bert")
    BertForPreTraining(BertConfig(**SIZES)).save_pretrained(path)
    return path


def with_layers(folder: Path, layers: int, **changes: object) -> Encoder:
    """An encoder with other random weights, and that many layers."""
    config, _ = read_config(folder)
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    torch.manual_seed(1)
    return Encoder(type(config)(**{**values, "num_hidden_layers": layers, **changes})).eval()


def pretraining(encoder: Encoder) -> PretrainingModel:
    return PretrainingModel(encoder, pairs=True).eval()


@pytest.mark.parametrize(
    ("old", "new", "sources"),
    [
        (6, 3, (0, 2, 4)),
        (12, 6, (0, 2, 4, 6, 8, 10)),
        (12, 4, (0, 3, 6, 9)),
        (5, 3, (0, 1, 3)),
        (12, 1, (0,)),
        (3, 6, (0, 1, 2, 0, 1, 2)),
        (2, 5, (0, 1, 0, 1, 0)),
    ],
)
def test_the_layers_that_are_taken(old: int, new: int, sources: tuple[int, ...]) -> None:
    assert layer_sources(old, new) == sources


@given(old=st.integers(1, 60), new=st.integers(1, 60))
def test_layers_are_spread_evenly_or_repeated(old: int, new: int) -> None:
    sources = layer_sources(old, new)
    assert len(sources) == new and sources[0] == 0 and max(sources) < old
    if new <= old:
        steps = np.diff([*sources, old])
        assert steps.min() >= 1 and steps.max() - steps.min() <= 1
    else:
        assert sources[:old] == tuple(range(old)) and sources[old:] == sources[:-old]


def test_no_layers_is_no_model() -> None:
    with pytest.raises(ModelError, match="at least 1 layer"):
        layer_sources(4, 0)


@pytest.mark.conformance
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 8, 9])
def test_it_computes_what_transformers_does_with_the_same_layers(folder: Path, layers: int) -> None:
    theirs = BertForPreTraining.from_pretrained(folder).eval()
    whole = theirs.bert.encoder.layer
    theirs.bert.encoder.layer = nn.ModuleList(whole[source] for source in layer_sources(4, layers))
    model = pretraining(with_layers(folder, layers))
    assert load_resized(folder, model, pretraining) == []
    batch = pack(TEXTS)
    with torch.inference_mode():
        hidden_TD = model.encoder(batch)
        mine = split(model.vocabulary(hidden_TD), batch.lengths)
        pairs_S2 = model.pair_logits(hidden_TD, batch)
        for number, ids in enumerate(TEXTS):
            expected = theirs(torch.from_numpy(ids)[None])
            torch.testing.assert_close(mine[number], expected.prediction_logits[0], rtol=0, atol=2e-5)
            torch.testing.assert_close(pairs_S2[number], expected.seq_relationship_logits[0], rtol=0, atol=2e-5)


def test_as_many_layers_is_plain_loading(folder: Path) -> None:
    first, second = (pretraining(with_layers(folder, 4)) for _ in range(2))
    load_resized(folder, first, pretraining)
    load_weights(folder, second, strict=True)
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_head_that_the_folder_lacks_stays_as_it_was(folder: Path) -> None:
    def build(encoder: Encoder) -> SequenceClassifier:
        return SequenceClassifier(encoder, 3)

    model = build(with_layers(folder, 2))
    before = {name: tensor.clone() for name, tensor in model.pooled.out.state_dict().items()}
    kept = load_resized(folder, model, build)
    assert kept == ["pooled.out.weight", "pooled.out.bias"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.pooled.out.state_dict().items())
    loaded, _ = load_encoder(folder)
    assert torch.equal(model.encoder.token_embedding.weight, loaded.token_embedding.weight)


def test_the_resized_folder_is_an_ordinary_one(folder: Path, tmp_path: Path) -> None:
    model = pretraining(with_layers(folder, 2))
    load_resized(folder, model, pretraining)
    save_model(tmp_path, model, model.encoder.config, "BertForPreTraining")
    assert AutoModel.from_pretrained(tmp_path).config.num_hidden_layers == 2
    again = load_encoder(tmp_path)[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.encoder.state_dict().items())


def test_shared_layers_cannot_be_chosen_from(tmp_path: Path) -> None:
    AlbertModel(AlbertConfig(**SIZES, embedding_size=8)).save_pretrained(tmp_path)
    model = nn.ModuleDict({"encoder": with_layers(tmp_path, 2)})
    with pytest.raises(ModelError, match="its 4 layers share their weights"):
        load_resized(tmp_path, model, lambda encoder: nn.ModuleDict({"encoder": encoder}))


def test_what_the_first_layer_lacks_stays_initial_in_its_copies(tmp_path: Path) -> None:
    """ModernBERT's first layer has no norm before its attention: the embeddings are normalised already."""
    config = named_size("tiny", vocab_size=60, model_type="modernbert")
    torch.manual_seed(0)
    encoder = Encoder(config)
    for name, tensor in encoder.state_dict().items():
        if re.search("norm", name):
            tensor.fill_(3.0)
    save_model(tmp_path, nn.ModuleDict({"encoder": encoder}), config, "ModernBertModel")
    model = nn.ModuleDict({"encoder": with_layers(tmp_path, 4)})
    load_resized(tmp_path, model, lambda encoder: nn.ModuleDict({"encoder": encoder}))
    state, source = model.state_dict(), encoder.state_dict()
    assert torch.equal(state["encoder.layers.2.qkv.weight"], source["layers.0.qkv.weight"])
    assert "layers.0.attention_norm.weight" not in source
    assert (state["encoder.layers.2.attention_norm.weight"] == 1).all()
    assert (state["encoder.layers.3.attention_norm.weight"] == 3).all()


def test_a_real_model_cut_in_half(minilm: Path) -> None:
    theirs = AutoModel.from_pretrained(minilm).eval()
    theirs.encoder.layer = nn.ModuleList(theirs.encoder.layer[source] for source in (0, 2, 4))
    model = nn.ModuleDict({"encoder": with_layers(minilm, 3)})
    assert load_resized(minilm, model, lambda encoder: nn.ModuleDict({"encoder": encoder})) == []
    ids = np.array([101, 1037, 3185, 2008, 2003, 2307, 102])
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids)[None]).last_hidden_state[0]
        torch.testing.assert_close(model["encoder"](pack([ids])), expected, rtol=0, atol=1e-5)


# More tokens

PIECES = {60: (5, 7, 7), 61: (59,), 62: (), 63: (8, 9)}


@given(st.data())
def test_new_rows_are_means_of_old_ones(data: st.DataObject) -> None:
    """As numpy has it; tables and vectors alike."""
    size, more = data.draw(st.integers(1, 8)), data.draw(st.integers(0, 4))
    shape = data.draw(st.sampled_from([(), (3,)]))
    rows = st.lists(st.integers(0, size - 1), max_size=5)
    pieces = data.draw(st.dictionaries(st.integers(0, size + more - 1), rows, max_size=5))
    random = np.random.default_rng(0)
    old = random.normal(size=(size, *shape)).astype(np.float32)
    new = random.normal(size=(size + more, *shape)).astype(np.float32)
    expected = np.concatenate([old, new[size:]])
    for token, chosen in pieces.items():
        expected[token] = old[chosen].mean(0) if chosen else expected[token]
    grown = torch.from_numpy(new.copy()).requires_grad_()
    grow_rows(grown, torch.from_numpy(old), pieces)
    np.testing.assert_allclose(grown.detach().numpy(), expected, rtol=0, atol=1e-6)


def masked_language_model(encoder: Encoder) -> PretrainingModel:
    return PretrainingModel(encoder, pairs=False).eval()


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("config", "kind", "layers"),
    [
        (BertConfig(**SIZES), BertForPreTraining, 4),
        (BertConfig(**SIZES), BertForPreTraining, 2),
        (RobertaConfig(**{**SIZES, "max_position_embeddings": 22}, pad_token_id=1), RobertaForMaskedLM, 4),
        (ElectraConfig(**SIZES, embedding_size=8), ElectraForMaskedLM, 4),
        (AlbertConfig(**SIZES, embedding_size=8), AlbertForMaskedLM, 4),
        (ModernBertConfig(**SIZES, cls_token_id=2, pad_token_id=0), ModernBertForMaskedLM, 4),
    ],
    ids=["bert", "half of bert", "roberta", "electra", "albert", "modernbert"],
)
def test_a_grown_model_computes_the_same_of_old_tokens(
    config: BertConfig, kind: type[PreTrainedModel], layers: int, tmp_path: Path
) -> None:
    """Against the model that was not grown, in transformers; and the new columns as the mean rows make them."""
    torch.manual_seed(0)
    kind(config).eval().save_pretrained(tmp_path / "old")
    state = AutoModelForMaskedLM.from_pretrained(tmp_path / "old").state_dict()
    bias = next(name for name, tensor in state.items() if name.endswith("bias") and tensor.shape == (60,))
    with torch.no_grad():
        state[bias].normal_()
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path / "old").eval()
    whole.load_state_dict(state)
    whole.save_pretrained(tmp_path / "old")

    model = masked_language_model(with_layers(tmp_path / "old", layers, vocab_size=64))
    kept = load_resized(tmp_path / "old", model, masked_language_model, PIECES)
    assert kept == []
    row = family(config.model_type)
    save_model(tmp_path / "new", model, model.encoder.config, row.architecture("ForMaskedLM"))
    grown = AutoModelForMaskedLM.from_pretrained(tmp_path / "new").eval()
    assert grown.config.vocab_size == len(grown.get_input_embeddings().weight) == 64
    assert grown.get_input_embeddings().weight.shape[1] == whole.get_input_embeddings().weight.shape[1]
    if layers == 4:
        for ids in TEXTS:
            with torch.inference_mode():
                before, after = (one(torch.from_numpy(ids)[None]).logits[0] for one in (whole, grown))
            torch.testing.assert_close(after[:, :60], before, rtol=0, atol=2e-5)
            # The decoder is linear, so the logit of a mean is the mean of the logits.
            for token, pieces in PIECES.items():
                if pieces:
                    torch.testing.assert_close(after[:, token], before[:, pieces].mean(-1), rtol=0, atol=2e-5)
    table = whole.get_input_embeddings().weight
    for token, pieces in PIECES.items():
        if pieces:
            torch.testing.assert_close(grown.get_input_embeddings().weight[token], table[list(pieces)].mean(0))
    assert grown.get_input_embeddings().weight[62].std() > 0.1, "a token without pieces starts at random"


def test_rows_that_stood_for_nothing_are_filled(folder: Path) -> None:
    """A model may have more rows than its tokenizer has tokens, 60 here; then it need not grow."""
    model = pretraining(with_layers(folder, 4))
    load_resized(folder, model, pretraining, {58: (5, 6)})
    loaded, _ = load_encoder(folder)
    expected = loaded.token_embedding.weight.clone()
    expected[58] = (expected[5] + expected[6]) / 2
    torch.testing.assert_close(model.encoder.token_embedding.weight, expected)


def test_fewer_tokens_are_refused(folder: Path) -> None:
    for layers in (4, 2):
        model = pretraining(with_layers(folder, layers, vocab_size=50))
        with pytest.raises(ModelError, match=r"\[60, 16\], where the model has \[50, 16\]"):
            load_resized(folder, model, pretraining)


# More positions


def tiled(old: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([old] * (1 + length // len(old)))[:length]


def drawn_out(old: np.ndarray, length: int) -> np.ndarray:
    places = np.linspace(0, len(old) - 1, length)
    return np.stack([np.interp(places, np.arange(len(old)), column) for column in old.T], axis=1)


LONGER = {"tile": tiled, "interpolate": drawn_out}


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 3), st.sampled_from(["tile", "interpolate"]))
def test_longer_tables_are_as_numpy_makes_them(size: int, more: int, offset: int, extension: Extension) -> None:
    old = np.random.default_rng(size).normal(size=(offset + size, 5)).astype(np.float32)
    found = extend_positions(torch.from_numpy(old), size + more, offset, extension).numpy()
    expected = np.concatenate([old[:offset], LONGER[extension](old[offset:], size + more)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[offset], old[offset])
    if extension == "interpolate" and more:
        np.testing.assert_allclose(found[-1], old[-1], atol=1e-6)


@pytest.mark.conformance
@pytest.mark.parametrize("extension", ["tile", "interpolate"])
@pytest.mark.parametrize(
    ("config", "kind", "table"),
    [
        (BertConfig(**SIZES), BertForPreTraining, "bert.embeddings.position_embeddings.weight"),
        (
            RobertaConfig(**{**SIZES, "max_position_embeddings": 22}, pad_token_id=1),
            RobertaForMaskedLM,
            "roberta.embeddings.position_embeddings.weight",
        ),
        (
            ElectraConfig(**SIZES, embedding_size=8),
            ElectraForMaskedLM,
            "electra.embeddings.position_embeddings.weight",
        ),
        (AlbertConfig(**SIZES, embedding_size=8), AlbertForMaskedLM, "albert.embeddings.position_embeddings.weight"),
        (
            DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20),
            DistilBertForMaskedLM,
            "distilbert.embeddings.position_embeddings.weight",
        ),
        (
            GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=20, bos_token_id=1, eos_token_id=1),
            GPT2LMHeadModel,
            "transformer.wpe.weight",
        ),
    ],
    ids=["bert", "roberta", "electra", "albert", "distilbert", "gpt2"],
)
def test_a_model_of_more_positions_computes_what_transformers_does(
    config: BertConfig, kind: type[PreTrainedModel], table: str, extension: Extension, tmp_path: Path
) -> None:
    """The saved folder in transformers, and transformers' own model with a table that numpy made longer."""
    torch.manual_seed(0)
    old = kind(config).eval()
    old.save_pretrained(tmp_path / "old")
    ours, _ = read_config(tmp_path / "old")
    offset = ours.position_offset
    assert ours.max_sequence_length == 20

    def build(encoder: Encoder) -> nn.Module:
        return nn.ModuleDict({"encoder": encoder})

    encoder = with_layers(tmp_path / "old", ours.num_hidden_layers, max_position_embeddings=offset + 47)
    with pytest.raises(ModelError, match="where the model has"):
        load_resized(tmp_path / "old", build(encoder), build)
    assert load_resized(tmp_path / "old", build(encoder), build, extension=extension) == []
    save_model(tmp_path / "new", build(encoder), encoder.config, family(ours.model_type).bare)

    state = old.state_dict()
    rows = state[table].numpy()
    state[table] = torch.from_numpy(
        np.concatenate([rows[:offset], LONGER[extension](rows[offset:], 47)]).astype(np.float32)
    )
    wide = kind(type(config)(**{**config.to_dict(), "max_position_embeddings": offset + 47})).eval()
    wide.load_state_dict(state)
    saved = AutoModel.from_pretrained(tmp_path / "new").eval()
    ids = np.arange(47) % 55 + 5
    with torch.inference_mode():
        theirs = wide.base_model(torch.from_numpy(ids)[None])[0][0]
        torch.testing.assert_close(saved(torch.from_numpy(ids)[None])[0][0], theirs, rtol=0, atol=2e-5)
        torch.testing.assert_close(encoder(pack([ids])), theirs, rtol=0, atol=2e-5)
        short = old.base_model(torch.from_numpy(ids[:20])[None])[0][0]
        is_as_before = torch.allclose(encoder(pack([ids[:20]])), short, rtol=0, atol=2e-5)
    assert is_as_before == (extension == "tile")
