"""Readers of labelled text: hand-written files with every trap, and the real files."""

import json
import lzma
import math

import pytest

from bertsmith.errors import InputError, SettingsError
from bertsmith.text.labelled import (
    Answer,
    holds_rows,
    question_row,
    read_columns,
    read_squad,
)
from bertsmith.text.tables import string_list

CONLL = (
    "-DOCSTART- -X- -X- O\n\n"
    "EU NNP B-NP B-ORG\n"
    "rejects VBZ B-VP O\n"
    "# NN B-NP O\n"
    "\n\n"
    "#hashtag NN B-NP O\n"
    "a\u2028b NN B-NP I-MISC"
)


def test_conll_with_document_marks_hash_tokens_and_no_newline_at_the_end(make_files):
    path = make_files({"train.conll": CONLL}) / "train.conll"
    first, second = read_columns(path)
    assert first.words == ("EU", "rejects", "#")
    assert first.tags == ("B-ORG", "O", "O")
    assert first.where == f"{path}:3"
    assert second.words == ("#hashtag", "a\u2028b")
    assert second.where == f"{path}:8"
    assert [sentence.tags for sentence in read_columns(path, 0, 1)] == [("NNP", "VBZ", "NN"), ("NN", "NN")]
    assert next(read_columns(path, -4, -2)).tags == ("B-NP", "B-VP", "B-NP")


def test_documents_begin_at_their_marks_and_the_marks_are_no_words(make_files):
    conll = "a O\n\n-DOCSTART- O\n\nb O\n\nc O\n-DOCSTART-\nd O\n# newdoc\n\n# newdoc id = 3\n# x = y\n-DOCSTARTER O\n"
    conllu = "".join(
        f"{mark}1\t{word}\t_\tX\t_\t_\t0\t_\t_\t_\n\n"
        for mark, word in (("# newdoc id = 1\n", "a"), ("# newpar\n", "b"), ("# newdoc\n# newpar\n", "c"), ("", "d"))
    )
    folder = make_files({"a.conll": conll, "a.conllu": conllu, "a.iob2": "1\ta\tO\n\n# newdoc id = 2\n1\tb\tO\n"})

    def documents(name: str) -> list[tuple[tuple[str, ...], str]]:
        return [(sentence.words, sentence.document) for sentence in read_columns(folder / name)]

    expected = [(("a",), "0"), (("b",), "1"), (("c",), "1"), (("d", "#"), "2"), (("-DOCSTARTER",), "3")]
    assert documents("a.conll") == expected
    assert documents("a.conllu") == [(("a",), "1"), (("b",), "1"), (("c",), "2"), (("d",), "2")]
    assert documents("a.iob2") == [(("a",), "0"), (("b",), "1")]


def test_tabs_keep_spaces_inside_a_token_and_blank_tabs_end_a_sentence(make_files):
    path = make_files({"eng.train": "New York\tB-LOC\r\n\t\r\nof\tO\n"}) / "eng.train"
    assert [sentence.words for sentence in read_columns(path)] == [("New York",), ("of",)]


def test_blanks_around_columns_between_tabs_are_no_part_of_them(make_files):
    blanks = "Herr\tO \n Meier \t B-PER\n\u3000aus\u3000\t\xa0O\xa0\nBad Ems\tB-LOC\u3000\n"
    lone = "\u3000\tO \n \tO\n\xa0\t B-X\n"  # words that are white space and nothing else
    conllu = "1\tvamos \tir\t VERB\t_\t_\t0\t_\t_\t_\n"
    folder = make_files({"a.conll": f"{blanks}\n{lone}", "a.iob2": "1\ta \tB-X \t-\n", "a.conllu": conllu})
    first, second = read_columns(folder / "a.conll")
    assert (first.words, first.tags) == (("Herr", "Meier", "aus", "Bad Ems"), ("O", "B-PER", "O", "B-LOC"))
    assert (second.words, second.tags) == (("\u3000", " ", "\xa0"), ("O", "O", "B-X"))
    for name, word, tag in (("a.iob2", "a", "B-X"), ("a.conllu", "vamos", "VERB")):
        (sentence,) = read_columns(folder / name)
        assert (sentence.words, sentence.tags) == ((word,), (tag,))


