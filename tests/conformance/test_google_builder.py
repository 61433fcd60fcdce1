"""The original data mode against a straight reading of google-research/bert, `create_pretraining_data.py`.

The reading below goes through lists of token lists with `random.Random`, statement by statement. Ours
plans on sentence borders and draws the lengths after cutting in closed form. The first shuffle of the
documents is left out, as it changes no distribution. One rule at a time: `test_google_builder_rules.py`.
"""

import itertools
import lzma
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bertsmith import randomness
from bertsmith.tasks.masking import Masker, Masking
from bertsmith.tasks.objectives import make_task, with_objective
from bertsmith.tasks.pairs import IS_RANDOM, OriginalPairs
from bertsmith.tasks.pretrain_examples import PretrainExamples
from bertsmith.tasks.pretrain_settings import PretrainSettings
from bertsmith.text.corpus import Corpus, open_corpus
from bertsmith.text.corpus_building import build_corpus
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

pytestmark = pytest.mark.conformance

MAX_LENGTH, SHORT, MASK_PROBABILITY, MAX_PREDICTIONS = 128, 0.1, 0.15, 20
ORIGINAL_MASKING = Masking(MASK_PROBABILITY, max_predictions=MAX_PREDICTIONS, random_specials=True, mask_unknown=True)
LEAST_P = 1e-3


# The reading

Token = tuple[int, int]  # where it stands in the corpus, and its id
CLS, SEP = (-1, -1), (-2, -2)


@dataclass(frozen=True)
class Instance:
    """A TrainingInstance, and the number of its document."""

    document: int
    tokens: list[Token]
    segment_ids: list[int]
    is_random_next: bool
    positions: list[int]
    shown: list[int]  # ids at the positions


def create_instances_from_document(
    all_documents: Sequence[Sequence[list[Token]]],
    document_index: int,
    max_seq_length: int,
    short_seq_prob: float,
    vocab_words: Sequence[int],
    mask_id: int,
    rng: random.Random,
) -> list[Instance]:
    document = all_documents[document_index]
    max_num_tokens = max_seq_length - 3
    target_seq_length = max_num_tokens
    if rng.random() < short_seq_prob:
        target_seq_length = rng.randint(2, max_num_tokens)
    instances = []
    current_chunk: list[list[Token]] = []
    current_length = 0
    i = 0
    while i < len(document):
        current_chunk.append(document[i])
        current_length += len(document[i])
        if i == len(document) - 1 or current_length >= target_seq_length:
            a_end = 1
            if len(current_chunk) >= 2:
                a_end = rng.randint(1, len(current_chunk) - 1)
            tokens_a = [token for segment in current_chunk[:a_end] for token in segment]
            tokens_b: list[Token] = []
            is_random_next = False
            if len(current_chunk) == 1 or rng.random() < 0.5:
                is_random_next = True
                target_b_length = target_seq_length - len(tokens_a)
                for _ in range(10):
                    random_document_index = rng.randint(0, len(all_documents) - 1)
                    if random_document_index != document_index:
                        break
                random_document = all_documents[random_document_index]
                random_start = rng.randint(0, len(random_document) - 1)
                for j in range(random_start, len(random_document)):
                    tokens_b.extend(random_document[j])
                    if len(tokens_b) >= target_b_length:
                        break
                i -= len(current_chunk) - a_end
            else:
                for j in range(a_end, len(current_chunk)):
                    tokens_b.extend(current_chunk[j])
            truncate_seq_pair(tokens_a, tokens_b, max_num_tokens, rng)
            tokens = [CLS, *tokens_a, SEP, *tokens_b, SEP]
            segment_ids = [0] * (len(tokens_a) + 2) + [1] * (len(tokens_b) + 1)
            masked = create_masked_lm_predictions(tokens, vocab_words, mask_id, rng)
            instances.append(
                Instance(document_index, tokens, segment_ids, is_random_next, [*masked], [*masked.values()])
            )
            current_chunk = []
            current_length = 0
        i += 1
    return instances


