"""What a new model's weights are before it is trained.

Shape letters: P places, E width of the embeddings, D width, N heads, H head size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NEIGHBOUR_PEAK = 4.0
"""How far the logit of the place that is looked for stands above those of other places, on average."""
LONGEST_READ = 8.0
"""In places, of the waves that these heads read; the shortest has 2. Together they agree only where they should."""


def initialise(module: nn.Module, deviation: float) -> None:
    """BERT's initial weights for everything inside `module`.

    Matrices and tables come from a normal of the given standard deviation, cut at two of them (so that
    what is left deviates by 0.88 of it), as `create_initializer` of google-research/bert draws them;
    biases are 0, norms the identity.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        if isinstance(part, nn.Linear | nn.LayerNorm) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)


def initialise_new_output(output: nn.Linear) -> None:
    """What a new task's last layer starts from: a normal of deviation 1 / sqrt(its width), biases of 0.

    What it hears deviates by about 1, and so do then its outputs (LeCun et al. 1998, "Efficient BackProp", section
    4.6). BERT's 0.02 is for layers that pre-training moves a million times. Adam moves a weight by no more than about
    the learning rate in a step, so from there the head of a fine-tuning takes hundreds of steps to grow, in which the
    encoder is told little of what is asked.
    """
    nn.init.normal_(output.weight, std=1 / math.sqrt(output.in_features))
    if output.bias is not None:
        nn.init.zeros_(output.bias)


def sinusoidal_positions(table: nn.Embedding, amplitude: float, frequencies: Tensor | None = None) -> None:
    """Fill a position table with sines and cosines (Vaswani et al. 2017, arXiv 1706.03762, section 3.5), to be trained.

    Places that are near are then alike from the first step on, by how near they are. In a table of random rows
    that has to be learnt before a masked token can be told from its neighbours, and this takes most of a short run.

    Args:
        amplitude: of the waves.
        frequencies: float32 [E / 2, rounded up], radians a place; None: the paper's, whose waves are from 2 pi to
            20000 pi places long.
    """
    places_P, width = torch.arange(table.num_embeddings), table.embedding_dim
    if frequencies is None:
        frequencies = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = places_P[:, None] * frequencies
    with torch.no_grad():
        table.weight[:, 0::2] = amplitude * angles.sin()
        table.weight[:, 1::2] = amplitude * angles[:, : width // 2].cos()


def neighbour_heads(
    tables: Sequence[nn.Embedding],
    amplitude: float,
    qkv: nn.Linear,
    attention_out: nn.Linear,
    num_heads: int,
    offsets: Sequence[int],
    projection: nn.Linear | None = None,
) -> None:
    """Let heads of the first layer look at neighbours from the first step on: head n at the place `offsets[n]` further.

    A wave moved by some places is that wave's sine and cosine turned by an angle (Vaswani et al. 2017, section 3.5).
    So a key that reads the shortest waves of its own place, and a query that reads and turns them, agree where one is
    the other's neighbour, and where the waves' lengths differ enough, nowhere else. Values and what is made of them
    start wide enough to be heard beside the residual. All of it is then trained like other weights.

    A random layer looks everywhere alike, so that the context it hands on is a mean of all tokens; until some heads
    have found the neighbours there is nothing to learn but how frequent tokens are. That attention learns better when
    it starts as what it is going to be is from Trockman and Kolter 2023, arXiv 2305.09828.

    Args:
        tables: what is summed to an embedding of width E, positions first; theirs is filled.
        amplitude: of its waves.
        qkv: [3 D, D], the first layer's; of other heads than the first `len(offsets)` only the values are changed.
        attention_out: [D, D]
        offsets: no more than there are heads.
        projection: from E to D, where the widths differ.
    """
    width, (num_places, narrow) = qkv.in_features, tables[0].weight.shape
    head_size = width // num_heads
    # The same for all that share the table, as ELECTRA's two models do, whatever the size of their heads.
    num_short = narrow // 4
    frequencies = torch.cat(
        [
            _frequencies(2, LONGEST_READ, num_short),
            _frequencies(LONGEST_READ, num_places, (narrow + 1) // 2 - num_short),
        ]
    )
    sinusoidal_positions(tables[0], amplitude, frequencies)
    num_read = min(head_size // 2, num_short)
    read = torch.linspace(0, num_short - 1, num_read).round().long()
    # A norm divides by the embedding's deviation. A wave that agrees with itself then adds its amplitude's square.
    variance = sum(float(table.weight.detach().var()) for table in tables)
    scale = math.sqrt(NEIGHBOUR_PEAK * math.sqrt(head_size) * variance / (num_read * amplitude**2))
    reader = scale * torch.eye(narrow)[torch.stack([2 * read, 2 * read + 1], dim=1).flatten()]
    if projection is not None:
        reader = reader @ torch.linalg.pinv(projection.weight.detach())
    deviation = 1 / math.sqrt(width)
    with torch.no_grad():
        queries, keys, values = qkv.weight.view(3, num_heads, head_size, width)
        for head, offset in enumerate(offsets):
            turned = _turns(offset * frequencies[read]) @ reader.view(num_read, 2, width)
            for matrix, rows in ((queries[head], turned.flatten(0, 1)), (keys[head], reader)):
                matrix.zero_()
                matrix[: 2 * num_read] = rows
        for matrix in (values, attention_out.weight):
            nn.init.trunc_normal_(matrix, std=deviation, a=-2 * deviation, b=2 * deviation)


def _frequencies(shortest: float, longest: float, number: int) -> Tensor:
    """Of waves from `shortest` to below `longest` places, in geometric progression: radians a place, [number]."""
    return 2 * math.pi / shortest * (shortest / longest) ** (torch.arange(number) / max(number, 1))


def _turns(angles: Tensor) -> Tensor:
    """From the sine and cosine of something to those of `angles` more: [n] -> [n, 2, 2]."""
    return torch.stack([angles.cos(), angles.sin(), -angles.sin(), angles.cos()], dim=-1).view(-1, 2, 2)
