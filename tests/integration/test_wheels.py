"""Wheels, built and installed without the source tree, work; third parties are borrowed from the tests' environment."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from brought import closure
from wheelhouse import DOMAINS, FOREIGN, HERE, OWN, PACKAGES, UV, build_all, environment, run, train_and_predict


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    if UV is None:
        pytest.skip("uv is needed to build wheels: run `make test`")
    return build_all(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def python(wheels, tmp_path_factory):
    """A fresh environment with the wheels, and third parties borrowed from the one that runs the tests."""
    interpreter = environment(tmp_path_factory.mktemp("environment"))
    site = next(interpreter.parents[1].glob("lib/python*/site-packages"))
    borrowed = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    # The wheels' own files come first on the path; the editable installs of the source tree must not come at all.
    linked = site / "borrowed"
    linked.mkdir()
    for entry in borrowed.iterdir():
        if "frozenllm" not in entry.name and not entry.name.startswith("__editable__"):
            (linked / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(linked) + "\n")
    run(UV, "pip", "install", "--python", interpreter, "--no-deps", *wheels.values())
    return interpreter


def test_wheels_are_small_and_whole(wheels):
    assert wheels["core"].stat().st_size < 12 * 2**20
    names = zipfile.ZipFile(wheels["core"]).namelist()
    assert "frozenllm/core/weights/bundled/model.safetensors" in names
    assert "frozenllm/core/conf/llm/bundled.yaml" in names
    assert "frozenllm/__init__.py" not in names


@pytest.mark.parametrize("package", PACKAGES)
def test_wheels_bring_the_licence(wheels, package):
    with zipfile.ZipFile(wheels[package]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert wheel.read(name) == (HERE.parents[1] / "LICENSE").read_bytes()


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
def test_installed_domain_trains_and_predicts(python, tmp_path, domain):
    train_and_predict(python, domain, tmp_path)


@pytest.mark.parametrize("domain", DOMAINS)
def test_installed_domain_lists_its_recipes(python, tmp_path, domain):
    source = HERE.parents[1] / f"packages/{domain}/src/frozenllm/{domain}/conf/recipe"
    expected = sorted(path.stem for path in source.glob("[!_]*.yaml"))
    assert run(python, HERE / "use_installed.py", "list", domain, cwd=tmp_path).strip() == str(expected)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_brings_nothing_of_another_domain(package):
    """By the metadata of everything that it requires, and that these require in turn."""
    others = {f"frozenllm-{name}" for name in PACKAGES} - {f"frozenllm-{package}", "frozenllm-core"}
    brought = closure(f"frozenllm-{package}")
    assert not brought & others
    assert not brought & (FOREIGN - OWN.get(package, set()))
    assert OWN.get(package, set()) <= brought
    assert {"torch", "transformers"} <= brought
