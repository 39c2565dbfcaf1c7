"""The public names: each is there, and nothing is loaded before it is asked for."""

import dataclasses
import inspect
import typing
from collections.abc import Callable

import pytest

import gpt2lab
from gpt2lab.evaluation import runs as evaluation
from gpt2lab.evaluation.settings import EvaluateOptions
from gpt2lab.generation import Sampling
from gpt2lab.generation import runs as generation
from gpt2lab.generation.settings import GenerateOptions


@pytest.mark.parametrize("name", gpt2lab.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(gpt2lab, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No gpt2lab attribute trian"):
        gpt2lab.trian  # noqa: B018


@pytest.mark.parametrize(
    ("function", "options", "others"),
    [
        (generation.generate, GenerateOptions, {f.name for f in dataclasses.fields(Sampling)}),
        (evaluation.evaluate, EvaluateOptions, set()),
    ],
    ids=["generate", "evaluate"],
)
def test_type_checkers_know_the_keywords_that_are_declared(
    function: Callable[..., object], options: type, others: set[str]
) -> None:
    of_a_run = inspect.signature(typing.get_overloads(function)[1]).parameters.values()
    typed = {p.name: p.default for p in of_a_run if p.kind is p.KEYWORD_ONLY}
    declared = {f.name: f.default for f in dataclasses.fields(options) if f.name not in others}
    assert typed == declared
