"""Entities as spans of words: tagging schemes in, IOB2 out, and how found spans are scored.

A tag is a prefix and a type, `B-PER`; the type may be missing where there is only one (`B`, `I`, `O`).
Spans are read by the rules of conlleval (Tjong Kim Sang & Buchholz 2000), which give every sequence
of tags a meaning, also one that a model made up.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bertsmith.errors import InputError

Scheme = Literal["iob1", "iob2", "bioes", "none"]
"""How entities are written: `I-` first unless two of a type meet (iob1), `B-` first (iob2), with
`E-` last and `S-` alone (bioes; `L-` and `U-` mean the same, and the `M-` of BMES is an `I-`);
"none": every tag is a label as it is."""

OUTSIDE = "O"
_PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


@dataclass(frozen=True, order=True)
class Span:
    """Words [start, end) that are one entity of type `label` ("" in a scheme without types)."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Scores:
    """Counts of strict matches: an entity is right if its words and its type are."""

    right: int
    found: int
    wanted: int

    @property
    def precision(self) -> float:
        """Right among the found; 0 if nothing was found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Right among the wanted; 0 if nothing was wanted."""
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; 0 if both are."""
        return 2 * self.right / (self.found + self.wanted) if self.right else 0.0


def split_tag(tag: str) -> tuple[str, str] | None:
    """Prefix (B, I, E, S or O) and type of a tag; None if it is not written in such a scheme.

    >>> split_tag("U-ORG"), split_tag("M-ORG"), split_tag("I"), split_tag("O"), split_tag("NOUN")
    (('S', 'ORG'), ('I', 'ORG'), ('I', ''), ('O', ''), None)
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    if prefix not in _PREFIXES or (dash and not label):
        return None
    return _PREFIXES[prefix], label


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme a set of tagged sentences is written in.

    Tags are entities if "O" is among them and others can be read as prefix and type. Then `E-`,
    `S-` or `M-` tell bioes, and a `B-` that does not follow its own type tells iob2.
    """
    tags: set[str] = set()
    starts: Counter[str] = Counter()
    for sentence in sentences:
        tags.update(sentence)
        previous = OUTSIDE, ""
        for tag in sentence:
            prefix, label = split_tag(tag) or (OUTSIDE, "")
            if prefix != OUTSIDE and (previous[0] == OUTSIDE or previous[1] != label):
                starts[prefix] += 1
            previous = prefix, label
    readable = {tag for tag in tags if split_tag(tag) is not None}
    has_types = any("-" in tag for tag in readable)
    if OUTSIDE not in tags or not starts or (len(readable) < len(tags) and not has_types):
        return "none"
    prefixes = {tag[0] for tag in readable}
    if prefixes & {"E", "L", "S", "U", "M"}:
        return "bioes"
    return "iob2" if starts["B"] else "iob1"


def read_spans(tags: Sequence[str]) -> list[Span]:
    """Entities of a sentence, left to right, whatever scheme its tags are in.

    A span goes on only where the same type follows by I or E, and the span before is not closed by
    E or S; anything else starts a new one. So one function reads all schemes, and repairs tags that
    belong to none. Labels that are not of entities are outside.

    >>> read_spans(["I-PER", "I-PER", "B-PER", "O", "I-LOC"])
    [Span(start=0, end=2, label='PER'), Span(start=2, end=3, label='PER'), Span(start=4, end=5, label='LOC')]
    """
    spans: list[Span] = []
    start, open_label, closed = 0, None, True
    for position, tag in enumerate(tags):
        prefix, label = split_tag(tag) or (OUTSIDE, "")
        goes_on = prefix in ("I", "E") and not closed and open_label == label
        if not goes_on:
            if open_label is not None:
                spans.append(Span(start, position, open_label))
            start, open_label = position, (None if prefix == OUTSIDE else label)
        closed = prefix in ("E", "S", OUTSIDE)
    if open_label is not None:
        spans.append(Span(start, len(tags), open_label))
    return spans


def allowed_neighbours(labels: Sequence[str], has_entities: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which labels a sentence may begin with, and which may stand behind which: an entity goes on only from its own.

    Labels that are not of entities may stand anywhere.

    >>> allowed_neighbours(["O", "B-PER", "I-PER"], True)[1].astype(int).tolist()  # I-PER is not behind O
    [[1, 1, 0], [1, 1, 1], [1, 1, 1]]

    Returns:
        bool [C] and bool [C, C], the label before and the one behind it.
    """
    outside = OUTSIDE, ""
    parts = [(split_tag(label) or outside) if has_entities else outside for label in labels]
    goes_on = np.array([prefix in ("I", "E") for prefix, _ in parts])
    own = np.array([[before[0] in ("B", "I") and before[1] == behind[1] for behind in parts] for before in parts])
    return ~goes_on, ~goes_on | own


