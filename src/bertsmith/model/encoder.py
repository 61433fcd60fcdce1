"""BERT's encoder (Devlin et al. 2018, arXiv 1810.04805) on packed batches, and the blocks that heads are made of.

Every linear layer, norm and activation sees one flat row of real tokens; only `attention` looks at where
sequences begin. Layers are post-norm: a sub-layer's output is added to its input, then normalised.

Shape letters: T tokens, S sequences, M masked positions, D width, N heads, H head size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.errors import ModelError
from bertsmith.model.attention import Layout, attention
from bertsmith.model.batch import PackedBatch
from bertsmith.model.config import EncoderConfig
from bertsmith.model.dropout import dropout

_tanh_gelu = partial(F.gelu, approximate="tanh")
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"gelu": F.gelu, "gelu_new": _tanh_gelu, "gelu_pytorch_tanh": _tanh_gelu, "relu": F.relu, "silu": F.silu}
)


def initialise(module: nn.Module, deviation: float) -> None:
    """BERT's initial weights for everything inside `module`.

    Matrices and tables come from a normal of the given standard deviation, cut at two of them (so that
    what is left deviates by 0.88 of it), as `create_initializer` of google-research/bert draws them;
    biases are 0, norms the identity.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


class Layer(nn.Module):
    """Self-attention, then a feed-forward network; each with dropout, residual and norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_size = width // config.num_attention_heads
        self.hidden_dropout = config.hidden_dropout_prob
        self.attention_dropout = config.attention_probs_dropout_prob
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """[T, D] -> [T, D]"""
        qkv_T3NH = self.qkv(hidden_TD).unflatten(-1, (3, self.num_heads, self.head_size))
        attended_TNH = attention(qkv_T3NH, layout, self.attention_dropout if self.training else 0.0)
        change_TD = self.attention_out(attended_TNH.flatten(1))
        hidden_TD = self.attention_norm(hidden_TD + dropout(change_TD, self.hidden_dropout, self.training))
        change_TD = self.down(self.activation(self.up(hidden_TD)))
        normed_TD: Tensor = self.output_norm(hidden_TD + dropout(change_TD, self.hidden_dropout, self.training))
        return normed_TD


class Encoder(nn.Module):
    """Token, position and segment embeddings, then `num_hidden_layers` layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.segment_embedding = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last layer's hidden states, [T, D].

        Raises:
            ModelError: a sequence is empty or longer than the position table, or (on the CPU, where the
                look-up notices it) an id is outside its table.
        """
        if min(batch.lengths, default=0) < 1:
            raise ModelError("a batch needs at least one sequence, and every sequence at least one token")
        longest = max(batch.lengths)
        if longest > self.config.max_position_embeddings:
            raise ModelError(
                f"a sequence of {longest} tokens is longer than the model's {self.config.max_position_embeddings} "
                f"positions: cut the text into windows of at most {self.config.max_position_embeddings} tokens"
            )
        hidden_TD = dropout(self._embed(batch), self.config.hidden_dropout_prob, self.training)
        layout = Layout(batch.lengths, self.config.num_attention_heads, hidden_TD.device)
        for layer in self.layers:
            hidden_TD = layer(hidden_TD, layout)
        return hidden_TD

    def _embed(self, batch: PackedBatch) -> Tensor:
        try:
            embedded_TD = (
                self.token_embedding(batch.token_ids)
                + self.segment_embedding(batch.segment_ids)
                + self.position_embedding(batch.position_ids)
            )
        except IndexError as error:
            raise ModelError(
                f"ids outside the model's tables: the largest token id is {int(batch.token_ids.max())} (the vocabulary "
                f"has {self.config.vocab_size}), the largest segment {int(batch.segment_ids.max())} (of "
                f"{self.config.type_vocab_size}); does the tokenizer belong to this model?"
            ) from error
        normed_TD: Tensor = self.embedding_norm(embedded_TD)
        return normed_TD


class PooledHead(nn.Module):
    """BERT's pooler on each sequence's first token, then one linear layer: for classes and next sentences."""

    def __init__(self, config: EncoderConfig, num_outputs: int) -> None:
        super().__init__()
        self.dropout = config.head_dropout
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, num_outputs)
        initialise(self, config.initializer_range)

    def forward(self, first_SD: Tensor) -> Tensor:
        """[S, D] hidden states of the first tokens -> [S, outputs]"""
        pooled_SD = torch.tanh(self.dense(first_SD))
        output: Tensor = self.out(dropout(pooled_SD, self.dropout, self.training))
        return output


class TokenHead(nn.Module):
    """One linear layer on every token it is given: for tags and answer spans."""

    def __init__(self, config: EncoderConfig, num_outputs: int) -> None:
        super().__init__()
        self.dropout = config.head_dropout
        self.out = nn.Linear(config.hidden_size, num_outputs)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[*, D] -> [*, outputs]"""
        output: Tensor = self.out(dropout(hidden_TD, self.dropout, self.training))
        return output


class VocabularyHead(nn.Module):
    """BERT's masked-language-model head. Give it the masked positions only: its product with V is the largest of all.

    The decoder is the encoder's token embedding itself, which stays the encoder's: it is not listed
    among this module's parameters.
    """

    def __init__(self, config: EncoderConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self._tied = (embedding,)  # in a tuple, which hides it from nn.Module
        initialise(self, config.initializer_range)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """[M, D] hidden states -> [M, V] logits"""
        transformed_MD = self.norm(self.activation(self.dense(hidden_MD)))
        return F.linear(transformed_MD, self._tied[0].weight, self.bias)
