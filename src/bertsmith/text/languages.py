"""Which language a text is in, by py3langid: Bayes over short sequences of bytes, its model in the package (Lui and
Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool")."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, final

from bertsmith.errors import MissingExtraError, SettingsError, did_you_mean

# It walks the bytes in Python, and no more are needed to tell.
_CHARACTERS = 1000


@final
class Languages:
    """Tells languages apart.

    Attributes:
        name: with the version, since another one may decide otherwise.
    """

    def __init__(self) -> None:
        """Raises MissingExtraError where py3langid is not installed."""
        try:
            import py3langid
        except ImportError as error:
            raise MissingExtraError("py3langid", "languages", "keep_languages") from error
        self.name = f"py3langid {py3langid.__version__}"
        self._identifier: Any = py3langid.langid.LanguageIdentifier.from_model_file(py3langid.langid.MODEL_FILE)

    def language(self, text: str) -> str | None:
        """The code of its most likely language ("en", "zh"), by its first thousand characters; None without letters."""
        begin = text.strip()[:_CHARACTERS]
        return self._identifier.classify(begin)[0] if any(map(str.isalpha, begin)) else None

    def check(self, codes: Sequence[str]) -> None:
        """Raises SettingsError for a language that it does not know."""
        known = sorted(set(self._identifier.nb_classes))
        for code in codes:
            if code not in known:
                raise SettingsError(
                    f'keep_languages: "{code}" is not a language known here. {did_you_mean(code, known)}'
                )


# Once a process: reading the model takes seconds.
load_languages = lru_cache(maxsize=1)(Languages)
