"""The report in a browser: the slider, the switches, a phone, paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import three_arms

from frozenllm.core.analysis.study import Study, read_study
from frozenllm.core.report import write_report

ARMS = ("host", "frozen", "random")
DEFAULT = "magnitude at adapter_out"


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Study]]:
    folder = tmp_path_factory.mktemp("browser")
    runs = three_arms(folder / "tiny")
    path = write_report([runs], folder / "report.html", title="In a browser", study="never")
    found = [read_study(runs / arm / "seed0") for arm in ARMS]
    assert all(found)
    return path, [study for study in found if study]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, found), None)
    if program is None:
        pytest.skip("There is no Chromium on this machine.")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-background-networking"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, studies: tuple[Path, list[Study]]) -> Iterator[Any]:
    """The page opened; that it asked for nothing and reported nothing is checked at the end."""
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(studies[0].as_uri())
    yield page
    assert [url for url in asked if not url.startswith("data:")] == [studies[0].as_uri()]
    assert said == []
    page.close()


def move(page: Any, threshold: float) -> None:
    """Put the slider somewhere, as a user's input does."""
    slider = page.get_by_role("slider", name="threshold")
    slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", round(100 * threshold))


def shown(page: Any) -> list[list[int]]:
    """Visible marks of every view of every sample."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.sample')].map(sample =>
            [...sample.querySelectorAll('.view')].map(view => [...view.querySelectorAll('.mark')].filter(mark =>
                getComputedStyle(mark).display !== 'none' && mark.getBoundingClientRect().width > 0).length))"""
    )


def expected(studies: list[Study], activation: str, threshold: float) -> list[list[int]]:
    """Tokens at or above the threshold; where an arm has no such place, at its host."""
    return [
        [
            sum(
                value >= threshold
                for value in arm.samples[number].activations.get(activation)
                or arm.samples[number].activations[f"{activation.split()[0]} at host"]
            )
            for arm in studies
        ]
        for number in range(len(studies[0].samples))
    ]


def test_the_slider_shows_the_tokens_above_it(page: Any, studies: tuple[Path, list[Study]]) -> None:
    assert shown(page) == expected(studies[1], DEFAULT, 0.5)
    for threshold in (0.0, 0.23, 0.8, 1.0):
        move(page, threshold)
        assert shown(page) == expected(studies[1], DEFAULT, threshold)
    assert shown(page) == [[1, 1, 1]] * 4
    assert page.locator("output").inner_text() == "1.00"
    slider = page.get_by_role("slider", name="threshold")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "activation of at least 0.97"
    assert shown(page) == expected(studies[1], DEFAULT, 0.97)
    slider.press("Home")
    assert shown(page) == [[12] * 3, [12] * 3, [9] * 3, [9] * 3]


def test_activation_arm_and_sample_are_chosen(page: Any, studies: tuple[Path, list[Study]]) -> None:
    page.locator("select[name=activation]").select_option("frequency at host")
    counts = expected(studies[1], "frequency at host", 0.5)
    assert shown(page) == counts
    page.get_by_label("random").uncheck()
    assert shown(page) == [row[:2] for row in counts]
    page.locator("select[name=sample]").select_option("1")
    assert shown(page) == [counts[1][:2]]
    assert page.locator(".view.video").first.locator("img").count() == 3
    move(page, 0.4)
    study = studies[1][1].samples[1]
    on = [value >= 0.4 for value in study.activations["frequency at host"]]
    assert study.relevant is not None
    both = sum(a and b for a, b in zip(on, study.relevant, strict=True))
    union = sum(a or b for a, b in zip(on, study.relevant, strict=True))
    text = page.locator("[data-arm='1'] .count").inner_text()
    overlap = f"{both} of {sum(study.relevant)} relevant ones, IoU {both / union:.2f}"
    assert text == f"{sum(on)} of 12 tokens at 0.40 or more; {overlap}."
    page.get_by_label("outline relevant tokens").check()
    assert page.locator("[data-arm='1'] .mark[stroke='#ff4d6d']").count() == sum(study.relevant)
    assert page.locator("[data-arm='1'] .mark[data-shown='1']").count() == sum(on)


def test_a_mark_lies_where_its_token_does(page: Any) -> None:
    move(page, 0.0)
    boxes = page.evaluate(
        """() => { const view = document.querySelector('[data-sample="0"] .view');
            const box = e => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; };
            return [box(view.querySelector('img')), ...[...view.querySelectorAll('.mark')].map(box)]; }"""
    )
    (left, top, width, height), *marks = boxes
    assert width / height == pytest.approx(32 / 24, rel=0.02)
    for token, mark in enumerate(marks):
        place = [left + token % 4 * width / 4, top + token // 4 * height / 3, width / 4, height / 3]
        assert mark == pytest.approx(place, abs=0.6)


def test_on_a_phone_nothing_is_wider_than_the_page(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for part in page.locator("details").all():
        part.evaluate("part => part.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("[...document.querySelectorAll('.views')].every(v => v.scrollWidth <= v.clientWidth)")


def test_on_paper_there_are_no_controls(page: Any, studies: tuple[Path, list[Study]]) -> None:
    move(page, 0.7)
    page.emulate_media(media="print")
    assert not page.locator("input[name=threshold]").is_visible()
    assert not page.locator("select[name=activation]").is_visible()
    assert page.locator(".state").inner_text() == "Shown: magnitude at adapter out, tokens of at least 0.70."
    assert shown(page) == expected(studies[1], DEFAULT, 0.7)
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0  # opened before it was printed
