"""Labels that are really in the text of Python's documentation, for the three tasks of the demo.

* A passage comes from a library: the name of the library and of the module are taken out.
* Names of the API are marked by reStructuredText roles and literals: the marks are taken out and
  become tags (https://docutils.sourceforge.io/docs/ref/rst/roles.html).
* A parameter has a type and often a default, in numpydoc's "Parameters" section
  (https://numpydoc.readthedocs.io/en/latest/format.html#parameters).

Everything here is a pure function of one docstring; what is chosen and how it is split is in `data`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bertsmith.text.python_docs import PythonDoc
from bertsmith.text.sentences import split_sentences

PASSAGE_WORDS = (15, 60)
SENTENCE_WORDS = (6, 40)
CONTEXT_WORDS = 60
_DESCRIPTION_WORDS = 20
_LONGEST_NAME = 6  # words of a marked name; what is longer is a piece of code

# What gives a library away wherever it stands in a word, and what does so only as a whole word.
_LIBRARY = re.compile(
    "torch|numpy|scipy|sklearn|scikit|sympy|pandas|networkx|matplotlib|pyplot|python|hugging|"
    r"fonttools|docutils|setuptools|cyclopts|jinja|pyarrow|mpmath|fsspec|"
    r"\b(?:np|nx|pd|plt|mpl|hf|hub|aten|py|pip|pil|rich|datasets|face)\b",
    re.I,
)
_PATH = re.compile(r"\b([a-z]\w*)(?:\.\w+)*\.([^\W\d]\w*)", re.I)
_PUNCTUATION = ".,;:!?()[]{}\"'*`"
_LETTERS_IN_PROSE = 0.85
_NOT_PROSE = re.compile(
    r"\s*(>>>|\.\.[\s\[]|:(?!(?:[a-z]+:)?[a-z]+:`)\w|[-=~^*+_#]{3,}|\||\d+\.\s|[-*+•]\s|[$@<{\[%\\])"
)
_PROSE_BEGINS = re.compile(r"[A-Z`:(]")
_PROSE_ENDS = re.compile(r"[.!?:)]$")
_MARK = re.compile(
    r"(?<!\w):(?:[a-z]+:)?(?P<role>[a-z]+):`(?P<target>[^`]+)`"
    r"|``(?P<literal>[^`]+)``"
    r"|(?<!`)`(?P<name>[^`]+)`(?P<link>_{0,2})"
)
_ROLE_TYPES = dict.fromkeys(("class", "exc"), "CLASS") | dict.fromkeys(("func", "meth", "attr"), "FUNC")
_ROLE_TYPES |= dict.fromkeys(("data", "const", "obj"), "NAME")
_TITLED_TARGET = re.compile(r"(.+?)\s*<[^<>]+>$", re.S)
_IDENTIFIER = re.compile(r"(?!.*\.(?:py|txt|json|csv|html|npy|npz|md|pt)$)\.?[^\W\d]\w*(?:\.\w+)*(\(\))?")
_CAP_WORDS = re.compile(r"[A-Z][a-z]+\w*")
_VALUES = frozenset({"True", "False", "None", "NaN", "nan", "inf", "NotImplemented", "Ellipsis"})
_WORD = re.compile(r"\w+|[^\w\s]")
_SECTION = re.compile(r"(?P<indent>[ ]*)(?:Other )?Parameters[ ]*\n(?P=indent)-{4,}[ ]*\n")
_ENTRY = re.compile(r"(?P<name>[^\W\d]\w*)[ ]?:[ ]+(?P<type>\S.*)")
_DEFAULT_IN_TYPE = re.compile(
    r"(?P<type>.*?)[\s,;]*(?:\boptional\b[\s,]*)?[\s,(]*\bdefaults?(?:\s+(?:to|is|value))?\s*[=:]?\s*(?P<default>\S.*)"
)
_OPTIONAL = re.compile(r"[\s,;(]*\boptional\)?$")
_ANSWER = re.compile(r"[\w'\"(\[{<.+-].*")
_LONGEST_ANSWER = 12  # words


@dataclass(frozen=True)
class Passage:
    """Prose that comes from `library`, which it no longer names."""

    text: str
    library: str


@dataclass(frozen=True)
class MarkedSentence:
    """Words and their IOB2 tags: CLASS, FUNC (function, method, attribute), NAME (mostly parameters), VALUE."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class ParameterQuestion:
    """A question about a "type" or "default", whose answer stands in the context at code point `start`."""

    kind: str
    question: str
    context: str
    answer: str
    start: int


def paragraphs(docstring: str) -> Iterator[str]:
    """Running prose of a docstring, each paragraph on one line, its marks still in place.

    Left out: code, doctests, headings, tables, lists, directives, and what does not begin and end
    like a sentence.
    """
    code_indent: int | None = None
    for lines in _blocks(docstring):
        indent = len(lines[0]) - len(lines[0].lstrip())
        if code_indent is not None and indent > code_indent:
            continue
        text = " ".join(line.strip() for line in lines)
        # Both "text::" and a directive make what is indented under them literal.
        code_indent = indent if text.endswith("::") or text.startswith("..") else None
        text = re.sub(r"::$", ":", text)
        if any(_NOT_PROSE.match(line) for line in lines) or len(text.split()) < SENTENCE_WORDS[0]:
            continue
        shown = _unmarked(text)
        letters = sum(character.isalpha() or character == " " for character in shown)
        if _PROSE_BEGINS.match(text) and _PROSE_ENDS.search(text) and letters >= _LETTERS_IN_PROSE * len(shown):
            yield text


