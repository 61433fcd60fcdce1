"""A linear-chain conditional random field over the words of sentences (Lafferty et al. 2001; Lample et al. 2016, arXiv
1603.01360, section 2.2).

The score of a sentence's labels is the sum of what each word scores for its label, and of what each label scores behind
the one before it. A sentence is learnt and answered as a whole, where a head alone answers each word by itself.

A word may have several parts, such as the characters of a Chinese word. Each part is learnt as a word of its own, as it
is one in raw text; in an answer the further parts of a word go on with what its first part says, so that the labels of
the words, which are those of their first parts, keep to what may be.

Words of all sentences come one after the other, without padding; the recursions run over the places of the longest
sentence, for all sentences at once. All is computed in the dtype of the scores, which should be float32.
Shape letters: W words of the batch, S sentences, L words of the longest, C labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

_FORBIDDEN = -1e4
"""The score of what cannot be: beside it no other score counts, and unlike -inf it leaves no NaN in a gradient."""


class Crf(nn.Module):
    """The scores of labels at the start of a sentence, behind each other, and at its end.

    They start at 0, where the field says of each word what the scores of the words alone say, but for what may not be.
    """

    def __init__(
        self, may_start_C: np.ndarray, may_follow_CC: np.ndarray, goes_on_CC: np.ndarray | None = None
    ) -> None:
        """
        Args:
            may_start_C: bool, the labels that a sentence may begin with.
            may_follow_CC: bool, [i, j] says whether label j may stand behind label i. Each label needs some that may.
            goes_on_CC: bool, [i, j] says whether label j goes on with label i within a word; None: each label does
                with itself.
        """
        super().__init__()
        num_labels = len(may_start_C)
        goes_on_CC = np.eye(num_labels, dtype=bool) if goes_on_CC is None else goes_on_CC
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))
        # They follow from the labels, so that no folder holds them.
        self.register_buffer("_never_first_C", torch.from_numpy(~may_start_C), persistent=False)
        self.register_buffer("_never_behind_CC", torch.from_numpy(~may_follow_CC), persistent=False)
        self.register_buffer("_never_within_CC", torch.from_numpy(~goes_on_CC), persistent=False)

    def log_likelihood(self, scores_WC: Tensor, labels_W: Tensor, lengths: Sequence[int]) -> Tensor:
        """Sum over the sentences of the logarithm of the probability of their labels, in nats: a scalar.

        Args:
            scores_WC: of each word for each label.
            labels_W: int64.
            lengths: words of each sentence, W in all; a sentence may have none, and adds nothing.
        """
        start_C, transitions_CC = self._scores()
        places_SL, is_word_SL = _grid(lengths, scores_WC.device)
        firsts_S = places_SL[:, 0]
        lasts_S = places_SL.amax(1)
        is_behind_W = torch.ones_like(labels_W, dtype=torch.bool).index_fill(0, firsts_S, False)[1:]
        of_words = scores_WC.gather(1, labels_W[:, None]).sum()
        of_pairs = transitions_CC[labels_W[:-1], labels_W[1:]][is_behind_W].sum()
        of_edges = start_C[labels_W[firsts_S]].sum() + self.end[labels_W[lasts_S]].sum()
        sums_LSC = _log_sums(scores_WC[places_SL], is_word_SL, start_C, lambda place: transitions_CC)
        return of_words + of_pairs + of_edges - (sums_LSC[-1] + self.end).logsumexp(-1).sum()

    def marginals(self, scores_WC: Tensor, lengths: Sequence[int], is_further_W: Tensor | None = None) -> Tensor:
        """[W, C] probabilities of each label at each word, over all labels of the rest of its sentence.

        Args:
            is_further_W: as for `best`, whose labels these are the probabilities of.
        """
        start_C, _ = self._scores()
        places_SL, is_word_SL = _grid(lengths, scores_WC.device)
        behind = self._behind(_in_grid(is_further_W, places_SL))
        forward_LSC = torch.stack(_log_sums(scores_WC[places_SL], is_word_SL, start_C, behind))
        # The same from the end: each sentence turned around, within its own words.
        turned_SL = torch.where(is_word_SL, places_SL[:, :1] + places_SL.amax(1, keepdim=True) - places_SL, 0)
        turned = self._behind(_in_grid(is_further_W, turned_SL))
        # What stands between two places is that of the later word, which comes first here.
        backward_LSC = torch.stack(
            _log_sums(scores_WC[turned_SL], is_word_SL, self.end, lambda place: turned(place - 1).mT)
        )
        before_WC, behind_WC = torch.empty_like(scores_WC), torch.empty_like(scores_WC)
        before_WC[places_SL[is_word_SL]] = forward_LSC.transpose(0, 1)[is_word_SL]
        behind_WC[turned_SL[is_word_SL]] = backward_LSC.transpose(0, 1)[is_word_SL]
        return (before_WC + behind_WC - scores_WC).softmax(-1)  # both count the word's own score

    def best(self, scores_WC: Tensor, lengths: Sequence[int], is_further_W: Tensor | None = None) -> Tensor:
        """int64 [W], the most probable labels of each sentence as a whole (Viterbi).

        Args:
            is_further_W: bool, what is a further part of the word before it, whose label goes on; None: all are words.
        """
        start_C, _ = self._scores()
        places_SL, is_word_SL = _grid(lengths, scores_WC.device)
        behind = self._behind(_in_grid(is_further_W, places_SL))
        scores_SLC = scores_WC[places_SL]
        best_SC = start_C + scores_SLC[:, 0]
        stays_SC = torch.arange(best_SC.shape[1], device=best_SC.device).expand_as(best_SC)
        sources: list[Tensor] = []
        for place in range(1, places_SL.shape[1]):
            is_word_S1 = is_word_SL[:, place, None]
            found_SC, source_SC = (best_SC[:, :, None] + behind(place)).max(1)
            best_SC = torch.where(is_word_S1, found_SC + scores_SLC[:, place], best_SC)
            sources.append(torch.where(is_word_S1, source_SC, stays_SC))
        label_S = (best_SC + self.end).argmax(-1)
        labels = [label_S]
        for source_SC in reversed(sources):
            label_S = source_SC.gather(1, label_S[:, None])[:, 0]
            labels.append(label_S)
        return torch.stack(labels[::-1], 1)[is_word_SL]

    def _scores(self) -> tuple[Tensor, Tensor]:
        """[C] of the first label and [C, C] of one behind another, with those that cannot be."""
        never_first_C, never_behind_CC = self.get_buffer("_never_first_C"), self.get_buffer("_never_behind_CC")
        return (
            self.start.masked_fill(never_first_C, _FORBIDDEN),
            self.transitions.masked_fill(never_behind_CC, _FORBIDDEN),
        )

    def _behind(self, is_further_SL: Tensor | None) -> Callable[[int], Tensor]:
        """By place: what each label scores there behind each, [C, C], or [S, C, C] where words have several parts."""
        _, transitions_CC = self._scores()
        if is_further_SL is None:
            return lambda place: transitions_CC
        within_CC = transitions_CC.masked_fill(self.get_buffer("_never_within_CC"), _FORBIDDEN)
        return lambda place: torch.where(is_further_SL[:, place, None, None], within_CC, transitions_CC)


def _in_grid(is_further_W: Tensor | None, places_SL: Tensor) -> Tensor | None:
    """The same by place, bool [S, L]; None where each word has one part."""
    return None if is_further_W is None or not is_further_W.any() else is_further_W[places_SL]


def _grid(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the words of each sentence stand among all words, int64 [S, L], and which of the places are words.

    Sentences without words are left out; what is no word is 0.
    """
    lengths_S = torch.tensor([length for length in lengths if length], dtype=torch.int64)
    steps_L = torch.arange(max([1, *lengths]))
    is_word_SL = steps_L < lengths_S[:, None]
    places_SL = torch.where(is_word_SL, (lengths_S.cumsum(0) - lengths_S)[:, None] + steps_L, 0)
    return places_SL.to(device), is_word_SL.to(device)


def _log_sums(scores_SLC: Tensor, is_word_SL: Tensor, start_C: Tensor, behind: Callable[[int], Tensor]) -> list[Tensor]:
    """Of each place [S, C], the log-sum of exp(score) over all labels up to it that end in C; behind the last word its
    own again. `behind` gives the scores of labels at a place behind those before it."""
    sum_SC = start_C + scores_SLC[:, 0]
    found = [sum_SC]
    for place in range(1, scores_SLC.shape[1]):
        next_SC = (sum_SC[:, :, None] + behind(place)).logsumexp(1) + scores_SLC[:, place]
        sum_SC = torch.where(is_word_SL[:, place, None], next_SC, sum_SC)
        found.append(sum_SC)
    return found
