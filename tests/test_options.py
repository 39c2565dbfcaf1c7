import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.comparison.settings import GridSettings
from gpt2lab.errors import InputError
from gpt2lab.generation.settings import GenerateSettings
from gpt2lab.options import (
    ELSEWHERE,
    check,
    closest,
    converted,
    declared,
    given_options,
    limits,
    option,
    options_of,
    spelled,
)
from gpt2lab.runs.settings import SETTINGS, TrainOptions


@dataclass(frozen=True)
class Soup:
    """Options of every kind."""

    litres: int = option(2, "how much.", least=1, older=("volume",))
    salt: float | None = option(None, "grams.", least=0, below=10)
    kind: Literal["tomato", "pea", "yes", "no"] = option("pea", "which.", spellings={"petit-pois": "pea"})
    hot: bool = option(True, "warmed.")
    beans: tuple[float, float] = option((0.5, 0.5), "white and black.", least=0, most=1)
    pot: str | Path | None = option(None, "where.")

    def __post_init__(self) -> None:
        check(self)


def soup(**values: Any) -> Soup:
    return Soup(**given_options((Soup,), values))


@pytest.mark.parametrize(
    ("values", "name", "meant"),
    [
        ({"litres": "3"}, "litres", 3),
        ({"litres": "1e3"}, "litres", 1000),
        ({"volume": 4}, "litres", 4),
        ({"salt": "1e-3"}, "salt", 0.001),
        ({"salt": 2}, "salt", 2),
        ({"salt": None}, "salt", None),
        ({"kind": "PETIT-POIS"}, "kind", "pea"),
        ({"kind": True}, "kind", "yes"),
        ({"kind": False}, "kind", "no"),
        ({"hot": "no"}, "hot", False),
        ({"beans": [0, 1.0]}, "beans", (0, 1.0)),
        ({"beans": "0.25,1"}, "beans", (0.25, 1)),
        ({"pot": Path("a")}, "pot", "a"),
    ],
)
def test_text_and_what_files_have_become_the_declared_type(values: dict[str, Any], name: str, meant: object) -> None:
    found = getattr(soup(**values), name)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"litres": "six"}, "litres is 'six'; it has to be a whole number, 1 or more"),
        ({"litres": 1.5}, "litres is 1.5; it has to be a whole number"),
        ({"litres": "1.5"}, "litres is '1.5'; it has to be a whole number"),
        ({"litres": True}, "litres is True; it has to be a whole number"),
        ({"litres": 0}, "litres is 0; it has to be a whole number, 1 or more"),
        ({"litres": None}, "litres is None; it has to be a whole number"),
        ({"salt": 10}, "salt is 10; it has to be a number, at least 0 and below 10"),
        ({"salt": "nan"}, "salt is nan; it has to be a number"),
        ({"salt": math.inf}, "salt is inf; it has to be a number"),
        ({"kind": "leek"}, "kind is 'leek'; it has to be one of tomato, pea, yes, no"),
        ({"hot": 1}, "hot is 1; it has to be yes or no"),
        ({"beans": "1"}, "beans is '1'; it has to be 2 numbers, each at least 0 and at most 1"),
        ({"beans": (1, "x")}, r"beans is \(1, 'x'\); it has to be 2 numbers"),
        ({"pot": 3}, "pot is 3; it has to be text"),
        ({"litre": 1}, r"there is no option 'litre'; did you mean litres \(--litres\)\?"),
        ({"colour": 1}, "there is no option 'colour'; known are beans, hot, kind"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_named_with_what_it_has_to_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        soup(**values)


def test_a_message_says_in_which_file_the_value_stands() -> None:
    with pytest.raises(InputError, match=r"^soup\.yaml: litres is 'six'"):
        given_options((Soup,), {"litres": "six"}, "soup.yaml")


@pytest.mark.parametrize("beans", [(0.5, 1.5), (math.nan, 0.5), (0.5,)])
def test_limits_hold_for_each_number_of_several(beans: Any) -> None:
    with pytest.raises(InputError, match=r"^beans is"):
        Soup(beans=beans)


@given(
    st.builds(
        Soup,
        litres=st.integers(1, 10**9),
        salt=st.none() | st.floats(0, 9.99),
        kind=st.sampled_from(["tomato", "pea", "yes", "no"]),
        hot=st.booleans(),
        beans=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    )
)
def test_what_is_spelled_for_a_file_is_read_back_the_same(made: Soup) -> None:
    for written in (json.loads(json.dumps(spelled(made))), yaml.safe_load(yaml.safe_dump(spelled(made)))):
        assert soup(**written) == made


@given(st.text() | st.floats() | st.integers() | st.booleans() | st.none() | st.lists(st.text()))
def test_whatever_a_file_holds_is_a_valid_value_or_an_input_error(value: Any) -> None:
    for name, (kind, of) in options_of(TrainOptions).items():
        with contextlib.suppress(InputError):
            converted(name, kind, declared(of), value)


def test_every_option_says_what_it_means_and_its_default_keeps_its_own_limits() -> None:
    for kind in (TrainOptions, *SETTINGS):
        for name, (_, of) in options_of(kind).items():
            assert declared(of).meaning.rstrip(")").endswith("."), name
            assert of.default is not dataclasses.MISSING, name
        check(kind())


def test_limits_are_told_in_words() -> None:
    told = [limits(declared(of)) for _, of in options_of(Soup).values()]
    assert told == ["1 or more", "at least 0 and below 10", "", "", "at least 0 and at most 1", ""]


def test_names_of_other_programs_lead_to_options_that_there_are() -> None:
    known = options_of(GridSettings, GenerateSettings, *SETTINGS)
    assert ELSEWHERE.keys() <= known.keys()
    for ours, theirs in ELSEWHERE.items():
        assert {closest(name, [*known.keys() - ELSEWHERE.keys(), ours]) for name in theirs} == {ours}