def test_iob2_files_number_their_words_and_have_comments(make_files):
    text = "# sent_id = 1\n# text = # 1\n1\t#\tO\t-\t-\n2\t王\tB-PER\t-\tx\n\n# free comment\n1\ta\tO\t-\t-\n"
    path = make_files({"zh.iob2": text}) / "zh.iob2"
    first, second = read_columns(path)
    assert (first.words, first.tags) == (("#", "王"), ("O", "B-PER"))
    assert second.where.endswith(":7")


def test_iob2_files_whose_words_are_not_numbered_keep_words_that_begin_with_a_hash(make_files):
    text = "#one\tB-X\n#\tO\n2\tO\n\n# sent_id = 2\n#two\tO\n"
    path = make_files({"tweets.iob2": text}) / "tweets.iob2"
    for token_column, tag_column in ((0, 1), (0, None)):
        first, second = read_columns(path, token_column, tag_column)
        assert (first.words, first.tags) == (("#one", "#", "2"), ("B-X", "O", "O"))
        assert (second.words, second.where) == (("#two",), f"{path}:6")
    # Three columns could be read as numbered words, were it not for the first one.
    text = "# free comment\n#one\tNN\tO\ntwo\tNN\tO\n"
    path = make_files({"pos.iob2": text}) / "pos.iob2"
    with pytest.raises(InputError, match=r'pos.iob2:3: "two" stands where .* say --token-column 0 --tag-column 2\.'):
        list(read_columns(path))


def test_comments_before_a_sentence_of_an_ordinary_column_file(make_files):
    path = make_files({"a.conll": "# newdoc id = 3\n# sent_id = 7\nx O\n# O\n"}) / "a.conll"
    (sentence,) = read_columns(path)
    assert sentence.words == ("x", "#")
    path = make_files({"b.conll": "# id 5628f8c7\tdomain=en\nx _ _ O\n# _ _ O\n"}) / "b.conll"  # MultiCoNER
    (sentence,) = read_columns(path)
    assert (sentence.words, sentence.tags) == (("x", "#"), ("O", "O"))


CONLLU = (
    "# text = vámonos\n"
    "1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_\n"
    "2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_\n"
    "2.1\tya\tya\tADV\t_\t_\t_\t_\t1:advmod\t_\n"
)


def test_conllu_columns_by_name_without_ranges_and_empty_nodes(make_files):
    path = make_files({"es.conllu": CONLLU}) / "es.conllu"
    (sentence,) = read_columns(path)
    assert (sentence.words, sentence.tags, sentence.where) == (("vamos", "nos"), ("VERB", "PRON"), f"{path}:3")
    assert next(read_columns(path, "lemma", "deprel")).words == ("ir", "nosotros")
    assert next(read_columns(path, None, "xpos")).tags == ("V", "P")
    with pytest.raises(SettingsError, match='Did you mean "upos"'):
        list(read_columns(path, None, "uposs"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "x O\ny\n", r"a.conll:2: 1 columns here, 2 wanted"),
        ("a.conll", "word\n", r"a.conll:1: 1 columns here, 2 wanted"),
        ("a.conllu", "1\tx\tO\n", r"a.conllu:1: 3 columns here"),
        ("a.iob2", "1\tx\n", r"a.iob2:1: there are 2 columns"),
        (
            "a.conll",
            "x\tO\t\n",
            r"a.conll:1: the tag column is empty. If column 1 has the tags, say --tag-column 1 \(ev",
        ),
        (
            "a.conll",
            "x\tNN\tO\t \n",
            r"a.conll:1: the tag column is empty. If column 2 has the tags, say --tag-column 2 \(ev",
        ),
        ("a.conll", "x\tO\ny\t\n", r"a.conll:2: the tag column is empty. Give the word a tag, .* --tag-column N"),
        ("a.conll", b"x O\n\xff\xfe O\n", r"a.conll:2: .*not UTF-8"),
        ("a.xlsx", b"PK\x03\x04\xff", r"a.xlsx: spreadsheets are not read. Save it as text, in UTF-8"),
    ],
)
def test_errors_name_file_and_line(make_files, name, text, message):
    with pytest.raises(InputError, match=message):
        list(read_columns(make_files({name: text}) / name))


