"""What fine-tuning starts from: configuration and weights, and which of them are made anew or frozen.

Fine-tuning on few examples is steadier when the highest layers, which know most of pre-training's own task, start
anew (Zhang et al. 2021, arXiv 2006.05987, section 5).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from bertsmith import randomness
from bertsmith.errors import ModelError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import read_config, resolve
from bertsmith.model.heads import reorder_outputs
from bertsmith.model.low_rank import add_low_rank
from bertsmith.model.resize import load_resized
from bertsmith.model.sizes import named_size
from bertsmith.tasks.added_tokens import vocabulary_difference
from bertsmith.tasks.classify import Classification
from bertsmith.tasks.classify_targets import NumberTarget
from bertsmith.tasks.finetune_settings import FinetuneSettings
from bertsmith.tasks.rows import config_labels
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import FinetuneTask, check_vocabulary, is_written_as, saved_unit, task_kind
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer

SIZE_PREFIX = "size:"


def starting_point(settings: FinetuneSettings, max_length: int) -> tuple[EncoderConfig, str | None, Tokenizer]:
    """The encoder's configuration, the folder or Hub id of its weights (None: random ones), and the tokenizer.

    Args:
        max_length: tokens of the longest sequence.

    Raises:
        ModelError: no such model, or one that does not fit its tokenizer, or has learnt with another.
        SettingsError: random weights without a tokenizer, or with lora, adapt or extend_positions, which also rotary
            positions do not go with; more layers frozen or made anew than there are; r_drop without any dropout.
    """
    weights: str | None = None
    if settings.model.startswith(SIZE_PREFIX):
        for name in ("lora", "adapt", "extend_positions"):
            if getattr(settings, name) is not None:
                raise SettingsError(f'{name} goes with a pre-trained model; "{settings.model}" has random weights.')
        if settings.tokenizer is None:
            raise SettingsError(f'"{settings.model}" has random weights and no tokenizer of its own: give tokenizer.')
        tokenizer = load_tokenizer(settings.tokenizer)
        config = named_size(settings.model.removeprefix(SIZE_PREFIX), vocab_size=tokenizer.vocab_size)
    else:
        weights = model_folder(settings.model)
        config, _ = read_config(weights)
        tokenizer = load_tokenizer(settings.tokenizer or weights)
        if settings.tokenizer is not None:
            _check_tokenizer(settings.model, weights, tokenizer)
        if settings.extend_positions is not None:
            config = _longer(config, max_length)
            _check_extension(settings)
    check_vocabulary(tokenizer, config.vocab_size, settings.model)
    if settings.layers is not None:
        config = replace(config, num_hidden_layers=settings.layers)
    _check_layers(config, settings)
    if settings.r_drop is not None and settings.dropout is None and not has_dropout(config):
        raise SettingsError("r_drop compares passes with different dropout, and this model has none: give dropout.")
    return config, weights, tokenizer


def _check_tokenizer(model: str, weights: str, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose ids mean other tokens than those that the model has learnt, if it has its own."""
    try:
        own = load_tokenizer(weights)
    except ModelError:
        return
    if (difference := vocabulary_difference(tokenizer, own)) is not None:
        raise ModelError(f"{model}: tokenizer is not the one that this model has learnt with: {difference}.")


def _longer(config: EncoderConfig, max_length: int) -> EncoderConfig:
    """The same with positions for at least `max_length` tokens."""
    if config.rope_theta is not None:
        raise SettingsError(
            f"extend_positions makes a table longer, and {config.model_type} has rotary positions instead; this model "
            f"takes up to {config.max_sequence_length} tokens."
        )
    longest = max(max_length, config.max_sequence_length)
    return replace(config, max_position_embeddings=config.position_offset + longest)


def _check_extension(settings: FinetuneSettings) -> None:
    """Refuse a table of positions that is new to the model and never learnt."""
    keeps = [name for name in ("freeze", "lora") if getattr(settings, name) is not None]
    if settings.extend_positions == "interpolate" and keeps:
        raise SettingsError(
            f"extend_positions interpolate makes all positions new to the model, and with {keeps[0]} they are not "
            "learnt. Take tile, which leaves those that there were, or leave one out."
        )


def has_dropout(config: EncoderConfig) -> bool:
    """Whether two passes of this model differ while it learns."""
    own = (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.embedding_dropout)
    return any((*own, config.head_dropout))


