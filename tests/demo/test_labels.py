"""The labels: worked examples, properties over real documentation, and defaults as `inspect` sees them."""

import ast
import inspect
import re

import pytest
from sklearn.cluster import DBSCAN, KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC

from bertsmith.demo.labels import (
    PASSAGE_WORDS,
    SENTENCE_WORDS,
    MarkedSentence,
    marked_sentences,
    paragraphs,
    parameter_questions,
    passages,
)
from bertsmith.tasks.entities import read_spans, write_iob2
from bertsmith.text.python_docs import PythonDoc

_DOCSTRING = """\
Fit the model, as `Foo.fit` of NumPy and torch.nn.Linear would do it, to all of the data that there is. See
:meth:`~foo.bar.Baz.predict` and :class:`pathlib.Path` for more, or call ``fit()`` with ``n_jobs=2``.

Heading Of A Section That Is Long Enough
========================================

The sum is :math:`x + y` of what went in before, if everything went well for us.

>>> fit(1)
This looks like a sentence, and it has an end, but it is what a doctest prints.

It goes on like this::

    Code that looks like a sentence, which it is not, since it is indented.

Parameters
----------
axis : {0, 1}, default=0
    The axis along which `keepdims` is applied.
    It is never None.

    A second paragraph that is not shown.
keepdims : bool, optional (default: False)
    Keep them.
a, b : array_like
    Two at once.
alpha : float, optional
**kwargs
    Others.
scale : tuple of (int, int), default (1, 2)

Returns
-------
out : ndarray, default=5
    Not a parameter.
"""
_DOC = PythonDoc("scipy", "scipy.foo.model", "fit", _DOCSTRING)


def test_paragraphs_are_prose_only() -> None:
    assert [paragraph[:24] for paragraph in paragraphs(_DOCSTRING)] == [
        "Fit the model, as `Foo.f",
        "The sum is :math:`x + y`",
        "The axis along which `ke",
        "A second paragraph that ",
    ]


def test_passages_do_not_name_their_library_or_module() -> None:
    first, second = passages(_DOC)
    assert first.library == "scipy"
    assert first.text == (
        "Fit the, as fit of and Linear would do it, to all of the data that there is. "
        "See predict and Path for more, or call fit with n_jobs=2."
    )
    assert second.text.startswith("The sum is x + y of what")


def test_long_paragraphs_are_cut_between_sentences() -> None:
    sentence = "This is a sentence of exactly nine words here."
    doc = PythonDoc("a", "b", "c", " ".join([sentence] * 10) + " Too short.")
    found = list(passages(doc))
    assert [len(passage.text.split()) for passage in found] == [54, 38]
    assert " ".join(passage.text for passage in found) == doc.docstring


def test_marks_become_tags() -> None:
    first, second, third = marked_sentences(_DOC)
    assert (first.words[:6], first.tags[:6]) == (
        ("Fit", "the", "model", ",", "as", "fit"),
        ("O", "O", "O", "O", "O", "B-FUNC"),
    )
    assert set(first.tags[6:]) == {"O"}
    assert second == MarkedSentence(
        ("See", "predict", "and", "Path", "for", "more", ",", "or", "call", "fit", "with", "n_jobs", "=", "2", "."),
        ("O", "B-FUNC", "O", "B-CLASS", "O", "O", "O", "O", "O", "B-FUNC", "O", "B-VALUE", "I-VALUE", "I-VALUE", "O"),
    )
    assert third == MarkedSentence(
        ("The", "axis", "along", "which", "keepdims", "is", "applied", "."), ("O",) * 4 + ("B-NAME",) + ("O",) * 3
    )


@pytest.mark.parametrize(
    ("marked", "tag"),
    [
        (":exc:`ValueError`", "B-CLASS"),
        (":py:func:`os.path.join`", "B-FUNC"),
        ("`DataFrame`", "B-CLASS"),
        ("`X`", "B-NAME"),
        ("``True``", "B-VALUE"),
        ("`numpy.linalg.norm`", "B-FUNC"),
        ("``x.shape``", "B-NAME"),
        (":term:`Glossary`", "O"),
        ("``'auto'``", "B-VALUE"),
    ],
)
def test_types_of_marks(marked: str, tag: str) -> None:
    doc = PythonDoc("a", "b", "c", f"A sentence about {marked} and also ``extra``, with enough words.")
    (sentence,) = marked_sentences(doc)
    assert sentence.tags[3] == tag
    assert "`" not in "".join(sentence.words)


