"""Which scripts a text is written in, by the names that Unicode gives its letters."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

_NAMES = {"CJK": "Chinese characters", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
_MOST_CHARACTERS = 1_000_000


def script_shares(texts: Iterable[str]) -> Mapping[str, float]:
    """The share of each script among the letters of (the first million characters of) some texts, largest first.

    >>> script_shares(["Paris, 北京"])
    {'Latin': 0.7142857142857143, 'Chinese characters': 0.2857142857142857}
    """
    characters: Counter[str] = Counter()
    num_read = 0
    for text in texts:
        characters.update(text)
        num_read += len(text)
        if num_read >= _MOST_CHARACTERS:
            break
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            first = unicodedata.name(character, "unnamed").split(" ")[0].split("-")[0]
            scripts[_NAMES.get(first, first.capitalize())] += count
    return {script: count / scripts.total() for script, count in scripts.most_common()}
