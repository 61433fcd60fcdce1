"""Readers of labelled text: CoNLL, CoNLL-U and IOB2 columns, SQuAD JSON, and rows with the same content.

Every value read is checked here, with file and line, so that the tasks can trust what they get:
as many tags as words, and every answer at its place in the context.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.errors import InputError, SettingsError, collecting, did_you_mean
from bertsmith.text.reading import open_text, suffix_of
from bertsmith.text.sentences import replace_surrogates

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")

_BLANKS = " \t\xa0\u3000"  # around what stands between tabs
_ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
# `# sent_id = 7`, `# newdoc id = x`, `# newpar`, MultiCoNER's `# id 7<tab>domain=en`; not the token "#" nor a hashtag.
_COMMENT = re.compile(r"# *(newdoc|newpar|[\w.:-]+ += |id \S+\tdomain=)")
_ANSWERS = "answers"  # of a question in SQuAD's layout
_DOCUMENT = "-DOCSTART-"  # CoNLL-2003
_NEW_DOCUMENT = re.compile(r"# *newdoc( |$)")  # CoNLL-U
_SKIPPED_ID = re.compile(r"\d+[-.]\d+")  # CoNLL-U: a multiword range, an empty node


@dataclass(frozen=True)
class TaggedSentence:
    """Words and one tag a word. `where` is `file:line` of the first word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    where: str
    document: str = ""
    """Sentences that follow each other and have the same name here are of one document."""


@dataclass(frozen=True)
class Answer:
    """A reference answer; `start` is its code point in the context, None where that is not known."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question about a context. No answers means that the context does not hold any."""

    question: str
    context: str
    answers: tuple[Answer, ...]
    id: str
    where: str

    @property
    def texts(self) -> tuple[str, str]:
        """Question and context."""
        return self.question, self.context

    @property
    def group(self) -> str:
        """Questions about one context stay on one side of a split."""
        return self.context


def holds_rows(source: str) -> bool:
    """Whether a source is one of rows with named fields (`.jsonl`, `.parquet`, `hub:`), by its name."""
    return source.startswith("hub:") or suffix_of(source) in _ROW_SUFFIXES


def read_columns(
    source: str | Path,
    token_column: int | str | None = None,
    tag_column: int | str | None = None,
    bad: list[InputError] | None = None,
) -> Iterator[TaggedSentence]:
    """Tagged sentences from a file of columns: CoNLL-U by its suffix, else any CoNLL-like file.

    Args:
        token_column, tag_column: see `read_conllu` (names) and `read_conll` (numbers); None: as usual
            for the format.
        bad: gets what is wrong with sentences that cannot be used, which are passed over; None: the first is an error.

    Raises:
        SettingsError: a name where a number is wanted, or the other way round.
        InputError: what cannot be read as said, with its line.
    """
    path = Path(source)
    if suffix_of(path) == ".conllu":
        form, tag = ("form" if token_column is None else token_column), ("upos" if tag_column is None else tag_column)
        yield from read_conllu(path, str(form), str(tag), bad)
        return
    if isinstance(token_column, str) or isinstance(tag_column, str):
        name, column = ("token_column", token_column) if isinstance(token_column, str) else ("tag_column", tag_column)
        raise SettingsError(
            f'{name} "{column}": the columns of {path.name} have no names. Give a number, counted from 0 '
            "(-1 is the last)."
        )
    yield from read_conll(path, token_column, tag_column, bad)


