"""The verb `pretrain`: from a token store to a BERT, within a budget of time, tokens, steps or epochs."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from bertsmith import randomness
from bertsmith.errors import CorpusError, ModelError, SettingsError
from bertsmith.files import atomic_folder, atomic_write, write_json
from bertsmith.model.config import EncoderConfig, named_size
from bertsmith.model.encoder import Encoder
from bertsmith.model.folder import load_weights, read_config, save_model
from bertsmith.settings import to_mapping, to_yaml
from bertsmith.tasks.card import model_card
from bertsmith.tasks.mlm import MaskedLanguageModel, Masking
from bertsmith.tasks.pairs import PairClassification
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.pretrain_task import DataMode, PretrainExamples, PretrainTask, unigram_baseline
from bertsmith.tasks.saved import check_vocabulary, claim_run_folder, model_folder
from bertsmith.text.corpus import Corpus, open_corpus, read_manifest
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.device import Precision, resolve_device, resolve_precision
from bertsmith.training.loop import Stage, TrainResult, TrainSettings, train
from bertsmith.training.optim import OptimizerSettings
from bertsmith.training.report import Section, Table, training_sections, write_report

ObjectiveName = Literal["mlm+nsp", "mlm+sop", "mlm"]
_PAIR_NAMES: Mapping[ObjectiveName, str | None] = {"mlm+nsp": "nsp", "mlm+sop": "sop", "mlm": None}

LEARNING_RATES: Mapping[str, float] = {
    "tiny": 2e-3,
    "mini": 1e-3,
    "small": 7e-4,
    "medium": 5e-4,
    "base": 2e-4,
    "large": 1e-4,
}
"""Defaults for batches of 32 to 256 sequences; the paper's 1e-4 is for base and large with 256."""


