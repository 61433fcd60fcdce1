"""Learn a vocabulary from text: WordPiece, byte-level BPE or Unigram, with BERT's special tokens.

The learning itself is done by Hugging Face `tokenizers`. Three things are arranged around it:

- Bounded memory. At most `limit_bytes` of text are kept, chosen by hash, so the choice is spread
  evenly over the sources and is the same every time; runs without a space are cut
  (huggingface/tokenizers#1170, #1681).
- The same text gives the same vocabulary. The library numbers "##" pieces and picks rare
  characters in the order of a randomly seeded hash table; here the alphabet is chosen first.
- The alphabet is what 99.99 % of the text needs, as SentencePiece's character coverage (Kudo &
  Richardson 2018), and never more than half of the vocabulary, so that a few foreign names do not
  leave an English vocabulary without words.
"""

import hashlib
import heapq
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bertsmith.errors import CorpusError, SettingsError, did_you_mean
from bertsmith.files import atomic_folder, refuse_replacing, write_json
from bertsmith.screen import progress_screen, say
from bertsmith.text.definition import OF_A_TOKENIZER, SpecialTokens, bert_definition, finish_definition
from bertsmith.text.sources import DocumentSeparator, find_sources, iter_documents
from bertsmith.text.tokenizer import Tokenizer

Kind = Literal["wordpiece", "bpe", "unigram"]

_SPECIAL = SpecialTokens()
_NUM_SPECIAL = len(_SPECIAL.names())
_COVERAGE = 0.9999
_BLOCK_CHARACTERS = 65536
_MOST_TOKENS = 1 << 31
_LONGEST_WORD = 100
_MANY_LOST = 0.02  # from this share of the text on, something is said
_SHOWN = 5
_MEASURED_BYTES = 1 << 20
_UNSPACED = re.compile(rf"\S{{{_LONGEST_WORD}}}")


@dataclass(frozen=True)
class Sample:
    """The text a vocabulary is learnt from, and how much of the sources it is."""

    texts: Sequence[str]
    num_documents: int
    seen_bytes: int
    used_bytes: int

    @cached_property
    def code_points(self) -> dict[str, int]:
        """How often each character occurs."""
        counts = np.zeros(0x110000, dtype=np.int64)
        for text in self.texts:
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
            present = np.bincount(points)
            counts[: len(present)] += present
        return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def train_tokenizer(
    sources: Sequence[str],
    out: str | Path,
    *,
    kind: Kind = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool = True,
    text_column: str = "text",
    document_separator: DocumentSeparator = "file",
    delimiter: str | None = None,
    quoting: bool | None = None,
    min_frequency: int = 2,
    limit_bytes: int | None = None,
    overwrite: bool = False,
) -> Tokenizer:
    """Train a tokenizer and save it as a folder that transformers loads.

    Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK] in all three kinds.

    Args:
        sources: files, folders, patterns, hub:ORG/NAME[/CONFIG][:SPLIT] or python-docs; see docs/guide.md.
        out: the folder to write.
        kind: "wordpiece" is BERT's, with CJK characters apart; "bpe" works on bytes and never
            needs the unknown token; "unigram" keeps several ways to cut a word (Kudo 2018).
        vocab_size: the size to reach; less when the text has too few pairs.
        lowercase: lower-case and strip accents, as BERT's uncased models.
        text_column: where rows keep their text.
        document_separator: whether a text file is a document, or blank lines part its documents.
        delimiter: what parts the fields of tables: one character, or tab. By default what a first line `sep=;` says,
            else a comma in .csv and a tab in .tsv.
        quoting: whether fields of tables may stand in quotes; by default in .csv and not in .tsv.
        min_frequency: pairs seen less often are not joined.
        limit_bytes: how much text to keep in memory, in UTF-8 bytes; of more, a sample is taken.
            By default 256 MiB, and 16 MiB for "unigram", which needs far longer. What was seen and
            used is written to `training.json` in the folder.
        overwrite: replace what is in `out`.

    Raises:
        SettingsError: unknown kind, vocab_size too small for the alphabet, or a number out of range; `overwrite` would
            remove what is no tokenizer, or is read.
        CorpusError: the sources have no text.
        StorageError: `out` exists and `overwrite` is false.
    """
    if kind not in get_args(Kind):
        raise SettingsError(f'unknown kind of tokenizer "{kind}". {did_you_mean(kind, get_args(Kind))}')
    _check_numbers(kind, vocab_size, min_frequency, limit_bytes)
    if overwrite:
        refuse_replacing(Path(out), OF_A_TOKENIZER, "a tokenizer", sources)
    with atomic_folder(Path(out), replace=overwrite) as folder:
        documents = iter_documents(
            find_sources(sources),
            text_column=text_column,
            document_separator=document_separator,
            delimiter=delimiter,
            quoting=quoting,
        )
        limit = limit_bytes or (16 if kind == "unigram" else 256) * 1024**2
        sample = sample_texts((document.text for document in documents), limit)
        learn = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[kind]
        # WordPiece and Unigram drop control characters.
        if not any(char.isprintable() or kind == "bpe" for char in sample.code_points if not char.isspace()):
            raise CorpusError(f"no text to train a tokenizer on in {', '.join(sources)}")
        tokenizer = Tokenizer(learn(sample, vocab_size, lowercase, min_frequency), _SPECIAL)
        tokenizer.save(folder)
        record = {
            "kind": kind,
            "vocab_size": tokenizer.vocab_size,
            "lowercase": lowercase,
            "min_frequency": min_frequency,
            "num_documents": sample.num_documents,
            "seen_bytes": sample.seen_bytes,
            "used_bytes": sample.used_bytes,
            "limit_bytes": limit,
        }
        write_json(folder / "training.json", record)
    screen = progress_screen()
    for note in [*(_marks_lost(sample) if lowercase else []), *_text_lost(sample, tokenizer, kind)]:
        say(screen, f"! {note}")
    return tokenizer


