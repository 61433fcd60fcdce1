"""Where words begin in text that is written without spaces, as Chinese is, and in text that nobody has split.

A pre-tokenizer does not know: BERT's takes every Chinese character for a word, those of byte-level
BPE and Unigram take a whole clause. Masking whole words of Chinese therefore needs a segmenter (Cui
et al. 2019, arXiv 1906.08101), which is asked once, when the corpus is built; the tokens stay the same.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, final, get_args

import numpy as np
from tokenizers import Regex, pre_tokenizers

from bertsmith.errors import MissingExtraError, SettingsError, did_you_mean
from bertsmith.text.tokenizer import Encoding, FlatEncoding, Tokenizer

WordSegmenter = Literal["none", "jieba"]

# As google-research/bert `_is_chinese_char`: ideographs, neither kana nor hangul.
_CJK = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)

_PLAIN = pre_tokenizers.Sequence(
    [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(_CJK.pattern), behavior="isolated")]
)


@final
class Jieba:
    """jieba (github.com/fxsjy/jieba) in its accurate mode, with its hidden Markov model for unknown words.

    Attributes:
        name: with the version, since another one may cut otherwise.
    """

    def __init__(self) -> None:
        """Raises MissingExtraError where jieba is not installed."""
        try:
            import jieba
        except ImportError as error:
            raise MissingExtraError("jieba", "chinese", "word_segmenter jieba") from error
        self.name = f"jieba {jieba.__version__}"
        self._cutter: Any = jieba.Tokenizer()
        # As its own `initialize`, but without the cache: a file in the common temporary folder that
        # any version, or anybody, may have written.
        self._cutter.FREQ, self._cutter.total = self._cutter.gen_pfdict(self._cutter.get_dict_file())
        self._cutter.initialized = True

    def borders(self, text: str) -> np.ndarray:
        """bool [len(text) + 1], true before the first character of each word, and at the end."""
        lengths = [len(word) for word in self._cutter.cut(text)]
        borders = np.zeros(len(text) + 1, dtype=bool)
        borders[np.cumsum([0, *lengths])] = True
        return borders


# Once a process: its dictionary takes most of a second.
_jieba = lru_cache(maxsize=1)(Jieba)


def load_segmenter(name: WordSegmenter) -> Jieba | None:
    """The segmenter of that name, the same one every time; None for "none".

    Raises:
        SettingsError: there is none of that name.
        MissingExtraError: it is not installed.
    """
    if name not in get_args(WordSegmenter):
        raise SettingsError(f'unknown word_segmenter "{name}". {did_you_mean(name, get_args(WordSegmenter))}')
    return None if name == "none" else _jieba()


def plain_words(text: str) -> np.ndarray:
    """Int64 [words, 2] code points of what BERT takes for words: parted by white space, punctuation and Chinese apart.

    >>> plain_words("Zo\u00eb's \u6771\u4eac!").tolist()
    [[0, 3], [3, 4], [4, 5], [6, 7], [7, 8], [8, 9]]
    """
    found = [place for _, place in _PLAIN.pre_tokenize_str(text)]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def has_chinese(text: str) -> bool:
    """Whether Chinese characters are in a text.

    >>> has_chinese("T恤"), has_chinese("かな")
    (True, False)
    """
    return _CJK.search(text) is not None


def encode_words(tokenizer: Tokenizer, texts: Sequence[str], segmenter: Jieba | None) -> FlatEncoding:
    """As `Tokenizer.encode_flat`, with the segmenter's words in place of the pre-tokenizer's where text is CJK."""
    if segmenter is None:
        return tokenizer.encode_flat(texts)
    encodings = tokenizer.encode_batch(texts)
    return FlatEncoding(
        np.concatenate([encoding.ids for encoding in encodings]),
        np.concatenate([word_starts(*pair, segmenter) for pair in zip(texts, encodings, strict=True)]),
        np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64),
        sum(tokenizer.unknown_bytes(text, one.ids, one.offsets) for text, one in zip(texts, encodings, strict=True)),
    )


def word_starts(text: str, encoding: Encoding, segmenter: Jieba) -> np.ndarray:
    """bool [n], true on the first token of each word of one text.

    The segmenter decides wherever a CJK character stands on either side of a token's start, so that
    characters are joined to words, clauses are cut into them, and a word may hold letters ("T恤").
    Elsewhere the pre-tokenizer's word starts stay. Tokens that share a character, as bytes and
    expanded ligatures do, are never parted; a token that holds several words joins them.
    """
    cjk = [match.start() for match in _CJK.finditer(text)]
    if not cjk:
        return encoding.word_starts
    touches_cjk = np.zeros(len(text) + 1, dtype=bool)
    touches_cjk[cjk] = True
    touches_cjk[np.array(cjk) + 1] = True
    begins, ends = encoding.offsets[:, 0], encoding.offsets[:, 1]
    is_apart = np.ones(len(begins), dtype=bool)
    is_apart[1:] = (begins[1:] > begins[:-1]) & (begins[1:] >= ends[:-1])
    starts = np.where(touches_cjk[begins], segmenter.borders(text)[begins] & is_apart, encoding.word_starts)
    starts[:1] = True
    return starts
