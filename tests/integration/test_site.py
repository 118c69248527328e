"""The documentation as a site: built without a warning, and readable without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>|<link\b[^>]*\bhref=[\"']?https?://[^>]*>"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs is not installed: the dependency group docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return folder


def test_every_page_is_there(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file(), page
    for package in ROOT.glob("packages/*/README.md"):
        assert (site / f"packages/{package.parent.name}.html").is_file()


def test_nothing_is_loaded_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not LOADED.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?https?://", style.read_text()), style


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("layer", ["FrozenLLMLayer", "readout", "output_norm", "build_llm_layer"]),
        ("weights", ["load_block", "reload_blocks"]),
        ("training", ["compose_config", "TolerantDataset", "run_cli"]),
        ("vision2d", ["FrozenLLMViT"]),
        ("video", ["FrozenLLMVideoMAE"]),
        ("pointcloud", ["PointBERT"]),
        ("motion", ["VectorNet"]),
        ("vqa", ["MeterVQA"]),
    ],
)
def test_the_reference_comes_from_the_docstrings(site, page, words):
    text = (site / f"api/{page}.html").read_text()
    for word in words:
        assert re.search(rf'id="[\w.]*\.{word}"', text) or word in text, f"api/{page}.html says nothing of {word}"
    assert text.count("Parameters:") + text.count("doc-section-title") > 3
