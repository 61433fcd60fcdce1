"""What heads are made of: a pooled sequence, single tokens, the vocabulary, and found replacements.

Shape letters: T tokens, S sequences, M chosen positions, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.model.batch import PackedBatch
from bertsmith.model.config import EncoderConfig
from bertsmith.model.dropout import dropout
from bertsmith.model.encoder import ACTIVATION_FUNCTIONS, initialise
from bertsmith.model.families import family


def pool(hidden_TD: Tensor, batch: PackedBatch, pooling: str) -> Tensor:
    """What stands for each sequence: its first token, the mean of its tokens, or its last; [T, D] -> [S, D]."""
    if pooling == "cls":
        return hidden_TD[batch.first_tokens]
    if pooling == "last":
        return hidden_TD[batch.offsets[1:] - 1]
    lengths_S = batch.offsets.diff()
    sequence_T = torch.repeat_interleave(lengths_S, output_size=len(hidden_TD))
    sums_SD = hidden_TD.new_zeros(len(lengths_S), hidden_TD.shape[-1], dtype=torch.float32)
    sums_SD = sums_SD.index_add(0, sequence_T, hidden_TD.float())
    return (sums_SD / lengths_S[:, None]).to(hidden_TD.dtype)


class PooledHead(nn.Module):
    """A sequence as one vector, BERT's pooler on it, then one linear layer: for classes and next sentences."""

    def __init__(self, config: EncoderConfig, num_outputs: int) -> None:
        super().__init__()
        structure = family(config.model_type).structure
        width, has_bias = config.hidden_size, structure.has_bias
        self.pooling = config.pooling
        self.dropout = config.head_dropout
        self.drops_before = structure.drops_before_pooling
        activation = structure.pooled_activation
        self.activation = None if activation is None else ACTIVATION_FUNCTIONS[activation]
        self.dense = None if activation is None else nn.Linear(width, width, has_bias)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=has_bias) if structure.head_has_norm else None
        self.out = nn.Linear(width, num_outputs, not structure.is_causal)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
        """[T, D] hidden states of whole sequences -> [S, outputs]"""
        pooled_SD = pool(hidden_TD, batch, self.pooling)
        if self.dense is not None and self.activation is not None:
            if self.drops_before:
                pooled_SD = dropout(pooled_SD, self.dropout, self.training)
            pooled_SD = self.activation(self.dense(pooled_SD))
        if self.norm is not None:
            pooled_SD = self.norm(pooled_SD)
        output: Tensor = self.out(dropout(pooled_SD, self.dropout, self.training))
        return output


class TokenHead(nn.Module):
    """One linear layer on every token it is given: for tags and answer spans."""

    def __init__(self, config: EncoderConfig, num_outputs: int) -> None:
        super().__init__()
        structure = family(config.model_type).structure
        width, has_bias = config.hidden_size, structure.has_bias
        self.dropout = config.head_dropout
        self.activation = ACTIVATION_FUNCTIONS[structure.pooled_activation or config.hidden_act]
        self.dense = nn.Linear(width, width, has_bias) if structure.head_has_norm else None
        self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=has_bias) if structure.head_has_norm else None
        self.out = nn.Linear(width, num_outputs)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[*, D] -> [*, outputs]"""
        if self.dense is not None and self.norm is not None:
            hidden_TD = self.norm(self.activation(self.dense(hidden_TD)))
        output: Tensor = self.out(dropout(hidden_TD, self.dropout, self.training))
        return output


class VocabularyHead(nn.Module):
    """BERT's masked-language-model head. Give it the masked positions only: its product with V is the largest of all.

    The decoder is the encoder's token embedding itself, which stays the encoder's: it is not listed
    among this module's parameters.
    """

    def __init__(self, config: EncoderConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        structure = family(config.model_type).structure
        self._tied = (embedding,)  # in a tuple, which hides it from nn.Module
        self.activation = ACTIVATION_FUNCTIONS[structure.vocabulary_activation or config.hidden_act]
        self.dense = self.norm = self.bias = None
        if not structure.vocabulary_is_bare:
            narrow, has_bias = config.embedding_width, structure.has_bias
            self.dense = nn.Linear(config.hidden_size, narrow, has_bias)
            self.norm = nn.LayerNorm(narrow, config.layer_norm_eps, bias=has_bias)
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range)

    def forward(self, hidden_MD: Tensor) -> Tensor:
        """[M, D] hidden states -> [M, V] logits"""
        if self.dense is not None and self.norm is not None:
            hidden_MD = self.norm(self.activation(self.dense(hidden_MD)))
        return F.linear(hidden_MD, self._tied[0].weight, self.bias)


class DetectionHead(nn.Module):
    """ELECTRA's question of every token: is it the one that stood here, or was it replaced?"""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] hidden states -> [T] logits of "replaced" """
        logits_T: Tensor = self.out(self.activation(self.dense(hidden_TD))).squeeze(-1)
        return logits_T
