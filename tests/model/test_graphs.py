"""Layers that are recorded and replayed: the room for a batch, and on CUDA the same numbers as without."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bertsmith.model.attention import Room, attention
from bertsmith.model.batch import PackedBatch, pack
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder, replay_layers
from bertsmith.model.graphs import LayerGraphs, Size, _record
from bertsmith.model.sizes import named_size

CUDA = torch.device("cuda")
VOCABULARY = 503
LENGTHS = (
    (5, 17, 9),
    (40, 2, 30),
    (5, 17, 9),
    (16, 16, 16, 16),
    (128, 70, 99),
    (100, 100, 97),
    (30, 12),
    (129, 200, 1),
)
"""The first, second, third, fourth and seventh have one size, the fifth and sixth another, the last one of its own."""


@given(st.lists(st.integers(1, 600), min_size=1, max_size=200))
def test_a_size_has_room_for_its_sequences_and_little_more(lengths: list[int]) -> None:
    size = Size.of(lengths)
    offsets = size.offsets(lengths)
    assert len(offsets) == size.sequences + 1
    parts = np.diff(offsets)
    assert parts[: len(lengths)].tolist() == lengths
    assert parts.min() >= 0 and parts.max() <= size.longest
    assert offsets[-1] == size.tokens <= max(256, sum(lengths) * 9 / 8)
    empty = np.diff(size.offsets([]))
    assert len(empty) == size.sequences and empty.sum() == size.tokens and empty.max() <= size.longest


def test_batches_of_similar_sizes_share_one() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.integers(4, 60, 64).tolist() for _ in range(1000)]
    assert len({Size.of(lengths) for lengths in batches}) < 12


def test_on_a_processor_nothing_is_replayed() -> None:
    encoder = Encoder(config_of("bert"))
    replay_layers(encoder)
    assert encoder.graphs is None


def batch_of(lengths: Sequence[int]) -> PackedBatch:
    random = np.random.default_rng(sum(lengths))
    return pack([random.integers(0, VOCABULARY, length) for length in lengths]).to(CUDA)


def config_of(family: str, dropout: float = 0.0) -> EncoderConfig:
    return named_size("tiny", VOCABULARY, model_type=family).with_dropout(dropout, dropout, None)


def encoders(family: str, dropout: float = 0.0) -> tuple[Encoder, Encoder]:
    """Twice the same, the second one replayed."""
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(Encoder(config_of(family, dropout)).to(CUDA))
    replay_layers(made[1])
    return made[0], made[1]


def hidden_of(encoder: Encoder, batch: PackedBatch, every: int = 3) -> Tensor:
    """At every third token."""
    positions = torch.arange(0, len(batch.token_ids), every, device=CUDA)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return encoder(batch, positions).float()


def loss_of(encoder: Encoder, batch: PackedBatch, seed: int = 0, every: int = 3) -> Tensor:
    """Something that depends on some tokens, each in its own way."""
    torch.manual_seed(seed)
    hidden = hidden_of(encoder, batch, every)
    weights = torch.linspace(-1, 1, hidden.numel(), device=CUDA).view_as(hidden)
    return (hidden * weights).sum()


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in encoder.named_parameters() if one.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-3 * largest, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "gpt2"])
def test_replayed_layers_give_the_same_outputs_and_gradients(family: str) -> None:
    plain, replayed = encoders(family)
    for lengths in LENGTHS:
        batch = batch_of(lengths)
        for encoder in (plain, replayed):
            encoder.zero_grad()
            loss_of(encoder, batch).backward()
        torch.testing.assert_close(hidden_of(replayed, batch), hidden_of(plain, batch), rtol=0, atol=0.1)
        assert_near(gradients(replayed), gradients(plain))
        for encoder in (plain, replayed):  # what was recorded has to see the weights as they are
            with torch.no_grad():
                for parameter in encoder.parameters():
                    parameter *= 1.05
    assert replayed.graphs is not None and replayed.graphs.num_replays >= 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gradients_add_up_over_batches_and_passes() -> None:
    plain, replayed = encoders("bert")
    batches = [batch_of(lengths) for lengths in LENGTHS[:4]]
    for encoder in (plain, replayed):
        for batch in batches:  # one backward pass each, of one size
            loss_of(encoder, batch).backward()
    assert_near(gradients(replayed), gradients(plain))
    for encoder in (plain, replayed):
        encoder.zero_grad()
        sum(loss_of(encoder, batch) for batch in batches).backward()  # more passes at a time than there are slots
        loss = loss_of(encoder, batches[0])
        loss.backward(retain_graph=True)
        loss.backward()
    assert_near(gradients(replayed), gradients(plain))
    assert replayed.graphs is not None
    del loss
    before = replayed.graphs.num_replays
    for _ in range(3):
        loss_of(replayed, batches[0])  # thrown away
    assert replayed.graphs.num_replays == before + 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_follows_the_seed_whenever_a_size_was_recorded() -> None:
    _, replayed = encoders("bert", dropout=0.3)
    batch = batch_of((5, 17, 9))
    loss_of(replayed, batch)  # the first of a size is not recorded, and drops others
    losses = [float(loss_of(replayed, batch, seed).detach()) for seed in (1, 1, 2, 1)]
    assert losses[0] == losses[1] == losses[3] != losses[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_that_fills_its_size_drops_the_same_with_and_without_a_recording() -> None:
    plain, replayed = encoders("bert", dropout=0.2)
    batch = batch_of([128] * 4 + [43] * 8 + [42] * 4)
    assert Size.of(batch.lengths) == Size(1024, 16, 128)
    for seed in range(4):
        for encoder in (plain, replayed):
            encoder.zero_grad()
            loss_of(encoder, batch, seed, every=1).backward()  # all: the last layer draws for what is asked for
        assert_near(gradients(replayed), gradients(plain))
    assert replayed.graphs is not None and replayed.graphs.num_replays == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_where_memory_runs_out_while_recording_passes_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, replayed = encoders("bert")
    recorded, other = batch_of((5, 17, 9)), batch_of((128, 70, 99))
    for _ in range(2):
        loss_of(replayed, recorded).backward()
    assert replayed.graphs is not None and replayed.graphs.num_replays == 1

    def fail() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("bertsmith.model.graphs._record", lambda graph, slot, work: _record(graph, slot, fail))
    for batch in (other, other, recorded):
        for encoder in (plain, replayed):
            encoder.zero_grad()
            loss_of(encoder, batch).backward()
        assert_near(gradients(replayed), gradients(plain))
    assert replayed.graphs.num_replays == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replayed_gradient_is_that_of_the_weights_that_were_not_dropped() -> None:
    """Attention is linear in what makes its values, so their gradient and the output have one product with either."""
    heads, size = 2, 32
    linear = nn.Linear(heads * size, 3 * heads * size, bias=False).to(CUDA)
    graphs, batch = LayerGraphs([linear]), batch_of((32, 50, 40))

    def attend(hidden_TD: Tensor, layout: Room, _: Tensor) -> Tensor:
        return attention(linear(hidden_TD).unflatten(-1, (3, heads, size)), layout, 0.5).flatten(1).float()

    hidden = torch.randn(len(batch.token_ids), heads * size, device=CUDA)
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        linear.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = graphs.run(attend, hidden, batch)
        if output is not None:
            (output * output.detach()).sum().backward()
            assert linear.weight.grad is not None
            product = (linear.weight.detach() * linear.weight.grad)[2 * heads * size :].sum()
            assert float(product) == pytest.approx(float(output.detach().square().sum()), rel=0.02)
            found.append(float(product))
    assert len(set(found)) == graphs.num_replays == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_is_not_finite_is_gone_with_its_batch() -> None:
    plain, replayed = encoders("bert")
    long, short = batch_of((40, 30, 30)), batch_of((5, 17, 9))
    for _ in range(2):
        loss_of(replayed, long).backward()
    with torch.no_grad():
        kept = replayed.token_embedding.weight.clone()
        replayed.token_embedding.weight.fill_(torch.nan)
        assert loss_of(replayed, long).isnan()
    loss = loss_of(replayed, long)
    assert loss.isnan()
    loss.backward()
    del loss  # it would keep the recording
    with torch.no_grad():
        replayed.token_embedding.weight.copy_(kept)
    for encoder in (plain, replayed):
        encoder.zero_grad()
        loss_of(encoder, short).backward()
    assert_near(gradients(replayed), gradients(plain))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_is_not_learnt_has_no_gradient() -> None:
    plain, replayed = encoders("bert")
    for encoder in (plain, replayed):
        for part in (encoder.token_embedding, encoder.embedding_norm, encoder.position_embedding, encoder.layers[0]):
            assert isinstance(part, nn.Module)
            part.requires_grad_(False)
        assert encoder.segment_embedding is not None
        encoder.segment_embedding.requires_grad_(False)
    replay_layers(replayed)
    for _ in range(3):
        for encoder in (plain, replayed):
            encoder.zero_grad()
            loss_of(encoder, batch_of((5, 17, 9))).backward()
        assert_near(gradients(replayed), gradients(plain))
    assert replayed.graphs is not None and replayed.graphs.num_replays == 2
    assert all(name.startswith("layers.1") for name in gradients(replayed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_without_gradients_or_16_bits_nothing_is_replayed() -> None:
    _, replayed = encoders("bert")
    batch = batch_of((5, 17, 9))
    for _ in range(3):
        with torch.no_grad():
            loss_of(replayed, batch)
        replayed(batch).sum().backward()
        replayed.eval()
        loss_of(replayed, batch)
        replayed.train()
    assert replayed.graphs is not None and replayed.graphs.num_replays == 0
