"""The commands `tokenizer train` and `corpus build`."""

import sys

from bertsmith.cli.config import as_verb
from bertsmith.text.corpus import Manifest
from bertsmith.text.corpus_building import BuildProgress, build_corpus
from bertsmith.text.tokenizer import Tokenizer
from bertsmith.text.tokenizer_training import train_tokenizer


def _show_tokenizer(tokenizer: Tokenizer) -> None:
    print(f"{tokenizer.vocab_size:,} tokens, {'lower-cased' if tokenizer.lowercase else 'cased'}.")


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


tokenizer_train = as_verb(train_tokenizer, _show_tokenizer)
corpus_build = as_verb(build_corpus, _show_corpus, fixed={"progress": _show_progress})
