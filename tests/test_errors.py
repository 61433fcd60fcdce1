"""The tree of errors: what the module docstring draws is what there is."""

import re

import pytest

from bertsmith import errors
from bertsmith.errors import BertsmithError, InputError, Interrupted, MissingExtraError, did_you_mean


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert set(drawn) == {cls.__name__ for cls in BertsmithError.__subclasses__()}


def test_interrupted_is_no_user_error() -> None:
    assert not issubclass(Interrupted, BertsmithError)
    assert issubclass(Interrupted, Exception)


@pytest.mark.parametrize(
    ("where", "text"), [(None, "no such column"), ("a.csv:3", "a.csv:3: no such column"), ("", "no such column")]
)
def test_input_errors_begin_with_the_place(where: str | None, text: str) -> None:
    error = InputError("no such column", where)
    assert str(error) == text
    assert error.where == where


def test_a_missing_extra_ends_with_the_command() -> None:
    assert str(MissingExtraError("onnx", "export", "ONNX export")).endswith('pip install "bertsmith[export]"')


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sentense", 'Did you mean "sentence"? '), ("labels", 'Did you mean "label"? '), ("zzz", "")],
)
def test_the_nearest_choice_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, ["sentence", "label"]) == f"{hint}Choices: label, sentence."
