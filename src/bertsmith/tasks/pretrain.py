"""The verb `pretrain`: from a token store to a BERT, within a budget of time, tokens, steps or epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bertsmith import randomness
from bertsmith.errors import ModelError
from bertsmith.files import atomic_folder, atomic_write, write_json
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import read_config, resolve, save_model
from bertsmith.model.resize import load_resized
from bertsmith.model.sizes import USUAL_POSITIONS, named_size
from bertsmith.screen import say
from bertsmith.settings import to_mapping
from bertsmith.tasks.added_tokens import AddedTokens, added_tokens
from bertsmith.tasks.card import model_card
from bertsmith.tasks.distill import Distillation, distil_pretraining, load_pretrained_teacher, source_name
from bertsmith.tasks.objectives import architecture_kind, check_store, make_task, store_notes, with_objective
from bertsmith.tasks.pretrain_settings import LEARNING_RATES, OF_A_NEW_MODEL, ObjectiveName, PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.tasks.replaced_tokens import ReplacedTokensModel, ReplacedTokensTask
from bertsmith.tasks.run_folder import clear_run_folder, model_folder, run_folder_held, write_config
from bertsmith.text.corpus import Corpus, open_corpus, read_manifest
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.device import resolve_precision
from bertsmith.training.distributed import Ranks, joined
from bertsmith.training.interrupt import resumable
from bertsmith.training.launch import read_launch
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.report import Section, Table, training_sections, write_report


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training came to."""

    metrics: dict[str, float]
    """Figures on the held-out documents, MLM in nats and bits, each beside its baseline."""
    folder: Path
    training: TrainResult
    objective: ObjectiveName

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"