def read_conll(
    path: Path, token_column: int | None = None, tag_column: int | None = None, bad: list[InputError] | None = None
) -> Iterator[TaggedSentence]:
    """Sentences from lines of columns (tabs, else spaces), blank lines between sentences.

    `-DOCSTART-` lines and `# newdoc` begin a document; these and comments of the form `# key = value` are no words.

    Args:
        token_column, tag_column: counted from 0, negative from the end; see `conll_columns`. Words in column 0
            of an `.iob2` file are not numbered, as those of universalner.org are.
        bad: see `read_columns`.

    Raises:
        InputError: a line with another number of columns than the first one, without a tag, or without the number
            that an `.iob2` file has before its words; with its line number.
    """
    token_column, tag_column = conll_columns(path, token_column, tag_column)
    numbered = suffix_of(path) == ".iob2" and token_column != 0
    num_columns = 0  # of the first line that has a token and a tag
    for document, lines in _blocks(path, bad, numbered=numbered):
        with_columns = [
            (n, _between_tabs(line) if "\t" in line else re.split(" +", line.strip(" "))) for n, line in lines
        ]
        num_columns = num_columns or next((len(columns) for _, columns in with_columns if len(columns) > 1), 0)
        words, tags = [], []
        with collecting(bad):
            for number, columns in with_columns:
                if len(columns) != num_columns:
                    raise InputError(
                        f"{len(columns)} columns here, {max(2, num_columns)} wanted (a token and its tag, "
                        "parted by a tab or spaces).",
                        f"{path}:{number}",
                    )
                if numbered and not columns[0][:1].isdigit():
                    raise InputError(
                        f'"{columns[0][:60]}" stands where .iob2 files have the number of the word. If the words stand '
                        f"there, say --token-column 0 --tag-column {num_columns - 1}.",
                        f"{path}:{number}",
                    )
                if not (-num_columns <= token_column < num_columns and -num_columns <= tag_column < num_columns):
                    raise InputError(
                        f"there are {num_columns} columns; token_column is {token_column} and tag_column {tag_column}.",
                        f"{path}:{number}",
                    )
                if not columns[tag_column].strip(_BLANKS):
                    raise _no_tag(columns, token_column % num_columns, f"{path}:{number}")
                words.append(columns[token_column])
                tags.append(columns[tag_column])
        if len(words) == len(lines):
            yield TaggedSentence(tuple(words), tuple(tags), f"{path}:{lines[0][0]}", document)


def conll_columns(path: Path, token_column: int | None, tag_column: int | None) -> tuple[int, int]:
    """Where a CoNLL file has words and tags: as given, else in the first and last column; in `.iob2` in 1 and 2."""
    numbered = suffix_of(path) == ".iob2" and token_column != 0
    return (
        token_column if token_column is not None else (1 if numbered else 0),
        tag_column if tag_column is not None else (2 if numbered else -1),
    )


def _no_tag(columns: list[str], token_column: int, where: str) -> InputError:
    """What to say of a line with nothing where the tag should be, as behind a tab that ends it."""
    last = max((index for index, column in enumerate(columns) if column.strip(_BLANKS)), default=token_column)
    advice = "Give the word a tag, or say which column has the tags, counted from 0: --tag-column N."
    if last != token_column:
        advice = f"If column {last} has the tags, say --tag-column {last} (evaluate: --set tag_column={last})."
    return InputError(f"the tag column is empty. {advice}", where)


def read_conllu(
    path: Path, token_column: str = "form", tag_column: str = "upos", bad: list[InputError] | None = None
) -> Iterator[TaggedSentence]:
    """Sentences of a CoNLL-U file, its columns chosen by name.

    Multiword ranges (`1-2`) and empty nodes (`8.1`) are passed over: what is left are the syntactic
    words, one tag each (universaldependencies.org/format.html). `# newdoc` begins a document.

    Args:
        bad: see `read_columns`.

    Raises:
        SettingsError: no such column.
        InputError: a line without ten columns.
    """
    for column in (token_column, tag_column):
        if column not in CONLLU_COLUMNS:
            raise SettingsError(f'CoNLL-U has no column "{column}". {did_you_mean(column, CONLLU_COLUMNS)}')
    token_index, tag_index = CONLLU_COLUMNS.index(token_column), CONLLU_COLUMNS.index(tag_column)
    for document, lines in _blocks(path, bad, numbered=True):
        words: list[tuple[int, list[str]]] = []
        with collecting(bad):
            words = _conllu_words(path, lines)
        if words:
            tokens, tags = (tuple(columns[index] for _, columns in words) for index in (token_index, tag_index))
            yield TaggedSentence(tokens, tags, f"{path}:{words[0][0]}", document)


