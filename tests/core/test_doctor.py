"""``frozenllm doctor``: every check of every package, and what becomes of parts that fail, crash or hang."""

from __future__ import annotations

import json
import sys

import pytest

from frozenllm.core import checkup
from frozenllm.core.checkup import BROKEN, MISSING, WORKS, Check, Outcome, checks_of, examine, installed
from frozenllm.core.cli import main

BAD_PARTS = """
import os, signal, sys, time
from frozenllm.core import checkup
from frozenllm.core.checkup import Check

def absent(): import no_such_module
def inner(): raise ModuleNotFoundError("No module named 'there._ext'", name="there._ext")
def noisy():
    print("a library prints this"); os.write(1, b"and this\\n"); return "fine"
def wrong(): raise ValueError("a first line\\nand more")
def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def hang(): time.sleep(600)

checks = [Check("noisy", noisy, "f"), Check("absent", absent, "install it", ("no_such_module",)),
          Check("needed", absent, "f"), Check("inner", inner, "f", ("there",)), Check("wrong", wrong, "f"),
          Check("crash", crash, "f"), Check("hang", hang, "f"), Check("last", noisy, "f")]
checkup.installed = lambda: ["made-up"]
checkup.checks_of = lambda package: checks
checkup.main(sys.argv[1:])
"""


def test_what_fails_crashes_or_hangs_is_a_line_of_the_report(tmp_path):
    script = tmp_path / "parts.py"
    script.write_text(BAD_PARTS)
    outcomes = {o.name: o for o in examine([sys.executable, str(script)], limit=2)}
    assert {name: o.status for name, o in outcomes.items()} == {
        "noisy": WORKS, "absent": MISSING, "needed": BROKEN, "inner": BROKEN, "wrong": BROKEN,
        "crash": BROKEN, "hang": BROKEN, "last": WORKS,
    }  # fmt: skip
    assert outcomes["noisy"].detail == "fine"
    assert outcomes["absent"].fix == "install it"
    assert "a first line" in outcomes["wrong"].detail
    assert "and more" not in outcomes["wrong"].detail
    assert "SIGSEGV" in outcomes["crash"].detail
    assert "2 seconds" in outcomes["hang"].detail
    assert outcomes["last"].fix == ""


def test_checks_that_do_not_start_are_reported():
    (outcome,) = examine([sys.executable, "-c", "raise SystemExit(7)"])
    assert (outcome.status, outcome.name) == (BROKEN, "start of the checks")
    assert "status 7" in outcome.detail


@pytest.mark.parametrize("package", installed())
def test_everything_here_works_or_is_missing(package):
    checks = checks_of(package)
    assert len(checks) > 2, f"{package} has no checks of its own"
    for check in checks:
        outcome = checkup.run(check, package)
        assert outcome.status in (WORKS, MISSING), outcome
        assert check.fix
        assert "\n" not in check.fix
        assert bool(check.optional) == check.name.startswith("["), f"{check.name}: extras are named in brackets"


def test_all_packages_are_found():
    assert installed()[0] == "core"
    assert set(installed()) >= {"core", "vision2d", "video", "pointcloud", "motion", "vqa"}


def test_a_package_that_cannot_be_imported(monkeypatch):
    def fail(name):
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(checkup.importlib, "import_module", fail)
    outcome = checkup.run(checks_of("video")[-1], "video")
    assert (outcome.status, outcome.name) == (BROKEN, "import frozenllm.video")
    assert "libGL" in outcome.detail


def test_requirements_are_compared(monkeypatch):
    wanted = {
        "frozenllm-made": ["numpy>=1000", "no-such-thing", 'pytest<1; extra == "dev"', "frozenllm-up[train]>=0.1"],
        "frozenllm-up": ['hydra-core>=99; extra == "train"', 'mmengine>=99; extra == "other"', "torch>=99"],
    }
    versions = {"numpy": "1.26.4", "frozenllm-up": "0.1.0", "hydra-core": "1.3.2"}

    def version(name):
        if name not in versions:
            raise checkup.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(checkup.importlib.metadata, "requires", wanted.get)
    monkeypatch.setattr(checkup.importlib.metadata, "version", version)
    outcome = checkup.run(checks_of("made")[0], "made")
    assert outcome.status == BROKEN
    assert outcome.detail == (
        "RuntimeError: numpy>=1000 is needed, 1.26.4 is installed; no-such-thing is not installed; "
        "hydra-core>=99 is needed, 1.3.2 is installed"
    )


@pytest.mark.parametrize(("status", "code"), [(WORKS, 0), (MISSING, 0), (BROKEN, 1)])
def test_command(status, code, monkeypatch, capsys):
    outcome = Outcome("video", "torchcodec", status, "said why", "" if status == WORKS else "pip install it")
    monkeypatch.setattr("frozenllm.core.commands.doctor.examine", lambda: iter([outcome]))
    assert main(["doctor"]) == code
    text = capsys.readouterr().out
    assert f"{status:<8} video" in text
    assert ("-> pip install it" in text) == (status != WORKS)
    assert "frozenllm-core" in text
    assert main(["doctor", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["works"] == (code == 0)
    assert report["parts"] == [outcome.__dict__]
    assert report["folders"]["runs"]["free_bytes"] > 0
    assert {"python", "gpus", "packages"} <= report.keys()


def test_a_check_passes_on_what_was_found():
    assert checkup.run(Check("x", lambda: "found 3", "f"), "p") == Outcome("p", "x", WORKS, "found 3", "")