def _check_numbers(kind: Kind, vocab_size: int, min_frequency: int, limit_bytes: int | None) -> None:
    # Bytes for BPE; else ASCII, which WordPiece has twice where it joins.
    smallest = _NUM_SPECIAL + {"wordpiece": 160, "bpe": 256, "unigram": 100}[kind]
    if vocab_size < smallest:
        raise SettingsError(f"vocab_size {vocab_size} is too small: {kind} needs at least {smallest}")
    if vocab_size > _MOST_TOKENS or not 1 <= min_frequency <= _MOST_TOKENS:
        raise SettingsError(f"vocab_size must be at most {_MOST_TOKENS:,}, and min_frequency from 1 to that.")
    if limit_bytes is not None and limit_bytes < 1:
        raise SettingsError(f"limit_bytes must be at least 1, not {limit_bytes}.")


def _marks_lost(sample: Sample) -> Iterator[str]:
    """A line where stripping accents takes more from a text than a few of them: vowels, in many scripts."""
    counts = {char: count for char, count in sample.code_points.items() if not char.isspace()}
    lost: Counter[str] = Counter()
    for char, count in counts.items():
        for part in unicodedata.normalize("NFD", char):
            if unicodedata.category(part) == "Mn":
                lost[part] += count
    share = lost.total() / sum(counts.values())
    if share >= _MANY_LOST:
        shown = " ".join(f"\u25cc{mark}" for mark, _ in lost.most_common(_SHOWN))
        yield (
            f"Lower-casing takes {100 * share:.1f} marks ({shown}) off every 100 characters of this text. "
            "Where they are vowels (Thai, Hindi, Arabic) or tell words apart, train with --no-lowercase."
        )


def _text_lost(sample: Sample, tokenizer: Tokenizer, kind: Kind) -> Iterator[str]:
    """A line where the vocabulary cannot write more than a little of the text."""
    texts = sample.texts[:: 1 + sample.used_bytes // _MEASURED_BYTES]
    share = tokenizer.encode_flat(texts).unknown_bytes / max(1, sum(len(text.encode()) for text in texts))
    if share >= _MANY_LOST:
        rare = "its rarer characters"
        what = rare if kind == "unigram" else f"{rare}, and words of more than {_LONGEST_WORD} characters"
        yield (
            f"{share:.1%} of this text becomes the unknown token: {what}. Text without spaces (Thai, Lao, Khmer, "
            "Burmese) wants --kind unigram, many characters a larger --vocab-size."
        )


def sample_texts(documents: Iterable[str], limit_bytes: int) -> Sample:
    """Cut documents into blocks of up to 64 Ki characters and keep blocks up to `limit_bytes`.

    Kept are the blocks with the smallest hashes, so the sample depends on the set of blocks and not
    on their order, and at no time is more than the limit and one document in memory.
    """
    kept: list[tuple[int, int, int, str]] = []  # negative hash, so that the heap gives up the largest
    given_up = 1 << 64  # the smallest hash that found no room: a later block must not take the place of an earlier one
    used_bytes = seen_bytes = num_documents = number = 0
    for document in documents:
        num_documents += 1
        for block in _blocks(document):
            content = block.encode()
            seen_bytes += len(content)
            rank = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
            if rank >= given_up:
                continue
            used_bytes += len(content)
            heapq.heappush(kept, (-rank, number, len(content), block))
            number += 1
            while used_bytes > limit_bytes and len(kept) > 1:
                negative, _, size, _ = heapq.heappop(kept)
                used_bytes, given_up = used_bytes - size, -negative
    kept.sort(key=lambda entry: entry[1])
    return Sample([entry[3] for entry in kept], num_documents, seen_bytes, used_bytes)


def _blocks(text: str) -> Iterator[str]:
    """Cut at the last line end before the limit, or the last space, where there is one."""
    begin = 0
    while begin < len(text):
        end = begin + _BLOCK_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or text.rfind(" ", begin, end) + 1 or end
        yield text[begin:end]
        begin = end


def _wordpiece(sample: Sample, vocab_size: int, lowercase: bool, min_frequency: int) -> str:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frequent = _characters(sample, backend.normalizer)
    joining = {char for char in frequent if _joins(char, backend)}

    def forms(char: str) -> list[str]:
        return [char, f"##{char}"] if char in joining else [char]

    alphabet = _cover(frequent, min_frequency, lambda char: len(forms(char)), (vocab_size - _NUM_SPECIAL) // 2)
    # Given as special tokens, the continuing characters get their ids before the hash table is walked.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*_SPECIAL.names(), *(f"##{char}" for char in alphabet if char in joining)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(sample), trainer)
    vocabulary: dict[str, int] = json.loads(backend.to_str())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    # Chinese has few pairs to learn, as its characters stand apart; the room left goes to rarer ones.
    rarer = [char for char, count in frequent.items() if count >= min_frequency and char not in vocabulary]
    tokens += [form for char in rarer for form in forms(char)][: max(0, vocab_size - len(tokens))]
    return bert_definition(tokens, _SPECIAL, lowercase=lowercase)


def _joins(char: str, backend: Any) -> bool:
    """Whether a character can stand inside a word; CJK characters and punctuation are words of their own."""
    return len(backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(f"a{char}"))) == 1


def _bpe(sample: Sample, vocab_size: int, lowercase: bool, min_frequency: int) -> str:
    """A space is put before the first word, so that a word is the same piece everywhere in a sentence."""
    backend = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=True
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=_SPECIAL.names(),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(sample), trainer)
    return finish_definition(backend, _SPECIAL, [processors.ByteLevel(trim_offsets=True)])


