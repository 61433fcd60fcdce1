"""Files of a model repository on the Hugging Face Hub; nothing is asked of the network unless its name is given."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from bertsmith.errors import ModelError

_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
# Of the library that asks the network: lost connections and proxies that refuse are raised as they come.
_HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]


def fetch(name: str, file_patterns: Sequence[str], instead: str) -> Path:
    """The folder of the Hub's cache that holds those files of a repository.

    Args:
        name: `organisation/name`, with `@` and a commit, tag or branch if it shall not be what is newest.
        instead: what else the user could have given, for the message; "a model folder".

    Raises:
        ModelError: not such a name, or the Hub does not give it.
    """
    if (parts := _NAME.fullmatch(name)) is None:
        raise ModelError(
            f"{name}: no such file or folder. Give {instead}, or the organisation/name of one on the Hub, such as "
            "google-bert/bert-base-uncased."
        )
    try:
        repository, revision = parts.groups()
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(file_patterns)))
    except (OSError, _HTTP_ERROR, HFValidationError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{name}: no such file or folder here, and none came from the Hugging Face Hub ({reason})"
        ) from error
