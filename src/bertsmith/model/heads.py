"""What heads are made of: a pooled sequence, single tokens, the vocabulary, and found replacements.

Shape letters: T tokens, S sequences, M chosen positions, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertsmith.model.batch import PackedBatch
from bertsmith.model.config import EncoderConfig
from bertsmith.model.dropout import dropout
from bertsmith.model.encoder import ACTIVATION_FUNCTIONS
from bertsmith.model.families import family
from bertsmith.model.initial_weights import initialise

_CUDA_COLUMNS = 64
"""On CUDA the vocabulary is filled up to a multiple of this: rows of a product that are not aligned keep its fastest
kernels away."""


def pooled_positions(batch: PackedBatch, pooling: str, pad_token_id: int | None) -> Tensor | None:
    """Which token stands for each sequence, its first or its last: int64 [S]. None: the mean of them all does.

    The last is the last that is not `pad_token_id`, as in Transformers: GPT-2 has one token for padding and for the end
    of a text, and its classifiers look at what is before that. Of nothing but padding it is the first.
    """
    if pooling == "mean":
        return None
    if pooling == "cls":
        return batch.first_tokens
    if pad_token_id is None:
        return batch.offsets[1:] - 1
    places_T = torch.arange(len(batch.token_ids), device=batch.token_ids.device) * (batch.token_ids != pad_token_id)
    return batch.first_tokens.scatter_reduce(0, _sequences(batch), places_T, "amax")


def _sequences(batch: PackedBatch) -> Tensor:
    """int64 [T], the number of the sequence that each token is in."""
    return torch.repeat_interleave(batch.offsets.diff(), output_size=len(batch.token_ids))


def _in_full(output: nn.Linear, inputs: Tensor) -> Tensor:
    """The last layer, whatever autocast has: bf16 tells 88.5 from 89 and nothing between, and gives equal scores to
    answers that are not equally good. Its product is the smallest of all."""
    with torch.autocast(inputs.device.type, enabled=False):
        logits: Tensor = output(inputs.to(output.weight.dtype))
    return logits


def mean_of_tokens(hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
    """[T, D] -> [S, D], summed in float32."""
    lengths_S = batch.offsets.diff()
    sums_SD = hidden_TD.new_zeros(len(lengths_S), hidden_TD.shape[-1], dtype=torch.float32)
    sums_SD = sums_SD.index_add(0, _sequences(batch), hidden_TD.float())
    return (sums_SD / lengths_S[:, None]).to(hidden_TD.dtype)


class PooledHead(nn.Module):
    """A sequence as one vector, BERT's pooler on it, then one linear layer: for classes, choices and next sentences."""

    def __init__(self, config: EncoderConfig, num_outputs: int, *, of_choices: bool = False) -> None:
        """With `of_choices` as Transformers has it for multiple choice: a family that otherwise has dropout before the
        pooling has none there, and that of the encoder before the output."""
        super().__init__()
        structure = family(config.model_type).structure
        width, has_bias = config.hidden_size, structure.has_bias
        self.pooling, self.pad_token_id = config.pooling, config.pad_token_id
        activation = config.head_activation if structure.head_has_norm else structure.pooled_activation
        self.dropout = 0.0 if activation is None else config.head_dropout
        self.drops_before = structure.drops_before_pooling and not of_choices
        if structure.drops_before_pooling and of_choices:
            self.dropout = config.hidden_dropout_prob
        self.activation = None if activation is None else ACTIVATION_FUNCTIONS[activation]
        self.dense = None if activation is None else nn.Linear(width, width, has_bias)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=has_bias) if structure.head_has_norm else None
        self.out = nn.Linear(width, num_outputs, not structure.is_causal)
        initialise(self, config.initializer_range)

    def positions(self, batch: PackedBatch) -> Tensor | None:
        """Which token this head looks at in each sequence, int64 [S]; None: at all of them."""
        return pooled_positions(batch, self.pooling, self.pad_token_id)

    def forward(self, hidden_TD: Tensor, batch: PackedBatch) -> Tensor:
        """[T, D] hidden states of whole sequences -> float32 [S, outputs]"""
        positions_S = self.positions(batch)
        return self.of_pooled(mean_of_tokens(hidden_TD, batch) if positions_S is None else hidden_TD[positions_S])

    def of_pooled(self, pooled_SD: Tensor) -> Tensor:
        """[S, D], what stands for each sequence -> float32 [S, outputs]"""
        if self.dense is not None and self.activation is not None:
            if self.drops_before:
                pooled_SD = dropout(pooled_SD, self.dropout, self.training)
            pooled_SD = self.activation(self.dense(pooled_SD))
        if self.norm is not None:
            pooled_SD = self.norm(pooled_SD)
        return _in_full(self.out, dropout(pooled_SD, self.dropout, self.training))


class TokenHead(nn.Module):
    """One linear layer on every token it is given: for tags and answer spans."""

    def __init__(self, config: EncoderConfig, num_outputs: int) -> None:
        super().__init__()
        structure = family(config.model_type).structure
        width, has_bias = config.hidden_size, structure.has_bias
        is_of_sequences = structure.classifier_dropout_is_of_sequences
        self.dropout = config.hidden_dropout_prob if is_of_sequences else config.head_dropout
        self.activation = ACTIVATION_FUNCTIONS[config.head_activation]  # where there is a dense layer
        self.dense = nn.Linear(width, width, has_bias) if structure.head_has_norm else None
        self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=has_bias) if structure.head_has_norm else None
        self.out = nn.Linear(width, num_outputs)
        initialise(self, config.initializer_range)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """[*, D] -> float32 [*, outputs]"""
        if self.dense is not None and self.norm is not None:
            hidden_TD = self.norm(self.activation(self.dense(hidden_TD)))
        return _in_full(self.out, dropout(hidden_TD, self.dropout, self.training))


class VocabularyHead(nn.Module):
    """BERT's masked-language-model head. Give it the masked positions only: its product with V is the largest of all.

    The decoder is the encoder's token embedding itself, which stays the encoder's: it is not listed
    among this module's parameters.
    """

    def __init__(self, config: EncoderConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        structure = family(config.model_type).structure
        self._tied = (embedding,)  # in a tuple, which hides it from nn.Module
        own = config.head_activation if structure.head_has_norm else structure.vocabulary_activation
        self.activation = ACTIVATION_FUNCTIONS[own or config.hidden_act]
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
        weight_VD: Tensor = self._tied[0].weight
        bias_V: Tensor | None = self.bias
        missing = -len(weight_VD) % _CUDA_COLUMNS if hidden_MD.is_cuda else 0
        if missing:
            weight_VD = F.pad(weight_VD, (0, 0, 0, missing))
            bias_V = None if bias_V is None else F.pad(bias_V, (0, missing))
        logits_MV = F.linear(hidden_MD, weight_VD, bias_V)
        return logits_MV[:, : logits_MV.shape[1] - missing] if missing else logits_MV


@torch.no_grad()
def reorder_outputs(model: nn.Module, order: Sequence[int]) -> None:
    """Put what a model with a head for labels tells apart into another order: output i is then what order[i] was."""
    for name, tensor in model.state_dict().items():
        if ".out." in name:
            tensor.copy_(tensor[order])
        elif name.startswith("crf."):  # a score of a label, or of one label behind another
            for dimension in range(tensor.dim()):
                tensor.copy_(tensor.index_select(dimension, torch.tensor(order)))


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