def _unigram(sample: Sample, vocab_size: int, lowercase: bool, min_frequency: int) -> str:
    """Words are cut at spaces, marked with "▁", and punctuation is apart, so that words can be masked whole."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=False, strip_accents=lowercase, lowercase=lowercase
            ),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    apart = tokenizers.Regex(r"▁?[^\s\p{L}\p{N}\p{M}▁]")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(apart, behavior="isolated")]
    )
    backend.decoder = decoders.Metaspace()
    frequent = _characters(sample, backend.normalizer)
    alphabet = _cover(frequent, min_frequency, lambda char: 1, (vocab_size - _NUM_SPECIAL) // 2)
    unseen = [char for char in alphabet if not frequent[char]]
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(unseen),
        special_tokens=_SPECIAL.names(),
        unk_token=_SPECIAL.unk,
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(sample, _rare(sample, backend.normalizer, set(alphabet))), trainer)
    learnt = json.loads(backend.to_str())["model"]["vocab"][_NUM_SPECIAL:]
    if not learnt:
        raise CorpusError(
            f"nothing can be learnt from this text: no character is seen {min_frequency} times. Give more text, or a "
            "lower min_frequency."
        )
    # The library sums, and numbers the characters that it has to keep, in the order of a hash table.
    # Rounded scores, one lowest score for those characters, and a full order do not show it.
    scores = {piece: round(score, 6) for piece, score in learnt}
    characters = [*(piece for piece in scores if len(piece) == 1), *unseen]
    lowest = min(scores.values())
    band = lowest + 1e-4 * (len(characters) + 1)
    scores |= {char: lowest for char in characters if scores.get(char, lowest) < band}
    special = [(name, 0.0) for name in _SPECIAL.names()]
    ordered = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    backend.model = models.Unigram([*special, *ordered], unk_id=special.index((str(_SPECIAL.unk), 0.0)))
    return finish_definition(backend, _SPECIAL)


def _pieces(sample: Sample, rare: str = "") -> Iterator[list[str]]:
    """Blocks for a trainer: no run of more than 100 characters without a space, spaces for rare characters."""
    blanks = dict.fromkeys(map(ord, rare), " ")
    for text in sample.texts:
        spaced = _UNSPACED.sub(r"\g<0> ", text.translate(blanks) if blanks else text)
        yield [spaced]


def _characters(sample: Sample, normalizer: Any) -> dict[str, int]:
    """How often each normalized character occurs, most frequent first, ties by code point.

    Printable ASCII is in it even where the text has none: other texts will.
    """
    counts: dict[str, int] = {}
    for char, count in [*sample.code_points.items(), *((chr(point), 0) for point in range(33, 127))]:
        for result in normalizer.normalize_str(char):
            if not result.isspace():
                counts[result] = counts.get(result, 0) + count
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _cover(frequent: Mapping[str, int], min_frequency: int, cost: Callable[[str], int], room: int) -> list[str]:
    """The alphabet, sorted: ASCII, and the most frequent characters until the coverage or `room` is reached."""
    chosen = [char for char in frequent if char.isascii()]
    room -= sum(map(cost, chosen))
    needed = _COVERAGE * sum(frequent.values()) - sum(frequent[char] for char in chosen)
    for char, count in frequent.items():
        if needed <= 0 or count < min_frequency or room < cost(char):
            break
        if not char.isascii():
            chosen.append(char)
            room -= cost(char)
            needed -= count
    return sorted(chosen)


def _rare(sample: Sample, normalizer: Any, alphabet: set[str]) -> str:
    """The characters of the text that normalize to something outside the alphabet."""
    return "".join(
        char
        for char in sample.code_points
        if not alphabet.issuperset(result for result in normalizer.normalize_str(char) if not result.isspace())
    )
