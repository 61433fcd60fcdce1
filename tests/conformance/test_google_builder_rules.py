"""Each rule of google-research/bert `create_pretraining_data.py`, on text made to show it alone.

The rules that `tests/tasks/test_pairs.py` and `test_mlm.py` hold already are not repeated here; all of
them together, on real text, are in `test_google_builder.py`.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bertsmith import randomness
from bertsmith.tasks.cuts import Cut
from bertsmith.tasks.masking import Masked, Masker, Masking
from bertsmith.tasks.objectives import with_objective
from bertsmith.tasks.pairs import IS_NEXT, IS_RANDOM, OriginalPairs
from bertsmith.tasks.pretrain_settings import PretrainSettings

pytestmark = pytest.mark.conformance

SHORT = 0.1
ORIGINAL_MASKING = Masking(random_specials=True, mask_unknown=True)
LEAST_P = 1e-3


def make_store(documents: Sequence[Sequence[int]]) -> SimpleNamespace:
    """What pairs look at of a corpus, for documents given as the lengths of their sentences."""
    lengths = [length for document in documents for length in document]
    return SimpleNamespace(
        sentence_offsets=np.cumsum([0, *lengths]), document_offsets=np.cumsum([0, *map(len, documents)])
    )


def length_of(cut: Cut) -> int:
    return cut.first_end - cut.first_start + cut.second_end - cut.second_start


def cuts_of(pairs: OriginalPairs, epoch: int = 0) -> list[Cut]:
    return list(pairs.cuts(np.arange(pairs.num_samples(epoch)), epoch))


def test_the_defaults_are_the_flags_of_the_original() -> None:
    settings = with_objective(PretrainSettings(corpus=Path("c"), out=Path("o"), data_mode="original"), "bert")
    assert (settings.max_length, settings.mask_probability, settings.short_sequence_probability) == (128, 0.15, SHORT)
    assert (settings.mask_count, settings.mask_unit, settings.objective) == ("exact", "piece", "mlm+nsp")


def test_a_short_target_is_uniform_and_holds_for_a_whole_document() -> None:
    """target_seq_length = rng.randint(2, max_num_tokens), before the loop over sentences."""
    room, size, num_documents = 20, 200, 300

    def targets(probability: float, epoch: int) -> list[int]:
        """Of each document. With sentences of one token a pair hits it, but where it runs into the document's end."""
        pairs = OriginalPairs(make_store([[1] * size] * num_documents), room + 3, probability, seed=0)
        found: dict[int, set[int]] = {}
        for cut in cuts_of(pairs, epoch):
            if cut.label == IS_NEXT and cut.second_end % size:
                found.setdefault(cut.first_start // size, set()).add(length_of(cut))
        assert all(len(lengths) == 1 for lengths in found.values())
        assert len(found) >= num_documents - 3, "a document without any next pair is rare"
        return [length for lengths in found.values() for length in lengths]

    counts = np.bincount([target for epoch in range(3) for target in targets(1.0, epoch)], minlength=room + 1)
    assert counts[:2].sum() == 0
    assert stats.chisquare(counts[2:]).pvalue > LEAST_P
    mixed = [target for epoch in range(7) for target in targets(SHORT, epoch)]
    num_short = sum(target < room for target in mixed)
    assert stats.binomtest(num_short, len(mixed), SHORT * (room - 2) / (room - 1)).pvalue > LEAST_P


def test_a_takes_a_uniform_number_of_the_sentences_and_b_is_random_half_the_time() -> None:
    """a_end = rng.randint(1, len(current_chunk) - 1); rng.random() < 0.5."""
    room, size = 20, 500
    cuts = cuts_of(OriginalPairs(make_store([[1] * size] * 100), room + 3, 0.0, seed=0))
    whole = [cut for cut in cuts if cut.first_start % size <= size - room]
    counts = np.bincount([cut.first_end - cut.first_start for cut in whole], minlength=room + 1)
    assert counts[0] == counts[room] == 0
    assert stats.chisquare(counts[1:room]).pvalue > LEAST_P
    num_random = sum(cut.label == IS_RANDOM for cut in whole)
    assert stats.binomtest(num_random, len(whole), 0.5).pvalue > LEAST_P
    # The size of A says nothing of the label.
    by_label = [
        np.bincount([cut.first_end - cut.first_start for cut in whole if cut.label == label], minlength=room)[1:]
        for label in (IS_NEXT, IS_RANDOM)
    ]
    assert stats.chi2_contingency(by_label).pvalue > LEAST_P


def test_sentences_are_gathered_up_to_the_target_and_unused_ones_come_again() -> None:
    """Both loops stop at the first sentence that reaches the target, or with the document."""
    room = 40
    draws = np.random.default_rng(0)
    store = make_store([draws.integers(1, 30, size=size) for size in (1, 2, 3, 80, 200, 7)])
    borders = store.sentence_offsets.tolist()
    document_borders = [borders[sentence] for sentence in store.document_offsets]

    def reach(start: int, target: int) -> int:
        """Where the run of sentences ends that starts at `start`; with none it would not reach the target."""
        end_of_document = next(border for border in document_borders if border > start)
        end = borders[borders.index(start) + 1]
        while end < end_of_document and end - start < target:
            end = borders[borders.index(end) + 1]
        return end

    pairs = OriginalPairs(store, room + 3, 0.0, seed=0)
    for epoch in range(30):
        position = 0
        for first_start, first_end, second_start, second_end, label in pairs._plan(epoch).tolist():  # before cutting
            assert first_start == position
            chunk_end = reach(first_start, room)
            if label == IS_NEXT:
                assert second_start == first_end and second_end == chunk_end
            else:
                one_sentence = chunk_end == borders[borders.index(first_start) + 1]
                assert first_end == chunk_end if one_sentence else first_end < chunk_end
                assert second_end == reach(second_start, room - (first_end - first_start))
            position = second_end if label == IS_NEXT else first_end
        assert position == borders[-1]


def test_a_random_b_comes_from_a_uniform_document_and_a_uniform_sentence() -> None:
    """rng.randint over the documents, then over the sentences of the one that was drawn."""
    sizes = [1, 3, 12, 40]
    pairs = OriginalPairs(make_store([[50] * size for size in sizes]), 13, 0.0, seed=0)
    starts = np.cumsum([0, *sizes])
    from_to = np.zeros((4, 4), dtype=int)
    sentences = np.zeros(sum(sizes), dtype=int)
    for epoch in range(150):
        for first_start, _, second_start, _, label in pairs._plan(epoch).tolist():
            assert label == IS_RANDOM, "every chunk is one sentence"
            source, target = np.searchsorted(starts, [first_start // 50, second_start // 50], side="right") - 1
            from_to[source, target] += 1
            sentences[second_start // 50] += 1
    assert from_to.diagonal().sum() == 0, "the chance is 4 ** -10"
    for source in range(4):
        assert stats.chisquare(np.delete(from_to[source], source)).pvalue > LEAST_P
    for target in range(1, 4):
        assert stats.chisquare(sentences[starts[target] : starts[target + 1]]).pvalue > LEAST_P


def test_ten_draws_look_for_another_document() -> None:
    """Of two documents, both are missed by none of ten draws once in 1024; B is then called random all the same."""
    pairs = OriginalPairs(make_store([[5], [5]]), 16, 0.0, seed=0)
    cuts = [cut for epoch in range(12_000) for cut in cuts_of(pairs, epoch)]
    same = [cut for cut in cuts if cut.second_start == cut.first_start]
    assert len(cuts) == 24_000
    assert stats.binomtest(len(same), len(cuts), 2.0**-10).pvalue > LEAST_P
    assert all(cut.label == IS_RANDOM for cut in same)


def truncate_seq_pair(tokens_a: list[int], tokens_b: list[int], max_num_tokens: int, rng: random.Random) -> None:
    while len(tokens_a) + len(tokens_b) > max_num_tokens:
        trunc_tokens = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if rng.random() < 0.5:
            del trunc_tokens[0]
        else:
            trunc_tokens.pop()


@pytest.mark.parametrize("sizes", [(30, 31), (31, 30), (30, 30), (39, 12), (12, 90)])
def test_over_long_pairs_lose_a_token_at_a_time_at_either_end(sizes: tuple[int, int]) -> None:
    """From the longer, on a tie from B; from its front or its back by a coin each."""
    rng = random.Random(5)
    # A and B are the two sentences of the only document wherever the label is next.
    pairs = OriginalPairs(make_store([sizes]), 44, 0.0, seed=1)
    cuts = [cut for epoch in range(1500) for cut in cuts_of(pairs, epoch) if cut.label == IS_NEXT]
    assert len(cuts) > 600
    ours = np.array([(cut.first_start, cut.first_end, cut.second_start, cut.second_end) for cut in cuts])
    rows = []
    for _ in range(2000):
        tokens_a, tokens_b = [*range(sizes[0])], [*range(sizes[0], sum(sizes))]
        truncate_seq_pair(tokens_a, tokens_b, 41, rng)
        rows.append((tokens_a[0], tokens_a[-1] + 1, tokens_b[0], tokens_b[-1] + 1))
    theirs = np.array(rows)
    for start in (0, 2):
        lengths = {*(ours[:, start + 1] - ours[:, start]), *(theirs[:, start + 1] - theirs[:, start])}
        assert len(lengths) == 1, "how much is left is no matter of chance"
        assert stats.ks_2samp(ours[:, start], theirs[:, start]).pvalue > LEAST_P
    # The coins of A and of B are not the same coins.
    if np.ptp(ours[:, 0]) and np.ptp(ours[:, 2]):
        assert stats.spearmanr(ours[:, 0], ours[:, 2]).pvalue > LEAST_P


@dataclass
class Vocabulary:
    """What masking looks at of a tokenizer: ids 0 to 4 are special."""

    vocab_size: int = 60
    unk_id: int = 1
    mask_id: int = 4
    special_ids: frozenset[int] = frozenset(range(5))


def mask_often(masker: Masker, ids: np.ndarray, times: int = 4000) -> Masked:
    """One sequence as so many samples."""
    streams = randomness.Streams(0, "mask", 0, np.arange(times))
    return masker.mask(np.tile(ids, times), np.arange(times + 1) * len(ids), streams)


def test_random_tokens_are_uniform_over_the_whole_vocabulary() -> None:
    """vocab_words[rng.randint(0, len(vocab_words) - 1)]: special tokens and the hidden one itself included."""
    masker = Masker(Vocabulary(), ORIGINAL_MASKING)
    ids = np.array([2, *[7] * 125, 3, 3])
    masked = mask_often(masker, ids)
    shown = Counter[int](masked.token_ids[masked.positions].tolist())
    others = [shown[token_id] for token_id in range(60) if token_id not in (4, 7)]
    assert stats.chisquare(others).pvalue > LEAST_P
    expected = np.array([0.8 + 0.1 / 60, 0.1 + 0.1 / 60, 0.1 * 58 / 60]) * sum(shown.values())
    assert stats.chisquare([shown[4], shown[7], sum(others)], expected).pvalue > LEAST_P


def test_unknown_tokens_are_hidden_like_any_other() -> None:
    """Only [CLS] and [SEP] are left out of cand_indexes."""
    ids = np.array([2, *[1, 9] * 20, 3, *[1, 9] * 20, 3])
    masked = mask_often(Masker(Vocabulary(), ORIGINAL_MASKING), ids)
    hidden = np.bincount(masked.positions % len(ids), minlength=len(ids))
    assert hidden[ids >= 2][[0, -1]].tolist() == [0, 0]
    assert hidden[np.isin(ids, [2, 3])].sum() == 0
    assert stats.chisquare(hidden[np.isin(ids, [1, 9])]).pvalue > LEAST_P
    # Elsewhere there is nothing to be learnt from a token that stands for everything rare.
    masked = mask_often(Masker(Vocabulary(), Masking()), ids)
    assert set(masked.labels.tolist()) == {9}
