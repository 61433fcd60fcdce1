import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

from bertsmith.errors import ModelError
from bertsmith.model import attention as attention_module
from bertsmith.model import encoder as encoder_module
from bertsmith.model.batch import PackedBatch, pack, split
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder, compile_layers, recompute_layers
from bertsmith.model.heads import PooledHead, TokenHead, VocabularyHead
from bertsmith.model.initial_weights import sinusoidal_positions
from bertsmith.model.sizes import named_size

CONFIG = EncoderConfig(60, 32, 2, 4, 64, max_position_embeddings=20, initializer_range=0.1)


def some_batch(lengths: tuple[int, ...] = (9, 3, 17, 3), seed: int = 0) -> PackedBatch:
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 60, length) for length in lengths]
    return pack(rows, [random.integers(0, 2, length) for length in lengths])


def encoder(config: EncoderConfig = CONFIG, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(config).eval()


def test_initial_weights_are_a_cut_normal() -> None:
    """A normal cut at two deviations deviates by 0.8796 of what it was: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))."""
    torch.manual_seed(0)
    config = named_size("tiny", 8000)
    model = nn.ModuleDict({"encoder": Encoder(config), "head": PooledHead(config, 3)})
    matrices = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2]
    assert len(matrices) == 3 + 2 * 4 + 2
    for matrix in matrices:
        assert matrix.abs().max() <= 0.04
        if matrix.numel() > 10_000:
            assert matrix.std().item() == pytest.approx(0.0176, abs=0.0003)
            assert matrix.abs().max() > 0.039
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            assert (part.weight == 1).all() and (part.bias == 0).all() and part.eps == 1e-12
        if isinstance(part, nn.Linear):
            assert (part.bias == 0).all()


def test_sinusoidal_positions_are_those_of_the_paper() -> None:
    """As transformers fills DistilBERT's table, for an even and an odd width."""
    for width in (16, 7):
        table, wanted = nn.Embedding(40, width), torch.empty(40, width)
        sinusoidal_positions(table, 0.5)
        create_sinusoidal_embeddings(40, width, wanted)
        torch.testing.assert_close(table.weight, wanted / 2, rtol=0, atol=1e-6)
        assert table.weight.requires_grad


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "gpt2"])
@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_heads_that_start_at_the_neighbours_look_there(model_type: str, size: str) -> None:
    """More than at any other place, in a new model with random tokens; whatever the family does to an embedding."""
    torch.manual_seed(0)
    config = named_size(size, 2000, model_type=model_type)
    new = Encoder(config).eval()
    new.start_with_neighbours()
    batch = pack([np.random.default_rng(0).integers(5, 2000, 60)])
    offsets = (-1, -2, -3, -4) if model_type == "gpt2" else (-1, 1, -2, 2)
    attention_NLL = new.attention_maps(batch)[0]
    num_heads = {"tiny": 1, "mini": 2, "small": 4}[size]
    for head, offset in zip(attention_NLL[:num_heads], offsets, strict=False):
        by_offset = {each: head.diagonal(each).mean().item() for each in range(-30, 30)}
        assert by_offset[offset] > 0.2
        assert max(by_offset, key=lambda each: by_offset[each]) == offset
        assert all(value < 0.1 for each, value in by_offset.items() if each < 0 and abs(each - offset) > 4)
    assert all(head.diagonal(each).mean() < 0.1 for head in attention_NLL[num_heads:] for each in range(-30, 0))


def test_only_the_first_heads_start_at_the_neighbours() -> None:
    config = named_size("small", 2000)
    torch.manual_seed(0)
    before = Encoder(config)
    after = copy.deepcopy(before)
    after.start_with_neighbours()
    changed = {name for name, one in before.named_parameters() if not one.equal(after.get_parameter(name))}
    assert changed == {"position_embedding.weight", "layers.0.qkv.weight", "layers.0.attention_out.weight"}
    heads = [each.get_parameter("layers.0.qkv.weight").view(3, 8, 64, 512) for each in (before, after)]
    assert heads[0][:2, 4:].equal(heads[1][:2, 4:]) and not heads[0][:2, :4].isclose(heads[1][:2, :4]).any(dim=3).all()
    values = heads[1][2].std().item()
    assert values == pytest.approx(0.88 / 512**0.5, rel=0.02)


def test_layers_that_share_weights_start_with_waves_alone() -> None:
    torch.manual_seed(0)
    one = Encoder(named_size("tiny", 100, model_type="albert"))
    other = copy.deepcopy(one)
    one.start_with_neighbours()
    other.start_with_waves()
    assert all(tensor.equal(other.get_parameter(name)) for name, tensor in one.named_parameters())


def test_rotary_positions_have_no_table_to_start() -> None:
    torch.manual_seed(0)
    before = Encoder(named_size("tiny", 100, model_type="modernbert"))
    after = copy.deepcopy(before)
    after.start_with_neighbours()
    after.start_with_waves()
    assert all(one.equal(after.get_parameter(name)) for name, one in before.named_parameters())