def pretrain(settings: PretrainSettings, *, console: Console | None = None) -> PretrainResult:
    """Pre-train on a token store, evaluate on its held-out documents, leave a run's folder.

    Under torchrun all ranks call this with the same settings, share each step, and have the same result; rank 0 alone
    writes and speaks.

    Raises:
        SettingsError: an option is out of range, or `out` holds a run and neither `resume` nor
            `overwrite` is set, or another process writes there.
        CorpusError: the store cannot give what the objective needs.
        ModelError: vocabulary, length and model do not fit together.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    read_launch().check(
        [phase.batch_size for phase in settings.phases], auto_batch=settings.auto_batch, overwrite=settings.overwrite
    )
    with joined(settings.device) as ranks, resumable(settings.out):
        return pretrain_on(ranks, settings, console=console)


def pretrain_on(ranks: Ranks, settings: PretrainSettings, *, console: Console | None = None) -> PretrainResult:
    """The same, where the ranks have come together before."""
    plan = train_settings(settings)
    resolve_precision(settings.precision, ranks.device(settings.device))
    sources = (settings.corpus, settings.from_model, settings.teacher)
    with run_folder_held(ranks, settings, "pretrain", sources):
        return _pretrain(ranks, settings, plan, console)


def _pretrain(ranks: Ranks, settings: PretrainSettings, plan: TrainSettings, console: Console | None) -> PretrainResult:
    prepared = prepare(settings)
    settings, corpora = prepared.settings, prepared.corpora
    configuration = _configuration(settings)

    def begin() -> None:
        if settings.overwrite:
            clear_run_folder(settings.out)
        write_config(settings, "pretrain", configuration)

    ranks.first(begin)
    fingerprint = {name: configuration.get(name) for name in _DECIDING} | {
        "mlm_weight": settings.masked_weight,
        "teacher": prepared.taught[-1].fingerprint if prepared.taught else None,
        "data": corpora["train"].fingerprint,
    }
    screen = ranks.console(console)
    notes = store_notes(corpora["train"], prepared.tokenizer, settings, prepared.tasks[0].examples("train"))
    for line in [
        *notes,
        *prepared.notes(),
        *prepared.added.notes(),
        *(prepared.taught[-1].notes() if prepared.taught else []),
    ]:
        say(screen, line)
    training = train(
        prepared.model,
        prepared.stages(),
        plan,
        settings.out,
        resume=settings.resume,
        fingerprint=fingerprint,
        console=screen,
        ranks=ranks,
    )

    def finish() -> None:
        write_config(settings, "pretrain", configuration, has_ended=True)
        _save(prepared, training)
        _write_report(settings, configuration, training, corpora, prepared.added)

    ranks.first(finish)
    assert settings.objective is not None  # decided above
    return PretrainResult(training.metrics, settings.out, training, settings.objective)


_HEADS = {
    "vocabulary.": "head for masked tokens",
    "pooled.out.": "head for pairs",
    "generator.": "generator beside it",
    "detection.": "head for replaced tokens",
}


@dataclass(frozen=True)
class Prepared:
    """All that a pre-training needs, before it writes anything."""

    settings: PretrainSettings
    """With the objective decided."""
    corpora: Mapping[str, Corpus]
    tokenizer: Tokenizer
    added: AddedTokens
    config: EncoderConfig
    model: nn.Module
    tasks: Sequence[PretrainTask | ReplacedTokensTask]
    """One for each length."""
    taught: Sequence[Distillation]
    """The same with their teacher; none without it."""
    new_tensors: Sequence[str]
    """Those that the model gone on from did not have; none of random weights."""

    def notes(self) -> list[str]:
        """What the model gone on from did not have."""
        own = {part: {name for name in self.model.state_dict() if name.startswith(part)} for part in _HEADS}
        new = {part for part, names in own.items() if names and names <= set(self.new_tensors)}
        has_not = [what for part, what in _HEADS.items() if part in {*new, *self.new_tensors}]
        source = source_name(str(self.settings.from_model))
        return [f"{source} has no {what}: it is learnt from nothing." for what in has_not]

    def stages(self) -> list[Stage]:
        """The settings' phases, each with the task of its length."""
        settings = self.settings
        task_of = dict(zip(settings.lengths, self.taught or self.tasks, strict=True))
        return [
            Stage(
                task_of[phase.max_length],
                batch_size=phase.batch_size,
                micro_batch_size=settings.micro_batch_size
                and max(1, round(settings.micro_batch_size * settings.max_length / phase.max_length)),
                progress_end=phase.end,
            )
            for phase in settings.phases
        ]


def prepare(settings: PretrainSettings) -> Prepared:
    """Open the store, and make model and tasks.

    Raises:
        SettingsError: what does not go together.
        CorpusError: the store cannot give what the objective needs.
        ModelError: vocabulary, length and model do not fit together.
    """
    corpora = {"train": open_corpus(settings.corpus, "train")}
    if read_manifest(settings.corpus).splits["heldout"].num_documents:
        corpora["dev"] = open_corpus(settings.corpus, "heldout")
    tokenizer = load_tokenizer(settings.corpus / "tokenizer")
    added = added_tokens(settings.from_model, tokenizer)
    config = _encoder_config(settings, tokenizer)
    settings = with_objective(settings, config.model_type)
    check_store(corpora["train"], tokenizer, settings.objective)
    tasks = [make_task(settings, max_length, tokenizer, corpora) for max_length in settings.lengths]
    model, new_tensors = _build_model(tasks[-1], config, settings, added)
    taught = _taught(tasks, config, settings, tokenizer)
    return Prepared(settings, corpora, tokenizer, added, config, model, tasks, taught, new_tensors)


_DECIDING = (
    "family",
    "size",
    "from_model",
    "layers",
    "initializer_range",
    "position_init",
    "objective",
    "data_mode",
    "max_length",
    "long_length",
    "long_share",
    "initial_batch_size",
    "mask_probability",
    "mask_count",
    "mask_unit",
    "short_sequence_probability",
    "pair_weight",
    "detection_weight",
    "generator_share",
    "dropout",
)
"""Settings that a run must be resumed with unchanged, besides those that the loop watches itself."""