def test_a_column_name_for_a_file_without_names_is_refused(make_files):
    path = make_files({"a.conll": "x O\n"}) / "a.conll"
    with pytest.raises(SettingsError, match='tag_column "ner"'):
        list(read_columns(path, None, "ner"))
    with pytest.raises(SettingsError, match='CoNLL-U has no column "0"'):
        list(read_columns(make_files({"a.conllu": ""}) / "a.conllu", None, 0))


def squad(*questions: dict, context: str = "The cat sat.") -> str:
    return json.dumps(
        {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    )


def test_squad_questions_share_their_context_and_impossible_ones_have_no_answers(make_files):
    text = squad(
        {"id": "a", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}]},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": "c", "question": "Why?", "answers": [{"text": "dog", "answer_start": 0}], "is_impossible": True},
    )
    path = make_files({"dev.json": text}) / "dev.json"
    first, second, third = read_squad(path)
    assert first.answers == (Answer("cat", 4),)
    assert first.context is second.context
    assert second.answers == third.answers == ()
    assert (first.id, first.where) == ("a", f"{path}, question a")


def test_a_question_must_say_its_answers_unless_no_question_of_the_file_does(make_files):
    asked = {"id": "a", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}]}
    bare, typed = {"id": "b", "question": "Why?"}, {"id": "b", "question": "Why?", "answer": asked["answers"]}
    folder = make_files(
        {
            "typed.json": squad(asked, typed),
            "all.json": squad(typed, typed),
            "bare.json": squad(asked, bare),
            "impossible.json": squad(asked, {**bare, "is_impossible": True}),
            "text.json": squad(asked, {**bare, "is_impossible": "false"}),
            "open.json": squad(bare, {"id": "c", "question": 'Are there "answers"?'}),
        }
    )
    for name in ("typed.json", "all.json"):
        with pytest.raises(InputError, match=rf'{name}, question b: there is no "answers". Did you mean "answer"'):
            list(read_squad(folder / name))
    with pytest.raises(InputError, match=r'bare\.json, question b: there is no "answers"\. Choices: id, question'):
        list(read_squad(folder / "bare.json"))
    with pytest.raises(InputError, match=r"text\.json, question b, is_impossible: true or false wanted, not 'false'"):
        list(read_squad(folder / "text.json"))
    for name in ("impossible.json", "open.json"):
        assert [question.answers for question in read_squad(folder / name)][1] == ()


@pytest.mark.parametrize("start", [5, -1, 400, None, "4"])
def test_a_misplaced_answer_is_an_error_or_keeps_its_text_when_lenient(make_files, start):
    path = make_files(
        {"dev.json": squad({"id": "q7", "question": "Who?", "answers": [{"text": "cat", "answer_start": start}]})}
    )
    with pytest.raises(InputError, match=r"q7.*lenient"):
        list(read_squad(path / "dev.json"))
    (question,) = read_squad(path / "dev.json", lenient=True)
    assert question.answers == (Answer("cat", None),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"dev.json:1: not JSON"),
        ('{"a": 1}\n{"a": 2}\n', r"dev.json:2: not JSON.*jsonl"),
        ("[]", 'no list "data"'),
        ('{"data": [{}]}', r'data\[0\]: there is no list "paragraphs"'),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "x"}]}]}]}', r'paragraphs\[0\]: there is no "context"'),
        (squad({"id": "1", "quesion": "x"}), 'Did you mean "quesion"'),
        (squad({"id": "1", "question": 5}), "text wanted, int found"),
        (squad({"id": "1", "question": "x", "answers": ["y"]}), "object with 'text' wanted, str found"),
        (squad({"id": "1", "question": "x", "answers": 5}), "question 1, answers: a list wanted, int found"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": ' + "9" * 5000 + "}", "not JSON: .*digits"),
    ],
)
def test_what_is_not_squad_is_refused_with_its_place(make_files, text, message):
    with pytest.raises(InputError, match=message):
        list(read_squad(make_files({"dev.json": text}) / "dev.json"))