@dataclass(frozen=True)
class PretrainSettings:
    """What to pre-train on, what to build, and for how long."""

    corpus: Path
    """The token store made by `bertsmith corpus build`."""
    out: Path
    """The run's folder: configuration, metrics, report, checkpoints and the finished model."""
    size: str = "mini"
    """A named size: tiny, mini, small, medium, base or large."""
    from_model: str | None = None
    """Continue from this BERT-like folder instead of random weights; it also gives the size."""
    initializer_range: float = 0.02
    """Deviation of the initial weights. BERT's 0.02 is for a width of 768; try 0.06 for tiny."""
    objective: ObjectiveName = "mlm+nsp"
    """What is learnt: masked tokens with next sentence, with sentence order, or alone."""
    data_mode: DataMode = "clean"
    """How text is cut into pairs: "clean", or "original" as google-research/bert does to the letter."""
    budget: str = "1 epochs"
    """When to stop: 10m, 3h, "50M tokens", "20000 steps" or "2 epochs"."""
    max_length: int = 128
    """Tokens in a sequence, [CLS] and [SEP] included."""
    long_length: int | None = None
    """Length of a second phase (512 in the paper) that ends the run; None: one phase."""
    long_share: float = 0.1
    """Share of the budget that the second phase takes."""
    batch_size: int = 32
    """Sequences in an optimizer step (the second phase keeps the number of tokens)."""
    micro_batch_size: int | None = None
    """Sequences in one forward pass; smaller ones are accumulated to a step. None: the whole batch."""
    mask_probability: float = 0.15
    """Share of the tokens to predict."""
    mask_count: Literal["exact", "bernoulli"] = "exact"
    """Exactly that share of each sequence, or each token by itself."""
    short_sequence_probability: float = 0.1
    """Share of samples with a random shorter length, so that the model knows short inputs."""
    mlm_weight: float = 1.0
    """Weight of the masked language model in the loss."""
    pair_weight: float = 1.0
    """Weight of next sentence prediction, or of sentence order, in the loss."""
    learning_rate: float | None = None
    """Peak of the schedule; None: a default by size."""
    warmup_share: float = 0.1
    """Share of the budget over which the learning rate rises."""
    warmup_steps: int | None = None
    """The same in steps; goes before the share."""
    weight_decay: float = 0.01
    """Decoupled decay of everything but norms and biases."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down."""
    dropout: float | None = None
    """Dropout while pre-training; None: as the model's configuration says (0.1 for the named sizes)."""
    evaluate_every: str | None = None
    """How often the held-out documents are evaluated: "500 steps", "10m", "5%"; None: ten times in a run."""
    evaluation_samples: int = 500
    """Held-out samples in an evaluation, spread evenly over the documents."""
    save_every: str = "10m"
    """How often a checkpoint is saved, in the same words; Ctrl-C and the end always save one."""
    precision: Precision = "auto"
    """bf16 autocast where the hardware has it, unless said otherwise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_workers: int = 1
    """Threads that prepare batches ahead; the batches do not depend on it."""
    seed: int = 0
    """Fixes initial weights, order of the data, pairs, masks and dropout."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`."""
    overwrite: bool = False
    """Replace what is in `out`."""

    def __post_init__(self) -> None:
        if self.long_length is not None and self.long_length <= self.max_length:
            raise SettingsError(f"long_length {self.long_length} must be above max_length {self.max_length}.")
        if not 0 < self.long_share < 1:
            raise SettingsError(f"long_share must lie between 0 and 1, not {self.long_share}.")
        if self.objective == "mlm+sop" and self.data_mode == "original":
            raise SettingsError("data_mode original knows next sentence prediction only; sentence order needs clean.")
        if self.max_length < 8:
            raise SettingsError(f"max_length {self.max_length} leaves no room for a pair; 8 is the least.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be in [0, 1), not {self.dropout}.")
        if not 0 <= self.short_sequence_probability <= 1:
            raise SettingsError(f"short_sequence_probability must be in [0, 1], not {self.short_sequence_probability}.")
        if self.resume and self.overwrite:
            raise SettingsError("resume goes on with the run in out, overwrite removes it: choose one.")

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of each phase."""
        return (self.max_length,) if self.long_length is None else (self.max_length, self.long_length)


@dataclass(frozen=True)
class PretrainResult:
    """What a pre-training came to."""

    metrics: dict[str, float]
    """Figures on the held-out documents, MLM in nats and bits, each beside its baseline."""
    folder: Path
    training: TrainResult

    @property
    def model(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"


def pretrain(settings: PretrainSettings, *, console: Console | None = None) -> PretrainResult:
    """Pre-train on a token store, evaluate on its held-out documents, leave a run's folder.

    Raises:
        SettingsError: an option is out of range, or `out` holds a run and neither `resume` nor
            `overwrite` is set.
        CorpusError: the store cannot give what the objective needs.
        ModelError: vocabulary, length and model do not fit together.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    plan = _train_settings(settings)
    resolve_precision(settings.precision, resolve_device(settings.device))
    claim_run_folder(settings.out, resume=settings.resume, overwrite=settings.overwrite)
    corpora = {"train": open_corpus(settings.corpus, "train")}
    if read_manifest(settings.corpus).splits["heldout"].num_documents:
        corpora["dev"] = open_corpus(settings.corpus, "heldout")
    check_pairs_possible(corpora["train"], settings.objective)
    tokenizer = load_tokenizer(settings.corpus / "tokenizer")
    config = _encoder_config(settings, tokenizer)
    tasks = [_task(settings, max_length, tokenizer, corpora) for max_length in settings.lengths]
    model = _build_model(tasks[-1], config, settings)
    if settings.overwrite:
        shutil.rmtree(settings.out, ignore_errors=True)
    configuration = to_mapping(replace(settings, resume=False, overwrite=False))
    if not settings.resume or not (settings.out / "config.yaml").is_file():
        note = "# bertsmith pretrain --config config.yaml\n"
        atomic_write(settings.out / "config.yaml", note + to_yaml(configuration))

    fingerprint = {name: configuration[name] for name in _DECIDING} | {"data": corpora["train"].fingerprint}
    training = train(
        model,
        _stages(settings, tasks),
        plan,
        settings.out,
        resume=settings.resume,
        fingerprint=fingerprint,
        console=console,
    )
    _save(model.cpu(), config, tokenizer, settings, training, corpora["train"])
    _write_report(settings, configuration, training, corpora)
    return PretrainResult(training.metrics, settings.out, training)