def write_iob2(spans: Iterable[Span], length: int) -> tuple[str, ...]:
    """IOB2 tags of a sentence of `length` words with these spans; the opposite of `read_spans`."""
    tags = [OUTSIDE] * length
    for span in spans:
        ending = f"-{span.label}" if span.label else ""
        tags[span.start : span.end] = [f"B{ending}"] + [f"I{ending}"] * (span.end - span.start - 1)
    return tuple(tags)


def over_parts(tags: Sequence[str], words: Sequence[int], *, has_entities: bool) -> tuple[str, ...]:
    """The tag of each part of words, in order: in IOB2 what follows the first part of a word goes on with its entity.

    Args:
        words: which word each part is of.

    >>> over_parts(["B-LOC", "O"], [0, 0, 1, 1], has_entities=True)
    ('B-LOC', 'I-LOC', 'O', 'O')
    """
    found = []
    for part, word in enumerate(words):
        goes_on = has_entities and part > 0 and words[part - 1] == word and tags[word].startswith("B")
        found.append(f"I{tags[word][1:]}" if goes_on else tags[word])
    return tuple(found)


def further_labels(labels: Sequence[str], *, has_entities: bool) -> np.ndarray:
    """Which label the next part of a word has behind a part with which, as `over_parts` has them.

    >>> further_labels(["O", "B-PER", "I-PER"], has_entities=True).astype(int).tolist()  # I-PER behind both of PER
    [[1, 0, 0], [0, 0, 1], [0, 0, 1]]

    Returns:
        bool [C, C], the label before and the one behind it.
    """
    further = [over_parts((label,), (0, 0), has_entities=has_entities)[1] for label in labels]
    return np.array([[label == one for label in labels] for one in further])


def in_words_of(labels: Collection[str], tags: Sequence[str]) -> tuple[str, ...]:
    """IOB2 tags as a model with these labels writes them: ours as they are, those of others in IOB1 or BIOES.

    A type that has an `I-` but no `B-` is of IOB1, where `B-` is only for an entity behind another of its type.

    >>> in_words_of(["O", "I-PER", "B-LOC", "I-LOC"], ["B-PER", "O", "B-LOC", "B-LOC"])
    ('I-PER', 'O', 'I-LOC', 'B-LOC')
    >>> in_words_of(["O", "B-PER", "I-PER", "E-PER", "S-PER"], ["B-PER", "I-PER", "B-PER"])
    ('B-PER', 'E-PER', 'S-PER')
    """
    is_iob1 = any(label.startswith("I") and f"B{label[1:]}" not in labels for label in labels)
    written = []
    for number, tag in enumerate(tags):
        before = tags[number - 1] if number else OUTSIDE
        behind = tags[number + 1] if number + 1 < len(tags) else OUTSIDE
        prefix, ending = tag[:1], tag[1:]
        is_last = behind != f"I{ending}"
        ways = {"B": "SUB" if is_last else "B", "I": "ELI" if is_last else "IM"}.get(prefix, "")
        if is_iob1 and prefix == "B" and before[1:] != ending:
            ways = "I"
        written.append(next((way + ending for way in ways if way + ending in labels), tag))
    return tuple(written)