def test_rows_in_both_layouts_of_answers():
    row = {"question": "Who?", "context": "The cat sat.", "id": 3}
    lists = {**row, "answers": {"text": ["cat", "The cat"], "answer_start": [4, 0]}}
    objects = {**row, "answers": [{"text": "cat", "answer_start": 4}, {"text": "The cat", "answer_start": 0}]}
    assert question_row(lists, "r") == question_row(objects, "r")
    assert question_row(lists, "r").id == "3"
    assert question_row(row, "r", answers_field=None).answers == ()
    with pytest.raises(InputError, match='there is no "answers"'):
        question_row(row, "r")
    with pytest.raises(InputError, match="2 texts but 1 places"):
        question_row({**row, "answers": {"text": ["a", "b"], "answer_start": [1]}}, "r")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": "cat", "answer_start": 4}, 'r, answers: there is no list "text"'),
        ({"text": ["cat"], "answer_start": None}, 'r, answers: there is no list "answer_start"'),
        (5, "r, answers: a list wanted, int found"),
        (0, "r, answers: a list wanted, int found"),
        ("cat", "r, answers: a list wanted, str found"),
    ],
)
def test_answers_that_are_no_lists(answers, message):
    with pytest.raises(InputError, match=message):
        question_row({"question": "Who?", "context": "The cat sat.", "answers": answers}, "r")


def test_no_text_has_lone_surrogates(make_files):
    text = squad({"id": "\ud801", "question": "wh\ud800?", "answers": []})
    (question,) = read_squad(make_files({"dev.json": text}) / "dev.json")
    assert (question.id, question.question) == ("\ufffd", "wh\ufffd?")


def test_lists_of_words():
    assert string_list({"words": ["a", 1]}, "words", "r") == ("a", "1")
    with pytest.raises(InputError, match='Did you mean "words"'):
        string_list({"words": []}, "word", "r")
    with pytest.raises(InputError, match="r, words: a list wanted, str found"):
        string_list({"words": "a b"}, "words", "r")
    for unfit, name in ((None, "null"), (["b"], "list"), ({"b": 1}, "dict"), (math.nan, "NaN")):
        with pytest.raises(InputError, match=f"r, words: a list of texts wanted, {name} found in it"):
            string_list({"words": ["a", unfit]}, "words", "r")


def test_rows_are_told_from_files_by_name():
    assert [holds_rows(s) for s in ("a.jsonl.xz", "hub:x/y", "a.parquet", "a.conll", "a.json", "a.TXT")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sentences", "words", "tags", "documents"),
    [
        ("wnut17-train.conll", 3394, 62730, 13, 1),
        ("wikigold.conll", 1696, 39007, 5, 145),
        ("uner-zh-gsdsimp-dev.iob2", 500, 12663, 7, 17),
        ("ud-ewt-dev.conllu", 2001, None, 17, 318),
    ],
)
def test_real_files_have_their_published_sizes(shared_data, name, sentences, words, tags, documents):
    read = list(read_columns(shared_data / "tag" / name))
    assert len(read) == sentences
    assert words in (None, sum(len(one.words) for one in read))
    assert len({tag for one in read for tag in one.tags}) == tags
    assert len({one.document for one in read}) == documents


def test_real_squad_counts_and_the_misplaced_answers_of_cmrc(shared_data):
    path = shared_data / "answer" / "squad-v2.0-dev-a.json.xz"
    questions = list(read_squad(path))
    with lzma.open(path, "rt", encoding="utf-8") as file:
        raw = [qa for article in json.load(file)["data"] for part in article["paragraphs"] for qa in part["qas"]]
    assert len(questions) == len(raw) == 5303
    assert sum(not question.answers for question in questions) == sum(qa["is_impossible"] for qa in raw) == 2647
    trial = shared_data / "answer" / "cmrc2018-trial.zh.json"
    with pytest.raises(InputError, match="TRIAL_210_QUERY_0"):
        list(read_squad(trial))
    lenient = list(read_squad(trial, lenient=True))
    assert (len(lenient), sum(answer.start is None for question in lenient for answer in question.answers)) == (1002, 5)