def _configuration(settings: PretrainSettings) -> dict[str, Any]:
    """What `--config` would be given for the same run; not what a new model would be, where there is one."""
    values = to_mapping(replace(settings, resume=False, overwrite=False))
    left_out = OF_A_NEW_MODEL if settings.from_model is not None else ()
    return {name: value for name, value in values.items() if name not in left_out}


def _encoder_config(settings: PretrainSettings, tokenizer: Tokenizer) -> EncoderConfig:
    """The model's shape, checked against vocabulary and lengths; dropout as it is while pre-training."""
    if settings.from_model is None:
        config = named_size(
            settings.size,
            tokenizer.vocab_size,
            model_type=settings.family,
            max_length=max(USUAL_POSITIONS, *settings.lengths),
            pad_token_id=tokenizer.pad_id,
        )
        config = replace(config, initializer_range=settings.initializer_range)
    else:
        config, _ = read_config(Path(model_folder(settings.from_model)))
        config = replace(config, vocab_size=max(config.vocab_size, tokenizer.vocab_size))
    if settings.layers is not None:
        config = replace(config, num_hidden_layers=settings.layers)
    if max(settings.lengths) > config.max_sequence_length:
        raise ModelError(
            f"sequences of {max(settings.lengths)} tokens do not fit the model's position table of "
            f"{config.max_sequence_length} (max_position_embeddings). Give a smaller length."
        )
    return config


def _build_model(
    task: PretrainTask | ReplacedTokensTask, config: EncoderConfig, settings: PretrainSettings, added: AddedTokens
) -> tuple[nn.Module, list[str]]:
    """The model, and the names of the tensors that `from_model` did not have."""
    if settings.dropout is not None:
        config = config.with_dropout(settings.dropout, settings.dropout, settings.dropout)
    torch.manual_seed(randomness.integer(settings.seed, "initial weights"))
    model: nn.Module = task.build(Encoder(config))
    if settings.from_model is None:
        for part in model.modules():
            if isinstance(part, Encoder) and settings.position_init == "neighbours":
                part.start_with_neighbours()
            elif isinstance(part, Encoder) and settings.position_init == "sinusoidal":
                part.start_with_waves()
        return model, []
    place = Path(model_folder(settings.from_model))
    if isinstance(model, ReplacedTokensModel):
        return model, model.load(resolve(place), added.pieces)
    return model, load_resized(place, model, task.build, added.pieces)


def _taught(
    tasks: Sequence[PretrainTask | ReplacedTokensTask],
    config: EncoderConfig,
    settings: PretrainSettings,
    tokenizer: Tokenizer,
) -> list[Distillation]:
    """The tasks with one teacher; none without it."""
    if settings.teacher is None:
        return []
    teacher = load_pretrained_teacher(settings.teacher, tokenizer, max(settings.lengths))
    return [
        distil_pretraining(
            task,
            teacher,
            weight=settings.distill_weight,
            cosine_weight=settings.cosine_weight,
            temperature=settings.temperature,
            hidden_size=config.hidden_size,
            num_tokens=tokenizer.vocab_size,
        )
        for task in tasks
        if isinstance(task, PretrainTask)  # with_objective lets no other have a teacher
    ]


def train_settings(settings: PretrainSettings) -> TrainSettings:
    """The loop's settings."""
    learning_rate = settings.learning_rate
    if learning_rate is None:
        learning_rate = LEARNING_RATES.get(settings.size, 1e-4) if settings.from_model is None else 1e-4
    return settings.train_settings(
        budget=settings.budget, learning_rate=learning_rate, evaluate_every=settings.evaluate_every
    )