@pytest.mark.parametrize("text", ["`a link <http://x>`_", ":math:`x`", "``a = b + c * d / e``", "**strong** `x`"])
def test_sentences_that_cannot_be_read_are_left_out(text: str) -> None:
    doc = PythonDoc("a", "b", "c", f"Here is a sentence with {text} in the midst of many other words.")
    assert list(marked_sentences(doc)) == []


def test_parameters_are_asked_for_by_name() -> None:
    asked = {one.question: one for one in parameter_questions(_DOC)}
    found = {question: one.answer for question, one in asked.items()}
    assert found == {
        "What is the type of axis?": "{0, 1}",
        "What is the default of axis?": "0",
        "What is the type of keepdims?": "bool",
        "What is the default of keepdims?": "False",
        "What is the type of alpha?": "float",
        "What is the type of scale?": "tuple of (int, int)",
        "What is the default of scale?": "(1, 2)",
    }
    context = asked["What is the type of axis?"].context
    assert context == (
        "axis : {0, 1}, default=0\nThe axis along which keepdims is applied. It is never None.\n"
        "keepdims : bool, optional (default: False)\nKeep them.\n"
        "alpha : float, optional\n"
        "scale : tuple of (int, int), default (1, 2)"
    )
    for one in asked.values():
        assert one.context.startswith(one.answer, one.start)
        # The answer stands in the entry of the parameter it is asked about.
        name = one.question.split()[-1].removesuffix("?")
        assert one.context.rfind("\n", 0, one.start) < one.context.index(f"{name} :") < one.start


@pytest.mark.conformance
def test_defaults_are_those_of_the_signatures() -> None:
    """scikit-learn checks its own docstrings against its signatures, so they are a fair judge."""
    asked = 0
    for estimator in (DBSCAN, KMeans, LogisticRegression, RandomForestClassifier, Ridge, SVC):
        doc = PythonDoc("sklearn", estimator.__module__, estimator.__name__, inspect.cleandoc(estimator.__doc__ or ""))
        parameters = inspect.signature(estimator).parameters
        for one in parameter_questions(doc):
            default = parameters[one.question.split()[-1].removesuffix("?")].default
            if one.kind == "default" and default != "deprecated":
                asked += 1
                assert ast.literal_eval(one.answer) == default, one.question
    assert asked > 40


def _documentation() -> list[PythonDoc]:
    """Real docstrings in good number: those of scikit-learn's and the standard library's loaded modules."""
    members = [
        PythonDoc("sklearn", thing.__module__, thing.__name__, inspect.getdoc(thing) or "")
        for owner in (KMeans, RandomForestClassifier, LogisticRegression, SVC, re, inspect, pytest)
        for _, thing in inspect.getmembers(owner, lambda x: inspect.isfunction(x) or inspect.isclass(x))
    ]
    return [doc for doc in members if doc.docstring]


def test_properties_over_real_documentation() -> None:
    docs = _documentation()
    all_passages = [passage for doc in docs for passage in passages(doc)]
    sentences = [sentence for doc in docs for sentence in marked_sentences(doc)]
    assert len(all_passages) > 50 and len(sentences) > 50
    for passage in all_passages:
        assert not re.search("sklearn|scikit|numpy|scipy|`", passage.text, re.I)
        assert 1 <= len(passage.text.split()) <= PASSAGE_WORDS[1]
    for sentence in sentences:
        assert SENTENCE_WORDS[0] <= len(sentence.words) <= SENTENCE_WORDS[1]
        assert write_iob2(read_spans(sentence.tags), len(sentence.tags)) == sentence.tags
        assert any(tag != "O" for tag in sentence.tags)