def test_the_number_of_parameters_of_bert_base() -> None:
    """BERT-base has 109,482,240 with its pooler (google-research/bert, uncased_L-12_H-768_A-12)."""
    config = named_size("base", 30522)
    with torch.device("meta"):
        parts = nn.ModuleList([Encoder(config), PooledHead(config, 2).dense])
    assert sum(parameter.numel() for parameter in parts.parameters()) == 109_482_240


@pytest.mark.parametrize("training", [False, True])
def test_changing_one_sequence_changes_no_other(training: bool) -> None:
    model = encoder().train(training)
    lengths = (9, 3, 17, 3)
    batch = some_batch(lengths)
    torch.manual_seed(1)
    before = split(model(batch), lengths)
    for changed in range(len(lengths)):
        ids = batch.token_ids.clone()
        split(ids, lengths)[changed].add_(1).remainder_(60)
        torch.manual_seed(1)
        after = split(model(replace(batch, token_ids=ids)), lengths)
        for i in range(len(lengths)):
            assert torch.equal(before[i], after[i]) == (i != changed)


def test_company_and_order_do_not_matter() -> None:
    model = encoder()
    lengths = (9, 3, 17, 3)
    batch = some_batch(lengths)
    rows, kinds = split(batch.token_ids, lengths), split(batch.segment_ids, lengths)
    together = split(model(batch), lengths)
    for i, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        torch.testing.assert_close(model(pack([row.numpy()], [kind.numpy()])), together[i], rtol=0, atol=1e-6)
    order = [2, 0, 3, 1]
    other = model(pack([rows[i].numpy() for i in order], [kinds[i].numpy() for i in order]))
    for i, part in zip(order, split(other, [lengths[i] for i in order]), strict=True):
        torch.testing.assert_close(part, together[i], rtol=0, atol=1e-6)


