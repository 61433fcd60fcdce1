"""A few held-out sentences, and what the finished models say about them. None is picked by hand."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bertsmith import randomness
from bertsmith.deploy.predict import load
from bertsmith.tasks.entities import read_spans
from bertsmith.text.sentences import split_sentences
from bertsmith.text.tokenizer import Tokenizer, load_tokenizer
from bertsmith.training.report import Table

Row = Mapping[str, Any]
_MASKED_WORDS = (7, 18)
_LONGEST_CONTEXT = 260  # characters of a context that is shown in a table
_GUESSES = 4


def masks_table(model: Path, test: Sequence[Row], number: int, seed: int) -> Table:
    """Sentences of test passages with one word hidden, and the most probable words for it."""
    tokenizer = load_tokenizer(model / "model")
    hidden = list(islice(_masked(_drawn(test, seed), tokenizer, seed), number))
    answers = load(model, top_k=_GUESSES).predict([text for text, _ in hidden])
    rows = [
        (text, word, ", ".join(f"{guess['token']} {guess['score']:.0%}" for guess in answer["guesses"]))
        for (text, word), answer in zip(hidden, answers, strict=True)
    ]
    return Table("Masks filled", ("held-out sentence", "what was there", "guesses"), rows)


def labels_table(model: Path, test: Sequence[Row], number: int, seed: int) -> Table:
    """Test passages, where they come from, and where the model says they come from."""
    drawn = list(islice(_drawn(test, seed), number))
    answers = load(model).predict([row["text"] for row in drawn])
    rows = [
        (row["text"], row["label"], f"{answer['label']} {answer['score']:.0%}")
        for row, answer in zip(drawn, answers, strict=True)
    ]
    return Table("Libraries told", ("held-out passage, its library's names taken out", "library", "answer"), rows)


def tags_table(model: Path, test: Sequence[Row], number: int, seed: int) -> Table:
    """Test sentences, the names that were marked in them, and the names that the model finds."""
    drawn = list(islice(_drawn(test, seed), number))
    answers = load(model).predict([{"words": row["words"]} for row in drawn])
    rows = []
    for row, answer in zip(drawn, answers, strict=True):
        marked = [f"{' '.join(row['words'][one.start : one.end])} {one.label}" for one in read_spans(row["tags"])]
        found = [f"{entity['text']} {entity['label']}" for entity in answer["entities"]]
        rows.append((" ".join(row["words"]), ", ".join(marked), ", ".join(found)))
    return Table("Names found", ("held-out sentence, its marks taken out", "marked", "found"), rows)


def answers_table(model: Path, test: Sequence[Row], number: int, seed: int) -> Table:
    """Test questions with their contexts, the right answers, and those of the model."""
    drawn = list(islice(_drawn(test, seed), number))
    answers = load(model).predict([{"question": row["question"], "context": row["context"]} for row in drawn])
    rows = [
        (_around(row), row["question"], row["answers"][0]["text"], answer["answer"] or "")
        for row, answer in zip(drawn, answers, strict=True)
    ]
    return Table("Questions answered", ("held-out parameters", "question", "in the text", "answer"), rows)


def _drawn(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    """All rows in a random order."""
    return (rows[index] for index in randomness.generator(seed, "demo samples").permutation(len(rows)))


def _masked(rows: Iterator[Row], tokenizer: Tokenizer, seed: int) -> Iterator[tuple[str, str]]:
    """(sentence with a mask, hidden word): the word is drawn among those of the vocabulary with four letters."""
    mask = tokenizer.tokens([tokenizer.mask_id])[0]
    for number, row in enumerate(rows):
        sentence = split_sentences(row["text"])[0].strip()
        words = sentence.split(" ")
        known = [
            place
            for place, word in enumerate(words)
            if len(word) > 3 and word.isalpha() and word.islower() and tokenizer.token_to_id(word) is not None
        ]
        if known and _MASKED_WORDS[0] <= len(words) <= _MASKED_WORDS[1]:
            place = known[randomness.generator(seed, "demo mask", number).integers(len(known))]
            yield " ".join([*words[:place], mask, *words[place + 1 :]]), words[place]


def _around(row: Row) -> str:
    """The context, or as much of it around the answer as a table can hold."""
    context: str = row["context"]
    start = max(0, min(row["answers"][0]["answer_start"] - _LONGEST_CONTEXT // 2, len(context) - _LONGEST_CONTEXT))
    end = start + _LONGEST_CONTEXT
    return ("… " if start else "") + context[start:end] + (" …" if end < len(context) else "")