def _save(prepared: Prepared, training: TrainResult) -> None:
    """The folder `model/` with its card, and `generator/` where there is one.

    Their dropout is the configuration's, whatever pre-training used.
    """
    settings, config, added = prepared.settings, prepared.config, prepared.added
    model = prepared.model.cpu()
    origin = "from random weights" if settings.from_model is None else f"from `{source_name(settings.from_model)}`"
    facts: dict[str, object] = {
        "task": "pretraining",
        "objective": settings.objective,
        "metrics": training.metrics,
        **added.facts(),
    }
    if added.pieces:
        origin = f"{origin} with {len(added.pieces):,} more tokens (of {added.mean_pieces:.1f} pieces on average)"
    if settings.teacher is not None:
        facts["teacher"] = source_name(settings.teacher)
        origin = f"{origin}, taught by `{facts['teacher']}`,"
    row = family(config.model_type)
    name = row.class_prefix
    card = model_card(
        f"{name} ({settings.size})" if settings.from_model is None else name,
        {"clm": "text-generation", "rtd": "feature-extraction"}.get(settings.objective or "", "fill-mask"),
        model_type=row.model_type,
        made_from=f"A {name} pre-trained {origin} on {training.tokens:,} tokens.",
        metrics={"held-out": training.metrics} if training.metrics else {},
        data={"corpus": prepared.corpora["train"].fingerprint},
        settings=_configuration(settings),
    )
    parts: tuple[tuple[str, nn.Module, EncoderConfig, str], ...] = (
        ("model", model, config, architecture_kind(settings.objective)),
    )
    if isinstance(model, ReplacedTokensModel):
        parts = model.parts()
    for folder, module, trained, kind in parts:
        shape = trained.with_dropout(
            config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.embedding_dropout_prob
        )
        with atomic_folder(settings.out / folder, replace=True) as temporary:
            save_model(temporary, module, shape, row.architecture(kind))
            prepared.tokenizer.save(
                temporary, model_max_length=shape.max_sequence_length, has_segments=shape.type_vocab_size > 1
            )
            write_json(temporary / "bertsmith.json", facts)
            atomic_write(temporary / "README.md", card)


def _write_report(
    settings: PretrainSettings,
    configuration: Mapping[str, object],
    training: TrainResult,
    corpora: Mapping[str, Corpus],
    added: AddedTokens,
) -> None:
    """`report.html`: closing figures, curves, data."""
    metrics = training.metrics
    facts = {}
    for name in ("mlm", "clm"):
        if f"{name}_loss" in metrics:
            unigram = metrics[f"{name}_loss_baseline"]
            facts[f"held-out {name.upper()} loss, nats"] = f"{metrics[f'{name}_loss']:.3f} (unigram {unigram:.3f})"
    for name in ("nsp", "sop"):
        if f"{name}_accuracy" in metrics:
            facts[f"held-out {name.upper()} accuracy"] = f"{metrics[f'{name}_accuracy']:.1%}"
    if "rtd_auc" in metrics:
        facts["replaced tokens found, area under the curve"] = f"{metrics['rtd_auc']:.3f} (chance 0.5)"
    facts |= {
        "tokens": f"{training.tokens:,}",
        "tokens a second": f"{training.tokens / max(training.seconds, 1e-9):,.0f}",
        "steps": f"{training.step:,}",
        "seconds": f"{training.seconds:,.0f}",
    }
    if added.pieces:
        facts["tokens added to the model"] = f"{len(added.pieces):,} ({added.mean_pieces:.1f} pieces each, on average)"
    sizes = [
        (name, corpus.num_documents, corpus.num_sentences, corpus.num_tokens, corpus.fingerprint[:16])
        for name, corpus in corpora.items()
    ]
    sections: list[Section] = [
        *training_sections(settings.out / "metrics.jsonl"),
        Table("Corpus", ("split", "documents", "sentences", "tokens", "SHA-256"), sizes),
    ]
    write_report(settings.out, "Pre-training", sections, config=configuration, facts=facts)
