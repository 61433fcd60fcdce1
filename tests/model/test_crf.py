"""The conditional random field beside all label sequences one by one, and torch's numeric gradients."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertsmith.model.crf import Crf

LENGTHS = [(1,), (3,), (2, 0, 4, 1), (0, 3, 3)]


def make(num_labels: int, seed: int, *, forbids: bool = False, dtype: torch.dtype = torch.float64) -> Crf:
    """With random scores; label 2 not first, and only behind 1 and itself, if some are forbidden."""
    may_start, may_follow = np.ones(num_labels, dtype=bool), np.ones((num_labels, num_labels), dtype=bool)
    if forbids:
        may_start[2] = False
        may_follow[:, 2] = False
        may_follow[1, 2] = may_follow[2, 2] = True
    crf = Crf(may_start, may_follow).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in crf.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 2).to(dtype)
    return crf


def words(lengths: Sequence[int], num_labels: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), num_labels, generator=generator, dtype=torch.float64) * 2


def by_hand(crf: Crf, scores_LC: Tensor) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """All label sequences of one sentence, and the logarithms of their probabilities; -inf for what may not be."""
    start, transitions, end = (one.detach().numpy() for one in (crf.start, crf.transitions, crf.end))
    start = np.where(crf.get_buffer("_never_first_C").numpy(), -np.inf, start)
    transitions = np.where(crf.get_buffer("_never_behind_CC").numpy(), -np.inf, transitions)
    of_words = scores_LC.numpy()

    def score(labels: tuple[int, ...]) -> float:
        pairs = sum(transitions[one, other] for one, other in itertools.pairwise(labels))
        return float(start[labels[0]] + pairs + end[labels[-1]] + of_words[np.arange(len(labels)), labels].sum())

    sequences = list(itertools.product(range(scores_LC.shape[1]), repeat=len(scores_LC)))
    totals = np.array([score(one) for one in sequences])
    return sequences, totals - np.logaddexp.reduce(totals)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    num_labels=st.integers(1, 4),
    forbids=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_likelihood_best_labels_and_marginals_are_those_of_all_sequences(lengths, num_labels, forbids, seed, data):
    crf = make(num_labels, seed, forbids=forbids and num_labels > 2)
    scores_WC = words(lengths, num_labels, seed)
    expected = 0.0
    labels, best, marginals = [], [], []
    for part in scores_WC.split(lengths):
        if not len(part):
            continue
        sequences, logs = by_hand(crf, part)
        chosen = data.draw(st.sampled_from([index for index, log in enumerate(logs) if np.isfinite(log)]))
        expected += logs[chosen]
        labels += sequences[chosen]
        best += sequences[int(logs.argmax())]
        for place in range(len(part)):
            of_labels = [[one[place] == label for one in sequences] for label in range(num_labels)]
            marginals.append([float(np.exp(logs)[np.array(which)].sum()) for which in of_labels])
    with torch.no_grad():
        found = crf.log_likelihood(scores_WC, torch.tensor(labels, dtype=torch.int64), lengths)
        assert found.item() == pytest.approx(expected, abs=1e-9)
        assert crf.best(scores_WC, lengths).tolist() == best
        np.testing.assert_allclose(
            crf.marginals(scores_WC, lengths).numpy(), np.array(marginals).reshape(-1, num_labels), atol=1e-9
        )


@pytest.mark.parametrize("lengths", LENGTHS)
def test_gradients_are_those_of_small_steps(lengths):
    crf = make(3, 1)
    labels_W = torch.arange(sum(lengths)) % 3
    scores_WC = words(lengths, 3, 2).requires_grad_()

    def likelihood(scores: Tensor, start: Tensor, transitions: Tensor, end: Tensor) -> Tensor:
        values = {"start": start, "transitions": transitions, "end": end}
        arguments = (scores, labels_W, lengths)
        return torch.func.functional_call(Called(crf), {f"crf.{name}": one for name, one in values.items()}, arguments)

    given_scores = (crf.start, crf.transitions, crf.end)
    assert torch.autograd.gradcheck(likelihood, (scores_WC, *given_scores))


class Called(torch.nn.Module):
    """`functional_call` calls `forward`."""

    def __init__(self, crf: Crf) -> None:
        super().__init__()
        self.crf = crf

    def forward(self, scores: Tensor, labels: Tensor, lengths: Sequence[int]) -> Tensor:
        return self.crf.log_likelihood(scores, labels, lengths)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_gradient_of_a_words_scores_is_its_labels_less_the_marginals(lengths):
    """Lafferty et al. 2001, section 3: what is in the data less what is expected of it."""
    crf = make(4, 3, forbids=True)
    scores_WC = words(lengths, 4, 4).requires_grad_()
    labels_W = torch.zeros(sum(lengths), dtype=torch.int64)
    crf.log_likelihood(scores_WC, labels_W, lengths).backward()
    expected = torch.nn.functional.one_hot(labels_W, 4) - crf.marginals(scores_WC.detach(), lengths)
    torch.testing.assert_close(scores_WC.grad, expected.detach())
    never_behind, never_first = crf.get_buffer("_never_behind_CC"), crf.get_buffer("_never_first_C")
    assert crf.transitions.grad is not None and crf.start.grad is not None
    assert (crf.transitions.grad[never_behind] == 0).all() and (crf.start.grad[never_first] == 0).all()


def test_without_scores_between_labels_it_is_a_softmax_of_each_word():
    crf = Crf(np.ones(5, dtype=bool), np.ones((5, 5), dtype=bool))
    lengths = (3, 0, 7)
    scores_WC = words(lengths, 5, 5).float()
    labels_W = torch.arange(10) % 5
    expected = -torch.nn.functional.cross_entropy(scores_WC, labels_W, reduction="sum")
    torch.testing.assert_close(crf.log_likelihood(scores_WC, labels_W, lengths), expected)
    torch.testing.assert_close(crf.marginals(scores_WC, lengths), scores_WC.softmax(-1))
    assert crf.best(scores_WC, lengths).tolist() == scores_WC.argmax(-1).tolist()


def test_a_sentence_does_not_see_the_others_of_its_batch():
    crf = make(4, 6, forbids=True, dtype=torch.float32)
    scores_WC = words((2, 9, 1), 4, 7).float()
    together = crf.marginals(scores_WC, (2, 9, 1)), crf.best(scores_WC, (2, 9, 1))
    alone = [(crf.marginals(one, [len(one)]), crf.best(one, [len(one)])) for one in scores_WC.split((2, 9, 1))]
    assert torch.equal(together[0], torch.cat([one for one, _ in alone]))
    assert torch.equal(together[1], torch.cat([one for _, one in alone]))


def test_a_thousand_words_in_float32_under_autocast():
    """Autocast may not narrow the sums, which grow with the length of a sentence."""
    crf = make(5, 8, forbids=True, dtype=torch.float32)
    scores_WC = words((1000, 3), 5, 9).float()
    labels_W = torch.zeros(1003, dtype=torch.int64)
    exact = make(5, 8, forbids=True).log_likelihood(scores_WC.double(), labels_W, (1000, 3))
    exact_marginals = make(5, 8, forbids=True).marginals(scores_WC.double(), (1000, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found, marginals = crf.log_likelihood(scores_WC, labels_W, (1000, 3)), crf.marginals(scores_WC, (1000, 3))
    assert found.dtype == marginals.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=3e-5)
    torch.testing.assert_close(marginals.double(), exact_marginals, atol=1e-3, rtol=0)


def test_no_words_at_all():
    crf = make(3, 1)
    empty = torch.zeros(0, 3, dtype=torch.float64)
    for lengths in ((), (0, 0)):
        assert crf.log_likelihood(empty, torch.zeros(0, dtype=torch.int64), lengths).item() == 0
        assert crf.best(empty, lengths).shape == (0,)
        assert crf.marginals(empty, lengths).shape == (0, 3)


def test_only_its_scores_are_saved():
    assert list(make(3, 1).state_dict()) == ["start", "transitions", "end"]
