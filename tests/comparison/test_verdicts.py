"""What is said of an arm: in a sentence, and in a table."""

import dataclasses

from gpt2lab.comparison.verdicts import Verdict, in_words, sentences, text_table

BETTER = Verdict("rope", 25, "test_loss", -0.05, -0.061, -0.039, "better", 8, 0.95, -5.8, 0)
OPEN = dataclasses.replace(
    BETTER, arm="gqa", difference=0.1, low=-0.6, high=0.8, verdict="no difference shown", pairs=2, more_seeds=6
)


def test_a_sentence_says_by_how_much_and_how_sure_that_is() -> None:
    assert in_words(BETTER) == "rope: better by 0.0500 (0.0390 to 0.0610; 8 seeds)"
    worse = dataclasses.replace(BETTER, difference=0.05, low=0.039, high=0.061, verdict="worse")
    assert in_words(worse) == "rope: worse by 0.0500 (0.0390 to 0.0610; 8 seeds)"


def test_what_is_undecided_comes_with_what_could_have_been_seen_and_what_would_settle_it() -> None:
    assert in_words(OPEN) == (
        "gqa: no difference shown (-0.6000 to +0.8000); 2 seeds cannot show differences under 0.7 here; about 6 more "
        "would settle it"
    )
    assert in_words(dataclasses.replace(OPEN, more_seeds=None)).endswith("under 0.7 here")


def test_one_seed_says_that_it_can_say_nothing() -> None:
    one = dataclasses.replace(OPEN, low=None, high=None, verdict=None, pairs=1)
    assert in_words(one) == "gqa: 1 seed cannot tell a difference from chance; train two or more, better five"


def test_there_is_a_sentence_for_each_loss_and_none_for_other_quantities() -> None:
    found = [BETTER, dataclasses.replace(BETTER, quantity="parameters"), dataclasses.replace(OPEN, context=64)]
    assert sentences(found[:2], [25]) == [in_words(BETTER)]
    told = sentences(found, [25, 64])
    assert told[0].startswith("context 25 · rope: better")
    assert told[1].startswith("context 64 · gqa: no difference")
    assert len(told) == 2


def test_columns_are_aligned() -> None:
    lines = text_table([BETTER, OPEN]).splitlines()
    assert lines[0].index("verdict") == lines[1].index("better") == lines[2].index("no difference shown")