def _check_layers(config: EncoderConfig, settings: FinetuneSettings) -> None:
    number = config.num_distinct_layers
    shared = "" if number == config.num_hidden_layers else f" (its {config.num_hidden_layers} share their weights)"
    for name in ("freeze", "reinit_layers"):
        value = getattr(settings, name)
        if value is not None and value > number:
            raise SettingsError(f"{name} is {value}; this model has {number} layers{shared}.")
    if settings.freeze is not None and settings.freeze + (settings.reinit_layers or 0) > number:
        raise SettingsError(
            f"freeze {settings.freeze} and reinit_layers {settings.reinit_layers} meet in a model of {number} "
            f"layers{shared}: a layer of initial weights has to be trained."
        )


def build_model(
    task: FinetuneTask,
    config: EncoderConfig,
    weights: str | None,
    settings: FinetuneSettings,
    adapted: str | None = None,
) -> tuple[nn.Module, list[str]]:
    """The encoder and head in training form, and the names of the tensors that are newly made.

    Args:
        adapted: the folder of a model that went on from `weights`, whose encoder is taken instead of theirs.

    Raises:
        ModelError: weights that cannot be read, or do not fit.
    """
    if settings.dropout is not None:
        config = config.with_dropout(settings.dropout, settings.dropout, settings.dropout)
        config = replace(config, classifier_dropout=settings.dropout)
    torch.manual_seed(randomness.integer(settings.seed, "initial weights"))
    model = task.build(Encoder(config))
    new_tensors = list(model.state_dict())
    if weights is not None:
        new_tensors = _load(task, model, weights, settings, adapted)
    if settings.freeze is not None:
        _freeze(model, settings.freeze)
    if settings.lora is not None:
        add_low_rank(_encoder(model), settings.lora, settings.lora_alpha or 2.0 * settings.lora)
    return model, new_tensors


def _load(
    task: FinetuneTask, model: nn.Module, weights: str, settings: FinetuneSettings, adapted: str | None
) -> list[str]:
    """Fill a model of initial weights from a folder; the names of the tensors that keep their initial values."""
    anew = [name for name in model.state_dict() if _is_made_anew(name, model, settings.reinit_layers)]
    raw_config = read_config(weights)[1]
    theirs, ours = config_labels(raw_config), task.labels
    is_same_task = is_written_as(task_kind(task.name), raw_config.get("architectures") or [])
    numbers = task.target if isinstance(task, Classification) and isinstance(task.target, NumberTarget) else None
    unit = None if numbers is None else saved_unit(resolve(weights))
    tells_the_same = is_same_task and (not ours or set(theirs) == set(ours)) and (numbers is None or unit is not None)
    if not tells_the_same:
        # What another head tells apart may be as many things, but not the same: it is not gone on from.
        anew += [name for name in model.state_dict() if ".out." in name or name.startswith("crf.")]
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in anew}
    kept = load_resized(weights, model, task.build, extension=settings.extend_positions)
    if adapted is not None:  # it has an encoder alone: pooler and head stay those of `weights`
        load_resized(adapted, model, task.build, extension=settings.extend_positions)
    model.load_state_dict(initial, strict=False)
    if tells_the_same and ours:
        reorder_outputs(model, [theirs.index(label) for label in ours])
    if tells_the_same and numbers is not None and unit is not None and "pooled.out.weight" not in initial:
        numbers.go_on(model.pooled.out, unit)  # type: ignore[union-attr, arg-type]
    return [*kept, *(name for name in initial if name not in kept)]


def start_notes(task: FinetuneTask, weights: str | None) -> list[str]:
    """What of a model that knows the task is not gone on from."""
    if weights is None or not (isinstance(task, Classification) and isinstance(task.target, NumberTarget)):
        return []
    is_same_task = is_written_as(task_kind(task.name), read_config(weights)[1].get("architectures") or [])
    if not is_same_task or saved_unit(resolve(weights)) is not None:
        return []
    return [f"{weights} does not say of what size the numbers are that it knows: its last layer is learnt anew."]


def _is_made_anew(name: str, model: nn.Module, number: int | None) -> bool:
    """Whether a tensor is of the highest `number` layers or of anything above them: norm, pooler, head."""
    if not number:
        return False
    encoder = _encoder(model)
    first = len(encoder.layers) - number
    above = [f"encoder.layers.{layer}." for layer in range(first, len(encoder.layers))]
    return not name.startswith("encoder.") or name.startswith((*above, "encoder.final_norm."))


def _freeze(model: nn.Module, number: int) -> None:
    """Leave the embeddings and the first `number` layers as they are: no gradient, no memory of an optimizer."""
    encoder = _encoder(model)
    frozen: Sequence[nn.Module] = list(encoder.layers)[:number]
    for parameter in [*encoder.embedding_parameters(), *(one for part in frozen for one in part.parameters())]:
        parameter.requires_grad_(False)


def _encoder(model: nn.Module) -> Encoder:
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    return encoder
