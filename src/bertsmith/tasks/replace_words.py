"""Other words for the words of a text, by a masked language model: made once before a training, kept, drawn from.

A word's tokens become one mask, and a word of one token that the model expects there takes its place (Kobayashi 2018,
arXiv 1805.06201, without the condition on the label; Wu et al. 2018, arXiv 1812.06705, with BERT).
Shape letters: M masks of a batch, K the likeliest tokens.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from bertsmith import randomness
from bertsmith.errors import ModelError
from bertsmith.model.batch import pack
from bertsmith.model.encoder import Encoder
from bertsmith.model.families import family
from bertsmith.model.folder import load_weights, read_config
from bertsmith.tasks.pretrain_model import PretrainingModel
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import check_vocabulary
from bertsmith.text.augment import Units, is_alike
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.device import ResolvedPrecision, autocast

_MOST_TOKENS = 8192  # at once
_LIKELIEST = 10  # tokens that a word is drawn from, by their probabilities
_ENCODED_AT_ONCE = 256  # texts

Replacements = dict[int, str]
"""Unit of a text -> the word in its place."""


@dataclass(frozen=True)
class WordModel:
    """A masked language model with its tokenizer, in evaluation mode."""

    model: PretrainingModel
    tokenizer: Tokenizer


def load_word_model(folder: str) -> WordModel:
    """The model of a run's folder, a model folder or a Hub id, on the CPU.

    Raises:
        ModelError: no such model, one without a masked-language-model head, or one that is causal.
    """
    place, where = model_folder(folder), f"augment_model {folder}"
    config, _ = read_config(place)
    if family(config.model_type).structure.is_causal:
        raise ModelError(f"{where}: a {config.model_type} model predicts the next token, not masked ones.")
    tokenizer = load_tokenizer(place)
    check_vocabulary(tokenizer, config.vocab_size, where)
    model = PretrainingModel(Encoder(config), pairs=False)
    try:
        load_weights(place, model, strict=True)
    except ModelError as error:
        raise ModelError(f"{where}: it takes one with a masked-language-model head ({error})") from error
    return WordModel(model.eval(), tokenizer)


@dataclass(frozen=True)
class _Asked:
    """A window of a text with masks, special tokens included; `positions` are those of the masks of `units`."""

    text: int
    variant: int
    token_ids: np.ndarray
    positions: tuple[int, ...]
    units: tuple[int, ...]


def replacements(
    texts: Sequence[Units],
    words: WordModel,
    *,
    rate: float,
    num_variants: int,
    seed: int,
    barred: Collection[str] = (),
    device: torch.device,
    precision: ResolvedPrecision,
) -> list[list[Replacements]]:
    """`num_variants` draws for each text, of which words are replaced and by what.

    A new word is a single token, of the same kind (a word or a character of Chinese or kana), and not the old one.
    Where none of the likeliest tokens is, the old word stays.

    Args:
        rate: probability of each word that is not fixed.
        barred: words, in lower case, that replace none.
    """
    found: list[list[Replacements]] = [[{} for _ in range(num_variants)] for _ in texts]
    model = words.model.to(device)

    @cache
    def word_of(token_id: int) -> str | None:
        """What a token says, if it is a word and no piece of one."""
        word = words.tokenizer.decode([token_id]).strip()
        if not word or token_id in words.tokenizer.special_ids or word.casefold() in barred:
            return None
        return word if words.tokenizer.encode_words([word])[0].tolist() == [token_id] else None

    for batch in _batches(_asked(texts, words, rate, num_variants, seed)):
        starts = np.cumsum([0, *(len(one.token_ids) for one in batch)])
        positions = [
            start + place for start, one in zip(starts.tolist(), batch, strict=False) for place in one.positions
        ]
        with torch.inference_mode(), autocast(device, precision):
            inputs = pack([one.token_ids for one in batch]).to(device)
            logits_MV = model.vocabulary(model.encoder(inputs, torch.tensor(positions, device=device)))
        best = (
            logits_MV[:, : words.tokenizer.vocab_size]
            .float()
            .softmax(-1)
            .topk(min(_LIKELIEST, words.tokenizer.vocab_size))
        )
        rows = zip(best.values.cpu().numpy().astype(np.float64), best.indices.tolist(), strict=True)
        for one in batch:
            random = randomness.generator(seed, "augment word", one.text, one.variant, one.units[0])
            for unit in one.units:
                shares_K, ids_K = next(rows)
                word = _drawn(texts[one.text].word(unit), [word_of(i) for i in ids_K], shares_K, random)
                if word is not None:
                    found[one.text][one.variant][unit] = word
    return found


def _drawn(old: str, guesses: Sequence[str | None], shares_K: np.ndarray, random: np.random.Generator) -> str | None:
    """One of the words that may stand in a word's place, by their probabilities; None if there is none."""
    fits_K = np.array(
        [word is not None and word.casefold() != old.casefold() and is_alike(word, old) for word in guesses]
    )
    if not fits_K.any():
        return None
    drawn = guesses[int(random.choice(len(guesses), p=np.where(fits_K, shares_K, 0) / shares_K[fits_K].sum()))]
    # A vocabulary without capitals says nothing about them; the first letter of the old word does.
    return drawn.capitalize() if drawn is not None and len(old) > 1 and old.istitle() and drawn.islower() else drawn


