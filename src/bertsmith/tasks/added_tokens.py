"""The tokens that a corpus's tokenizer has beyond those of the model that pre-training goes on from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bertsmith.errors import ModelError
from bertsmith.model.folder import read_config
from bertsmith.tasks.run_folder import model_folder
from bertsmith.tasks.saved import check_vocabulary
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class AddedTokens:
    """Each new token's id -> the ids of the pieces that the model's own tokenizer cuts its text into."""

    pieces: Mapping[int, Sequence[int]] = field(default_factory=dict)
    warning: str | None = None
    """Why nobody knows whether the corpus's tokens are the model's."""

    @property
    def mean_pieces(self) -> float:
        """How many pieces a new token starts from, on average."""
        return sum(map(len, self.pieces.values())) / max(1, len(self.pieces))

    def facts(self) -> dict[str, float]:
        """For the records of a run; nothing where there are no new tokens."""
        return {"added_tokens": len(self.pieces), "mean_pieces": self.mean_pieces} if self.pieces else {}

    def notes(self) -> list[str]:
        """Sentences for who trains; none where there are no new tokens, and no doubt."""
        if self.warning is not None:
            return [self.warning]
        if not self.pieces:
            return []
        return [
            f"{len(self.pieces):,} tokens are new to the model; each starts as the mean of the pieces that it was "
            f"cut into, {self.mean_pieces:.1f} on average."
        ]


def added_tokens(model: str | None, tokenizer: Tokenizer) -> AddedTokens:
    """What `tokenizer` has that a model does not know: none if there is no model to go on from.

    New are the ids behind those of the model's own tokenizer, where all before are the same tokens. They may be
    more than the model has rows, or fall on rows that stood for nothing (many models round their number up).

    Args:
        model: of a run, of a model, or a Hub id; its own tokenizer lies in its folder.
        tokenizer: the corpus's.

    Raises:
        ModelError: it is another tokenizer than the model's own, and no extension of it; or the model has too few
            rows, and no tokenizer of its own in its folder.
    """
    if model is None:
        return AddedTokens()
    place = model_folder(model)
    vocab_size = read_config(place)[0].vocab_size
    try:
        own = load_tokenizer(place)
        check_vocabulary(own, vocab_size, model)
    except ModelError as error:
        if tokenizer.vocab_size > vocab_size:
            raise ModelError(
                f"{model}: the corpus's tokenizer has {tokenizer.vocab_size} tokens, the model only {vocab_size} "
                f"(vocab_size). To give it new ones, its own tokenizer is needed in its folder, but: {error}"
            ) from error
        return AddedTokens(
            warning=f"Nothing says whether the corpus was made with the tokenizer of {model}: its own is needed in "
            f"its folder, but: {error}"
        )
    difference = vocabulary_difference(tokenizer, own)
    if difference is not None:
        raise ModelError(
            f"{model}: the corpus's tokenizer has {tokenizer.vocab_size} tokens, the model's own {own.vocab_size}, "
            f"and it does not extend the model's: {difference}. Build the corpus with the model's tokenizer, or with "
            "what `bertsmith tokenizer extend` makes of it."
        )
    new = range(own.vocab_size, tokenizer.vocab_size)
    return AddedTokens({token_id: own.encode(_text(tokenizer, token_id)).ids.tolist() for token_id in new})


def vocabulary_difference(tokenizer: Tokenizer, own: Tokenizer) -> str | None:
    """What `tokenizer` would make of text that is not in terms of `own`; None if it only knows more tokens."""
    common = range(min(own.vocab_size, tokenizer.vocab_size))
    pairs = zip(tokenizer.tokens(common), own.tokens(common), strict=True)
    for token_id, (theirs, ours) in enumerate(pairs):
        if theirs != ours:
            return f'token {token_id} is "{theirs}", the model\'s is "{ours}"'
    if tokenizer.vocab_size < own.vocab_size:
        return f'it has no token {tokenizer.vocab_size}, the model\'s is "{own.tokens([tokenizer.vocab_size])[0]}"'
    if tokenizer.lowercase != own.lowercase:
        lower, cased = ("it", "the model's") if tokenizer.lowercase else ("the model's", "it")
        return f"{lower} makes text lower-case, {cased} does not"
    return None


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    """What a token stands for, with the space before it if it has one: as it is decoded behind another token."""
    before = tokenizer.decode([tokenizer.mask_id])
    return tokenizer.decode([tokenizer.mask_id, token_id]).removeprefix(before)
