"""The page: what a reader finds on it, and in a real browser whether it can be read."""

import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2lab.comparison.contrasts import contrasts
from gpt2lab.comparison.measure import SPEEDS
from gpt2lab.comparison.report import answers, render
from gpt2lab.comparison.results import CellResult, Results, Seconds, Timing
from gpt2lab.comparison.settings import Claim, Design, GridSettings
from tests.comparison.made import made_cell

CONTEXT = 8
ARMS = {"original": 2.0, "rope": 1.9, "mine<b>": 2.1}
SECTIONS = ["The arms", "Convergence", "Quality, speed and memory", "Loss by position", "Samples", "How it was done"]


def make_results(
    seeds: int = 4, claims: tuple[Claim, ...] | None = None, arms: dict[str, float] = ARMS, **changes: Any
) -> Results:
    """Results such as `collect` returns, with losses that differ by arm and a little by seed."""
    draw = np.random.default_rng(0)
    cells = [
        made_cell(
            CONTEXT,
            arm,
            seed,
            test_loss=loss + 0.01 * draw.normal(),
            bits_per_character=loss / np.log(2),
            bits_per_byte=loss / np.log(2),
            loss_by_position=np.linspace(3, loss, CONTEXT).tolist(),
            train_loss=loss,
            validation_loss=loss,
            curve=[(800, 3.0), (1600, loss + 0.3), (3200, loss)],
            loss_by_context=[(4, loss + 0.1), (8, loss)],
            attention_by_distance=[[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]] * 2,
            sample="<script>alert('to be')</script> or not",
        )
        for arm, loss in arms.items()
        for seed in range(1, seeds + 1)
    ]
    times = {arm: Seconds(*([0.010 * loss, 0.011 * loss, 0.012 * loss] for _ in SPEEDS)) for arm, loss in arms.items()}
    claims = (Claim("RoPE learns more.", "rope", "test_loss"),) if claims is None else claims
    design = Design({arm: {} for arm in arms}, claims, GridSettings(contexts=(CONTEXT,)), {"learning_rate": 0.008})
    speed = {CONTEXT: Timing("a machine", 2, 0.1, times)}
    return dataclasses.replace(with_cells(Results(design, [], [], [], speed, []), cells), **changes)


def with_cells(results: Results, cells: list[CellResult]) -> Results:
    """The same with these cells, and the contrasts that follow from them."""
    found = contrasts(cells, results.speed, results.claims, [CONTEXT], results.settings.baseline)
    return dataclasses.replace(results, cells=cells, contrasts=found)


def changed(results: Results, arm: str | None = None, seed: int | None = None, **values: Any) -> Results:
    """The same with other values in the cells of an arm (of a seed), and the contrasts that follow from them."""
    cells = [
        dataclasses.replace(cell, **values) if arm in (None, cell.arm) and seed in (None, cell.seed) else cell
        for cell in results.cells
    ]
    return with_cells(results, cells)


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_results())


