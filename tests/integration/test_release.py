"""``tools/release.py``, and the workflows that use it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wheelhouse import UV

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))

spec = importlib.util.spec_from_file_location("release", ROOT / "tools/release.py")
release = importlib.util.module_from_spec(spec)
sys.modules["release"] = release  # its dataclass looks itself up
spec.loader.exec_module(release)


@pytest.fixture
def house(tmp_path):
    """Copies of what the packages say about their versions."""
    for package in PACKAGES:
        folder = tmp_path / "packages" / package
        folder.mkdir(parents=True)
        for name in ("pyproject.toml", "CHANGELOG.md"):
            shutil.copy(ROOT / "packages" / package / name, folder)
    return tmp_path


def test_the_packages_agree_with_their_changelogs(capsys):
    assert release.main(["check"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PACKAGES)


def test_a_release_of_core(house, capsys):
    before = (house / "packages/core/CHANGELOG.md").read_text()
    assert release.main(["set", "core", "0.3.0", "--date", "2027-01-31"], house) == 0
    changed = capsys.readouterr().out.split()
    assert "packages/core/pyproject.toml" in changed
    assert "packages/video/pyproject.toml" in changed  # it requires core, of this minor version from now on
    assert "frozenllm-core[train]>=0.3,<0.4" in (house / "packages/video/pyproject.toml").read_text()
    assert release.main(["check", "--tag", "refs/tags/frozenllm-core-v0.3.0"], house) == 0
    after = (house / "packages/core/CHANGELOG.md").read_text()
    assert after == before.replace("## 0.1.0, not yet released", "## 0.3.0, 2027-01-31")
    # What comes next gets a section of its own.
    assert release.main(["set", "core", "0.3.1"], house) == 0
    text = (house / "packages/core/CHANGELOG.md").read_text()
    assert text.index("## 0.3.1, not yet released") < text.index("## 0.3.0, 2027-01-31")
    assert release.main(["check"], house) == 1  # the new section is empty
    assert "says nothing about 0.3.1" in capsys.readouterr().err


def test_notes_are_those_of_the_version(house, capsys):
    path = house / "packages/vqa/CHANGELOG.md"
    path.write_text(path.read_text() + "\n## 0.0.9, 2026-01-01\n\n- Older.\n")
    assert release.main(["notes", "frozenllm-vqa-v0.1.0"], house) == 0
    printed = capsys.readouterr().out
    assert "METER" in printed
    assert "Older" not in printed
    assert release.main(["tag", "vqa"], house) == 0
    assert capsys.readouterr().out.strip() == "frozenllm-vqa-v0.1.0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "--tag", "v0.1.0"], "is no tag such as"),
        (["check", "--tag", "frozenllm-core-v0.2.0"], "is not frozenllm-core-v0.1.0"),
        (["check", "--tag", "frozenllm-core-v0.1.0"], "has no date"),
        (["check", "--tag", "frozenllm-audio-v0.1.0"], "There is no package audio"),
        (["set", "core", "1.0"], "is no version"),
        (["set", "core", "0.0.9"], "is older"),
        (["set", "core", "0.2.0", "--date", "today"], "is no date"),
        (["set", "audio", "0.2.0"], "There is no package audio"),
    ],
)
def test_what_does_not_agree_is_said(arguments, says, house, capsys):
    assert release.main(arguments, house) == 1
    assert says in capsys.readouterr().err


def test_a_changelog_of_another_version(house, capsys):
    path = house / "packages/motion/pyproject.toml"
    path.write_text(path.read_text().replace('version = "0.1.0"', 'version = "0.1.1"'))
    assert release.main(["check"], house) == 1
    assert (
        "frozenllm-motion: pyproject.toml has version 0.1.1, the changelog begins with 0.1.0" in capsys.readouterr().err
    )


def test_a_candidate_is_older_than_its_release(house):
    release.set_version(house, "core", "0.2.0rc1")
    release.set_version(house, "core", "0.2.0")
    with pytest.raises(ValueError, match="older"):
        release.set_version(house, "core", "0.2.0rc2")


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != "core"])
def test_the_oldest_core(package, house, capsys):
    assert release.main(["oldest", package], house) == 0
    assert capsys.readouterr().out.strip() == "frozenllm-core-v0.1.0"
    release.set_version(house, "core", "0.4.2")
    assert release.oldest_core(house, package) == "frozenllm-core-v0.4.0"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_one(path):
    """By GitHub's own schema, and its commands by bash."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    for name, job in jobs.items():
        assert "runs-on" in job, name
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= jobs.keys(), name
        for step in job["steps"]:
            if "run" in step:
                script = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
                checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
                assert checked.returncode == 0, f"{name}: {checked.stderr}"
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_matrix_has_every_package():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    for name in ("alone", "minimal", "wheels"):
        assert sorted(jobs[name]["strategy"]["matrix"]["package"]) == PACKAGES, name
    assert sorted(jobs["oldest-core"]["strategy"]["matrix"]["package"]) == [p for p in PACKAGES if p != "core"]
    assert json.dumps(jobs).count("make lint") == 1


@pytest.mark.parametrize("name", ["alone", "minimal", "oldest-core", "wheels"])
def test_what_a_job_installs_does_not_contradict_the_workspace(name, tmp_path):
    """uv sees before it asks any index that a pin, or another core than the tree's, cannot be had."""
    if UV is None:
        pytest.skip("uv resolves: run `make test`")
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"][name]
    script = next(step["run"] for step in job["steps"] if "uv pip install" in step.get("run", ""))
    (line,) = re.findall(r"^ *uv pip install (.+)$", script, re.MULTILINE)
    line = re.sub(r"\$\{\{ matrix\.package != .*?\}\}", "-e packages/vision2d", line)
    line = line.replace("${{ matrix.package }}", "vision2d")
    for key, value in job["strategy"]["matrix"].get("torch", [{}])[0].items():
        line = line.replace(f"${{{{ matrix.torch.{key} }}}}", value)
    assert "${{" not in line
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / "packages/core" / file, tmp_path)
    command = f"{UV} pip install --offline --dry-run --python {sys.executable} {line}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, "core": str(tmp_path)}, capture_output=True, text=True
    )
    assert not re.search(r"conflicting URLs|Because you require|unexpected argument", result.stderr), result.stderr
