"""One encoder for every family, on packed batches: embeddings, then layers (Devlin et al. 2018, arXiv 1810.04805).

Every linear layer, norm and activation sees one flat row of real tokens; only `attention` looks at where
sequences begin. `EncoderConfig` and the family's `Structure` decide the rest.

Shape letters: T tokens, D width, E width of the embeddings, N heads, H head size.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bertsmith.errors import ModelError
from bertsmith.model import attention as attention_module
from bertsmith.model import dropout as dropout_module
from bertsmith.model.attention import Layout, Reach, Room, attention, attention_weights, uses_flash
from bertsmith.model.batch import PackedBatch
from bertsmith.model.config import EncoderConfig, Structure
from bertsmith.model.dropout import dropout
from bertsmith.model.families import family
from bertsmith.model.graphs import LayerGraphs
from bertsmith.model.initial_weights import initialise, neighbour_heads, sinusoidal_positions
from bertsmith.model.rotary import Rotation, rotation

_tanh_gelu = partial(F.gelu, approximate="tanh")
_NOT_COMPILED = ((dropout_module, "keep_mask"), (attention_module, "_on_cpu"), (attention_module, "grouped_sdpa"))
"""What torch.compile cannot make. Marked when it is asked for, because the mark takes a second to import."""
ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_new": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "relu": F.relu,
        "silu": F.silu,
        "tanh": torch.tanh,
    }
)


class Layer(nn.Module):
    """Self-attention, then a feed-forward network; each with dropout, residual and norm."""

    def __init__(self, config: EncoderConfig, structure: Structure, *, is_first: bool) -> None:
        super().__init__()
        width, bias = config.hidden_size, structure.has_bias
        self.num_heads = config.num_attention_heads
        self.head_size = width // config.num_attention_heads
        self.hidden_dropout = config.hidden_dropout_prob
        field = structure.attention_out_dropout
        self.attention_out_dropout: float = 0.0 if field is None else getattr(config, field)
        self.drops_inside_feed_forward = structure.drops_inside_feed_forward
        self.attention_dropout = config.attention_probs_dropout_prob
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.is_gated = structure.is_gated
        self.is_pre_norm = structure.is_pre_norm
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.attention_out = nn.Linear(width, width, bias)
        # What the embedding norm gives needs no other norm.
        is_normed = structure.is_pre_norm and structure.has_embedding_norm and is_first
        self.attention_norm = nn.Identity() if is_normed else nn.LayerNorm(width, config.layer_norm_eps, bias=bias)
        self.up = nn.Linear(width, (2 if structure.is_gated else 1) * config.intermediate_size, bias)
        self.down = nn.Linear(config.intermediate_size, width, bias)
        self.mlp_norm = nn.LayerNorm(width, config.layer_norm_eps, bias=bias)

    def forward(
        self,
        hidden_TD: Tensor,
        layout: Layout | Room,
        reach: Reach,
        rotate: Rotation | None,
        positions_M: Tensor | None = None,
    ) -> Tensor:
        """[T, D] -> [T, D], or [M, D] at some positions: only attention has to see the other tokens."""
        qkv_T3NH = self.queries_keys_values(hidden_TD, rotate)
        attended_TNH = attention(qkv_T3NH, layout, self.attention_dropout if self.training else 0.0, reach)
        if positions_M is not None:
            hidden_TD, attended_TNH = hidden_TD[positions_M], attended_TNH[positions_M]
        change_TD = dropout(self.attention_out(attended_TNH.flatten(1)), self.attention_out_dropout, self.training)
        if self.is_pre_norm:
            hidden_TD = hidden_TD + change_TD
            return hidden_TD + self._feed_forward(self.mlp_norm(hidden_TD))
        hidden_TD = self.attention_norm(hidden_TD + change_TD)
        normed_TD: Tensor = self.mlp_norm(hidden_TD + self._feed_forward(hidden_TD))
        return normed_TD

    def queries_keys_values(self, hidden_TD: Tensor, rotate: Rotation | None) -> Tensor:
        """What attention gets of a layer's input, with rotary positions already in it: [T, D] -> [T, 3, N, H]."""
        if self.is_pre_norm:
            hidden_TD = self.attention_norm(hidden_TD)
        qkv_T3NH: Tensor = self.qkv(hidden_TD).unflatten(-1, (3, self.num_heads, self.head_size))
        return qkv_T3NH if rotate is None else rotate.turn(qkv_T3NH)

    def _feed_forward(self, hidden_TD: Tensor) -> Tensor:
        inner = self.up(hidden_TD)
        if self.is_gated:
            inner, gate = inner.chunk(2, dim=-1)
            inner = self.activation(inner) * gate
        else:
            inner = self.activation(inner)
        if self.drops_inside_feed_forward:
            output: Tensor = self.down(dropout(inner, self.hidden_dropout, self.training))
            return output
        return dropout(self.down(inner), self.hidden_dropout, self.training)