def truncate_seq_pair(tokens_a: list[Token], tokens_b: list[Token], max_num_tokens: int, rng: random.Random) -> None:
    while len(tokens_a) + len(tokens_b) > max_num_tokens:
        trunc_tokens = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        if rng.random() < 0.5:
            del trunc_tokens[0]
        else:
            trunc_tokens.pop()


def create_masked_lm_predictions(
    tokens: Sequence[Token],
    vocab_words: Sequence[int],
    mask_id: int,
    rng: random.Random,
    continuing: frozenset[int] = frozenset(),
) -> dict[int, int]:
    """Position -> the id shown there, in ascending order; with ids of "##" pieces, --do_whole_word_mask."""
    cand_indexes: list[list[int]] = []
    for i, token in enumerate(tokens):
        if token in (CLS, SEP):
            continue
        if cand_indexes and token[1] in continuing:
            cand_indexes[-1].append(i)
        else:
            cand_indexes.append([i])
    rng.shuffle(cand_indexes)
    num_to_predict = min(MAX_PREDICTIONS, max(1, round(len(tokens) * MASK_PROBABILITY)))
    output: dict[int, int] = {}
    for index_set in cand_indexes:
        if len(output) >= num_to_predict:
            break
        if len(output) + len(index_set) > num_to_predict:
            continue
        for index in index_set:
            if rng.random() < 0.8:
                output[index] = mask_id
            elif rng.random() < 0.5:
                output[index] = tokens[index][1]
            else:
                output[index] = vocab_words[rng.randint(0, len(vocab_words) - 1)]
    return dict(sorted(output.items()))


# The two on the same text


@dataclass(frozen=True)
class Novels:
    """A tenth of the chapters of twelve novels, as a store and as lists of token lists."""

    corpus: Corpus
    tokenizer: Tokenizer
    documents: list[list[list[Token]]]


