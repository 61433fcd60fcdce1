"""The commands `tokenizer train`, `tokenizer extend` and `corpus build`."""

import sys

from bertsmith.cli.config import as_verb
from bertsmith.text.corpus import Manifest
from bertsmith.text.corpus_building import BuildProgress, build_corpus
from bertsmith.text.domain_words import Extension, extend_tokenizer
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer

_SHOWN_WORDS = 10


def _show_tokenizer(tokenizer: Tokenizer) -> None:
    print(f"{tokenizer.vocab_size:,} tokens, {'lower-cased' if tokenizer.lowercase else 'cased'}.")


def _show_extension(extension: Extension) -> None:
    words, before, after = extension.words, extension.before, extension.after
    size = extension.tokenizer.vocab_size
    print(f"{len(words):,} words added: {size - len(words):,} -> {size:,} tokens.")
    print(f"Tokens a word in these texts: {before.tokens_per_word:.3f} -> {after.tokens_per_word:.3f}.")
    for word in words[:_SHOWN_WORDS]:
        print(f"  {word.token}: {word.count:,} times {' '.join(word.pieces)}, {word.num_saved:,} tokens saved")
    if after.num_unknown > before.num_unknown:
        print(
            f"! {after.num_unknown - before.num_unknown:,} words became the unknown token: they begin with a new one, "
            "and the vocabulary cannot write what follows it."
        )


def _show_progress(done: BuildProgress) -> None:
    print(
        f"{done.num_shards} shards: {done.num_documents:,} documents, {done.num_sentences:,} sentences, "
        f"{done.num_tokens:,} tokens, {done.text_bytes / 2**20:.1f} MiB",
        file=sys.stderr,
    )


def _show_corpus(manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        counts = (split.num_documents, split.num_sentences, split.num_tokens)
        print(f"{name}: " + "{:,} documents, {:,} sentences, {:,} tokens.".format(*counts))
    if manifest.selection is not None:
        print(manifest.selection.summary())


tokenizer_train = as_verb(train_tokenizer, _show_tokenizer)
tokenizer_extend = as_verb(extend_tokenizer, _show_extension)
corpus_build = as_verb(build_corpus, _show_corpus, fixed={"progress": _show_progress})
