"""The encoder and its heads against Transformers' BERT: logits, gradients, and folders in both directions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.model.batch import PackedBatch, pack, split
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_encoder, load_weights, read_config, save_model
from bertsmith.model.heads import PooledHead, TokenHead, VocabularyHead

pytestmark = pytest.mark.conformance

SEQUENCES = ([7, 3, 9, 4, 11], [5, 8], [6, 2, 2, 9, 30, 31, 12, 8, 4], [7, 1, 9, 4, 10])
TOLERANCE = 1e-5


class Model(nn.Module):
    """The attribute names of all task models, with the heads of one architecture."""

    def __init__(self, config: EncoderConfig, architecture: str, num_outputs: int = 3) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        if architecture in ("BertForPreTraining", "BertForMaskedLM"):
            self.vocabulary = VocabularyHead(config, self.encoder.token_embedding)
        if architecture == "BertForPreTraining":
            self.pooled = PooledHead(config, 2)
        if architecture == "BertForSequenceClassification":
            self.pooled = PooledHead(config, num_outputs)
        if architecture == "BertForTokenClassification":
            self.tokens = TokenHead(config, num_outputs)
        if architecture == "BertForQuestionAnswering":
            self.tokens = TokenHead(config, 2)

    def outputs(self, batch: PackedBatch) -> list[Tensor]:
        """Flat outputs in the order of `their_outputs`."""
        hidden_TD = self.encoder(batch)
        found = [] if self._modules.keys() - {"encoder"} else [hidden_TD]
        if "vocabulary" in self._modules:
            found.append(self.vocabulary(hidden_TD))
        if "tokens" in self._modules:
            found.append(self.tokens(hidden_TD))
        if "pooled" in self._modules:
            found.append(self.pooled(hidden_TD, batch))
        return found


def their_model(architecture: str, seed: int = 0, **config: Any) -> Any:
    """A small random model of theirs in which nothing is 0 or 1 any more."""
    small = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "initializer_range": 0.1,
    }
    if architecture in ("BertForSequenceClassification", "BertForTokenClassification"):
        small["num_labels"] = 3
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(transformers.BertConfig(**{**small, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def batches(sequences: Any, seed: int = 0, segments: int = 2) -> tuple[PackedBatch, dict[str, Tensor]]:
    """The same sequences packed for us and padded for them."""
    random = np.random.default_rng(seed)
    ids = [np.array(sequence) for sequence in sequences]
    kinds = [np.sort(random.integers(0, segments, len(sequence))) for sequence in ids]
    padded = {"input_ids": ids, "token_type_ids": kinds, "attention_mask": [np.ones_like(one) for one in ids]}
    longest = max(len(one) for one in ids)
    theirs = {
        name: torch.from_numpy(np.stack([np.pad(row, (0, longest - len(row))) for row in rows]))
        for name, rows in padded.items()
    }
    return pack(ids, kinds), theirs


def their_outputs(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of one of their models at the real tokens, flat."""
    found = model(**inputs)
    is_token = inputs["attention_mask"].bool()
    if "start_logits" in found:
        return [torch.stack([found.start_logits, found.end_logits], dim=-1)[is_token]]
    if "last_hidden_state" in found:
        return [found.last_hidden_state[is_token]]
    if "prediction_logits" in found:
        return [found.prediction_logits[is_token], found.seq_relationship_logits]
    return [found.logits[is_token] if found.logits.ndim == 3 else found.logits]


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = TOLERANCE) -> None:
    """Equal numbers, and enough of them to mean something."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert other.std() > 0.05
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


ARCHITECTURES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
CONFIGS: tuple[dict[str, Any], ...] = (
    {},
    {"hidden_act": "gelu_new", "type_vocab_size": 3, "num_attention_heads": 1},
    {"hidden_act": "relu", "layer_norm_eps": 1e-5, "num_attention_heads": 4, "num_hidden_layers": 1},
)


@pytest.mark.parametrize("config", CONFIGS, ids=("default", "tanh", "relu"))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_their_folder_gives_their_logits_here(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_model(architecture, **config)
    theirs.save_pretrained(tmp_path)
    ours = Model(read_config(tmp_path)[0], architecture)
    assert load_weights(tmp_path, ours, strict=True) == []
    packed, padded = batches(SEQUENCES, segments=theirs.config.type_vocab_size)
    assert_same(ours.eval().outputs(packed), their_outputs(theirs, padded))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_folder_gives_our_logits_there(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = EncoderConfig(50, 16, 2, 2, 48, "gelu_pytorch_tanh", max_position_embeddings=12, initializer_range=0.2)
    ours = Model(config, architecture, num_outputs=4).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    labels = dict(enumerate(["O", "B-x", "I-x", "其他"])) if "Class" in architecture else None
    save_model(tmp_path, ours, config, architecture, id2label=labels)
    theirs, info = getattr(transformers, architecture).from_pretrained(tmp_path, output_loading_info=True)
    # Without a head there is no pooler here, and Transformers makes a new one.
    assert all(name.startswith("pooler.") and architecture == "BertModel" for name in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)).__name__ == "BertConfig"
    assert theirs.dtype == torch.float32
    if labels:
        assert theirs.config.id2label == labels and theirs.config.label2id["其他"] == 3
    packed, padded = batches(SEQUENCES[:3])
    assert_same(ours.outputs(packed), their_outputs(theirs.eval(), padded))
    again = Model(read_config(tmp_path)[0], architecture, num_outputs=4)
    load_weights(tmp_path, again, strict=True)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_size=st.sampled_from([1, 3, 8, 16]),
    layers=st.integers(1, 3),
    act=st.sampled_from(["gelu", "gelu_new", "relu", "silu"]),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
)
def test_random_configurations(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    head_size: int,
    layers: int,
    act: str,
    lengths: list[int],
    seed: int,
) -> None:
    width = max(heads * head_size, 2 * heads)
    theirs = their_model(
        "BertModel", seed, hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, hidden_act=act
    )
    folder = tmp_path_factory.mktemp("random")
    theirs.save_pretrained(folder)
    encoder, config = load_encoder(folder)
    assert (config.hidden_size, config.num_hidden_layers) == (width, layers)
    random = np.random.default_rng(seed)
    packed, padded = batches([random.integers(0, 40, length) for length in lengths], seed)
    theirs_TD = theirs(**padded).last_hidden_state[padded["attention_mask"].bool()]
    torch.testing.assert_close(encoder(packed), theirs_TD, rtol=0, atol=TOLERANCE)


def test_gradients_of_the_pretraining_loss(tmp_path: Path) -> None:
    theirs = their_model("BertForPreTraining", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs.save_pretrained(tmp_path)
    ours = Model(read_config(tmp_path)[0], "BertForPreTraining")
    load_weights(tmp_path, ours, strict=True)
    ours.train()
    theirs.train()
    packed, padded = batches(SEQUENCES)
    masked = torch.tensor([1, 6, 9, 12, 20])
    labels_M, pairs_S = torch.tensor([3, 9, 22, 39, 8]), torch.tensor([0, 1, 1, 0])

    hidden_TD = ours.encoder(packed)
    loss = F.cross_entropy(ours.vocabulary(hidden_TD[masked]), labels_M)
    loss = loss + F.cross_entropy(ours.pooled(hidden_TD, packed), pairs_S)
    loss.backward()

    labels_T = torch.full((len(packed.token_ids),), -100).index_copy(0, masked, labels_M)
    labels_SL = torch.full_like(padded["input_ids"], -100)
    labels_SL[padded["attention_mask"].bool()] = labels_T
    their_loss = theirs(**padded, labels=labels_SL, next_sentence_label=pairs_S).loss
    their_loss.backward()
    torch.testing.assert_close(loss, their_loss, rtol=0, atol=TOLERANCE)

    # Their gradients come to us through the same door as their weights.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradients")
    gradients = Model(read_config(tmp_path)[0], "BertForPreTraining")
    load_weights(tmp_path / "gradients", gradients, strict=True)
    expected = dict(gradients.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name].data, rtol=1e-4, atol=1e-6, msg=name)


SENTENCES = (
    "A short one.",
    "The committee, which had met every Tuesday since the end of the war, could not agree on the colour of the door.",
    "Où est la bibliothèque? 图书馆在哪里?",
    "x",
    "She sells sea shells on the sea shore; the shells she sells are sea shells, I'm sure. " * 12,
)


def test_a_real_checkpoint(minilm: Path) -> None:
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    padded = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=512, return_tensors="pt")
    rows = [ids[mask.bool()].numpy() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]
    encoder, config = load_encoder(minilm)
    batch = pack(rows)
    assert len(set(batch.lengths)) == len(SENTENCES)
    with torch.no_grad():
        hidden_TD = encoder(batch)
        found = theirs(**padded)
    their_TD = found.last_hidden_state[padded["attention_mask"].bool()]
    torch.testing.assert_close(hidden_TD, their_TD, rtol=0, atol=TOLERANCE)
    # One sentence alone gives what it gave among the others.
    torch.testing.assert_close(encoder(pack(rows[1:2])), split(hidden_TD, batch.lengths)[1], rtol=0, atol=TOLERANCE)
    head = Model(config, "BertForSequenceClassification")
    assert load_weights(minilm, head, strict=False) == ["pooled.out.weight", "pooled.out.bias"]
    pooled_SD = torch.tanh(head.pooled.dense(hidden_TD[batch.first_tokens]))
    torch.testing.assert_close(pooled_SD, found.pooler_output, rtol=0, atol=TOLERANCE)


def test_several_files(tmp_path: Path) -> None:
    theirs = their_model("BertForPreTraining")
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = Model(read_config(tmp_path)[0], "BertForPreTraining")
    load_weights(tmp_path, ours, strict=True)
    packed, padded = batches(SEQUENCES)
    assert_same(ours.eval().outputs(packed), their_outputs(theirs, padded))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = their_model("BertForMaskedLM").to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = Model(read_config(tmp_path)[0], "BertForMaskedLM")
    load_weights(tmp_path, ours, strict=True)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    packed, padded = batches(SEQUENCES)
    assert_same(ours.eval().outputs(packed), their_outputs(theirs.float(), padded))


def test_a_folder_as_google_and_tensorflow_left_it(tmp_path: Path) -> None:
    """As google-bert/bert-base-uncased: said to be a masked language model, with all of pre-training's heads."""
    theirs = their_model("BertForPreTraining")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    old["bert.embeddings.position_ids"] = torch.arange(16)
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    ours = Model(read_config(tmp_path)[0], "BertForPreTraining")
    load_weights(tmp_path, ours, strict=True)
    packed, padded = batches(SEQUENCES)
    assert_same(ours.eval().outputs(packed), their_outputs(theirs, padded))
