"""Which encoding text that is not UTF-8 is in: a guess good enough for a hint.

Any bytes are text in most encodings, and converted from a wrong one they are lost. So an encoding of another script
must be right in three ways: all bytes decode; nearly all of the characters are in daily use; and they stand beside
each other. Letters with accents stand between ASCII letters, and what two of them make of each other is rare.

The encodings of Latin letters share nearly all of their bytes; there it is asked whose language has all these letters.
"""

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

_ODD = r"[^\x00-\x7f]"
_BESIDE_ODD = re.compile(rf"(?<={_ODD}){_ODD}|{_ODD}(?={_ODD})")
_BESIDE_LETTER = re.compile(rf"(?<=[A-Za-z]){_ODD}|{_ODD}(?=[A-Za-z])")
_PUNCTUATION = "".join(map(chr, (*range(0x3000, 0x3030), *range(0xFF01, 0xFF5F)))) + "“”„‘’‚«»…—–·№"
_KANA = "".join(map(chr, range(0x3041, 0x3100)))
_CYRILLIC = "".join(map(chr, range(0x410, 0x450))) + "ЁёІіЇїЄєҐґЎў"
_GREEK = "".join(map(chr, range(0x386, 0x3CF)))
# Lead bytes of the characters in daily use, in the standards that sort characters by use. Hangul has a part of its own.
_CHINESE = (("gb2312", range(0xB0, 0xD8)), ("big5", range(0xA4, 0xC7)))
_JAPANESE = (("euc_jp", range(0xB0, 0xD0)),)
_KOREAN = (("euc_kr", range(0xB0, 0xC9)),)
_FEWEST_USUAL = 0.75
_FEWEST_BESIDE = 0.5
_FEWEST_FREQUENT = 0.2  # of the letters of an alphabet, and as many may stand beside ASCII letters


class _Script(NamedTuple):
    """An encoding by the name that iconv knows, and what is written in it."""

    encoding: str
    codec: str
    parts: tuple[tuple[str, range], ...]
    """(codec, lead bytes) of characters in daily use."""
    others: str
    """More of them, besides punctuation."""
    frequent: str
    """Those that are in any sentence: between encodings of the same bytes they decide."""


_HANZI = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会也你对好年月日這個們來為國說時會對"
_RUSSIAN = "оеаинтсрвл"
_SCRIPTS = (
    _Script("GB18030", "gb18030", _CHINESE, "", _HANZI),
    _Script("CP950", "cp950", _CHINESE, "", _HANZI),  # Big5
    _Script("CP932", "cp932", _JAPANESE, _KANA, "のにはをたがでてとしれさあいるもなかす年月日"),  # Shift-JIS
    _Script("EUC-JP", "euc_jp", _JAPANESE, _KANA, "のにはをたがでてとしれさあいるもなかす年月日"),
    _Script("CP949", "cp949", _KOREAN, "", "이다의는에을가고하지로한사기를은도어리자인해서"),  # EUC-KR
    _Script("WINDOWS-1251", "cp1251", (), _CYRILLIC, _RUSSIAN),
    _Script("KOI8-R", "koi8_r", (), _CYRILLIC, _RUSSIAN),
    _Script("WINDOWS-1253", "cp1253", (), _GREEK, "αοιετσνηυρ"),
)

_EASTERN = ("ąćęłńóśźż", "áčďéěíĺľňóôŕřšťúůýžä", "áéíóöőúüű", "čćđšž", "ăâîşţ")  # pl; cs, sk; hu; hr, sl; ro
_LATIN: Mapping[str, tuple[str, Sequence[str]]] = MappingProxyType(
    {
        "WINDOWS-1250": ("cp1250", _EASTERN),
        "ISO-8859-2": ("iso8859_2", _EASTERN),
        "WINDOWS-1254": ("cp1254", ("âçğıîöşüû",)),  # tr
        "WINDOWS-1257": ("cp1257", ("ąčęėįšųūž", "āčēģīķļņšūž")),  # lt; lv
    }
)
"""Encoding -> its codec, and the letters beyond ASCII of each language that is written in it."""
# fr, en; de, et, sv, fi; es; it; pt; is, da, no
_WESTERN = ("àâæçéèêëîïôœùûüÿ", "äöüßõåéšž", "áéíñóúüïªº", "àèéìíîòóùú", "áâãàçéêíóôõúüªº", "áéíóúýðþæöøåäü")
_SYMBOLS = "¡¢£¥§©¬®°±²³´µ·¹¼½¾¿×÷€‰™\xa0\xad"
_FEWEST_LETTERS = 3  # different ones, that tell a language
_FEWEST_OF_LANGUAGE = 0.9


def likely_encoding(text: bytes) -> str:
    """The name for iconv of an encoding that the text may be in.

    Args:
        text: lines that are not UTF-8, the more the better; the last one may be cut.
    """
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    score, encoding = max(((_score(text, script), script.encoding) for script in _SCRIPTS), key=lambda pair: pair[0])
    if score > 0:
        return encoding
    western = _of_language(text, "cp1252", [letters + _SYMBOLS for letters in _WESTERN], fewest=0)
    shares = {name: _of_language(text, *others, fewest=_FEWEST_LETTERS) for name, others in _LATIN.items()}
    other = max(shares, key=shares.__getitem__)
    return other if shares[other] > max(western, _FEWEST_OF_LANGUAGE) else _western(text)


def _of_language(text: bytes, codec: str, languages: Sequence[str], *, fewest: int) -> float:
    """The share of the odd characters that the best of the languages has; 0: it has fewer different letters."""
    counts = Counter(re.findall(_ODD, text.decode(codec, "replace").lower()))
    best = 0
    for letters in languages:
        found = counts.keys() & set(letters)
        if len(found) >= fewest:
            best = max(best, sum(counts[one] for one in found.union(_PUNCTUATION)))
    return best / counts.total()


def _western(text: bytes) -> str:
    """Windows-1252 is Latin-1 with quotes, dashes and the euro sign in place of control characters."""
    if not re.search(rb"[\x80-\x9f]", text):
        return "ISO-8859-1"
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return "ISO-8859-1"
    return "WINDOWS-1252"


def _score(text: bytes, script: _Script) -> float:
    """How much the text looks like the script in that encoding, up to 2; 0 where it does not."""
    try:
        decoded = codecs.getincrementaldecoder(script.codec)().decode(text)  # which lets the last character be cut
    except UnicodeDecodeError:
        return 0.0
    counts = Counter(re.findall(_ODD, decoded))
    usual = sum(count for char, count in counts.items() if char in _usual(script))
    frequent = sum(count for char, count in counts.items() if char in script.frequent)
    beside = len(_BESIDE_ODD.findall(decoded))
    total = counts.total()
    if script.parts:
        beside = max(beside, frequent)  # an ideograph may be a word, or stand in a word of ASCII letters
    elif frequent < _FEWEST_FREQUENT * total or len(_BESIDE_LETTER.findall(decoded)) > _FEWEST_FREQUENT * total:
        return 0.0
    if not total or usual < _FEWEST_USUAL * total or beside < _FEWEST_BESIDE * total:
        return 0.0
    return (usual + frequent) / total


@cache
def _usual(script: _Script) -> frozenset[str]:
    """The characters in daily use."""
    pairs = ((codec, bytes((lead, trail))) for codec, leads in script.parts for lead in leads for trail in _TRAILS)
    return frozenset(script.others + _PUNCTUATION).union(pair.decode(codec, "ignore") for codec, pair in pairs)


_TRAILS = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
