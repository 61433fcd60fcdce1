"""A model of another depth out of a folder, or one that knows more tokens or takes longer sequences.

A student that starts from every other layer of its teacher ends better than one from random weights (Sanh et al.
2019, arXiv 1910.01108, table 4); a deep model that starts from the repeated layers of a shallow one needs less
pre-training (Gong et al. 2019, "Efficient Training of BERT by Progressively Stacking"). Going on with new words of a
domain is faster when each starts from the mean of the pieces that it was cut into (Koto et al. 2021, IndoBERTweet,
arXiv 2109.04607). A longer table of positions is made of copies of the trained one, so that every place still has its
trained neighbours (Beltagy et al. 2020, Longformer, arXiv 2004.05150, section 5), or is drawn out between its ends, as
Dosovitskiy et al. 2020 do for larger images (arXiv 2010.11929, section 3.2).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bertsmith.errors import ModelError
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config, resolve

_LAYER = re.compile(r"^encoder\.layers\.(\d+)")
_POSITIONS = "encoder.position_embedding.weight"
_BY_TOKEN = ("encoder.token_embedding.weight", "vocabulary.bias")
"""Our names of the tensors that have a row, or a number, for each token."""

Extension = Literal["tile", "interpolate"]
"""How a table of positions is made longer: by copies of it, or by interpolation between its rows."""


def layer_sources(old: int, new: int) -> tuple[int, ...]:
    """Which of `old` layers each of `new` layers starts from.

    Fewer: evenly spread from the first on, so that of half as many it is every other one: 0, 2, 4 of six.
    (The script that made the released DistilBERT, `extract_distilbert.py` of huggingface/transformers, took 0,
    2, 4, 7, 9 and 11 of twelve, where this takes 0, 2, 4, 6, 8 and 10.) More: the whole stack again and again,
    as Gong et al. double it: 0, 1, 0, 1 of two.

    Raises:
        ModelError: a number below 1.
    """
    if old < 1 or new < 1:
        raise ModelError(f"a model has at least 1 layer, not {min(old, new)}")
    return tuple(layer * old // new if new < old else layer % old for layer in range(new))


def grow_rows(new: Tensor, old: Tensor, pieces: Mapping[int, Sequence[int]]) -> None:
    """Fill a table of more tokens from one of fewer; in place, and without gradients.

    The rows that both have are copied. Then each token of `pieces` gets the mean of its pieces' rows in `old`,
    whether its own row is new or one that stood for nothing; other new rows keep their values.

    Args:
        new: [V, *].
        old: [at most V, *].
        pieces: token id -> ids below the length of `old`; a token without any is left as it is.
    """
    with torch.no_grad():
        new[: len(old)].copy_(old)
        for token_id, old_ids in pieces.items():
            if old_ids:
                new[token_id] = old[list(old_ids)].mean(0)


def extend_positions(table_PE: Tensor, length: int, offset: int, extension: Extension) -> Tensor:
    """A table for sequences of `length` tokens: [offset + length, E] out of [offset + n, E].

    "tile": place p is place p mod n of the old table. "interpolate": linearly between the two old rows that are
    nearest to p (n - 1) / (length - 1), so that the first and the last place stay what they were.

    Args:
        offset: rows before that of the first token, which are kept.
    """
    unused_OE, old_NE = table_PE[:offset], table_PE[offset:]
    places_L, last = torch.arange(length), len(old_NE) - 1
    if extension == "tile":
        return torch.cat([unused_OE, old_NE[places_L % len(old_NE)]])
    exact_L = places_L.double() * last / max(1, length - 1)
    below_L = exact_L.long().clamp(max=max(0, last - 1))
    share_L1 = (exact_L - below_L).to(table_PE.dtype)[:, None]
    return torch.cat([unused_OE, torch.lerp(old_NE[below_L], old_NE[(below_L + 1).clamp(max=last)], share_L1)])


def load_resized(
    path: str | Path,
    model: nn.Module,
    build: Callable[[Encoder], nn.Module],
    pieces: Mapping[int, Sequence[int]] | None = None,
    extension: Extension | None = None,
) -> list[str]:
    """`load_weights(path, model, strict=False)` for a model of other layers, more tokens or positions than the folder.

    The layers are taken by `layer_sources`, the embedding and the bias of the vocabulary head by `grow_rows`, the
    positions by `extend_positions`, all else as it is. What a layer has and its source lacks, such as a norm before
    it, keeps its initial values.

    Args:
        model: a module with `encoder`, which says how many layers, tokens and positions are wanted.
        build: makes a module like `model` around an encoder, to hold the folder's weights in between.
        pieces: a token that the folder's model does not know -> the ids of those it starts from.
        extension: how more positions are made; None: the folder must have as many.

    Returns:
        Our names of the tensors that kept their values, as `load_weights` does.

    Raises:
        ModelError: as `load_weights`; or the numbers of layers differ in a family whose layers share their weights.
    """
    folder, pieces = resolve(path), pieces or {}
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    old, new = read_config(folder)[0], encoder.config
    is_longer = extension is not None and old.max_position_embeddings < new.max_position_embeddings
    is_alike = (old.num_hidden_layers, old.vocab_size) == (new.num_hidden_layers, new.vocab_size)
    if is_alike and not pieces and not is_longer:
        return load_weights(folder, model, strict=False)
    if old.num_hidden_layers != new.num_hidden_layers and new.num_hidden_groups is not None:
        raise ModelError(
            f"{folder}: its {old.num_hidden_layers} layers share their weights, so that {new.num_hidden_layers} "
            "cannot be chosen from them"
        )
    # A model of fewer tokens than the folder is for `load_weights` to refuse.
    between = replace(new, num_hidden_layers=old.num_hidden_layers, vocab_size=min(old.vocab_size, new.vocab_size))
    whole = build(Encoder(between))
    if is_longer:  # only now: a head may not be built for sequences that the encoder does not take
        assert isinstance(whole.encoder, Encoder)
        whole.encoder.position_embedding = nn.Embedding(old.max_position_embeddings, old.embedding_width)
    kept = load_weights(folder, whole, strict=False)
    sources, state = layer_sources(old.num_hidden_layers, new.num_hidden_layers), whole.state_dict()
    with torch.no_grad():
        for name, parameter in model.state_dict(keep_vars=True).items():
            source = _LAYER.sub(lambda found: f"encoder.layers.{sources[int(found[1])]}", name)
            if source not in state or source in kept:
                continue
            if name in _BY_TOKEN:
                grow_rows(parameter, state[source], pieces)
            elif name == _POSITIONS and is_longer and extension is not None:
                parameter.copy_(
                    extend_positions(state[source], new.max_sequence_length, new.position_offset, extension)
                )
            else:
                parameter.copy_(state[source])
    return kept
