"""The objectives of pre-training by name, which family learns what, and the task that each of them makes.

| objective | text | loss |
|---|---|---|
| mlm+nsp | pairs | masked tokens + does B follow A (BERT) |
| mlm+sop | pairs | masked tokens + do A and B stand in their order (ALBERT) |
| mlm | running text | masked tokens (RoBERTa, DistilBERT, ModernBERT) |
| rtd | running text | masked tokens of a generator + which tokens are not the original ones (ELECTRA) |
| clm | running text | every next token, from those before it (GPT) |
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from bertsmith import randomness
from bertsmith.errors import CorpusError, SettingsError
from bertsmith.tasks.causal import NextTokens
from bertsmith.tasks.cuts import NO_PAIR
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pairs import PairClassification, PairQuestion
from bertsmith.tasks.pretrain_examples import Hiding, PretrainExamples
from bertsmith.tasks.pretrain_settings import ObjectiveName, PretrainSettings
from bertsmith.tasks.pretrain_task import PretrainTask, unigram_baseline
from bertsmith.tasks.replaced_tokens import MASK_SHARE, RANDOM_SHARE, ReplacedTokensTask
from bertsmith.text.corpus import Corpus
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.training.task import Examples

_MOST, _HALF, _MUCH = 0.9, 0.5, 0.1
_NUM_SAMPLES, _NUM_TOKENS = 1000, 1_000_000

PAIR_NAMES: Mapping[ObjectiveName, PairQuestion] = MappingProxyType({"mlm+nsp": "nsp", "mlm+sop": "sop"})
OBJECTIVES: Mapping[str, tuple[ObjectiveName, ...]] = MappingProxyType(
    {
        "bert": ("mlm+nsp", "mlm+sop", "mlm"),
        "roberta": ("mlm",),
        "xlm-roberta": ("mlm",),
        "camembert": ("mlm",),
        "distilbert": ("mlm",),
        "albert": ("mlm+sop", "mlm+nsp", "mlm"),
        "electra": ("rtd", "mlm"),
        "modernbert": ("mlm",),
        "gpt2": ("clm",),
    }
)
"""What each family can be saved with; the first is the objective of its authors."""


def with_objective(settings: PretrainSettings, model_type: str) -> PretrainSettings:
    """The settings with objective and data mode decided.

    Raises:
        SettingsError: the family has no head for the objective, the data mode does not give its text, or an option is
            of another objective.
    """
    possible = OBJECTIVES[model_type]
    objective = settings.objective or possible[0]
    if objective not in possible:
        raise SettingsError(
            f"a {model_type} model cannot learn {objective}: it has no head for it. Choices: {', '.join(possible)}."
        )
    mode = settings.data_mode or ("clean" if objective in PAIR_NAMES else "full-sentences")
    if objective in PAIR_NAMES and mode.endswith("sentences"):
        raise SettingsError(f"data_mode {mode} gives no pairs, which {objective} asks about. Use clean or original.")
    of_others = [] if objective == "rtd" else ["generator_share", "detection_weight"]
    of_others += [] if objective in PAIR_NAMES else ["pair_weight"]
    of_others += ["mask_probability", "mask_count", "mask_unit"] if objective == "clm" else []
    for name in of_others:
        if settings.is_given(name):
            raise SettingsError(f"{name} does nothing in {objective}; leave it out, or choose another objective.")
    if mode.endswith("sentences") and settings.is_given("short_sequence_probability"):
        raise SettingsError(
            f"short_sequence_probability does nothing in data_mode {mode}, whose samples are filled; leave it out, or "
            "use clean or original."
        )
    if settings.teacher is not None and objective in ("rtd", "clm"):
        raise SettingsError(f"a teacher of masked tokens is no help for {objective}; leave teacher out.")
    if objective == "rtd" and settings.layers is not None:
        raise SettingsError("layers chooses among the layers of one model, and rtd trains two; leave layers out.")
    weights = [settings.masked_weight]
    weights += [settings.pair_weight] if objective in PAIR_NAMES else []
    weights += [settings.detection_weight] if objective == "rtd" else []
    weights += [settings.distill_weight, settings.cosine_weight] if settings.teacher is not None else []
    if sum(weights) == 0:
        raise SettingsError(f"every weight of the loss of {objective} is 0, so that nothing would be learnt.")
    return replace(settings, objective=objective, data_mode=mode)


def check_store(corpus: Corpus, tokenizer: Tokenizer, objective: ObjectiveName | None) -> None:
    """Refuse a training split that cannot teach the objective.

    Raises:
        CorpusError: nearly all tokens are unknown, or no token stands for what is masked; or there are no two
            sentences that follow each other in a document, or, for next sentence prediction, no second document to draw
            a random sentence from.
    """
    others = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    if objective != "clm" and tokenizer.mask_id in others:
        (mask,) = tokenizer.tokens([tokenizer.mask_id])
        raise CorpusError(
            f'the tokenizer has no token for what is masked: "{mask}" stands for the ends of a text, too. {objective} '
            "needs one: build the corpus with another tokenizer, or name a mask_token in its tokenizer_config.json."
        )
    share = _unknown_share(corpus, tokenizer)
    if share >= _MOST:
        raise CorpusError(
            f"{share:.0%} of the tokens are unknown to the vocabulary, and there is nothing to learn from them. Train "
            "a tokenizer on this text (bertsmith tokenizer train), and build the corpus with it."
        )
    if objective == "mlm+nsp" and corpus.num_documents < 2:
        raise CorpusError(
            f"the corpus has {corpus.num_documents} training document, and next sentence prediction draws its random "
            "sentences from other documents. Use --objective mlm+sop (sentence order) or mlm; or build the corpus with "
            "--document-separator blank-lines, or from several files, so that it has more documents."
        )
    if objective in PAIR_NAMES and corpus.num_documents == corpus.num_sentences:
        raise CorpusError(
            f"every training document is a single sentence, and {objective} asks about sentences that follow each "
            "other. Use --objective mlm; or build the corpus with documents that keep them together, or with the "
            "--language that tells where sentences end."
        )


def store_notes(corpus: Corpus, tokenizer: Tokenizer, settings: PretrainSettings, examples: Examples) -> list[str]:
    """What people should know of a training split that `check_store` lets pass, before they wait for the run.

    Args:
        settings: those of `with_objective`.
        examples: the split's.
    """
    notes = []
    share = _unknown_share(corpus, tokenizer)
    if share >= _MUCH:
        notes.append(f"{share:.0%} of the tokens are unknown to the vocabulary, and are not learnt.")
    if settings.mask_unit != "piece" and corpus.word_segmenter == "none" and corpus.language.startswith("zh"):
        per_word = corpus.num_tokens / max(1, corpus.num_words())
        notes.append(
            f"mask_unit {settings.mask_unit} goes by words, and what this store has for words of Chinese has "
            f"{per_word:.1f} tokens: build the corpus with --word-segmenter jieba to know where they begin."
        )
    pair = PAIR_NAMES.get(settings.objective or "mlm")
    if pair is None:
        return notes
    single = float((np.diff(corpus.document_offsets) == 1).mean())
    if single > _HALF:
        notes.append(
            f"{single:.0%} of the training documents are a single sentence, which {pair} learns nothing from; "
            "--objective mlm asks about no pairs."
        )
    elif settings.data_mode == "clean" and isinstance(examples, PretrainExamples):
        size = examples.pairs.num_samples(0)
        some = np.linspace(0, size - 1, min(size, _NUM_SAMPLES)).astype(np.int64)
        alone = float((examples.pairs.cuts(some, 0).label == NO_PAIR).mean())
        if alone > _HALF:
            notes.append(
                f"{alone:.0%} of the samples are of sentences too long for a pair, or of documents of one sentence, "
                f"which {pair} learns nothing from; --objective mlm asks about no pairs."
            )
    return notes


def _unknown_share(corpus: Corpus, tokenizer: Tokenizer) -> float:
    """The share of unknown tokens at the beginnings of the shards."""
    if tokenizer.unk_id is None:
        return 0.0
    shards = corpus.shards()
    parts = [shard[: -(-_NUM_TOKENS // len(shards))] for shard in shards]  # of a large store hardly more is read
    return sum(int((part == tokenizer.unk_id).sum()) for part in parts) / sum(map(len, parts))


def make_task(
    settings: PretrainSettings, max_length: int, tokenizer: Tokenizer, corpora: Mapping[str, Corpus]
) -> PretrainTask | ReplacedTokensTask:
    """The task of settings that came from `with_objective`, at one length, with both splits.

    Args:
        corpora: "train" and, if documents are held out, "dev".
    """
    objective, mode = settings.objective, settings.data_mode
    assert objective is not None and mode is not None  # with_objective decided
    pair_name = PAIR_NAMES.get(objective)
    hiding = _hiding(settings, max_length, tokenizer)
    splits = {
        split: PretrainExamples(
            corpus,
            tokenizer,
            max_length=max_length,
            mode=mode,
            hiding=hiding,
            short_sequence_probability=settings.short_sequence_probability,
            seed=randomness.integer(settings.seed, split, max_length),
            sentence_order=pair_name == "sop",
            num_samples=settings.evaluation_samples if split == "dev" else None,
        )
        for split, corpus in corpora.items()
    }
    masks_unknown = objective == "clm" or mode == "original"
    unpredicted = [] if tokenizer.unk_id is None or masks_unknown else [tokenizer.unk_id]
    baseline = unigram_baseline(corpora["train"], corpora["dev"], unpredicted) if "dev" in corpora else None
    if objective == "rtd":
        return ReplacedTokensTask(
            splits,
            baseline,
            masked_language_model=MaskedLanguageModel(settings.masked_weight),
            detection_weight=settings.detection_weight,
            generator_share=settings.generator_share,
        )
    return PretrainTask(
        splits,
        baseline,
        masked_language_model=MaskedLanguageModel(settings.masked_weight, "clm" if objective == "clm" else "mlm"),
        pair=None if pair_name is None else PairClassification(pair_name, settings.pair_weight),
        keeps_hidden=settings.teacher is not None,
    )


def _hiding(settings: PretrainSettings, max_length: int, tokenizer: Tokenizer) -> Hiding:
    """What is asked of a sample."""
    if settings.objective == "clm":
        return NextTokens()
    masking = Masking(
        settings.mask_probability,
        settings.mask_count,
        settings.mask_unit,
        # The original's max_predictions_per_seq: 20 of 128 tokens at 15 %. A bound would take from the rate where
        # the number is drawn, since only samples above it are cut.
        max_predictions=math.ceil(max_length * settings.mask_probability) if settings.mask_count == "exact" else None,
        random_specials=settings.data_mode == "original",
        mask_unknown=settings.data_mode == "original",
    )
    if settings.objective == "rtd":
        masking = replace(masking, mask_share=MASK_SHARE, random_share=RANDOM_SHARE)
    return Masker(tokenizer, masking)


def pair_question(objective: object, model_type: str) -> PairQuestion:
    """What a model of a family was asked about pairs.

    Args:
        objective: as its folder says it. Folders of others do not, and mean how the family was trained.
    """
    for name, question in PAIR_NAMES.items():
        if name == objective:
            return question
    return PAIR_NAMES.get(OBJECTIVES[model_type][0], "nsp")


def architecture_kind(objective: ObjectiveName | None) -> str:
    """What the name of the trained model's architecture ends in, in any family."""
    if objective in PAIR_NAMES or objective == "rtd":
        return "ForPreTraining"
    return "LMHeadModel" if objective == "clm" else "ForMaskedLM"
