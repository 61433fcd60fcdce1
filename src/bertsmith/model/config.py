"""The shape of an encoder, in the words of Hugging Face's `config.json`, and what a family fixes.

Two dataclasses decide all arithmetic: `EncoderConfig` holds what differs between checkpoints,
`Structure` what all checkpoints of a family have in common.
"""

from dataclasses import dataclass, replace

from bertsmith.errors import ModelError, did_you_mean

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
"""Values of `hidden_act`. "gelu" is the erf form; "gelu_new" and "gelu_pytorch_tanh" are one tanh approximation."""
SAME_ACTIVATIONS = {
    "gelu_python": "gelu",
    "swish": "silu",
    **dict.fromkeys(("gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_new"),
}
"""Other names that Transformers has for them."""


POOLINGS = ("cls", "mean", "last")
"""What stands for a sequence in `PooledHead`: its first token ([CLS]), the mean of its tokens, or the last of them that
is not the padding's."""

_LARGEST_SIZE = 1 << 29
"""Of anything counted, so that the bytes of every matrix can be counted in 64 bits."""


@dataclass(frozen=True)
class Structure:
    """What all encoders of a family have in common. The defaults are BERT's (Devlin et al. 2018)."""

    is_pre_norm: bool = False
    """Norms stand before attention and feed-forward network, and one more after the last layer."""
    has_embedding_norm: bool = True
    """The embeddings are normalised. (With `is_pre_norm` the first layer then has no norm of its own.)"""
    has_bias: bool = True
    """Linear layers and norms have biases; the last linear layer of a head always has one, unless `is_causal`."""
    is_gated: bool = False
    """The feed-forward network multiplies its activation with a second projection (Shazeer 2020)."""
    is_causal: bool = False
    """A token sees itself and what is before it (Radford et al. 2018)."""
    always_projects_embeddings: bool = False
    """The embeddings go through a linear layer also where they are as wide as the layers."""
    attention_out_dropout: str | None = "hidden_dropout_prob"
    """The field of `EncoderConfig` that says what is dropped after attention's output layer; None: nothing."""
    drops_inside_feed_forward: bool = False
    """`hidden_dropout_prob` is before the last linear layer of the feed-forward network, not after it."""
    pooled_activation: str | None = "tanh"
    """After the linear layer of `PooledHead`; None: there is no such layer, and no dropout either."""
    drops_before_pooling: bool = False
    """`PooledHead` has dropout also before its first linear layer."""
    classifier_dropout_is_of_sequences: bool = False
    """`classifier_dropout` is only for `PooledHead`; `TokenHead` has `hidden_dropout_prob`."""
    head_has_norm: bool = False
    """`PooledHead` and `TokenHead` are made like `VocabularyHead`: linear, activation, norm, and only then out. The
    activation of all three is `EncoderConfig.head_activation`."""
    vocabulary_activation: str | None = None
    """In `VocabularyHead`; None: `hidden_act`."""
    vocabulary_is_bare: bool = False
    """`VocabularyHead` is the product with the token embedding and nothing else."""


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides an encoder's tensors and arithmetic, given its family. The defaults are BERT-base's.

    The checks raise ModelError and name the field, so a config that exists can be built.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    """After the embeddings and after both halves of every layer (but see `Structure`)."""
    attention_probs_dropout_prob: float = 0.1
    """On the attention weights after the softmax."""
    max_position_embeddings: int = 512
    """Rows of the position table, or the longest sequence where there is none."""
    type_vocab_size: int = 2
    """How many segments there are; 0: no table of segments. With 1 every token is in it."""
    initializer_range: float = 0.02
    """Standard deviation of the normal from which weights are drawn, before it is cut at two deviations."""
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    """Kept for others who read the folder: packed batches hold no padding."""
    classifier_dropout: float | None = None
    """Before a task's last linear layer; None means `hidden_dropout_prob`."""
    model_type: str = "bert"
    """The family: a key of `FAMILIES`."""
    embedding_size: int | None = None
    """Width of the embeddings (Lan et al. 2019, section 3.1); None means `hidden_size`."""
    num_hidden_groups: int | None = None
    """Groups of neighbouring layers that share their weights; None: no layer shares."""
    embedding_dropout_prob: float | None = None
    """After the embeddings; None means `hidden_dropout_prob`."""
    pooling: str = "cls"
    """One of POOLINGS."""
    head_activation: str = "gelu"
    """In heads that have a norm."""
    position_offset: int = 0
    """Rows of the position table that are never used, before that of the first token."""
    rope_theta: float | None = None
    """Base of rotary positions (Su et al. 2021); None: positions are looked up in a table."""
    local_rope_theta: float | None = None
    """The same in layers with local attention."""
    local_attention: int | None = None
    """Width of the window of layers with local attention, half of it on either side."""
    global_attn_every_n_layers: int = 1
    """Layers 0, n, 2n, ... see the whole sequence, those between them the local window."""

    def __post_init__(self) -> None:
        for field in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "embedding_size",
            "num_hidden_groups",
            "local_attention",
            "global_attn_every_n_layers",
        ):
            value = getattr(self, field)
            smallest = 0 if field == "type_vocab_size" else 1
            if value is not None and not smallest <= value <= _LARGEST_SIZE:
                raise ModelError(f"{field} must be at least {smallest} and at most {_LARGEST_SIZE}, not {value}")
        for field in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "embedding_dropout_prob",
        ):
            probability = getattr(self, field)
            if probability is not None and not 0 <= probability < 1:
                raise ModelError(f"{field} must be in [0, 1), not {probability}")
        for field in ("initializer_range", "layer_norm_eps", "rope_theta", "local_rope_theta"):
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise ModelError(f"{field} must be positive, not {value}")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be shared out among {self.num_attention_heads} heads: "
                "num_attention_heads must divide it"
            )
        for field, choices in (("hidden_act", ACTIVATIONS), ("head_activation", ACTIVATIONS), ("pooling", POOLINGS)):
            if getattr(self, field) not in choices:
                unknown = getattr(self, field)
                raise ModelError(f'{field} "{unknown}" is unknown. {did_you_mean(unknown, choices)}')
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ModelError(f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size}")
        self._check_layers()

    def _check_layers(self) -> None:
        if self.num_hidden_layers % self.num_distinct_layers:
            raise ModelError(
                f"num_hidden_layers {self.num_hidden_layers} cannot be shared out among "
                f"{self.num_hidden_groups} groups: num_hidden_groups must divide it"
            )
        if self.max_sequence_length < 1:
            raise ModelError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position behind the "
                f"{self.position_offset} that are never used"
            )
        if self.global_attn_every_n_layers > 1 and (self.local_attention is None or self.local_attention < 2):
            raise ModelError(f"local_attention must be at least 2, not {self.local_attention}")
        if self.rope_theta is not None and self.hidden_size // self.num_attention_heads % 2:
            raise ModelError(
                f"rotary positions need heads of even size, not {self.hidden_size // self.num_attention_heads}"
            )

    @property
    def head_dropout(self) -> float:
        """The dropout before a task's last linear layer."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def embedding_dropout(self) -> float:
        """The dropout after the embeddings."""
        return self.hidden_dropout_prob if self.embedding_dropout_prob is None else self.embedding_dropout_prob

    @property
    def max_sequence_length(self) -> int:
        """The most tokens of a sequence, special tokens included."""
        return self.max_position_embeddings - self.position_offset

    @property
    def num_distinct_layers(self) -> int:
        """Layers with weights of their own."""
        return self.num_hidden_layers if self.num_hidden_groups is None else self.num_hidden_groups

    @property
    def embedding_width(self) -> int:
        """`embedding_size`, or the `hidden_size` that it defaults to."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def with_dropout(self, hidden: float, attention: float, embedding: float | None) -> "EncoderConfig":
        """The same encoder with other dropout; that of task heads stays as it is."""
        return replace(
            self, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention, embedding_dropout_prob=embedding
        )

    def is_local(self, layer: int) -> bool:
        """Whether a layer sees only its local window."""
        return layer % self.global_attn_every_n_layers != 0
