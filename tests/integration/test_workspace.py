"""Rules of the house that hold for every package: namespace, versions, imports, wheels."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from wheelhouse import UV

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
DOMAINS = [package for package in PACKAGES if package.name != "core"]


def metadata(package: Path) -> dict:
    return tomllib.loads((package / "pyproject.toml").read_text())["project"]


def test_there_are_packages():
    names = {package.name for package in PACKAGES}
    assert names == {"core", "vision2d", "video", "pointcloud", "motion", "vqa"}


def is_room(folder: Path, name: str) -> bool:
    """Whether a package has a module or a folder of that name."""
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


@pytest.mark.parametrize("package", DOMAINS, ids=lambda p: p.name)
def test_every_readme_has_the_same_sections(package):
    """What is more comes last; and every package says in its changelog what it has."""
    text = (package / "README.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[:4] == ["The model", "Training", "Data", "From a trained model"]
    for command in ("train", "study"):
        assert f"python -m frozenllm.{package.name}.{command}" in text
    assert f"frozenllm.{package.name}.study" in (package / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", DOMAINS, ids=lambda p: p.name)
def test_every_domain_has_the_same_rooms(package):
    folder = package / "src/frozenllm" / package.name
    for room in ("__init__", "data", "toy", "train", "study", "checks", "testing"):
        assert is_room(folder, room), f"{folder} has no {room}"
    assert any(is_room(folder, room) for room in ("model", "models", "meter")), f"{folder} has no model"
    for group in ("model", "data", "recipe"):
        assert (folder / "conf" / group / "__init__.py").exists(), f"{folder}/conf has no {group}"
    assert (ROOT / f"tools/train_{package.name}.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_namespace_has_no_init(package):
    assert not (package / "src/frozenllm/__init__.py").exists()
    assert (package / "src/frozenllm" / package.name / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_package_has_its_papers(package):
    project = metadata(package)
    assert project["name"] == f"frozenllm-{package.name}"
    for name in ("README.md", "CHANGELOG.md"):
        assert (package / name).stat().st_size > 100, f"{package.name}/{name} says nothing"
    assert project["version"] in (package / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_siblings_are_pinned_to_one_minor_version(package):
    for requirement in metadata(package)["dependencies"]:
        if not requirement.startswith("frozenllm-"):
            continue
        name, low, high = re.match(r"(frozenllm-\w+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)$", requirement).groups()
        version = metadata(ROOT / "packages" / name.removeprefix("frozenllm-"))["version"]
        major, minor, _ = version.split(".")
        assert (low, high) == (f"{major}.{minor}", f"{major}.{int(minor) + 1}")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_every_module_imports(package):
    script = ROOT / "tests/integration/import_all.py"
    run = subprocess.run(
        [sys.executable, script, f"frozenllm.{package.name}", "--alone"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_core_is_light():
    """Using the layer imports no training framework, and reading a block no transformers."""
    code = (
        "import sys, frozenllm.core\n"
        "names = {'transformers', 'mmengine', 'hydra', 'matplotlib', 'timm', 'torchvision', 'gguf'}\n"
        "heavy = names & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_lock_file_is_tracked():
    """It would name the hosts of one registry."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert "uv.lock" not in tracked.stdout.splitlines()


def test_no_package_registry_is_named():
    """Whoever installs chooses where from."""
    hosts = "|".join(("py" + "pi", "python" + "hosted", "npm" + "js"))
    found = subprocess.run(["git", "grep", "-nIE", rf"({hosts})\.(org|com)"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert not found.stdout, found.stdout


def test_workspace_versions_lie_in_the_packages_ranges():
    from packaging.requirements import Requirement

    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    pins = {r.name.lower().replace("_", "-"): r.specifier for r in map(Requirement, workspace)}
    for package in PACKAGES:
        project = metadata(package)
        groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
        for requirement in (Requirement(text) for group in groups for text in group):
            pin = str(pins.get(requirement.name.lower().replace("_", "-"), ""))
            if pin.startswith("==") and "*" not in pin:
                assert requirement.specifier.contains(pin.removeprefix("==")), (
                    f"{package.name}: {requirement} and {pin}"
                )


def test_installed_versions_are_the_packages_own():
    for package in PACKAGES:
        version = importlib.metadata.version(f"frozenllm-{package.name}")
        assert version == metadata(package)["version"]


def test_torch_is_found_where_the_index_tells_no_dates(tmp_path):
    """Such is the index of the CPU builds; uv takes a file without a date for a newer one."""
    if UV is None:
        pytest.skip("uv resolves: run `make test`")
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    names = ("torch", "torchvision")
    for name in names:
        (version,) = (pin.split("==")[1] for pin in pins if pin.startswith(f"{name}=="))
        folder, info = tmp_path / "simple" / name, f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        file = f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(folder / file, "w") as wheel:
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        (folder / "index.html").write_text(f'<a href="{file}">{file}</a>')
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}/simple"
        command = [UV, "pip", "compile", "--no-cache", "--default-index", index, "-"]
        run = subprocess.run(command, input="\n".join(names), cwd=ROOT, capture_output=True, text=True)
        server.shutdown()
    assert run.returncode == 0, run.stderr
    assert [line.split("==")[0] for line in run.stdout.splitlines() if "==" in line] == list(names)