def _blocks(docstring: str) -> Iterator[list[str]]:
    """Runs of lines with the same indentation and no blank line between them."""
    block: list[str] = []
    indent = 0
    for line in [*docstring.expandtabs().split("\n"), ""]:
        margin = len(line) - len(line.lstrip())
        if block and (not line.strip() or margin != indent):
            yield block
            block = []
        if line.strip():
            block.append(line)
            indent = margin


def passages(doc: PythonDoc) -> Iterator[Passage]:
    """Sentences of 15 to 60 words in all, cut from the paragraphs, without marks and giveaway names."""
    for paragraph in paragraphs(doc.docstring):
        text = _anonymous(_unmarked(paragraph), doc)
        sentences: list[str] = []
        for sentence in [*split_sentences(text), ""]:
            words = sum(len(kept.split()) for kept in sentences)
            is_full = not sentence or words + len(sentence.split()) > PASSAGE_WORDS[1]
            if is_full and PASSAGE_WORDS[0] <= words:
                yield Passage("".join(sentences).strip(), doc.library)
            sentences = [] if is_full else sentences
            if len(sentence.split()) <= PASSAGE_WORDS[1]:
                sentences.append(sentence)


def _unmarked(text: str) -> str:
    """The text without marks; a marked name loses its path."""
    return _MARK.sub(lambda mark: _shown(mark), text)


def _shown(mark: re.Match[str]) -> str:
    """What a reader of the rendered page sees in the place of a mark; of a dotted name the last part."""
    text = mark["target"] or mark["literal"] or mark["name"]
    titled = _TITLED_TARGET.fullmatch(text)
    if titled and mark["literal"] is None:
        return titled[1]
    text = text.strip().lstrip("~!")
    return text.lstrip(".").removesuffix("()").rpartition(".")[2] if _IDENTIFIER.fullmatch(text) else text


def _anonymous(text: str, doc: PythonDoc) -> str:
    """Take out the names of all libraries and of the passage's module, and the paths before other names.

    >>> _anonymous("PyTorch's torch.nn.Linear is in linear.", PythonDoc("torch", "torch.nn.linear", "", ""))
    "Linear is in."
    """
    modules = {part for part in doc.module.lower().split(".") if len(part) > 2}
    kept: list[str] = []
    for word in text.split():
        path = _PATH.search(word)
        if path and _LIBRARY.search(path[1]):
            word = word.replace(path[0], path[2])
        bare = word.lower().strip(_PUNCTUATION)
        if bare in modules or _LIBRARY.search(word) or "://" in word:
            word = word[len(word.rstrip(_PUNCTUATION)) :]  # a full stop outlives its name
            if kept and word:
                kept[-1] += word
        elif word:
            kept.append(word)
    return " ".join(kept)


def marked_sentences(doc: PythonDoc) -> Iterator[MarkedSentence]:
    """Sentences with at least one marked name, of 6 to 40 words, the marks turned into tags."""
    for paragraph in paragraphs(doc.docstring):
        found = _names(paragraph)
        if found is None:
            continue
        text, names = found
        start = 0
        for sentence in split_sentences(text):
            end = start + len(sentence)
            inside = [name for name in names if start < name[1] and name[0] < end]
            if inside and all(start <= name[0] and name[1] <= end for name in inside):
                tagged = _tagged(text, start, end, inside)
                if SENTENCE_WORDS[0] <= len(tagged.words) <= SENTENCE_WORDS[1]:
                    yield tagged
            start = end


def _names(paragraph: str) -> tuple[str, list[tuple[int, int, str]]] | None:
    """The paragraph without marks, and (start, end, type) of what was marked.

    None where a mark cannot be read as a name: mathematics, links, long pieces of code.
    """
    text, names, end = "", [], 0
    for mark in _MARK.finditer(paragraph):
        shown, kind = _shown(mark), _type_of(mark)
        if mark["role"] == "math" or mark["link"] or len(_WORD.findall(shown)) > _LONGEST_NAME:
            return None
        text += paragraph[end : mark.start()]
        if kind is not None:
            names.append((len(text), len(text) + len(shown), kind))
        text += shown
        end = mark.end()
    text += paragraph[end:]
    return None if "`" in text or "**" in text else (text, names)


def _type_of(mark: re.Match[str]) -> str | None:
    """The type that the mark gives, or None for roles that do not mark names (:ref:, :term:).

    Literals and the default role do not say what they mark, so the conventions of PEP 8 do:
    CapWords are classes; brackets, or the default role with a path, mean a member.
    """
    if mark["role"] is not None:
        return _ROLE_TYPES.get(mark["role"])
    text = (mark["literal"] or mark["name"]).strip().lstrip("~!")
    identifier = _IDENTIFIER.fullmatch(text)
    if identifier is None or text in _VALUES:
        return "VALUE"
    if _CAP_WORDS.fullmatch(text.rpartition(".")[2]):
        return "CLASS"
    return "FUNC" if identifier[1] or (mark["name"] and "." in text) else "NAME"


