"""Asking a trained run: on the command line, and on the page in a headless Chromium."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from frozenllm.core.training import compose_config, train
from frozenllm.vqa import ask
from frozenllm.vqa.answerer import Answerer
from frozenllm.vqa.train import CONFIG

QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vqa_root: Path, tiny: list[str]) -> str:
    """Checkpoint of a run of a few steps, with the frozen layer."""
    folder = tmp_path_factory.mktemp("runs")
    overrides = ["llm=bundled", f"data.root={vqa_root}", "data.answers.min_count=2", "data.batch_size=8", *tiny]
    overrides += [f"runs={folder}", "name=it", "runtime.stop_after=2"]
    return f"{train(compose_config(CONFIG, overrides)).run_dir}/checkpoints/last.pt"


@pytest.fixture(scope="module")
def image(vqa_root: Path) -> Path:
    return sorted((vqa_root / "val2014").glob("*.jpg"))[0]


def test_command_prints_answers(run: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "active.png"
    ask.main([str(image), QUESTION, "--checkpoint", run, "--top", "3", "--out", str(picture)])
    *answers, wrote = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {picture}"
    answerer = Answerer(run)
    assert [line.split("  ")[0].strip() for line in answers] == [a.text for a in answerer.ask(image, QUESTION, top=3)]
    shown = [float(line.split()[-2]) for line in answers]
    assert shown == sorted(shown, reverse=True)
    with Image.open(picture) as opened:
        assert opened.size == (448, 448)


def test_probabilities_and_activations(run: str, image: Path) -> None:
    answerer = Answerer(run)
    best = answerer.ask(image, QUESTION, top=10**6)
    assert [answer.text for answer in best] != list(answerer.model.answers.names)
    assert len(best) == len(answerer.model.answers)
    with torch.no_grad():
        inputs = answerer._inputs(Image.open(image).convert("RGB"), QUESTION)
        logits = answerer.model(**inputs)[0]
    assert best[0].probability == pytest.approx(float(torch.sigmoid(logits.max())), rel=1e-4)
    for tap in ("adapter_out", "host"):
        heat = answerer.heat(image, QUESTION, tap)
        assert heat.shape == (3, 3)
        assert (float(heat.min()), float(heat.max())) == (0.0, 1.0)
    host = answerer.heat(image, QUESTION, "host")
    with torch.no_grad():
        tokens = answerer.model.tokens(**inputs)[0, 1:]
    distance = (tokens - tokens.mean(0)).norm(dim=1).view(3, 3)
    scaled = (distance - distance.min()) / (distance.max() - distance.min())
    torch.testing.assert_close(host, scaled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("change", "words"), [
    ({"image": "/no/such.jpg"}, r"The image /no/such\.jpg does not exist"), ({"question": "  "}, "question is empty"),
    ({"--top": "0"}, "must be positive"), ({"--checkpoint": "/no/such.pt"}, "no checkpoint at"),
    ({"--out": "/no/such/folder/x.png"}, "cannot be written"),
    ({"--out": "x.unknown"}, "cannot be written"),
])  # fmt: skip
def test_wrong_input_gives_one_sentence(run: str, image: Path, change: dict[str, str], words: str) -> None:
    given = {"image": str(image), "question": QUESTION, "--checkpoint": run, **change}
    options = [part for name, value in given.items() if name.startswith("--") for part in (name, value)]
    with pytest.raises(SystemExit, match=f"error: .*{words}") as caught:
        ask.main([given["image"], given["question"], *options])
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_enough(run: str, image: Path, tmp_path: Path) -> None:
    copy = shutil.copy(run, tmp_path / "last.pt")
    assert Answerer(copy).ask(image, QUESTION) == Answerer(run).ask(image, QUESTION)


def test_page_without_gradio_names_the_extra(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from frozenllm.vqa import app

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ModuleNotFoundError, match=r"frozenllm-vqa\[app\]"):
        app.build_page(Answerer(run))


@pytest.fixture(scope="module")
def address(run: str) -> Iterator[str]:
    """The page, served by this process."""
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    from frozenllm.vqa.app import serve

    page = serve(Answerer(run), port=None, block=False)
    yield page.local_url
    page.close()


def test_page_in_a_browser(address: str, run: str, image: Path, tmp_path: Path) -> None:
    """An image is uploaded, a question asked, an answer shown; without an image there is a hint."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    chromium = next(filter(None, found), None)
    if chromium is None:
        pytest.skip("There is no Chromium on this machine.")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, timeout=60_000)
        page.get_by_role("button", name="Ask").wait_for(timeout=60_000)
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("Choose an image first.").wait_for(timeout=60_000)
        page.locator("input[type=file]").first.set_input_files(str(image))
        page.get_by_label("Question").fill(QUESTION)
        page.locator("[data-testid=image] img, .image-frame img").first.wait_for(timeout=60_000)
        page.get_by_role("button", name="Ask").click()
        page.locator("[data-testid=label-output-value], .output-class").first.wait_for(timeout=60_000)
        shown = page.locator("[data-testid=label-output-value], .output-class").first.inner_text().strip()
        page.screenshot(path=str(tmp_path / "page.png"))
        browser.close()
    assert shown == Answerer(run).ask(image, QUESTION)[0].text
    outside = [url for url in asked if url.startswith("http") and not url.startswith(address)]
    assert not outside, f"The page asks for {outside[:3]}."