def _conllu_words(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, list[str]]]:
    """The columns of each syntactic word of a sentence, with the number of its line."""
    words = []
    for number, line in lines:
        columns = _between_tabs(line)
        if len(columns) != len(CONLLU_COLUMNS):
            raise InputError(f"{len(columns)} columns here; a CoNLL-U line has 10.", f"{path}:{number}")
        if not _SKIPPED_ID.fullmatch(columns[0]):
            words.append((number, columns))
    return words


def _between_tabs(line: str) -> list[str]:
    """The columns of a line, without the blanks around them; one of nothing else keeps them."""
    return [column.strip(_BLANKS) or column for column in line.split("\t")]


def question_row(
    row: Mapping[str, Any],
    where: str,
    *,
    question_field: str = "question",
    context_field: str = "context",
    answers_field: str | None = "answers",
    lenient: bool = False,
) -> Question:
    """One question from a row.

    Args:
        answers_field: holds `[{"text", "answer_start"}]`, or `{"text": [], "answer_start": []}` as the
            Hugging Face data sets do; an empty one means that the context has no answer. None: the
            row is one to predict.
        lenient: see `read_squad`.

    Raises:
        InputError: a field is missing or of another kind, or an answer is not at its place.
    """
    question, context = _string(row, question_field, where), _string(row, context_field, where)
    given: Any = ()
    if answers_field is not None:
        if answers_field not in row:
            raise InputError(f'there is no "{answers_field}". {did_you_mean(answers_field, map(str, row))}', where)
        given = row[answers_field] if row[answers_field] is not None else ()
    if isinstance(given, Mapping):
        place = f"{where}, {answers_field}"
        texts, starts = (_list(given, name, place) if given else [] for name in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise InputError(f"{len(texts)} texts but {len(starts)} places.", place)
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    return _question(question, context, given, str(row.get("id") or where), where, lenient)


def read_squad(source: str | Path, *, lenient: bool = False, bad: list[InputError] | None = None) -> Iterator[Question]:
    """Questions of a SQuAD 1.1 or 2.0 file (also XQuAD, DRCD, and CMRC 2018 in SQuAD's layout).

    The questions of a paragraph share one context object. `is_impossible` questions have no answers. Any other must
    say its "answers", even if there are none, unless no question of the file does: then it is one to be answered.

    Args:
        lenient: an answer that does not lie where it says keeps its text, for scoring, but no place.
        bad: gets what is wrong with questions that cannot be used, which are passed over; None: the first is an error.

    Raises:
        InputError: not JSON, another layout, no "answers", or an answer that is not at its place (names the id).
    """
    path = Path(source)
    with open_text(path) as file:
        text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not JSON: {error.msg}. For one object a line, name the file .jsonl.", f"{path}:{error.lineno}"
        ) from None
    except RecursionError:
        raise InputError("the JSON is nested too deeply.", str(path)) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise InputError(f"not JSON: {error}", str(path)) from None
    are_answered = f'"{_ANSWERS}"' in text  # as a name: within a string, its quotes would be escaped
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise InputError('not in SQuAD layout: there is no list "data".', str(path))
    for article_number, article in enumerate(articles):
        paragraphs: list[Any] = []
        with collecting(bad):
            paragraphs = _list(article, "paragraphs", f"{path}, data[{article_number}]")
        for paragraph_number, paragraph in enumerate(paragraphs):
            place = f"{path}, data[{article_number}].paragraphs[{paragraph_number}]"
            entries: list[Any] = []
            context = ""
            with collecting(bad):
                given = _list(paragraph, "qas", place)
                context = _string(paragraph, "context", place) if given else ""
                entries = given
            for number, entry in enumerate(entries):
                question, own_place = None, f"{place}.qas[{number}]"
                with collecting(bad):
                    question = _squad_question(
                        path, entry, context, own_place, lenient=lenient, are_answered=are_answered
                    )
                if question is not None:
                    yield question