def _tagged(text: str, start: int, end: int, names: Sequence[tuple[int, int, str]]) -> MarkedSentence:
    words, tags = [], []
    for word in _WORD.finditer(text, start, end):
        tag = "O"
        for first, last, kind in names:
            if first < word.end() and word.start() < last:
                tag = f"I-{kind}" if word.start() > first else f"B-{kind}"
        words.append(word[0])
        tags.append(tag)
    return MarkedSentence(tuple(words), tuple(tags))


@dataclass(frozen=True)
class _Parameter:
    """One entry as it will be shown: `name : type` and the description, without marks."""

    name: str
    header: str
    description: str

    @property
    def text(self) -> str:
        return f"{self.header}\n{self.description}".strip()


def parameter_questions(doc: PythonDoc) -> Iterator[ParameterQuestion]:
    """What can be asked about a "Parameters" section: the type, or the default, of each parameter.

    The context is a run of neighbouring entries of at most about 60 words, at least two entries;
    a long description is shown by its first sentence.
    """
    for section in _SECTION.finditer(doc.docstring.expandtabs()):
        entries = _entries(doc.docstring.expandtabs()[section.end() :], len(section["indent"]))
        for run in _runs(entries):
            context, start = "\n".join(entry.text for entry in run), 0
            names = [entry.name for entry in run]
            for entry in run:
                if names.count(entry.name) == 1:
                    for kind, (first, last) in _answers(entry.header).items():
                        answer = entry.header[first:last]
                        question = f"What is the {kind} of {entry.name}?"
                        yield ParameterQuestion(kind, question, context, answer, start + first)
                start += len(entry.text) + 1


def _entries(text: str, indent: int) -> list[_Parameter]:
    """The entries of a section that begins at the start of `text`; ends at the next section or outdent."""
    entries: list[_Parameter] = []
    header = ""
    body: list[str] = []
    lines = text.split("\n")
    for line, following in pairwise([*lines, "", ""]):
        margin = len(line) - len(line.lstrip())
        is_over = bool(line.strip()) and (margin < indent or re.match(r"\s*-{3,}\s*$", following) is not None)
        if is_over or (line.strip() and margin == indent):
            entries += _entry(header, body)
            header, body = line, []
        else:
            body.append(line)
        if is_over:
            return entries
    return entries + _entry(header, body)


def _entry(header: str, body: Sequence[str]) -> list[_Parameter]:
    """No or one entry: several names in one header, and what has no type, cannot be asked for."""
    found = _ENTRY.fullmatch(" ".join(_unmarked(header).split()))
    if found is None:
        return []
    lines: list[str] = []
    for line in body:
        if not line.strip() or _NOT_PROSE.match(line):
            break
        lines.append(line.strip())
    description = _unmarked(" ".join(lines))
    if len(description.split()) > _DESCRIPTION_WORDS:
        description = split_sentences(description)[0].strip()
    is_short = len(description.split()) <= _DESCRIPTION_WORDS
    return [_Parameter(found["name"], found[0], description if is_short else "")]


def _runs(entries: Sequence[_Parameter]) -> Iterator[list[_Parameter]]:
    """Neighbouring entries, as many as fit into a context; single ones are left out."""
    run: list[_Parameter] = []
    words = 0
    for entry in entries:
        length = len(entry.text.split())
        if run and words + length > CONTEXT_WORDS:
            if len(run) > 1:
                yield run
            run, words = [], 0
        run.append(entry)
        words += length
    if len(run) > 1:
        yield run


def _answers(header: str) -> dict[str, tuple[int, int]]:
    """Where in `name : type, default value` the type and the default stand.

    >>> _answers("axis : int, default=0")
    {'type': (7, 10), 'default': (20, 21)}
    >>> _answers("out : ndarray, optional")
    {'type': (6, 13)}
    """
    entry = _ENTRY.fullmatch(header)
    if entry is None:
        return {}
    start, declared = entry.start("type"), entry["type"]
    found = _DEFAULT_IN_TYPE.fullmatch(declared)
    spans = {}
    if found is not None:
        default = found["default"].rstrip(" .;,")
        # The bracket of "(default: 3)" is not part of the answer, that of "(1, 2)" is.
        default = default[:-1] if default.endswith(")") and default.count("(") < default.count(")") else default
        first = start + found.start("default")
        spans["default"] = (first, first + len(default))
        declared = found["type"]
    declared = _OPTIONAL.sub("", declared).rstrip(" .;,(")
    spans = {"type": (start, start + len(declared)), **spans}
    return {
        kind: (first, last)
        for kind, (first, last) in spans.items()
        if _ANSWER.fullmatch(header, first, last) and len(header[first:last].split()) <= _LONGEST_ANSWER
    }