_DECIDING = (
    "size",
    "from_model",
    "initializer_range",
    "objective",
    "data_mode",
    "max_length",
    "long_length",
    "long_share",
    "mask_probability",
    "mask_count",
    "short_sequence_probability",
    "mlm_weight",
    "pair_weight",
    "dropout",
)
"""Settings that a run must be resumed with unchanged, besides those that the loop watches itself."""


def check_pairs_possible(corpus: Corpus, objective: ObjectiveName) -> None:
    """Next sentence prediction needs a second document to draw a random sentence from.

    Raises:
        CorpusError: there is only one document.
    """
    if objective == "mlm+nsp" and corpus.num_documents < 2:
        raise CorpusError(
            f"the corpus has {corpus.num_documents} training document, and next sentence prediction draws its random "
            "sentences from other documents. Use --objective mlm+sop (sentence order) or mlm; or build the corpus with "
            "--document-separator blank-lines, or from several files, so that it has more documents."
        )


def _encoder_config(settings: PretrainSettings, tokenizer: Tokenizer) -> EncoderConfig:
    """The model's shape, checked against vocabulary and lengths; dropout as it is while pre-training."""
    if settings.from_model is None:
        config = named_size(settings.size, vocab_size=tokenizer.vocab_size)
        config = replace(config, initializer_range=settings.initializer_range)
    else:
        config, _ = read_config(Path(model_folder(settings.from_model)))
        check_vocabulary(tokenizer, config.vocab_size, settings.from_model)
    if max(settings.lengths) > config.max_position_embeddings:
        raise ModelError(
            f"sequences of {max(settings.lengths)} tokens do not fit the model's position table of "
            f"{config.max_position_embeddings} (max_position_embeddings). Give a smaller length."
        )
    return config


def _task(
    settings: PretrainSettings, max_length: int, tokenizer: Tokenizer, corpora: Mapping[str, Corpus]
) -> PretrainTask:
    """The task at one length, with both splits."""
    masking = Masking(
        settings.mask_probability,
        settings.mask_count,
        # The original's max_predictions_per_seq: 20 of 128 tokens at 15 %.
        max_predictions=math.ceil(max_length * settings.mask_probability),
        random_specials=settings.data_mode == "original",
    )
    pair_name = _PAIR_NAMES[settings.objective]
    splits = {
        split: PretrainExamples(
            corpus,
            tokenizer,
            max_length=max_length,
            mode=settings.data_mode,
            masking=masking,
            short_sequence_probability=settings.short_sequence_probability,
            seed=randomness.integer(settings.seed, split, max_length),
            sentence_order=pair_name == "sop",
            num_samples=settings.evaluation_samples if split == "dev" else None,
        )
        for split, corpus in corpora.items()
    }
    return PretrainTask(
        splits,
        unigram_baseline(corpora["train"], corpora["dev"]) if "dev" in corpora else None,
        masked_language_model=MaskedLanguageModel(settings.mlm_weight),
        pair=None if pair_name is None else PairClassification(pair_name, settings.pair_weight),
    )


def _build_model(task: PretrainTask, config: EncoderConfig, settings: PretrainSettings) -> PretrainingModel:
    if settings.dropout is not None:
        config = replace(config, hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout)
    torch.manual_seed(randomness.integer(settings.seed, "initial weights"))
    model = task.build(Encoder(config))
    if settings.from_model is not None:
        load_weights(Path(model_folder(settings.from_model)), model, strict=False)
    return model


