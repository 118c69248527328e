"""Building the wheels, and using what was installed from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
UV = shutil.which("uv") or (str(ROOT / ".uv/bin/uv") if (ROOT / ".uv/bin/uv").exists() else None)
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
DOMAINS = [package for package in PACKAGES if package != "core"]

FOREIGN = {
    "accelerate", "av2", "datasets", "gguf", "gradio", "mmcv", "mmdet", "mmdet3d", "plotly", "plyfile", "pytorchvideo",
    "tensorboard", "torchcodec", "wandb", "webdataset",
}  # fmt: skip
"""Third parties that serve one domain or one extra."""
OWN = {"motion": {"av2"}, "video": {"pytorchvideo"}}
"""Those of them that a package requires."""


def attempt(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command without what could lead it to the source tree."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, env={**clean, "OMP_NUM_THREADS": "1", **env})


def run(*command: object, cwd: Path | None = None, **env: str) -> str:
    """What a command prints; it must succeed."""
    result = attempt(*command, cwd=cwd, **env)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build_all(folder: Path) -> dict[str, Path]:
    """The wheels of all packages, by package."""
    for package in PACKAGES:
        run(UV, "build", "--wheel", "--out-dir", folder, ROOT / "packages" / package)
    return {package: next(folder.glob(f"frozenllm_{package}-*.whl")) for package in PACKAGES}


def environment(folder: Path) -> Path:
    """The interpreter of a fresh environment."""
    run(UV, "venv", "--python", sys.executable, folder / "venv")
    return folder / "venv/bin/python"


def train_and_predict(python: Path, domain: str, folder: Path) -> None:
    """Four steps on the toy data, which the default recipe is about, and a prediction of what was trained."""
    out = run(python, "-m", f"frozenllm.{domain}.train", "runtime.stop_after=4", f"runs={folder}/runs", cwd=folder)
    (summary,) = folder.rglob("summary.json")
    assert json.loads(summary.read_text())["iterations"] == 4, out
    assert (summary.parent / "checkpoints/last.pt").exists()
    out = run(python, HERE / "use_installed.py", "predict", domain, summary.parent, cwd=folder)
    assert out.splitlines()[-1].startswith("[(2, "), out
