"""Random numbers can be repeated: those of Python, of numpy and of torch."""

import contextlib
import random

import numpy as np
import pytest
import torch

from gpt2lab.errors import InputError
from gpt2lab.training import randomness
from gpt2lab.training.randomness import drawing, generator_states, restore_generators, seed_generators


def drawn() -> list[float]:
    """Of each generator both what it draws bits for and the normal numbers, of which some keep one for later."""
    python = [random.random(), random.gauss(0, 1)]
    return [*python, *np.random.rand(1), *np.random.randn(1), *torch.rand(1).tolist(), *torch.randn(1).tolist()]


def test_a_seed_begins_all_of_them_anew() -> None:
    seed_generators(3)
    first = drawn()
    drawn()
    seed_generators(3)
    assert drawn() == first
    seed_generators(4)
    assert all(a != b for a, b in zip(drawn(), first, strict=True))


def test_what_is_drawn_inside_follows_from_the_numbers_and_outside_all_goes_on() -> None:
    seed_generators(0)
    expected = drawn(), drawn()
    seed_generators(0)
    found = [drawn()]
    inside = []
    for numbers in ((1, 2), (1, 2), (2, 1), (-1, 2**70)):
        with drawing(*numbers):
            inside.append(drawn())
    with contextlib.suppress(KeyError), drawing(5):
        raise KeyError(drawn())
    found.append(drawn())
    assert tuple(found) == expected
    assert inside[0] == inside[1]
    assert len({tuple(values) for values in inside}) == 3


def test_restored_states_draw_on_where_they_were() -> None:
    seed_generators(1)
    drawn()  # in the midst of a pair of normal numbers
    states = generator_states()
    assert set(states) >= {"cpu/0", "numpy/0", "python/0"}
    expected = drawn()
    seed_generators(2)
    restore_generators(states, step=5)
    assert drawn() == expected


def test_what_a_checkpoint_does_not_know_begins_anew_by_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_generators(1)
    only_torch = {"cpu/0": generator_states()["cpu/0"]}  # as older versions wrote it
    found = {}
    for step in (5, 5, 6):
        drawn()
        restore_generators(only_torch, step)
        found.setdefault(step, []).append(drawn())
    assert found[5][0] == found[5][1]
    assert found[5][0][:4] != found[6][0][:4]
    assert found[5][0][4:] == found[6][0][4:]
    monkeypatch.setattr(randomness, "rank", lambda: 1)  # a process that was not there
    restore_generators(only_torch, 5)
    assert all(a != b for a, b in zip(drawn(), found[5][0], strict=True))


@pytest.mark.parametrize(("name", "byte"), [("cpu/0", 0), ("numpy/0", 0), ("python/0", 0), ("numpy/0", 1)])
def test_a_damaged_state_is_one_sentence(name: str, byte: int) -> None:
    whole = generator_states()
    for damaged in (whole[name][:3], whole[name].float()[byte:], whole[name][:0]):
        with pytest.raises(InputError, match="the state of a random generator is damaged"):
            restore_generators({**whole, name: damaged}, 5)