def compile_layers(model: nn.Module) -> None:
    """Have torch.compile make kernels of every layer inside `model`, in place, when they are first run.

    A layer at a time, not the model: all layers of a size share what is compiled, which then takes seconds. No length
    is fixed in it, so that batches of any lengths use the same kernels. What a backward pass needs is kept for a second
    one, which adversarial training takes.
    """
    from torch._functorch import config as backward_config

    backward_config.donated_buffer = False
    for module, name in _NOT_COMPILED:
        setattr(module, name, torch.compiler.disable(getattr(module, name)))  # type: ignore[no-untyped-call]
    for part in model.modules():
        if isinstance(part, Layer):
            part.compile(dynamic=True)


def recompute_layers(model: nn.Module) -> None:
    """Have every encoder inside `model` keep no more of a layer than its input, and run it again for its gradient.

    Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a forward pass more for each step, in a fraction of the
    memory. Dropout draws the same numbers again, so that losses and gradients are the same.
    """
    for part in model.modules():
        if isinstance(part, Encoder):
            part.recomputes_layers = True


def replay_layers(model: nn.Module, is_wanted: bool = True) -> None:
    """Have every encoder inside `model` that is on a CUDA device replay its layers while it learns (see `graphs`), or
    not any more.

    Its parameters have to stay where they are in memory meanwhile.
    """
    for part in model.modules():
        if isinstance(part, Encoder):
            head_size = part.config.hidden_size // part.config.num_attention_heads
            can = uses_flash(part.token_embedding.weight.device, torch.bfloat16, head_size)
            run = [part.layers] if part.final_norm is None else [part.layers, part.final_norm]
            part.graphs = LayerGraphs(run) if is_wanted and can else None


def forget_recordings(model: nn.Module) -> None:
    """Give back the memory that is held for replaying layers; they are recorded anew."""
    for part in model.modules():
        if isinstance(part, Encoder) and part.graphs is not None:
            part.graphs.forget()