def to_iob2(tags: Sequence[str], scheme: Scheme, where: str) -> tuple[str, ...]:
    """Tags of any scheme as IOB2; those of scheme "none" as they are.

    Raises:
        InputError: a tag that is not one of the scheme.
    """
    if scheme == "none":
        return tuple(tags)
    for number, tag in enumerate(tags, start=1):
        if split_tag(tag) is None:
            raise InputError(
                f'the tag "{tag}" of word {number} is neither O nor B-, I-, M-, E- or S- with a type. '
                'Mend it, or set scheme to "none" if every tag is a label of its own.',
                where,
            )
    return write_iob2(read_spans(tags), len(tags))


def misfits(tags: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """Tags of a sentence that stand where their scheme has no place for them, each with how `read_spans` reads it.

    >>> misfits(["O", "I-PER", "B-LOC", "I-PER"], "iob2")
    ('word 2: I-PER after O begins an entity', 'word 4: I-PER after B-LOC begins an entity')
    >>> misfits(["B-PER", "O", "I-PER"], "bioes")
    ('word 1: B-PER before O is all of an entity', 'word 3: I-PER after O begins an entity')
    """
    if scheme == "none":
        return ()
    outside = OUTSIDE, ""
    parts = [outside, *((split_tag(tag) or outside) for tag in tags), outside]
    found = []
    for number, tag in enumerate(tags, start=1):
        (before, own_before), (prefix, label), (behind, own_behind) = parts[number - 1 : number + 2]
        goes_on = before in ("B", "I") and own_before == label
        went_on = behind in ("I", "E") and own_behind == label
        if prefix in ("E", "S") and scheme != "bioes":
            how = "is not a tag of this scheme and ends an entity"
        elif prefix in ("I", "E") and not goes_on and scheme != "iob1":
            how = f"after {tags[number - 2] if number > 1 else 'nothing'} begins an entity"
        elif prefix in ("B", "I") and not went_on and scheme == "bioes":
            how = f"before {tags[number] if number < len(tags) else 'nothing'} is "
            how += "all of an entity" if prefix == "B" else "the end of an entity"
        elif tag.startswith("M") and scheme != "bioes":
            how = "is not a tag of this scheme and is read as I"
        else:
            continue
        found.append(f"word {number}: {tag} {how}")
    return tuple(found)


def score_entities(gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]]) -> dict[str, Scores]:
    """Strict scores over sentences: for each type, and over all of them under the key "".

    In a scheme without types "" is all there is.
    """
    right: Counter[str] = Counter()
    found: Counter[str] = Counter()
    wanted: Counter[str] = Counter()
    for gold_spans, predicted_spans in zip(gold, predicted, strict=True):
        wanted.update(span.label for span in gold_spans)
        found.update(span.label for span in predicted_spans)
        right.update(span.label for span in set(gold_spans) & set(predicted_spans))
    labels = sorted((wanted.keys() | found.keys()) - {""})
    scores = {"": Scores(right.total(), found.total(), wanted.total())}
    return scores | {label: Scores(right[label], found[label], wanted[label]) for label in labels}


def score_by_length(
    gold: Sequence[Sequence[Span]], predicted: Sequence[Sequence[Span]], longest: int
) -> dict[int, Scores]:
    """Strict scores over sentences for each number of words that an entity has; `longest` stands for more, too."""
    right, found, wanted = (
        Counter(min(span.end - span.start, longest) for spans in several for span in spans)
        for several in (
            [set(one) & set(other) for one, other in zip(gold, predicted, strict=True)],
            predicted,
            gold,
        )
    )
    return {length: Scores(right[length], found[length], wanted[length]) for length in sorted(wanted | found)}