def _stages(settings: PretrainSettings, tasks: list[PretrainTask]) -> list[Stage]:
    """One phase, or two with the same number of tokens in a step."""
    if len(tasks) == 1:
        return [Stage(tasks[0])]
    shrink = settings.lengths[1] / settings.lengths[0]
    batch_size = max(1, round(settings.batch_size / shrink))
    micro_batch_size = settings.micro_batch_size and max(1, round(settings.micro_batch_size / shrink))
    return [
        Stage(tasks[0], progress_end=1 - settings.long_share),
        Stage(tasks[1], batch_size=batch_size, micro_batch_size=micro_batch_size),
    ]


def _train_settings(settings: PretrainSettings) -> TrainSettings:
    learning_rate = settings.learning_rate
    if learning_rate is None:
        learning_rate = LEARNING_RATES.get(settings.size, 1e-4) if settings.from_model is None else 1e-4
    return TrainSettings(
        budget=settings.budget,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
        optimizer=OptimizerSettings(
            learning_rate=learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            warmup_share=settings.warmup_share,
            warmup_steps=settings.warmup_steps,
        ),
        evaluate_every=settings.evaluate_every,
        save_every=settings.save_every,
        num_workers=settings.num_workers,
        precision=settings.precision,
        device=settings.device,
    )


def _save(
    model: PretrainingModel,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    settings: PretrainSettings,
    training: TrainResult,
    corpus: Corpus,
) -> None:
    """The folder `model/` with its card; its dropout is the configuration's, whatever pre-training used."""
    architecture = "BertForPreTraining" if model.pooled is not None else "BertForMaskedLM"
    origin = "from random weights" if settings.from_model is None else f"from `{Path(settings.from_model).name}`"
    card = model_card(
        f"BERT ({settings.size})" if settings.from_model is None else "BERT",
        "fill-mask",
        made_from=f"A BERT pre-trained {origin} on {training.tokens:,} tokens.",
        metrics={"held-out": training.metrics} if training.metrics else {},
        data={"corpus": corpus.fingerprint},
        settings=to_mapping(settings),
    )
    with atomic_folder(settings.out / "model", replace=True) as temporary:
        save_model(temporary, model, config, architecture)
        tokenizer.save(temporary, model_max_length=config.max_position_embeddings)
        write_json(temporary / "bertsmith.json", {"task": "pretraining", "metrics": training.metrics})
        atomic_write(temporary / "README.md", card)


def _write_report(
    settings: PretrainSettings,
    configuration: Mapping[str, object],
    training: TrainResult,
    corpora: Mapping[str, Corpus],
) -> None:
    """`report.html`: closing figures, curves, data."""
    metrics = training.metrics
    facts = {}
    if "mlm_loss" in metrics:
        facts["held-out MLM loss, nats"] = f"{metrics['mlm_loss']:.3f} (unigram {metrics['mlm_loss_baseline']:.3f})"
    for name in ("nsp", "sop"):
        if f"{name}_accuracy" in metrics:
            facts[f"held-out {name.upper()} accuracy"] = f"{metrics[f'{name}_accuracy']:.1%}"
    facts |= {
        "tokens": f"{training.tokens:,}",
        "tokens a second": f"{training.tokens / max(training.seconds, 1e-9):,.0f}",
        "steps": f"{training.step:,}",
        "seconds": f"{training.seconds:,.0f}",
    }
    sizes = [
        (name, corpus.num_documents, corpus.num_sentences, corpus.num_tokens, corpus.fingerprint[:16])
        for name, corpus in corpora.items()
    ]
    sections: list[Section] = [
        *training_sections(settings.out / "metrics.jsonl"),
        Table("Corpus", ("split", "documents", "sentences", "tokens", "SHA-256"), sizes),
    ]
    write_report(settings.out, "Pre-training", sections, config=configuration, facts=facts)