@pytest.fixture(scope="module")
def novels(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Novels:
    path = shared_data / "pretrain" / "books.en.jsonl.xz"
    if not path.exists():
        pytest.skip(f"test data not found: {path}")
    folder = tmp_path_factory.mktemp("novels")
    source = str(folder / "novels.jsonl")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        Path(source).write_text("".join(itertools.islice(lines, 0, None, 10)), encoding="utf-8")
    train_tokenizer([source], folder / "tokenizer", vocab_size=2000, limit_bytes=500_000)
    build_corpus([source], folder / "tokenizer", folder / "store", heldout_share=0.0, num_workers=1)
    corpus = open_corpus(folder / "store")
    return Novels(corpus, load_tokenizer(corpus.tokenizer_path), documents_of(corpus))


def documents_of(corpus: Corpus) -> list[list[list[Token]]]:
    ids = np.concatenate(corpus.shards()).tolist()
    borders = corpus.sentence_offsets.tolist()
    sentences = [list(zip(range(a, b), ids[a:b], strict=True)) for a, b in itertools.pairwise(borders)]
    return [sentences[a:b] for a, b in itertools.pairwise(corpus.document_offsets.tolist())]


def google_instances(novels: Novels, short: float, passes: int, seed: int) -> list[Instance]:
    rng, vocabulary = random.Random(seed), range(novels.tokenizer.vocab_size)
    return [
        instance
        for _ in range(passes)
        for document in range(len(novels.documents))
        for instance in create_instances_from_document(
            novels.documents, document, MAX_LENGTH, short, vocabulary, novels.tokenizer.mask_id, rng
        )
    ]


def our_instances(novels: Novels, short: float, passes: int, seed: int) -> list[Instance]:
    """The samples of --data-mode original, told as the original would tell them."""
    settings = PretrainSettings(
        corpus=novels.corpus.folder,
        out=Path("unused"),
        data_mode="original",
        short_sequence_probability=short,
        seed=seed,
    )
    task = make_task(with_objective(settings, "bert"), MAX_LENGTH, novels.tokenizer, {"train": novels.corpus})
    examples = task.examples("train")
    assert isinstance(examples, PretrainExamples)
    specials = [novels.tokenizer.cls_id, novels.tokenizer.sep_id, novels.tokenizer.sep_id]
    starts = novels.corpus.sentence_offsets[novels.corpus.document_offsets]
    instances = []
    for epoch in range(passes):
        indices = np.arange(examples.num_examples(epoch))
        for example, cut in zip(examples.take(indices, epoch), examples.pairs.cuts(indices, epoch), strict=True):
            masked, ids = example.masked, example.masked.token_ids.copy()
            shown = ids[masked.positions].tolist()
            ids[masked.positions] = masked.labels
            first = range(cut.first_start, cut.first_end)
            second = range(cut.second_start, cut.second_end)
            places = [CLS[0], *first, SEP[0], *second, SEP[0]]
            assert ids[np.array(places) < 0].tolist() == specials
            tokens = [(place, token_id if place >= 0 else place) for place, token_id in zip(places, ids, strict=True)]
            document = int(np.searchsorted(starts, cut.first_start, side="right")) - 1
            segments = example.segment_ids.tolist()
            is_random = cut.label == IS_RANDOM
            instances.append(Instance(document, tokens, segments, is_random, masked.positions.tolist(), shown))
    return instances


def figures(novels: Novels, instances: Sequence[Instance]) -> dict[str, np.ndarray]:
    """What is compared, one number a sequence."""
    borders = novels.corpus.sentence_offsets
    starts = borders[novels.corpus.document_offsets]
    first_of_a = np.array([one.tokens[1][0] for one in instances])
    last_of_b = np.array([one.tokens[-2][0] for one in instances])
    size_a = np.array([one.segment_ids.index(1) - 2 for one in instances])
    length = np.array([len(one.tokens) for one in instances])
    last_of_a = first_of_a + size_a - 1
    first_of_b = last_of_b - (length - size_a - 3) + 1

    def from_front(places: np.ndarray) -> np.ndarray:
        return places - borders[np.searchsorted(borders, places, side="right") - 1]

    def from_back(places: np.ndarray) -> np.ndarray:
        return borders[np.searchsorted(borders, places, side="right")] - 1 - places

    return {
        "length": length,
        "length of A": size_a,
        "length of B": length - size_a - 3,
        "masks": np.array([len(one.positions) for one in instances]),
        "document of A": np.array([one.document for one in instances]),
        "document of B": np.searchsorted(starts, first_of_b, side="right") - 1,
        "place of B": first_of_b,
        "cut from the sentence in front of A": from_front(first_of_a),
        "cut from the sentence behind A": from_back(last_of_a),
        "cut from the sentence in front of B": from_front(first_of_b),
        "cut from the sentence behind B": from_back(last_of_b),
    }


@pytest.fixture(scope="module")
def full(novels: Novels) -> tuple[list[Instance], list[Instance]]:
    """Ours and theirs without short targets, whose one draw makes all samples of a document alike."""
    ours, theirs = our_instances(novels, 0.0, 5, seed=1), google_instances(novels, 0.0, 5, seed=12345)
    assert len(ours) >= 20_000 and len(theirs) >= 20_000
    return ours, theirs


def test_sequences_are_distributed_as_the_originals(
    novels: Novels, full: tuple[list[Instance], list[Instance]]
) -> None:
    ours, theirs = (figures(novels, instances) for instances in full)
    assert len(full[0]) == pytest.approx(len(full[1]), rel=0.02)
    for name in ours:
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > LEAST_P, name
        # Most lengths are full, which KS does not mind; here every value counts.
        values, places = np.unique(np.concatenate([ours[name], theirs[name]]), return_inverse=True)
        table = np.stack([np.bincount(part, minlength=len(values)) for part in np.split(places, [len(ours[name])])])
        assert stats.chi2_contingency(merge_rare(table)).pvalue > LEAST_P, name


def merge_rare(table: np.ndarray, least: int = 20) -> np.ndarray:
    """Neighbouring columns added up until each counts enough."""
    columns, current = [], np.zeros(len(table), dtype=np.int64)
    for column in table.T:
        current = current + column
        if current.sum() >= least:
            columns.append(current)
            current = np.zeros(len(table), dtype=np.int64)
    columns[-1] = columns[-1] + current
    return np.stack(columns, axis=1) if len(columns) > 1 else np.ones((2, 2))


def test_shares_are_the_originals(novels: Novels, full: tuple[list[Instance], list[Instance]]) -> None:
    tokenizer = novels.tokenizer

    def fate(shown: int, label: int) -> str:
        if shown == tokenizer.mask_id:
            return "mask"
        if shown == label:
            return "same"
        return "special" if shown in tokenizer.special_ids else "random"

    for share in (
        lambda one: [one.is_random_next],
        lambda one: [fate(s, one.tokens[p][1]) for s, p in zip(one.shown, one.positions, strict=True)],
        # Where in the sequence the hidden tokens stand, in tenths, and in which segment.
        lambda one: [10 * position // len(one.tokens) for position in one.positions],
        lambda one: [one.segment_ids[position] for position in one.positions],
    ):
        ours, theirs = (Counter(itertools.chain.from_iterable(map(share, instances))) for instances in full)
        assert len(ours) > 1
        table = [[counts[value] for value in sorted(ours | theirs)] for counts in (ours, theirs)]
        assert stats.chi2_contingency(table).pvalue > LEAST_P
    for instances in full:
        assert any(one.tokens[place][1] == tokenizer.unk_id for one in instances for place in one.positions)
    random_share = np.mean([one.is_random_next for one in full[0]])
    assert 0.5 < random_share < 0.75, "chunks of one sentence have no B of their own"


def test_every_sequence_is_one_that_the_original_can_make(
    novels: Novels, full: tuple[list[Instance], list[Instance]]
) -> None:
    """The same checks hold for both."""
    ids = np.concatenate(novels.corpus.shards())
    starts = novels.corpus.sentence_offsets[novels.corpus.document_offsets]
    for one in itertools.chain(*full):
        sizes = Counter(one.segment_ids)
        assert one.segment_ids == [0] * sizes[0] + [1] * sizes[1]
        assert one.tokens[sizes[0] - 1] == SEP and one.tokens[0] == CLS and one.tokens[-1] == SEP
        places = [place for place, _ in one.tokens]
        first, second = places[1 : sizes[0] - 1], places[sizes[0] : -1]
        assert first == [*range(first[0], first[-1] + 1)] and second == [*range(second[0], second[-1] + 1)]
        assert [token_id for _, token_id in one.tokens[1 : sizes[0] - 1]] == ids[first].tolist()
        if not one.is_random_next:
            assert first[-1] < second[0] and second[-1] < starts[one.document + 1]
        assert not {0, sizes[0] - 1, len(places) - 1} & set(one.positions)
        assert len(one.positions) == min(MAX_PREDICTIONS, max(1, round(len(places) * MASK_PROBABILITY)))


def test_whole_words_are_hidden_as_by_the_original(novels: Novels, full: tuple[list[Instance], list[Instance]]) -> None:
    """--do_whole_word_mask: a word is hidden whole, or passed over where it does not fit; a fate for each piece.

    One thing differs by design: where B begins inside a word, the original hides its first pieces
    together with the last word of A, across the [SEP].
    """
    tokenizer = novels.tokenizer
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    continuing = frozenset(i for i, name in enumerate(names) if name.startswith("##"))
    masker = Masker(tokenizer, replace(ORIGINAL_MASKING, unit="word"))
    rng, vocabulary = random.Random(7), range(tokenizer.vocab_size)
    specials = {CLS: tokenizer.cls_id, SEP: tokenizer.sep_id}
    found: list[list[tuple[float, ...]]] = [[], []]
    fates = [Counter[tuple[bool, bool, bool]](), Counter[tuple[bool, bool, bool]]()]
    for number, one in enumerate(full[1][::5]):
        if one.tokens[one.segment_ids.index(1)][1] in continuing:
            continue
        ids = np.array([specials[token] if token in specials else token[1] for token in one.tokens])
        starts = ~np.isin(ids, sorted(continuing))
        masked = masker.mask(ids, np.array([0, len(ids)]), randomness.Streams(0, "mask", 0, np.array([number])), starts)
        theirs = create_masked_lm_predictions(one.tokens, vocabulary, tokenizer.mask_id, rng, continuing)
        mine = dict(zip(masked.positions.tolist(), masked.token_ids[masked.positions].tolist(), strict=True))
        starts[1] = True  # what the cut left of a word in front of A
        words = np.cumsum(starts)
        sizes = np.bincount(words)
        for side, shown in enumerate((mine, theirs)):
            hidden = np.bincount(words[[*shown]], minlength=len(sizes))
            assert set((hidden - sizes)[hidden > 0]) == {0}, "all pieces of a word or none"
            lengths = sizes[hidden > 0]
            found[side].append((len(shown), len(lengths), lengths.max(), lengths.mean()))
            for place, after in itertools.pairwise(shown):
                is_masks = (shown[place] == tokenizer.mask_id, shown[after] == tokenizer.mask_id)
                fates[side][*is_masks, bool(words[place] == words[after])] += 1
    assert len(found[0]) > 3000
    for ours, other in zip(np.array(found[0]).T, np.array(found[1]).T, strict=True):
        assert np.ptp(other) > 0
        assert stats.ks_2samp(ours, other).pvalue > LEAST_P
    assert set(fates[0]) == set(fates[1]) and len(fates[0]) == 8
    table = [[side[fate] for fate in sorted(fates[0])] for side in fates]
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_short_targets_are_distributed_as_the_originals(novels: Novels) -> None:
    """By document and pass, as one draw decides all samples of a document."""
    passes = 6
    pairs = OriginalPairs(novels.corpus, MAX_LENGTH, SHORT, seed=3)
    starts = novels.corpus.sentence_offsets[novels.corpus.document_offsets]
    ours: dict[tuple[int, int], list[int]] = {}
    for epoch in range(passes):
        for cut in pairs.cuts(np.arange(pairs.num_samples(epoch)), epoch):
            document = int(np.searchsorted(starts, cut.first_start, side="right")) - 1
            length = cut.first_end - cut.first_start + cut.second_end - cut.second_start
            ours.setdefault((epoch, document), []).append(length)
    rng = random.Random(12345)
    theirs = [
        lengths_by_the_reading(novels.documents, number, rng)
        for _ in range(passes)
        for number in range(len(starts) - 1)
    ]
    assert len(ours) == len(theirs)
    assert sum(map(len, theirs)) > 20_000
    for summary in (len, np.mean, np.median, max, min):
        mine, other = ([float(summary(lengths)) for lengths in sides] for sides in (ours.values(), theirs))
        assert stats.ks_2samp(mine, other).pvalue > LEAST_P, summary
    # With a short target the middle sample is not full.
    mine, other = (sum(np.median(lengths) < MAX_LENGTH - 3 for lengths in sides) for sides in (ours.values(), theirs))
    assert stats.chi2_contingency([[mine, len(ours) - mine], [other, len(theirs) - other]]).pvalue > LEAST_P
    assert stats.binomtest(mine, len(ours), SHORT).pvalue > LEAST_P


def lengths_by_the_reading(documents: list[list[list[Token]]], number: int, rng: random.Random) -> list[int]:
    instances = create_instances_from_document(documents, number, MAX_LENGTH, SHORT, [0], 0, rng)
    return [len(one.tokens) - 3 for one in instances]
