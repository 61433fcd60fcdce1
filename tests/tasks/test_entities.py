"""Tagging schemes and the scores of entities, against hand-worked cases, conlleval's rules and nervaluate."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator

from bertsmith.errors import InputError
from bertsmith.tasks.entities import (
    Span,
    detect_scheme,
    misfits,
    read_spans,
    score_entities,
    split_tag,
    to_iob2,
    write_iob2,
)
from bertsmith.text.labelled import read_columns

TYPES = ("LOC", "ORG", "PER")
LENGTH = 12


@st.composite
def span_lists(draw: st.DrawFn) -> list[Span]:
    """Spans that do not overlap, in a sentence of LENGTH words; neighbours may touch."""
    cuts = sorted(draw(st.lists(st.integers(0, LENGTH), max_size=8, unique=True)))
    pairs = list(itertools.pairwise(cuts))
    kept = [pair for pair in pairs if draw(st.booleans())]
    return [Span(start, end, draw(st.sampled_from(TYPES))) for start, end in kept]


def write(spans: list[Span], scheme: str) -> list[str]:
    """The schemes by their definitions (Ratinov & Roth 2009, section 5; Tjong Kim Sang & Veenstra 1999)."""
    tags = ["O"] * LENGTH
    for span in spans:
        for word in range(span.start, span.end):
            first, last = word == span.start, word == span.end - 1
            if scheme == "iob1":
                touches = any(other.end == span.start and other.label == span.label for other in spans)
                prefix = "B" if first and touches else "I"
            elif scheme == "iob2":
                prefix = "B" if first else "I"
            else:
                begin, inside, end, single = {"bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}[scheme]
                prefix = single if first and last else begin if first else end if last else inside
            tags[word] = f"{prefix}-{span.label}"
    return tags


@given(span_lists(), st.sampled_from(["iob1", "iob2", "bioes", "bilou", "bmes"]))
def test_every_scheme_is_read_back(spans, scheme):
    assert read_spans(write(spans, scheme)) == spans


@given(span_lists(), st.sampled_from(["iob1", "iob2", "bioes", "bilou", "bmes"]))
def test_what_is_written_by_a_scheme_fits_it(spans, scheme):
    assert misfits(write(spans, scheme), "bioes" if scheme in ("bilou", "bmes") else scheme) == ()


@given(st.lists(st.sampled_from(["O", *(f"{prefix}-{name}" for prefix in "BIES" for name in "XY")]), max_size=6))
def test_what_fits_its_scheme_is_written_back_as_it_was(tags):
    if not misfits(tags, "iob2"):
        assert to_iob2(tags, "iob2", "x") == tuple(tags)


@given(span_lists())
def test_iob2_is_written_by_its_definition(spans):
    assert list(write_iob2(spans, LENGTH)) == write(spans, "iob2")
    assert list(to_iob2(write(spans, "bioes"), "bioes", "x")) == write(spans, "iob2")


@given(st.lists(st.sampled_from(["O", *(f"{p}-{t}" for p in "BIES" for t in TYPES[:2])]), max_size=10))
def test_any_tags_are_read_as_conlleval_does(tags):
    """startOfChunk and endOfChunk of conlleval.pl, table by table."""

    def parts(tag: str) -> tuple[str, str]:
        return (tag[0], tag[2:])

    def ends(previous: str, tag: str) -> bool:
        (p, p_type), (t, t_type) = parts(previous), parts(tag)
        return (
            (p, t) in {("B", "B"), ("B", "O"), ("B", "S"), ("I", "B"), ("I", "O"), ("I", "S")}
            or p in ("E", "S")
            or (p != "O" and p_type != t_type)
        )

    def begins(previous: str, tag: str) -> bool:
        (p, p_type), (t, t_type) = parts(previous), parts(tag)
        return t in ("B", "S") or (t != "O" and (p in ("E", "S", "O") or p_type != t_type))

    chunks, start = [], None
    for position, (previous, tag) in enumerate(zip(["O", *tags], [*tags, "O"], strict=True)):
        if start is not None and ends(previous, tag):
            chunks.append(Span(start, position, parts(previous)[1]))
            start = None
        if begins(previous, tag):
            start = position
    assert read_spans(tags) == chunks


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        ([["I-PER", "I-PER", "B-PER", "O"]], "iob1"),
        ([["I-PER", "O"], ["O", "I-LOC"]], "iob1"),
        ([["B-PER", "I-PER", "O"], ["B-LOC", "B-LOC"]], "iob2"),
        ([["O", "S-PER"], ["B-LOC", "E-LOC"]], "bioes"),
        ([["O", "U-PER"], ["B-LOC", "L-LOC"]], "bioes"),
        ([["O", "S-PER"], ["B-LOC", "M-LOC", "E-LOC"]], "bioes"),
        ([["B-LOC", "M-LOC", "O"]], "bioes"),
        ([["B", "I", "O"]], "iob2"),
        ([["B", "M", "E", "S"]], "none"),  # words of a text without spaces
        ([["NOUN", "VERB"], ["O"]], "none"),
        ([["B-PER", "I-PER"]], "none"),  # no O: a language of two tags, not entities
        ([["O", "O"]], "none"),
        ([["O", "B-PER", "PERSON"]], "iob2"),  # the odd tag is then reported, with its place
        ([], "none"),
    ],
)
def test_schemes_are_told_apart(sentences, scheme):
    assert detect_scheme(sentences) == scheme


@pytest.mark.parametrize(
    ("tag", "expected"), [("B-", None), ("X-PER", None), ("I-creative-work", ("I", "creative-work"))]
)
def test_tags_with_odd_prefixes_and_types(tag, expected):
    assert split_tag(tag) == expected


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-ORG", "M-ORG", "M-ORG", "E-ORG", "O", "S-PER"], [(0, 4, "ORG"), (5, 6, "PER")]),
        (["S-LOC", "S-LOC", "B-LOC", "E-LOC"], [(0, 1, "LOC"), (1, 2, "LOC"), (2, 4, "LOC")]),
        (["B-MISC", "M-MISC", "M-LOC", "E-LOC"], [(0, 2, "MISC"), (2, 4, "LOC")]),
        (["E-PER", "M-PER", "O", "M-PER"], [(0, 1, "PER"), (1, 2, "PER"), (3, 4, "PER")]),
        (["B", "M", "E", "O", "S"], [(0, 3, ""), (4, 5, "")]),
    ],
)
def test_bmes_is_read_as_bioes_with_m_for_inside(tags, spans):
    assert [(span.start, span.end, span.label) for span in read_spans(tags)] == spans
    bioes = [f"I{tag[1:]}" if tag[0] == "M" else tag for tag in tags]
    assert to_iob2(tags, "bioes", "x") == to_iob2(bioes, "bioes", "x")
    assert [place.split(":")[0] for place in misfits(tags, "bioes")] == [
        place.split(":")[0] for place in misfits(bioes, "bioes")
    ]


def test_m_is_not_a_tag_of_another_scheme():
    assert misfits(["B-X", "M-X", "O", "M-X"], "iob2") == (
        "word 2: M-X is not a tag of this scheme and is read as I",
        "word 4: M-X after O begins an entity",
    )
    assert misfits(["I-X", "M-X"], "iob1") == ("word 2: M-X is not a tag of this scheme and is read as I",)
    with pytest.raises(InputError, match='the tag "MISC" of word 1 is neither O nor B-, I-, M-, E- or S- with a type'):
        to_iob2(["MISC"], "bioes", "x")


def test_an_unreadable_tag_is_an_error_with_its_place():
    with pytest.raises(InputError, match=r'a.conll:7: the tag "PERSON" of word 2'):
        to_iob2(["O", "PERSON"], "iob2", "a.conll:7")
    assert to_iob2(["NOUN", "O"], "none", "x") == ("NOUN", "O")


def test_scores_of_a_case_worked_by_hand():
    gold = [read_spans(["B-PER", "I-PER", "O", "B-LOC", "O"]), read_spans(["B-ORG", "B-ORG", "O", "O", "O"])]
    found = [
        read_spans(["B-PER", "I-PER", "O", "B-ORG", "O"]),  # PER right, LOC called ORG
        read_spans(["B-ORG", "I-ORG", "O", "B-PER", "O"]),  # two ORG joined into one, a PER made up
    ]
    scores = score_entities(gold, found)
    total = scores[""]
    assert (total.right, total.found, total.wanted) == (1, 4, 4)
    assert (total.precision, total.recall, total.f1) == (0.25, 0.25, 0.25)
    assert (scores["PER"].precision, scores["PER"].recall, scores["PER"].f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (scores["LOC"].precision, scores["LOC"].recall, scores["LOC"].f1) == (0.0, 0.0, 0.0)
    assert (scores["ORG"].found, scores["ORG"].wanted) == (2, 2)


def test_nothing_wanted_and_nothing_found_is_zero_not_an_error():
    assert score_entities([[]], [[]])[""].f1 == 0.0


@pytest.mark.conformance
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(span_lists(), span_lists()), min_size=1, max_size=5))
def test_scores_equal_the_strict_figures_of_nervaluate(pairs):
    gold, found = [list(part) for part in zip(*pairs, strict=True)]
    tags = [[list(write_iob2(spans, LENGTH)) for spans in side] for side in (gold, found)]
    theirs = Evaluator(*tags, tags=list(TYPES), loader="list").evaluate()
    scores = score_entities(gold, found)
    expected = {"": theirs["overall"]["strict"]} | {t: theirs["entities"][t]["strict"] for t in scores if t}
    for name, ours in scores.items():
        assert ours.precision == pytest.approx(expected[name].precision), name
        assert ours.recall == pytest.approx(expected[name].recall), name
        assert ours.f1 == pytest.approx(expected[name].f1), name


@pytest.mark.parametrize(
    ("name", "scheme", "counts"),
    [
        ("wikigold.conll", "iob1", {"LOC": 1014, "MISC": 712, "ORG": 898, "PER": 934}),
        ("wnut17-dev.conll", "iob2", {"person": 470}),
        ("uner-zh-gsdsimp-dev.iob2", "iob2", {"LOC": 375, "ORG": 133, "PER": 245}),
    ],
)
def test_real_files_have_their_published_entities(shared_data, name, scheme, counts):
    sentences = [sentence.tags for sentence in read_columns(shared_data / "tag" / name)]
    assert detect_scheme(sentences) == scheme
    spans = [span.label for tags in sentences for span in read_spans(tags)]
    assert {label: spans.count(label) for label in counts} == counts
