"""Samples made many at a time: each is what it would be alone, and laid out as a pair always is."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.model.batch import pack
from bertsmith.tasks.causal import NextTokens
from bertsmith.tasks.masking import Masked, Masker, Masking, MaskUnit
from bertsmith.tasks.mlm import MaskedLanguageModel
from bertsmith.tasks.pairs import PairClassification, assemble
from bertsmith.tasks.pretrain_examples import (
    DataMode,
    FlatExamples,
    Hiding,
    PretrainExample,
    PretrainExamples,
    flat_examples,
)
from bertsmith.tasks.pretrain_task import PretrainTask
from bertsmith.text.corpus import Corpus, open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.loader import Loader, evaluation_batches
from bertsmith.training.task import Batch

MAX_LENGTH = 48
MODES: tuple[DataMode, ...] = ("clean", "original", "full-sentences", "doc-sentences")


@pytest.fixture(scope="module")
def corpus(tiny_documents: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A store of several shards."""
    folder = tmp_path_factory.mktemp("store")
    build_corpus(
        [str(tiny_documents)],
        tiny_tokenizer,
        folder / "store",
        document_separator="blank-lines",
        heldout_share=0.0,
        num_workers=1,
        shard_bytes=2000,
    )
    corpus = open_corpus(folder / "store")
    assert len(corpus.shards()) > 2
    return corpus


@pytest.fixture
def tokenizer(corpus: Corpus) -> Tokenizer:
    return load_tokenizer(corpus.tokenizer_path)


def make(
    corpus: Corpus, tokenizer: Tokenizer, mode: DataMode, hiding: Hiding | None = None, sop: bool = False
) -> PretrainExamples:
    return PretrainExamples(
        corpus,
        tokenizer,
        max_length=MAX_LENGTH,
        mode=mode,
        hiding=hiding or Masker(tokenizer, Masking()),
        short_sequence_probability=0.3,
        seed=5,
        sentence_order=sop,
    )


def content(example: PretrainExample) -> list[object]:
    """All of an example, comparable with ==."""
    masked = example.masked
    arrays = (masked.token_ids, masked.positions, masked.labels, example.segment_ids)
    return [*(array.tolist() for array in arrays), example.pair_label]


@pytest.mark.parametrize("hiding", ["piece", "word", "span", "ngram", "bernoulli", "bounded", "next"])
@pytest.mark.parametrize("mode", [*MODES, "sop"])
def test_a_sample_is_the_same_alone_and_in_any_batch(
    corpus: Corpus, tokenizer: Tokenizer, mode: str, hiding: str
) -> None:
    options: dict[str, dict[str, object]] = {
        "bernoulli": {"count": "bernoulli"},
        "bounded": {"count": "bernoulli", "max_predictions": 2, "probability": 0.4},
    }
    unit: MaskUnit = hiding if hiding in ("word", "span", "ngram") else "piece"  # type: ignore[assignment]
    masking = Masking(unit=unit, **options.get(hiding, {}))  # type: ignore[arg-type]
    by = NextTokens() if hiding == "next" else Masker(tokenizer, masking)
    data_mode: DataMode = "clean" if mode == "sop" else mode  # type: ignore[assignment]
    examples = make(corpus, tokenizer, data_mode, by, sop=mode == "sop")
    size = examples.num_examples(1)
    together = [content(one) for one in examples.take(range(size), 1)]
    some = np.random.default_rng(0).integers(0, size, 30).tolist()
    assert [content(one) for one in examples.take(some, 1)] == [together[index] for index in some]
    again = make(corpus, tokenizer, data_mode, by, sop=mode == "sop")
    assert [content(one) for index in some for one in again.take([index], 1)] == [together[index] for index in some]
    other = [content(one) for one in examples.take(range(min(size, examples.num_examples(2))), 2)]
    # Where nothing is drawn but where the text is cut, many cuts of so short documents are the same.
    assert together != other
    assert hiding == "next" or sum(a == b for a, b in zip(together, other, strict=False)) < 0.2 * size