class Encoder(nn.Module):
    """Token, position and segment embeddings, then `num_hidden_layers` layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        structure = family(config.model_type).structure
        width, narrow, eps = config.hidden_size, config.embedding_width, config.layer_norm_eps
        self.token_embedding = nn.Embedding(config.vocab_size, narrow)
        is_rotary = config.rope_theta is not None
        self.position_embedding = None if is_rotary else nn.Embedding(config.max_position_embeddings, narrow)
        self.segment_embedding = nn.Embedding(config.type_vocab_size, narrow) if config.type_vocab_size else None
        self.embedding_norm = (
            nn.LayerNorm(narrow, eps, bias=structure.has_bias) if structure.has_embedding_norm else None
        )
        projects = structure.always_projects_embeddings or narrow != width
        self.embedding_projection = nn.Linear(narrow, width) if projects else None
        self.layers = nn.ModuleList(
            Layer(config, structure, is_first=layer == 0) for layer in range(config.num_distinct_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps, bias=structure.has_bias) if structure.is_pre_norm else None
        self._is_causal = structure.is_causal
        self.recomputes_layers = False
        self.graphs: LayerGraphs | None = None
        initialise(self, config.initializer_range)
        if structure.is_pre_norm:
            # Every layer adds to the residual; so that their sum does not grow with the depth (Radford et al. 2019,
            # section 2.3; Warner et al. 2024, appendix B).
            with torch.no_grad():
                for part in self.layers:
                    assert isinstance(part, Layer)
                    part.attention_out.weight /= math.sqrt(2 * config.num_hidden_layers)
                    part.down.weight /= math.sqrt(2 * config.num_hidden_layers)

    def forward(self, batch: PackedBatch, positions_M: Tensor | None = None) -> Tensor:
        """The last layer's hidden states, [T, D].

        Args:
            positions_M: int64 [M], the tokens whose hidden states are asked for; the last layer then leaves out what
                the others alone would need, which in a shallow model is much of the work. None: all tokens.

        Returns:
            [T, D], or [M, D] in the order of the positions.

        Raises:
            ModelError: a sequence is empty or longer than the model's positions, or (on the CPU, where the
                look-up notices it) an id is outside its table.
        """
        config = self.config
        if min(batch.lengths, default=0) < 1:
            raise ModelError("a batch needs at least one sequence, and every sequence at least one token")
        longest = max(batch.lengths)
        if longest > config.max_sequence_length:
            raise ModelError(
                f"a sequence of {longest} tokens is longer than the model's {config.max_sequence_length} "
                f"positions: cut the text into windows of at most {config.max_sequence_length} tokens"
            )
        hidden_TD = dropout(self._embed(batch), config.embedding_dropout, self.training)
        if self.embedding_projection is not None:
            hidden_TD = self.embedding_projection(hidden_TD)
        if self.graphs is not None and self.training and torch.is_grad_enabled():
            replayed_TD = self.graphs.run(self._through_layers, hidden_TD, batch)
            if replayed_TD is not None:
                return replayed_TD if positions_M is None else replayed_TD[positions_M]
        layout = Layout(batch.lengths, config.num_attention_heads, hidden_TD.device)
        return self._through_layers(hidden_TD, layout, batch.position_ids, positions_M)

    def _through_layers(
        self, hidden_TD: Tensor, layout: Layout | Room, position_ids: Tensor, positions_M: Tensor | None = None
    ) -> Tensor:
        """[T, D] -> [T, D], or [M, D] at some positions"""
        for number, (layer, (reach, rotate)) in enumerate(self._walk(position_ids), start=1):
            is_last = number == self.config.num_hidden_layers
            inputs = hidden_TD, layout, reach, rotate, positions_M if is_last else None
            if self.recomputes_layers and torch.is_grad_enabled():
                hidden_TD = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden_TD = layer(*inputs)
        if self.final_norm is not None:
            hidden_TD = self.final_norm(hidden_TD)
        return hidden_TD

    def start_with_waves(self) -> None:
        """Fill the position table, where there is one, with `sinusoidal_positions`."""
        if self.position_embedding is not None:
            sinusoidal_positions(self.position_embedding, self.config.initializer_range)

    def start_with_neighbours(self) -> None:
        """Let half of the first layer's heads, and at most four, begin as `neighbour_heads`, where there is a table.

        They look at the places before and after, then at those behind these; where tokens see only what is before
        them, at the last places. The other heads are left to see all of a text, which pairs of texts need.
        Layers that share their weights (ALBERT's) would all look there, and learn much less: they have waves alone.
        """
        if len(self.layers) < self.config.num_hidden_layers:
            self.start_with_waves()
            return
        if self.position_embedding is None:
            return
        first = self.layers[0]
        assert isinstance(first, Layer)
        tables = (self.position_embedding, self.token_embedding, self.segment_embedding)
        neighbour_heads(
            [table for table in tables if table is not None],
            self.config.initializer_range,
            first.qkv,
            first.attention_out,
            first.num_heads,
            ((-1, -2, -3, -4) if self._is_causal else (-1, 1, -2, 2))[: max(1, first.num_heads // 2)],
            self.embedding_projection,
        )

    def embedding_parameters(self) -> list[nn.Parameter]:
        """All that is below the first layer: the tables, their norm and their projection."""
        below = [part for name, part in self.named_children() if name not in ("layers", "final_norm")]
        return [parameter for part in below for parameter in part.parameters()]

    def attention_maps(self, batch: PackedBatch) -> list[Tensor]:
        """How much each token looks at each other, for people to look at: a tensor [N, L, L] a layer.

        Args:
            batch: one sequence of L tokens.
        """
        maps = []

        def note(layer: nn.Module, inputs: tuple[Tensor, Layout, Reach, Rotation | None, Tensor | None]) -> None:
            assert isinstance(layer, Layer)
            hidden_TD, _, reach, rotate, _ = inputs
            maps.append(attention_weights(layer.queries_keys_values(hidden_TD, rotate), reach))

        hooks = [layer.register_forward_pre_hook(note) for layer in self.layers]
        try:
            with torch.no_grad():
                self(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return maps

    def _walk(self, position_ids: Tensor) -> Iterator[tuple[Layer, tuple[Reach, Rotation | None]]]:
        """The layers in the order they are run, shared ones again and again, and what tokens see in each."""
        config = self.config
        views = [self._view(position_ids, is_local) for is_local in (False, config.global_attn_every_n_layers > 1)]
        for number in range(config.num_hidden_layers):
            layer = self.layers[number * len(self.layers) // config.num_hidden_layers]
            assert isinstance(layer, Layer)
            yield layer, views[config.is_local(number)]

    def _view(self, position_ids: Tensor, is_local: bool) -> tuple[Reach, Rotation | None]:
        """What tokens see in a global or in a local layer, and the angles of their positions there."""
        config = self.config
        distance = config.local_attention // 2 if is_local and config.local_attention is not None else None
        theta = config.local_rope_theta if is_local else config.rope_theta
        head_size = config.hidden_size // config.num_attention_heads
        turned = None if theta is None else rotation(position_ids, head_size, theta)
        return Reach(self._is_causal, distance), turned

    def _embed(self, batch: PackedBatch) -> Tensor:
        """[T, E]"""
        try:
            embedded_TE: Tensor = self.token_embedding(batch.token_ids)
            if self.segment_embedding is not None and self.config.type_vocab_size == 1:
                embedded_TE = embedded_TE + self.segment_embedding.weight
            elif self.segment_embedding is not None:
                embedded_TE = embedded_TE + self.segment_embedding(batch.segment_ids)
            if self.position_embedding is not None:
                embedded_TE = embedded_TE + self.position_embedding(batch.position_ids + self.config.position_offset)
        except IndexError as error:
            raise ModelError(
                f"ids outside the model's tables: the largest token id is {int(batch.token_ids.max())} (the vocabulary "
                f"has {self.config.vocab_size}), the largest segment {int(batch.segment_ids.max())} (of "
                f"{self.config.type_vocab_size}); does the tokenizer belong to this model?"
            ) from error
        if self.embedding_norm is not None:
            embedded_TE = self.embedding_norm(embedded_TE)
        return embedded_TE