class Checker(HTMLParser):
    """Collects what a page would fetch, and whether its elements are closed in order."""

    void = {"meta", "link", "br", "img", "input", "hr"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        fetching = {"src", "href", "xlink:href", "action", "data"}
        self.fetched += [
            value or "" for name, value in attributes if name in fetching and not (value or "").startswith("#")
        ]
        assert tag != "script"

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_fetches_nothing_and_runs_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "url(" not in re.sub(r"url\(#\w+\)", "", page)
    assert "@import" not in page
    assert len(page.encode()) < 2_000_000


def test_sections_come_in_the_order_that_a_reader_asks(page: str) -> None:
    places = [page.index("RoPE learns more."), *(page.index(f"<h2>{section}") for section in SECTIONS)]
    assert places == sorted(places)


def test_the_arms_come_in_the_order_of_their_validation_loss_and_not_of_the_test_loss() -> None:
    results = make_results()
    turned = [dataclasses.replace(cell, validation_loss=-cell.test_loss) for cell in results.cells]
    table = render(with_cells(results, turned)).split("<h2>The arms")[1].split("</table>")[0]
    assert re.findall(r"<tr><td>([^<]+)</td>", table) == ["mine&lt;b&gt;", "original", "rope"]


def test_an_arm_whose_attention_cannot_be_read_off_is_left_out_of_that_picture_alone() -> None:
    picture = (
        render(changed(make_results(), "rope", attention_by_distance=None))
        .split("receive attention?")[1]
        .split("<h2>")[0]
    )
    assert "original" in picture
    assert "rope" not in picture


def test_a_line_of_attention_ends_where_a_window_hides_what_is_farther_back() -> None:
    seen = [0.6, 0.3, 0.1, *[0.0] * 5]
    page = render(changed(make_results(), "rope", attention_by_distance=[seen, seen]))
    picture = page.split("receive attention?")[1].split("<h2>")[0]
    lines = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="fill: none; stroke: #(\w+)', picture)
    points = {colour: len(re.findall("[ML]", path)) for path, colour in lines if colour in ("1f77b4", "ff7f0e")}
    assert points == {"1f77b4": CONTEXT, "ff7f0e": 3}


def test_a_verdict_has_its_word_from_the_interval_and_the_figures_behind_it(page: str) -> None:
    results = make_results()
    (told,) = answers(results)
    assert told.word == "Holds"
    means = {a: np.mean([c.test_loss for c in results.cells if c.arm == a]) for a in ("rope", "original")}
    assert f"{means['rope']:.4f}" in told.sentence
    assert f"{means['original'] - means['rope']:.4f} lower" in told.sentence
    assert "95 % interval -0." in told.sentence
    assert "4 seeds" in told.sentence
    assert 'class="word better">Holds' in page
    assert 'class="word better">Better' in page[page.index("<h2>The arms") :]


def test_one_seed_allows_no_word_anywhere() -> None:
    results = make_results(seeds=1)
    assert answers(results)[0].word == "Undecided"
    assert "one pair says nothing" in answers(results)[0].sentence
    table = render(results).split("<h2>The arms")[1].split("</table>")[0]
    assert not re.search("Better|Worse|No difference", table)


def test_claims_about_ratios_and_sizes_read_well() -> None:
    claims = (
        Claim("It writes faster.", "rope", "seconds_per_token"),
        Claim("It converges faster.", "rope", "tokens_to_target"),
        Claim("It is larger.", "rope", "parameters", expects="more"),
        Claim("It is not there.", "swa", "test_loss"),
    )
    faster, converges, larger, absent = answers(make_results(claims=claims))
    assert faster.word == "Holds"
    assert "0.950 times the original's (95 % interval 0.9500 to 0.9500; 3 rounds" in faster.sentence or (
        "0.950 times the original's." in faster.sentence
    )
    assert converges.sentence.startswith("At a context of 8, rope reaches the original's final loss in tokens: 1.000")
    assert larger.sentence == "At a context of 8, rope has parameters: 1.000 times the original's."
    assert absent.word == "Undecided"


def test_a_claim_of_more_holds_where_there_is_more() -> None:
    results = make_results(claims=(Claim("It is larger.", "rope", "parameters", expects="more"),))
    assert answers(results)[0].word == "No difference shown"
    assert answers(changed(results, "rope", parameters=1244))[0].word == "Holds"


def test_an_arm_that_missed_the_target_in_some_trainings_is_told_so() -> None:
    results = make_results(claims=(Claim("It converges faster.", "rope", "tokens_to_target"),))
    results = changed(results, "rope", 1, tokens_to_target=None)
    (told,) = answers(results)
    assert told.word == "No difference shown"
    assert "in 3 of 4 trainings" in told.sentence
    assert "(3 of 4)" in render(results)


def test_another_baseline_is_called_by_its_name() -> None:
    claims = (Claim("It writes faster.", "mqa", "seconds_per_token"), Claim("It is better.", "mqa", "test_loss"))
    results = make_results(claims=claims, arms={"rope": 2.0, "mqa": 1.9})
    faster, better = answers(results)
    assert "0.950 times rope's" in faster.sentence
    assert ", rope 2.0" in better.sentence
    page = render(results)
    assert "minus rope" in page
    assert "original" not in page


def test_what_users_named_or_models_wrote_is_text_and_never_markup(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "mine&lt;b&gt;" in page


def test_a_comparison_without_claims_cells_or_timings_is_still_a_page() -> None:
    assert "everything here is exploratory" in render(make_results(claims=()))
    assert "nothing was timed yet" in render(make_results(speed={}))
    empty = render(make_results(cells=[], contrasts=[], unfinished=["context-8/rope/seed-1"]))
    assert "1 cell is not finished: context-8/rope/seed-1" in empty


def test_a_learning_rate_at_the_edge_of_what_was_tried_is_marked() -> None:
    results = make_results()
    tuned = dataclasses.replace(results.settings, grid=GridSettings(contexts=(CONTEXT,), tune=True))
    results = dataclasses.replace(results, settings=tuned)
    assert "a better one may lie beyond" not in render(results)
    page = render(changed(results, "rope", rate_at_edge=True))
    assert page.count("0.008*") == 1
    assert "a better one may lie beyond" in page


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_all_of_it_without_scrolling_sideways(
    page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        told: list[str] = []
        tab.on("console", lambda message: told.append(message.text))
        tab.on("requestfailed", lambda request: told.append(request.url))
        tab.goto(path.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("figure svg").count() == 6
        for section in SECTIONS:
            assert tab.get_by_role("heading", name=section).is_visible()
        for figure in tab.locator("figure svg").all():
            box = figure.bounding_box()
            assert box is not None
            assert box["width"] > 300
        ink, paper = (
            sum(map(int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
            for name in ("color", "backgroundColor")
        )
        assert (ink < paper) == (scheme == "light")
        assert abs(ink - paper) > 400
        letters = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
        assert letters == tab.evaluate("getComputedStyle(document.body).color")
        assert told == []
        browser.close()


def test_the_page_opens_with_a_sentence_for_each_arm() -> None:
    first = render(make_results()).split("<h2>")[0]
    assert re.search(r"<li>rope: better by 0\.\d{4} \(0\.\d{4} to 0\.\d{4}; 4 seeds\)</li>", first)
    assert re.search(r"<li>mine&lt;b&gt;: worse by 0\.\d{4} ", first)
    assert "original:" not in first


def test_what_changed_is_a_table_of_settings_and_not_of_python() -> None:
    before, now = make_results(), make_results()
    arms = {**now.settings.arms, "rope": {"position": "rope", "window": [8, None]}}
    now = dataclasses.replace(now, settings=dataclasses.replace(now.settings, arms=arms))
    table = render(now, before).split("<h2>What changed")[1].split("</table>")[0]
    assert "<tr><td>arm rope: position</td><td>–</td><td>rope</td></tr>" in table
    assert "<tr><td>arm rope</td><td>as in GPT-2</td><td>–</td></tr>" in table
    assert "{" not in table
