"""Every objective on every family that has a head for it: what it sees, what it minimises, what is saved."""

import io
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from sklearn import metrics
from torch.nn import functional as F

from bertsmith import randomness
from bertsmith.deploy.predict import load
from bertsmith.errors import CorpusError, ModelError, SettingsError
from bertsmith.model.config import EncoderConfig
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import FAMILIES
from bertsmith.model.folder import load_weights, read_config
from bertsmith.model.sizes import named_size
from bertsmith.tasks.causal import NextTokens
from bertsmith.tasks.full_sentences import FullSentences, document_ranges
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.objectives import OBJECTIVES, check_store, make_task, store_notes, with_objective
from bertsmith.tasks.pretrain import pretrain
from bertsmith.tasks.pretrain_examples import PretrainExamples
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.tasks.replaced_tokens import ReplacedTokensModel, ReplacedTokensTask, draw, generator_config
from bertsmith.text.corpus import Corpus, open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer

QUIET = Console(quiet=True)
MAX_LENGTH = 48


@pytest.fixture(scope="module")
def store(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    texts = tiny_documents.read_text(encoding="utf-8").split("\n\n")[:40]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_corpus([str(folder / "documents.jsonl")], tiny_tokenizer, folder / "store", heldout_share=0.2, num_workers=1)
    return folder / "store"


@pytest.fixture(scope="module")
def corpus(store: Path) -> Corpus:
    return open_corpus(store)


@pytest.fixture(scope="module")
def tokenizer(store: Path) -> Tokenizer:
    return load_tokenizer(store / "tokenizer")


def settings_for(store: Path, out: Path, **changes: Any) -> PretrainSettings:
    base = PretrainSettings(
        corpus=store, out=out, size="tiny", budget="2 steps", max_length=32, batch_size=8, precision="fp32"
    )
    return replace(base, evaluation_samples=20, **changes)


def pairs() -> Iterator[tuple[str, str]]:
    for model_type, objectives in OBJECTIVES.items():
        yield from ((model_type, objective) for objective in objectives)


@pytest.mark.parametrize(("model_type", "objective"), pairs())
def test_a_run_leaves_a_folder_that_transformers_takes_for_the_same_model(
    model_type: str, objective: str, store: Path, tmp_path: Path
) -> None:
    result = pretrain(settings_for(store, tmp_path / "run", family=model_type, objective=objective), console=QUIET)
    assert math.isfinite(result.metrics["loss"])
    names = {"mlm+nsp": "nsp", "mlm+sop": "sop", "rtd": "rtd", "clm": "clm", "mlm": "mlm"}
    assert f"{names[objective]}_loss" in result.metrics
    raw = json.loads((result.model / "config.json").read_text())
    (architecture,) = raw["architectures"]
    theirs, info = getattr(transformers, architecture).from_pretrained(result.model, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    text = transformers.AutoTokenizer.from_pretrained(result.model)("the cat sat .", return_tensors="pt")
    with torch.no_grad():
        found = theirs(**text)
    assert (found.prediction_logits if "prediction_logits" in found else found.logits).isfinite().all()
    if objective == "rtd":
        transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "run" / "generator")


def test_every_family_has_objectives() -> None:
    assert OBJECTIVES.keys() == FAMILIES.keys()


def test_a_family_learns_as_it_was_trained_unless_told_otherwise(tmp_path: Path) -> None:
    base = settings_for(tmp_path, tmp_path)
    decided = {model_type: with_objective(base, model_type) for model_type in FAMILIES}
    assert {model_type: one.objective for model_type, one in decided.items()} == {
        "bert": "mlm+nsp",
        "roberta": "mlm",
        "xlm-roberta": "mlm",
        "camembert": "mlm",
        "distilbert": "mlm",
        "albert": "mlm+sop",
        "electra": "rtd",
        "modernbert": "mlm",
        "gpt2": "clm",
    }
    assert decided["bert"].data_mode == "clean" and decided["roberta"].data_mode == "full-sentences"


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("roberta", {"objective": "mlm+nsp"}, "roberta model cannot learn mlm\\+nsp.*Choices: mlm"),
        ("gpt2", {"objective": "mlm"}, "gpt2 model cannot learn mlm.*Choices: clm"),
        ("bert", {"data_mode": "full-sentences"}, "full-sentences gives no pairs"),
        ("electra", {"teacher": "x"}, "leave teacher out"),
        ("electra", {"layers": 1}, "leave layers out"),
    ],
)
def test_what_does_not_go_together(model_type: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        with_objective(settings_for(tmp_path, tmp_path, **changes), model_type)


def test_masked_tokens_want_a_token_of_their_own(store: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """GPT-2's vocabulary has one for everything, which the other end of a text would be taken for."""
    shared = SimpleNamespace(cls_id=4, sep_id=4, pad_id=4, mask_id=4, unk_id=None, tokens=lambda ids: ["<|endoftext|>"])
    corpus = open_corpus(store, "train")
    with pytest.raises(CorpusError, match=r'no token for what is masked: "<\|endoftext\|>" stands for the ends'):
        check_store(corpus, shared, "mlm")  # type: ignore[arg-type]
    check_store(corpus, shared, "clm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("language", "segmenter", "unit", "is_said"),
    [
        ("zh", "none", "word", True),
        ("zh-hant", "none", "span", True),
        ("zh", "none", "piece", False),
        ("zh", "jieba 0.42", "word", False),
        ("en", "none", "word", False),
    ],
)
def test_words_that_nobody_has_cut_are_said(
    store: Path, tokenizer: Tokenizer, tmp_path: Path, language: str, segmenter: str, unit: Any, is_said: bool
) -> None:
    corpus = open_corpus(store, "train")
    corpus.language, corpus.word_segmenter = language, segmenter
    chosen = with_objective(settings_for(store, tmp_path, objective="mlm", mask_unit=unit), "bert")
    notes = store_notes(corpus, tokenizer, chosen, None)  # type: ignore[arg-type]
    assert any("--word-segmenter jieba" in note for note in notes) == is_said


def ranges_of(corpus: Corpus, start: int, end: int) -> list[tuple[int, int]]:
    """Tokens start to end as one range a document."""
    starts, ends, _ = document_ranges(corpus, np.array([start]), np.array([end]))
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


@pytest.mark.parametrize("across", [True, False])
def test_full_sentences(across: bool, corpus: Corpus, tokenizer: Tokenizer) -> None:
    cuts = FullSentences(corpus, MAX_LENGTH, seed=3, across_documents=across)
    borders = set(corpus.sentence_offsets.tolist())
    documents = corpus.sentence_offsets[corpus.document_offsets]
    shown = np.zeros(corpus.num_tokens, dtype=np.int64)
    crossing = 0
    for epoch in range(3):
        indices = np.arange(cuts.num_samples(epoch))
        found = list(cuts.cuts(indices, epoch))
        assert [cut for index in indices[::-1] for cut in cuts.cuts(np.array([index]), epoch)] == found[::-1]
        for cut in found:
            ranges = ranges_of(corpus, cut.first_start, cut.first_end)
            assert sum(end - start for start, end in ranges) + len(ranges) - 1 + 2 <= MAX_LENGTH
            assert cut.first_start in borders
            is_whole = cut.first_end in borders
            longest = max(b - a for a, b in zip(sorted(borders), sorted(borders)[1:], strict=False))
            assert is_whole or longest > MAX_LENGTH - 2
            # One more sentence would not have fitted, or the document (the corpus) has no more.
            following = min((border for border in borders if border > cut.first_end), default=None)
            if is_whole and following is not None and (across or cut.first_end not in documents):
                more = ranges_of(corpus, cut.first_start, following)
                assert sum(end - start for start, end in more) + len(more) - 1 + 2 > MAX_LENGTH
            for start, end in ranges:
                assert np.searchsorted(documents, start, "right") == np.searchsorted(documents, end - 1, "right")
                shown[start:end] += 1
            crossing += len(ranges) > 1
    assert (crossing > 0) == across
    assert (shown > 0).mean() > 0.85


def test_a_separator_stands_between_documents(corpus: Corpus, tokenizer: Tokenizer) -> None:
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=MAX_LENGTH,
        mode="full-sentences",
        hiding=Masker(tokenizer, Masking(unit="word")),
        short_sequence_probability=0.0,
        seed=0,
    )
    whole = np.concatenate(corpus.shards())
    indices = np.arange(examples.num_examples(0))
    for example, cut in zip(examples.take(indices, 0), examples.pairs.cuts(indices, 0), strict=True):
        ids = example.masked.token_ids.copy()
        ids[example.masked.positions] = example.masked.labels
        expected: list[int] = [tokenizer.cls_id]
        for start, end in ranges_of(corpus, cut.first_start, cut.first_end):
            expected += [*whole[start:end].tolist(), tokenizer.sep_id]
        assert ids.tolist() == expected
        assert not example.segment_ids.any()


def test_the_causal_loss_is_that_of_transformers(store: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = with_objective(settings_for(store, tmp_path / "run", family="gpt2", dropout=0.0), "gpt2")
    task = make_task(settings, 32, tokenizer, {"train": open_corpus(store)})
    result = pretrain(settings, console=QUIET)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(result.model).eval()
    ours = load_model(task, result.model)
    examples = task.examples("train").take(range(4), 0)
    batch = task.collate(examples)
    with torch.no_grad():
        total = task.loss(ours, batch)["clm"]
        expected = 0.0
        for one in examples:
            ids = torch.from_numpy(one.masked.token_ids)[None]
            expected += float(theirs(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert batch.counts["clm"] == sum(len(one.segment_ids) - 1 for one in examples)


def load_model(task: Any, folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = task.build(Encoder(read_config(folder)[0]))
    load_weights(folder, model, strict=True)
    return model.eval()


def test_drawn_masks_are_as_many_as_their_probability_says(store: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = settings_for(store, tmp_path / "run", objective="mlm", mask_count="bernoulli", data_mode="doc-sentences")
    examples = make_task(settings, 32, tokenizer, {"train": open_corpus(store)}).examples("train")
    masked = possible = 0
    for epoch in range(20):
        for one in examples.take(range(examples.num_examples(epoch)), epoch):
            masked += len(one.masked.positions)
            possible += one.num_tokens - 2
    # Three deviations; a bound at the mean of the longest samples takes away more.
    assert masked / possible == pytest.approx(0.15, abs=3 * math.sqrt(0.15 * 0.85 / possible))


def test_next_tokens() -> None:
    streams = randomness.Streams(0, "x", 0, np.arange(2))
    masked = NextTokens().mask(np.array([5, 6, 7, 8, 3, 4]), np.array([0, 4, 6]), streams)
    assert masked.positions.tolist() == [0, 1, 2, 4] and masked.labels.tolist() == [6, 7, 8, 4]
    assert masked.token_ids.tolist() == [5, 6, 7, 8, 3, 4]


@pytest.fixture
def electra(tokenizer: Tokenizer) -> tuple[ReplacedTokensTask, ReplacedTokensModel]:
    task = ReplacedTokensTask(
        {}, None, masked_language_model=MaskedLanguageModel(), detection_weight=50.0, generator_share=0.25
    )
    torch.manual_seed(0)
    config = replace(named_size("tiny", tokenizer.vocab_size, model_type="electra"), hidden_dropout_prob=0.0)
    return task, task.build(Encoder(replace(config, attention_probs_dropout_prob=0.0, initializer_range=0.2)))


def test_replaced_tokens(
    electra: tuple[ReplacedTokensTask, ReplacedTokensModel], corpus: Corpus, tokenizer: Tokenizer
) -> None:
    task, model = electra
    hiding = Masker(tokenizer, Masking(mask_share=0.85, random_share=0.0))
    examples = PretrainExamples(
        corpus,
        tokenizer,
        max_length=32,
        mode="doc-sentences",
        hiding=hiding,
        short_sequence_probability=0.0,
        seed=0,
    )
    samples = examples.take(range(12), 0)
    batch = task.collate(samples)
    torch.manual_seed(5)
    sums = task.loss(model, batch)
    # The same by hand.
    torch.manual_seed(5)
    positions, labels = batch.labels["masked_positions"], batch.labels["masked_labels"]
    logits = model.vocabulary(model.generator(batch.inputs)[positions])
    drawn = draw(logits, None)
    original, filled = batch.inputs.token_ids.clone(), batch.inputs.token_ids.clone()
    original[positions], filled[positions] = labels, drawn
    truth = (original != filled).float()
    found = model.detection(model.encoder(replace(batch.inputs, token_ids=filled)))
    assert torch.allclose(sums["mlm"], F.cross_entropy(logits, labels, reduction="sum"))
    assert torch.allclose(
        sums["rtd"], -(truth * found.sigmoid().log() + (1 - truth) * (1 - found.sigmoid()).log()).sum()
    )
    assert 0 < truth.sum() <= len(positions)
    assert batch.counts == {"mlm": len(positions), "rtd": sum(batch.inputs.lengths)}
    # The discriminator's loss does not reach the generator through the draws, but both reach the embeddings.
    (sums["rtd"]).backward()
    assert model.generator.layers[0].up.weight.grad is None
    assert model.generator.token_embedding.weight.grad is not None
    with torch.no_grad():
        answers = task.decode(task.predict(model, batch), batch)
        again = task.decode(task.predict(model, batch), batch)
    figures = task.score(answers, samples)
    assert figures == task.score(again, samples), "evaluation draws the same tokens every time"
    truth_T = torch.cat([one.is_replaced for one in answers]).numpy()
    logits_T = torch.cat([one.logits for one in answers]).numpy()
    assert figures["rtd_accuracy"] == pytest.approx(metrics.accuracy_score(truth_T, logits_T > 0))
    assert figures["rtd_auc"] == pytest.approx(metrics.roc_auc_score(truth_T, logits_T))


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    drawn = draw(logits.expand(40_000, 4), torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.01)


def test_the_generator_shares_the_embeddings(electra: tuple[ReplacedTokensTask, ReplacedTokensModel]) -> None:
    _, model = electra
    assert model.generator.token_embedding is model.encoder.token_embedding
    assert model.generator.embedding_norm is model.encoder.embedding_norm
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("generator.token_embedding") for name in names)
    base = generator_config(named_size("base", 100, model_type="electra"), 1 / 3)  # as ELECTRA-base
    assert (base.hidden_size, base.num_attention_heads, base.embedding_size) == (256, 4, 768)


def test_replaced_token_detection_goes_on_and_is_refined(store: Path, tmp_path: Path) -> None:
    first = pretrain(settings_for(store, tmp_path / "a", family="electra"), console=QUIET)
    on = pretrain(
        settings_for(
            store, tmp_path / "b", from_model=str(first.folder), size="mini", learning_rate=1e-12, budget="1 steps"
        ),
        console=QUIET,
    )
    screen = io.StringIO()
    alone = shutil.copytree(first.folder / "model", tmp_path / "alone")
    without = settings_for(store, tmp_path / "c", from_model=str(alone), size="mini", budget="1 steps")
    pretrain(without, console=Console(file=screen, width=200))
    assert "alone has no generator beside it: it is learnt from nothing." in screen.getvalue()
    for part in ("model", "generator"):
        architecture = transformers.AutoModel
        before, after = (architecture.from_pretrained(run.folder / part).state_dict() for run in (first, on))
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(ModelError, match="generator"):
        load(first.model)
    assert list(load(first.folder / "generator").predict(["the [MASK] sat ."]))


def test_the_config_of_a_generator_can_be_built() -> None:
    for size in ("tiny", "mini", "small", "base"):
        config = generator_config(named_size(size, 100, model_type="electra"), 0.25)
        assert isinstance(config, EncoderConfig) and config.hidden_size % config.num_attention_heads == 0
