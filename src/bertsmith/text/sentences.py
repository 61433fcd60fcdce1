"""Sentences out of text, losslessly: put end to end, they are the text again.

The boundaries are found by sentencex (github.com/wikimedia/sentencex). What is added here:

- A blank line always ends a sentence, so paragraphs are never joined.
- Nothing is lost. sentencex leaves out the blank line between some paragraphs of texts over 10 KB,
  and cannot take lone surrogates; only *where* its sentences begin is used, never its copies.
- Any text has sentences. sentencex panics at some with U+0085 and U+2028; they are then one sentence.
- Time stays proportional to the text. sentencex is quadratic in some paragraphs without spaces.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Self, final

import sentencex

from bertsmith.errors import SettingsError, is_panic

# The part of a paragraph that sentencex sees at once, and so the longest sentence, in characters.
_WINDOW = 8192

_BLANK_LINES = re.compile(r"\r?\n[^\S\n]*\n\s*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")
_COUNTRIES = {"cn": "zh", "jp": "ja", "cz": "cs", "dk": "da", "gr": "el"}  # which are codes of no language
_SURROGATE = re.compile("[\ud800-\udfff]")


@final
class SentenceALine(str):
    """A document whose sentences are known: what stands between its blank lines, whatever full stops are in it."""

    __slots__ = ()

    @classmethod
    def of(cls, sentences: Iterable[str]) -> Self:
        """A document of these sentences, which hold no line break and no white space around them."""
        return cls("\n\n".join(sentences))

    def sentences(self) -> list[str]:
        """What it was made of."""
        return self.split("\n\n")


def split_sentences(text: str, language: str = "en") -> list[str]:
    """Cut a text into sentences, each with the white space that follows it.

    A single line break is a space like any other, since prose is often wrapped. A "sentence" of more
    than 8192 characters is cut at a space. Only a text of nothing but white space gives a sentence
    without any other character. Of a `SentenceALine`, only blank lines end a sentence.

    Args:
        language: a code such as "en", "zh" or "pt-br". Where sentencex knows no rules for it, those of
            a related language or of English serve; full stops of all scripts are known to all of them.

    Returns:
        Sentences with `"".join(sentences) == text`; none for an empty text.

    Raises:
        SettingsError: `language` is not of that form.

    >>> split_sentences("Mr. Hill wrote. Twice!\\n\\nNo answer")
    ['Mr. Hill wrote. ', 'Twice!\\n\\n', 'No answer']
    """
    code = language_code(language)
    if isinstance(text, SentenceALine):
        code = ""
    whole = replace_surrogates(text)
    starts: list[int] = []
    # sentencex cuts some paragraphs otherwise when white space is before them.
    begin = len(whole) - len(whole.lstrip())
    for blank in _BLANK_LINES.finditer(whole, begin):
        starts.extend(_sentence_starts(whole, begin, blank.start(), code))
        begin = blank.end()
    starts.extend(_sentence_starts(whole, begin, len(whole), code))
    # White space before the first sentence belongs to it.
    edges = [0, *starts[1:], len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)] if text else []


def language_code(language: str) -> str:
    """The code of a language as sentencex writes it: "pt-br" for "pt_BR".

    Raises:
        SettingsError: it is none, or that of a country.
    """
    code = language.lower().replace("_", "-")
    if not _LANGUAGE.fullmatch(code):
        raise SettingsError(f'language: "{language}" is not a language code. Write for example en, de or zh.')
    if code in _COUNTRIES:
        raise SettingsError(f'language: "{language}" is a country; the code of its language is {_COUNTRIES[code]}.')
    return code


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for every lone surrogate: UTF-8, and so every tokenizer, has none.

    JSON can carry them as escapes. The length stays the same, and with it every offset.
    """
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _sentence_starts(text: str, begin: int, end: int, language: str) -> Iterator[int]:
    """Where the sentences of the paragraph `text[begin:end]` begin, in rising order; without a language it is one."""
    while begin < end:
        window_end = min(begin + _WINDOW, end)
        starts = []
        cursor = begin
        for sentence in _segments(language, text[begin:window_end]):
            start = text.find(sentence, cursor, window_end)
            if start >= 0 and not sentence.isspace():
                starts.append(start)
            cursor = max(cursor, start + len(sentence))
        if window_end == end:
            begin = end
        elif len(starts) > 1:
            begin = starts.pop()  # It may go on behind the window.
        else:
            space = max(text.rfind(space, begin + 1, window_end) for space in " \n\t")
            begin = space + 1 if space > 0 else window_end
        yield from starts


def _segments(language: str, text: str) -> list[str]:
    if not language:
        return [text]
    try:
        return list(sentencex.segment(language, text))
    except BaseException as error:
        if is_panic(error):
            return [text]
        raise