@pytest.mark.parametrize(("num_separators", "second_segment"), [(1, 1), (2, 1), (2, 0)])
@pytest.mark.parametrize("mode", ["clean", "original", "doc-sentences"])
def test_texts_are_laid_out_as_for_prediction(
    corpus: Corpus, tokenizer: Tokenizer, mode: DataMode, num_separators: int, second_segment: int
) -> None:
    # RoBERTa has two special tokens between the texts of a pair; here they differ, so that their order shows.
    tokenizer.separator_ids = (tokenizer.sep_id, tokenizer.unk_id)[:num_separators]
    tokenizer.second_segment = second_segment
    examples = make(corpus, tokenizer, mode)
    indices = np.arange(examples.num_examples(0))
    whole = np.concatenate(corpus.shards())
    num_pairs = 0
    for one, cut in zip(examples.take(indices, 0), examples.pairs.cuts(indices, 0), strict=True):
        ids = one.masked.token_ids.copy()
        ids[one.masked.positions] = one.masked.labels
        first, second = whole[cut.first_start : cut.first_end], whole[cut.second_start : cut.second_end]
        expected_ids, expected_segments = assemble(tokenizer, first, second)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(one.segment_ids, expected_segments)
        assert one.segment_ids.max() == (second_segment if len(second) else 0)
        assert len(ids) <= MAX_LENGTH
        num_pairs += len(second) > 0
    assert (num_pairs > 0) == (mode != "doc-sentences")


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_its_samples_one_after_the_other(corpus: Corpus, tokenizer: Tokenizer, mode: DataMode) -> None:
    flat = make(corpus, tokenizer, mode).take(range(11), 0)
    task = PretrainTask({}, None, masked_language_model=MaskedLanguageModel(), pair=PairClassification("nsp"))
    for part in (flat, flat[2:9], flat[2:9][1:], list(flat), flat[4:5]):
        found = task.collate(part)
        inputs = pack([one.masked.token_ids for one in part], [one.segment_ids for one in part])
        for name in ("token_ids", "segment_ids", "position_ids", "offsets"):
            assert getattr(found.inputs, name).tolist() == getattr(inputs, name).tolist()
        assert found.inputs.lengths == inputs.lengths == tuple(one.num_tokens for one in part)
        starts = inputs.offsets.tolist()
        positions = [start + p for start, one in zip(starts, part, strict=False) for p in one.masked.positions]
        assert found.labels["masked_positions"].tolist() == positions
        assert found.labels["masked_labels"].tolist() == [token for one in part for token in one.masked.labels]
        assert found.labels["pair_labels"].tolist() == [one.pair_label for one in part]
        assert found.counts["mlm"] == len(positions)
        assert [content(one) for one in found.examples] == [content(one) for one in part]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=8), st.data())
def test_a_flat_row_is_a_sequence(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    examples = []
    for number, (length, hidden) in enumerate(sizes):
        ids = np.arange(length) + 10 * number
        positions = np.arange(min(hidden, length))
        examples.append(PretrainExample(Masked(ids, positions, ids[positions] + 1), ids % 2, number))
    flat = flat_examples(examples)
    assert flat_examples(flat) is flat
    assert [content(one) for one in flat] == [content(one) for one in examples]
    first, end = (data.draw(st.integers(-9, 9)) for _ in range(2))
    part = flat[first:end]
    assert isinstance(part, FlatExamples) and len(part) == len(examples[first:end])
    assert [content(one) for one in part] == [content(one) for one in examples[first:end]]
    assert content(flat[-1]) == content(examples[-1])
    with pytest.raises(IndexError):
        flat[len(flat)]
    with pytest.raises(ValueError, match="step"):
        flat[::2]


def test_threads_and_micro_batches_change_no_batch(corpus: Corpus, tokenizer: Tokenizer) -> None:
    task = PretrainTask(
        {"train": make(corpus, tokenizer, "clean")},
        None,
        masked_language_model=MaskedLanguageModel(),
        pair=PairClassification("nsp"),
    )

    def first_steps(num_workers: int, micro_batch_size: int | None) -> list[Batch]:
        loader = Loader(
            task.examples("train"),
            task.collate,
            batch_size=16,
            micro_batch_size=micro_batch_size,
            seed=3,
            num_workers=num_workers,
        )
        steps = loader.steps()
        batches = [batch for step in itertools.islice(steps, 6) for batch in step.micro_batches]
        steps.close()
        return batches

    alone = [content(one) for batch in first_steps(0, None) for one in batch.examples]
    for num_workers, micro_batch_size in ((0, 5), (1, 16), (3, 4)):
        batches = first_steps(num_workers, micro_batch_size)
        assert [content(one) for batch in batches for one in batch.examples] == alone
        tokens = [token for batch in batches for token in batch.inputs.token_ids.tolist()]
        assert tokens == [token for one in alone for token in one[0]]  # type: ignore[attr-defined]
    shown = [
        (place, content(one))
        for places, batch in evaluation_batches(task.examples("train"), task.collate, 200)
        for place, one in zip(places, batch.examples, strict=True)
    ]
    examples = task.examples("train")
    assert shown == [(place, content(examples.take([place], 0)[0])) for place in range(examples.num_examples(0))]
