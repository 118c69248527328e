"""The command line, as a user calls it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from processes import call
from safetensors.torch import load_file
from small_models import make_model, save_model

from frozenllm.core import load_block
from frozenllm.core.cli import main
from frozenllm.core.families import FAMILIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_model(make_model("qwen3"), tmp_path_factory.mktemp("qwen3")))


def test_extract_then_load(folder, tmp_path, capsys):
    out = tmp_path / "block.safetensors"
    assert main(["extract", folder, "--layers", "1", "-1", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    block = load_block(out)
    assert "layer(s) 1, 3" in printed
    assert block.record.sha256 in printed
    assert block.record.sha256 == load_block(folder, [1, 3]).record.sha256


def test_extract_in_another_dtype(folder, tmp_path):
    out = tmp_path / "block.safetensors"
    assert main(["extract", folder, "-o", str(out), "--dtype", "bfloat16"]) == 0
    assert {t.dtype for t in load_file(out).values()} == {torch.bfloat16}
    block, whole = load_block(out), load_block(folder)
    assert block.record.dtype == "bfloat16"
    assert block.record.layers == (3,)
    for a, b in zip(block.buffers(), whole.buffers(), strict=True):
        assert torch.equal(a, b.bfloat16().float())


def test_extract_keeps_existing_files(folder, tmp_path, capsys):
    out = tmp_path / "block.safetensors"
    out.write_text("mine")
    assert main(["extract", folder, "-o", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["extract", folder, "-o", str(out), "--force"]) == 0
    assert load_block(out).is_loaded


def test_inspect_shows_spec_hash_and_every_tensor(folder, capsys):
    assert main(["inspect", folder, "--layers", "0"]) == 0
    text = capsys.readouterr().out
    block = load_block(folder, [0])
    assert block.record.sha256 in text
    assert "qk_norm            head" in text
    for name, shape in block.specs[0].tensor_shapes().items():
        line = next(line for line in text.splitlines() if line.split()[:1] == [name])
        assert " x ".join(map(str, shape)) in line
        assert "float32" in line
        assert "model.safetensors" in line
    assert main(["inspect", folder, "--layers", "0", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["record"]["sha256"] == block.record.sha256
    assert content["tensors"][0]["attn.q.weight"]["stored_as"] == "model.layers.0.self_attn.q_proj.weight"
    assert content["bytes"] == 4 * block.num_parameters()


def test_families_lists_all(capsys):
    assert main(["families"]) == 0
    text = capsys.readouterr().out
    assert all(family.models in text and family.model_types[0] in text for family in FAMILIES)


SMALL = ["--hidden", "64", "--heads", "4", "--dim", "16", "--tokens", "9", "--batch", "2", "--repeats", "2"]


@pytest.mark.parametrize("extra", [[], ["--dtype", "bfloat16"], ["--source", "bundled"]])
def test_bench_reports_ratios_to_the_plain_path(extra, capsys):
    assert main(["bench", *SMALL, *extra, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    cases = content["cases"]
    assert list(cases) == ["plain, all tokens", "shortcut, all tokens", "shortcut, one token"]
    assert cases["plain, all tokens"]["speedup"] == 1.0
    for case in cases.values():
        assert len(case["seconds"]) == 2
        assert case["median"] > 0
        assert case["speedup"] == pytest.approx(cases["plain, all tokens"]["median"] / case["median"])
    assert content["spec"]["hidden_size"] == (256 if "bundled" in extra else 64)
    assert main(["bench", *SMALL, *extra]) == 0
    assert " 1.00 x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "bundeld"], "did you mean"),
        (["inspect", "{folder}", "--layers", "9"], "no layer 9"),
        (["inspect", "{tmp}/missing"], "no such file or folder"),
        (["inspect", "{tmp}"], "the folder is empty"),
        (["extract", "{folder}", "-o", "{tmp}/no/b.safetensors"], "no such folder"),
        (["extract", "{folder}", "-o", "{tmp}/b.pth"], "ends in .safetensors"),
        (["extract", "{folder}", "-o", "{tmp}/b.safetensors", "--dtype", "int4"], "Unknown dtype"),
        (["bench", "--hidden", "0"], "--hidden must be positive"),
        (["bench", "--hidden", "10", "--heads", "3"], "multiple of --heads"),
        (["bench", "--device", "abacus"], "abacus"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, folder, tmp_path, capsys):
    arguments = [a.format(folder=folder, tmp=tmp_path) for a in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("frozenllm: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_installed_program(folder, tmp_path):
    run = [sys.executable, "-m", "frozenllm.core.cli"]
    help_text = call([*run, "--help"], tmp_path).stdout
    assert all(command in help_text for command in ("extract", "inspect", "families", "bench"))
    failed = call([*run, "inspect", str(tmp_path / "x")], tmp_path)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    usage = call([*run, "extract", folder], tmp_path)
    assert usage.returncode == 2
    assert "-o" in usage.stderr


DOCS = Path(__file__).parents[2] / "docs" / "weights.md"


def documented_commands():
    """(arguments, output) of the commands in the docs whose output does not depend on the machine."""
    for text in re.findall(r"```console\n\$ frozenllm (.*?)```", DOCS.read_text(), flags=re.DOTALL):
        command, output = text.split("\n", 1)
        if not command.startswith("bench"):
            yield command.split(), output


def without_hashes(text):
    """The bundled model may be trained anew without a change of the docs."""
    return re.sub(r"[0-9a-f]{64}", "(sha256)", text)


def test_the_docs_show_real_output(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = list(documented_commands())
    assert [arguments[0] for arguments, _ in commands] == ["extract", "inspect", "families"]
    for arguments, output in commands:
        assert main(arguments) == 0
        assert without_hashes(capsys.readouterr().out) == without_hashes(output)
