"""Each package alone in a fresh environment, with its own dependencies from the registry: ``make wheels-test``.

Takes minutes and, where uv has not cached them, gigabytes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
from gguf_files import write_gguf
from small_models import make_model
from wheelhouse import FOREIGN, HERE, OWN, PACKAGES, ROOT, UV, attempt, build_all, environment, run, train_and_predict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MISSING = [
    ("core", "[train]", ["-c", "import frozenllm.core.training"]),
    ("core", "[gguf]", ["-m", "frozenllm.core.cli", "inspect", "model.gguf"]),
    ("vision2d", "[tensorboard]", ["-m", "frozenllm.vision2d.train", "runtime.tensorboard=true"]),
    ("vision2d", "[wandb]", ["-m", "frozenllm.vision2d.train", "runtime.wandb=true"]),
    ("vision2d", "[readers]", ["-m", "frozenllm.vision2d.train", "data=imagenet", "data.source=hfds/x", "data.root=."]),
    ("video", "[torchcodec]", ["-m", "frozenllm.video.train", "data=toy_videos", "data.decoder=torchcodec"]),
    ("pointcloud", "[mmdet3d]", ["-m", "frozenllm.pointcloud.detection.train"]),
    ("vqa", "[app]", ["-c", "from frozenllm.vqa.app import build_page; build_page(None)"]),
]
"""What is asked of a package without the extra, as arguments of Python."""


@pytest.fixture(scope="module", autouse=True)
def asked_for(request):
    if "wheels" not in request.config.option.markexpr:
        pytest.skip("takes minutes and downloads: make wheels-test")
    if UV is None:
        pytest.skip("uv is needed to build wheels")


pytestmark = [pytest.mark.wheels, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def wheels(asked_for, tmp_path_factory):
    return build_all(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module", params=PACKAGES)
def alone(request, wheels, tmp_path_factory):
    """(package, interpreter) with this package, and core, which it requires."""
    package, folder = request.param, tmp_path_factory.mktemp(request.param)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    (folder / "versions.txt").write_text("\n".join(settings["constraint-dependencies"]) + "\n")
    python = environment(folder)
    run(
        UV, "pip", "install", "--python", python, "--constraint", folder / "versions.txt",
        "--exclude-newer", settings["exclude-newer"],
        *(f"--exclude-newer-package={name}=false" for name in settings["exclude-newer-package"]),
        *{wheels["core"], wheels[package]},
        cwd=folder,
    )  # fmt: skip
    yield package, python
    shutil.rmtree(folder / "venv")  # gigabytes each


def test_only_its_own_dependencies_are_there(alone, tmp_path):
    package, python = alone
    listed = json.loads(run(UV, "pip", "list", "--python", python, "--format", "json", cwd=tmp_path))
    names = {entry["name"] for entry in listed}
    assert {name for name in names if name.startswith("frozenllm")} == {"frozenllm-core", f"frozenllm-{package}"}
    assert not names & (FOREIGN - OWN.get(package, set()))


def test_every_module_imports_or_names_its_extra(alone, tmp_path):
    package, python = alone
    out = run(python, HERE / "import_all.py", f"frozenllm.{package}", cwd=tmp_path)
    assert " 0 failed" in out


def test_the_doctor_finds_nothing_broken(alone, tmp_path):
    package, python = alone
    report = json.loads(run(python, "-m", "frozenllm.core.cli", "doctor", "--json", cwd=tmp_path))
    assert report["works"]
    assert {part["package"] for part in report["parts"]} == {"core", package}


def test_it_is_used(alone, tmp_path):
    package, python = alone
    if package == "core":
        code = (
            "import torch, frozenllm.core as core\n"
            "assert 'site-packages' in core.__file__, core.__file__\n"
            "layer = core.FrozenLLMLayer(16, core.load_block('bundled'))\n"
            "optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)\n"
            "x, losses = torch.randn(8, 5, 16), []\n"
            "for _ in range(4):\n"
            "    loss = (layer(x) - x).square().mean(); losses.append(loss.item())\n"
            "    optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
            "assert losses[-1] < losses[0], losses"
        )
        run(python, "-c", code, cwd=tmp_path)
        assert "LLaMA" in run(python, "-m", "frozenllm.core.cli", "families", cwd=tmp_path)
        return
    assert "[" in run(python, HERE / "use_installed.py", "list", package, cwd=tmp_path)
    train_and_predict(python, package, tmp_path)


def test_what_is_missing_is_named_in_a_sentence(alone, tmp_path):
    package, python = alone
    write_gguf(make_model("llama"), tmp_path / "model.gguf")
    for _, extra, arguments in (case for case in MISSING if case[0] == package):
        result = attempt(python, *arguments, cwd=tmp_path)
        last = result.stderr.strip().splitlines()[-1]
        assert result.returncode != 0, arguments
        assert re.search(rf"frozenllm-\w+{re.escape(extra)}", last), f"{arguments}: {result.stderr[-2000:]}"