def test_a_seed_repeats_training_and_evaluation_draws_nothing() -> None:
    model = encoder().train()
    torch.manual_seed(5)
    first = model(some_batch())
    torch.manual_seed(5)
    assert torch.equal(model(some_batch()), first)
    assert not torch.equal(model(some_batch()), first)
    before = torch.get_rng_state()
    assert torch.equal(model.eval()(some_batch()), model(some_batch()))
    without = encoder(replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    without(some_batch()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model_type", "of_a_layer"),
    [("bert", [0.3, 0.1, 0.1]), ("distilbert", [0.3, 0.0, 0.1]), ("modernbert", [0.3, 0.3, 0.1])],
)
def test_each_dropout_field_has_its_place(
    model_type: str, of_a_layer: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the computation: the embeddings, then attention's weights, its output and the feed-forward
    network of each layer. (That these are the places of Transformers: conformance/test_families.py.)"""
    drawn: list[float] = []

    def mask(shape: tuple[int, ...], probability: float, dtype: torch.dtype) -> Tensor:
        drawn.append(probability)
        return torch.ones(shape, dtype=dtype)

    def drop(values: Tensor, probability: float, training: bool) -> Tensor:
        drawn.append(probability)
        return values

    monkeypatch.setattr(attention_module, "keep_mask", mask)
    monkeypatch.setattr(encoder_module, "dropout", drop)
    shape = replace(CONFIG, model_type=model_type, rope_theta=10.0 if model_type == "modernbert" else None)
    encoder(shape.with_dropout(0.1, 0.3, 0.2)).train()(some_batch((5, 5)))
    assert drawn == [0.2, *of_a_layer, *of_a_layer]


def test_bf16_autocast_is_near_fp32_with_fp32_gradients() -> None:
    model = encoder()
    batch = some_batch()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    assert (rough - exact).abs().mean() < 0.02 * exact.abs().mean()
    rough.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            pack([np.zeros(5, int), np.zeros(21, int)]),
            "a sequence of 21 tokens is longer than the model's 20 positions",
        ),
        (pack([np.array([3, 60])]), r"largest token id is 60 \(the vocabulary has 60\)"),
        (pack([np.array([3, 5])], [np.array([0, 2])]), r"largest segment 2 \(of 2\)"),
        (pack([np.array([3]), np.array([], dtype=int)]), "every sequence at least one token"),
    ],
)
def test_batches_that_do_not_fit(batch: PackedBatch, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        encoder()(batch)


def test_the_longest_sequence_fits() -> None:
    assert encoder()(some_batch((20,))).shape == (20, 32)


def test_pooled_and_token_heads_are_linear_layers_on_what_they_are_given() -> None:
    pooled, tokens = PooledHead(CONFIG, 3).eval(), TokenHead(CONFIG, 4).eval()
    hidden_SD = torch.randn(5, 32)
    batch = pack([np.array([7])] * 5)  # of one token each: the first is all there is
    expected = torch.tanh(hidden_SD @ pooled.dense.weight.T + pooled.dense.bias) @ pooled.out.weight.T + pooled.out.bias
    torch.testing.assert_close(pooled(hidden_SD, batch), expected)
    torch.testing.assert_close(tokens(hidden_SD), hidden_SD @ tokens.out.weight.T + tokens.out.bias)
    torch.manual_seed(0)
    assert not torch.equal(pooled.train()(hidden_SD, batch), pooled(hidden_SD, batch))
    quiet = TokenHead(replace(CONFIG, classifier_dropout=0.0), 4).train()
    assert torch.equal(quiet(hidden_SD), quiet(hidden_SD))


def test_the_vocabulary_head_is_tied() -> None:
    model = nn.Module()
    model.encoder = encoder()
    model.vocabulary = VocabularyHead(CONFIG, model.encoder.token_embedding)
    assert not any("embedding" in name for name in model.vocabulary.state_dict())
    assert len({id(parameter) for parameter in model.parameters()}) == len(list(model.parameters()))
    hidden_MD = torch.randn(4, 32)
    before = model.vocabulary(hidden_MD)
    assert before.shape == (4, 60)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.encoder.token_embedding.weight[7] += 1
    after = model.vocabulary(hidden_MD)
    changed = (after != before).any(dim=0).nonzero().flatten().tolist()
    assert changed == [7]
    assert torch.equal(twin.vocabulary(hidden_MD), before)
    after.sum().backward()
    assert model.encoder.token_embedding.weight.grad is not None
    with torch.no_grad():
        twin.encoder.token_embedding.weight[7] += 1
    assert torch.equal(twin.vocabulary(hidden_MD), after)


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "gpt2"])
def test_chosen_tokens_are_as_they_are_among_all(family: str) -> None:
    """The last layer may leave out the other tokens: the same states, and the same gradients of all weights."""
    torch.manual_seed(0)
    model = Encoder(named_size("tiny", 60, model_type=family)).double().eval()
    batch, positions_M = some_batch(), torch.tensor([0, 4, 5, 9, 12, 31, 4])
    found = []
    for states_MD in (model(batch)[positions_M], model(batch, positions_M)):
        model.zero_grad()
        (states_MD * torch.arange(1, 8)[:, None]).square().sum().backward()
        found.append((states_MD.detach(), [parameter.grad for parameter in model.parameters()]))
    (states, gradients), (chosen_states, chosen_gradients) = found
    torch.testing.assert_close(chosen_states, states, rtol=0, atol=1e-5)
    for gradient, expected in zip(chosen_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_computed_again_give_the_same_and_keep_less(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "_GROUP_COST_SCORES", 1)  # each length is a group
    kept = encoder(CONFIG.with_dropout(dropout, dropout, None)).train()
    lean = copy.deepcopy(kept)
    recompute_layers(lean)
    batch, outputs, sizes = some_batch((9, 3, 17, 17)), [], []
    for model in (kept, lean):
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(batch, torch.arange(0, 46, 2))
        output.square().sum().backward(retain_graph=True)
        output.sum().backward()  # as adversarial training goes through a graph twice
        outputs.append(output.detach())
        sizes.append(sum(saved.values()))
    assert torch.equal(*outputs)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(kept.parameters(), lean.parameters(), strict=True))
    assert sizes[1] < sizes[0] / 2
    with torch.no_grad():
        assert torch.equal(lean.eval()(batch), kept.eval()(batch))


# torch looks at every argument's gradient while it compiles, and warns of what it does itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("dropout", "recomputes"), [(0.0, False), (0.3, False), (0.3, True)])
def test_compiled_layers_serve_batches_of_any_lengths(
    dropout: float, recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers by the same kernels, however long sequences are; traced, but not turned into C++, which takes a
    minute."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    eager = encoder(CONFIG.with_dropout(dropout, dropout, None)).train()
    compiled = copy.deepcopy(eager)
    compile_layers(compiled)
    if recomputes:
        recompute_layers(compiled)
    numbers = []
    for seed, lengths in enumerate([(9, 3, 17), (5, 5), (2, 20, 11, 6), (7,), (3, 3, 8)]):
        outputs, gradients = [], []
        for model in (eager, compiled):
            model.zero_grad()
            torch.manual_seed(seed)
            output = model(some_batch(lengths), torch.arange(0, sum(lengths), 2))
            output.square().sum().backward(retain_graph=True)
            output.sum().backward()  # as adversarial training goes through a graph twice
            outputs.append(output.detach())
            gradients.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(gradients[1], gradients[0])
        numbers.append(counter.frame_count)
    # One more for the second shape, as a size of 1 or of something else equal may have been a constant in the first.
    assert numbers[-1] == numbers[1] > 0
    assert compiled.state_dict().keys() == eager.state_dict().keys()