def _asked(texts: Sequence[Units], words: WordModel, rate: float, num_variants: int, seed: int) -> Iterator[_Asked]:
    """Every text in every variant, in windows that do not overlap; without those that have no mask."""
    tokenizer, room = words.tokenizer, words.model.encoder.config.max_sequence_length - 2
    for first in range(0, len(texts), _ENCODED_AT_ONCE):
        part = texts[first : first + _ENCODED_AT_ONCE]
        for number, (units, encoding) in enumerate(
            zip(part, tokenizer.encode_batch([one.text for one in part]), strict=True), start=first
        ):
            places = _token_spans(units, encoding.offsets)
            for variant in range(num_variants):
                draws = randomness.generator(seed, "augment words", number, variant).random(len(units.spans))
                chosen = [(place, unit) for unit, place in places.items() if draws[unit] < rate]
                ids, masks = _masked(encoding.ids, [place for place, _ in chosen], tokenizer.mask_id)
                asked_units = np.array([unit for _, unit in chosen], dtype=np.int64)
                for start in range(0, len(ids), room):
                    is_here = (masks >= start) & (masks < start + room)
                    if is_here.any():
                        window = np.concatenate([[tokenizer.cls_id], ids[start : start + room], [tokenizer.sep_id]])
                        own = tuple((masks[is_here] - start + 1).tolist())
                        yield _Asked(number, variant, window, own, tuple(asked_units[is_here].tolist()))


def _token_spans(units: Units, offsets: np.ndarray) -> dict[int, tuple[int, int]]:
    """The tokens [first, end) of every unit that may be replaced and shares none of its tokens."""
    spans = {}
    for unit, ((start, end), is_fixed) in enumerate(zip(units.spans, units.fixed, strict=True)):
        if is_fixed:
            continue
        first = int(np.searchsorted(offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(offsets[:, 0], end, side="left"))
        if first < last and offsets[first, 0] >= start and offsets[last - 1, 1] <= end:
            spans[unit] = (first, last)
    return spans


def _masked(ids: np.ndarray, places: Sequence[tuple[int, int]], mask_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens with one mask for each of some ranges, which are in order; and where the masks are, int64."""
    pieces, masks, before, length = [], [], 0, 0
    for first, end in places:
        pieces += [ids[before:first], np.array([mask_id])]
        length += first - before + 1
        masks.append(length - 1)
        before = end
    return np.concatenate([*pieces, ids[before:]]).astype(np.int64), np.array(masks, dtype=np.int64)


def _batches(asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """As many at a time as have `_MOST_TOKENS` tokens."""
    batch: list[_Asked] = []
    num_tokens = 0
    for one in asked:
        if batch and num_tokens + len(one.token_ids) > _MOST_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(one)
        num_tokens += len(one.token_ids)
    if batch:
        yield batch
