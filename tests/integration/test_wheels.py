"""Wheels, built and installed without the source tree, work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv") or (str(ROOT / ".uv/bin/uv") if (ROOT / ".uv/bin/uv").exists() else None)
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
DOMAINS = [package for package in PACKAGES if package != "core"]


def run(*command, cwd=None, **env):
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**clean, **env})
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    if UV is None:
        pytest.skip("uv is needed to build wheels: run `make test`")
    for package in PACKAGES:
        run(UV, "build", "--wheel", "--out-dir", folder, ROOT / "packages" / package)
    return {package: next(folder.glob(f"frozenllm_{package}-*.whl")) for package in PACKAGES}


@pytest.fixture(scope="module")
def python(wheels, tmp_path_factory):
    """A fresh environment with the wheels, and third parties borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(UV, "venv", "--python", sys.executable, folder / "venv")
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    borrowed = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    # The wheels' own files come first on the path; the editable installs of the source tree must not come at all.
    linked = site / "borrowed"
    linked.mkdir()
    for entry in borrowed.iterdir():
        if "frozenllm" not in entry.name and not entry.name.startswith("__editable__"):
            (linked / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(linked) + "\n")
    interpreter = folder / "venv/bin/python"
    run(UV, "pip", "install", "--python", interpreter, "--no-deps", *wheels.values())
    return interpreter


def test_wheels_are_small_and_whole(wheels):
    assert wheels["core"].stat().st_size < 12 * 2**20
    names = zipfile.ZipFile(wheels["core"]).namelist()
    assert "frozenllm/core/weights/bundled/model.safetensors" in names
    assert "frozenllm/core/conf/llm/bundled.yaml" in names
    assert "frozenllm/__init__.py" not in names


def test_installed_core_loads_the_bundled_block(python, tmp_path):
    code = (
        "import torch, frozenllm.core as core\n"
        "assert 'site-packages' in core.__file__, core.__file__\n"
        "layer = core.FrozenLLMLayer(16, core.load_block('bundled'))\n"
        "print(tuple(layer(torch.randn(2, 5, 16), readout=slice(0, 1)).shape))"
    )
    assert run(python, "-c", code, cwd=tmp_path).strip() == "(2, 1, 16)"


def test_installed_command_line(python, tmp_path):
    out = run(python, "-m", "frozenllm.core.cli", "inspect", "bundled", cwd=tmp_path)
    assert "sha256" in out


@pytest.mark.parametrize("domain", DOMAINS)
def test_installed_domain_trains(python, tmp_path, domain):
    """Four steps on the toy data, which the default recipe is about."""
    out = run(
        python, "-m", f"frozenllm.{domain}.train", "runtime.stop_after=4", f"runs={tmp_path}/runs",
        cwd=tmp_path, OMP_NUM_THREADS="1",
    )  # fmt: skip
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["iterations"] == 4, out
    assert (summary.parent / "checkpoints/last.pt").exists()