def _squad_question(path: Path, entry: Any, context: str, place: str, *, lenient: bool, are_answered: bool) -> Question:
    """The one of the `qas` at `place`; in a file of questions alone, none has answers."""
    name = replace_surrogates(str(entry.get("id", ""))) if isinstance(entry, dict) else ""
    where = f"{path}, question {name}" if name else place
    question = _string(entry, "question", where)
    given = _squad_answers(entry, where, are_answered)
    return _question(question, context, given, name or where, where, lenient)


def _squad_answers(entry: Mapping[str, Any], where: str, are_answered: bool) -> Any:
    """What stands for the answers of a question, unchecked. A name spelt wrong must not become silence."""
    is_impossible = entry.get("is_impossible")
    if not (is_impossible is None or isinstance(is_impossible, bool)):
        raise InputError(f"true or false wanted, not {is_impossible!r}.", f"{where}, is_impossible")
    if is_impossible:
        return ()
    names = [str(name) for name in entry]
    if _ANSWERS not in entry and (are_answered or difflib.get_close_matches(_ANSWERS, names, cutoff=0.8)):
        raise InputError(f'there is no "{_ANSWERS}". {did_you_mean(_ANSWERS, names)}', where)
    return entry.get(_ANSWERS) or ()


def _question(question: str, context: str, given: Any, name: str, where: str, lenient: bool) -> Question:
    """Check every answer against the context."""
    if not isinstance(given, list | tuple):
        raise InputError(f"a list wanted, {type(given).__name__} found.", f"{where}, answers")
    answers = []
    for entry in given:
        text = _string(entry, "text", f"{where}, answers")
        start = entry.get("answer_start")
        if not text or not isinstance(start, int) or start < 0 or not context.startswith(text, start):
            if not lenient:
                raise InputError(_misplaced(text, start, context), where)
            start = None
        answers.append(Answer(text, start))
    return Question(question, context, tuple(answers), name, where)


def _misplaced(text: str, start: Any, context: str) -> str:
    """Why an answer's place is refused, and what to do."""
    if not isinstance(start, int):
        return f'the answer "{text[:60]}" has no whole number "answer_start". {_LENIENT}'
    found = context[max(0, start) : max(0, start) + len(text)]
    return f'the answer "{text[:60]}" is not at {start} of its context; there stands "{found[:60]}". {_LENIENT}'


_LENIENT = "Mend the data, or set lenient to leave such questions out of training."


def _blocks(path: Path, bad: list[InputError] | None, *, numbered: bool) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """The document (the number of marks before it) and the numbered token lines of each sentence.

    Comments and document marks are left out.

    Args:
        numbered: the words are numbered, so that every line with "#" at its start is a comment.
            Elsewhere a word may be "#" or a hashtag, and only `# key = value` before a sentence is one.
    """
    block: list[tuple[int, str]] = []
    num_marks = 0
    with open_text(path, bad) as file:
        for raw in file:
            number, line = file.line_number, raw.rstrip("\n")
            is_mark = line.startswith(_DOCUMENT)
            if is_mark or not line.strip(" \t"):
                if block:
                    yield str(num_marks), block
                block = []
                num_marks += is_mark
            elif not line.startswith("#") or not (numbered or (not block and _COMMENT.match(line))):
                block.append((number, line))
            elif not block and _NEW_DOCUMENT.match(line):
                num_marks += 1
    if block:
        yield str(num_marks), block


def _list(value: Any, field: str, where: str) -> list[Any]:
    found = value.get(field) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise InputError(f'there is no list "{field}".', where)
    return found


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, Mapping):
        raise InputError(f"an object with {field!r} wanted, {type(value).__name__} found.", where)
    if field not in value:
        raise InputError(f'there is no "{field}". {did_you_mean(field, map(str, value))}', where)
    if not isinstance(value[field], str):
        raise InputError(f"text wanted, {type(value[field]).__name__} found.", f"{where}, {field}")
    return replace_surrogates(value[field])
