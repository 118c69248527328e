"""Files that are damaged or hostile: one clear error, no code run, no crash, no huge allocation."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from bomb import Bomb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_weights_meta import write_meta

from frozenllm.core import load_block, save_block
from frozenllm.core.weights import read_block
from frozenllm.core.weights.pickles import load_pickle


def refuse(path, match=""):
    """Loading raises one sentence that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=match) as caught:
            load_block(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# Pickles


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", ["bin", "meta", "index"])
def test_code_in_a_checkpoint_is_refused_and_not_run(layout, new_format, model, folder, tmp_path):
    target = tmp_path / "executed"
    place = tmp_path / "model"
    if layout == "meta":
        file = write_meta(model, place) / "consolidated.00.pth"
        content = torch.load(file, weights_only=True)
    else:
        place.mkdir()
        shutil.copy(folder / "config.json", place)
        content = load_file(folder / "model.safetensors")
        file = place / "pytorch_model.bin"
        if layout == "index":
            index = {"weight_map": dict.fromkeys(content, "pytorch_model.bin")}
            (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
            file.unlink(missing_ok=True)
    torch.save({**content, "bomb": Bomb(target)}, file, _use_new_zipfile_serialization=new_format)
    text = refuse(place, "refused, it holds Python objects beyond tensors")
    assert "mkdir" in text
    assert file.name in text
    assert not target.exists()
    torch.load(file, weights_only=False)  # the bomb is real
    assert target.exists()


def test_a_bare_pickle_is_refused_and_not_run(folder, tmp_path):
    target = tmp_path / "executed"
    place = tmp_path / "model"
    place.mkdir()
    shutil.copy(folder / "config.json", place)
    (place / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(target)))
    refuse(place)
    assert not target.exists()


def test_only_namespaces_may_be_allowed(tmp_path):
    path = tmp_path / "official.pth"
    args = argparse.Namespace(model="vit", lr=1e-3)
    torch.save({"model": {"w": torch.ones(3)}, "args": args, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"official.pth: refused.*argparse.Namespace"):
        load_pickle(path)
    content = load_pickle(path, allow_namespace=True)
    assert content["args"] == args
    assert torch.equal(content["model"]["w"], torch.ones(3))
    with pytest.raises(ValueError, match="refused"):  # the permission ends with the call
        load_pickle(path)
    torch.save({"args": argparse.Namespace(bomb=Bomb(tmp_path / "executed"))}, path)
    with pytest.raises(ValueError, match="refused"):
        load_pickle(path, allow_namespace=True)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_of_something_else_is_named(copy):
    (copy / "model.safetensors").unlink()
    torch.save([torch.ones(2)], copy / "pytorch_model.bin")
    refuse(copy, "holds a list, not a dictionary of tensors")


# Truncation


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_named(share, model, copy, tmp_path):
    def cut(path):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    legacy, meta = tmp_path / "legacy", write_meta(model, tmp_path / "meta")
    legacy.mkdir()
    shutil.copy(copy / "config.json", legacy)
    torch.save(
        load_file(copy / "model.safetensors"), legacy / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    block = tmp_path / "block.safetensors"
    save_block(read_block(copy), block)
    for file, place in (
        (copy / "model.safetensors", copy),
        (legacy / "pytorch_model.bin", legacy),
        (meta / "consolidated.00.pth", meta),
        (block, block),
    ):
        cut(file)
        assert str(file) in refuse(place)


def test_bytes_lost_in_the_middle_of_a_zip_are_noticed(copy):
    """A member that says it is longer than the file: mapped memory would end early."""
    path = copy / "pytorch_model.bin"
    torch.save(load_file(copy / "model.safetensors"), path)
    (copy / "model.safetensors").unlink()
    data = path.read_bytes()
    path.write_bytes(data[:3000] + data[20000:])
    refuse(copy)


def test_a_zip_that_is_no_checkpoint_is_named(copy):
    (copy / "model.safetensors").unlink()
    with zipfile.ZipFile(copy / "pytorch_model.bin", "w") as file:
        file.writestr("readme.txt", "hello")
    refuse(copy, "truncated or not a file that torch.save wrote")


# Fuzzed safetensors headers

HUGE = 2**62
SIZES = st.one_of(st.integers(-3, 300), st.sampled_from([0, 2**31, 2**32, HUGE, 2**64 - 1, 1e30]))
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F8_E4M3", "F4", "X", 7, None]),
        "shape": st.lists(SIZES, max_size=3) | st.none() | st.text(max_size=3),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.none(),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-HUGE, HUGE) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


class Whole(tuple):
    """Path, header and body of an intact block file; hypothesis would print all of a plain tuple."""

    def __new__(cls, *parts):
        return super().__new__(cls, parts)

    def __repr__(self):
        return f"Whole({self[0]})"


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("block") / "block.safetensors"
    save_block(read_block(folder), path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return Whole(path, json.loads(data[8 : 8 + size]), data[8 + size :])


def write(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(path):
    """A block, or the message of the one kind of error that is allowed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_block(path)
    except ValueError as error:
        return str(error)


def never_crashes(path):
    """An error that names the file, or (where the change did not matter) a block that computes."""
    result = outcome(path)
    if isinstance(result, str):
        assert path.name in result
    else:
        assert result(torch.zeros(1, 2, result.hidden_size)).shape == (1, 2, result.hidden_size)


@given(data=st.data())
@FUZZ
def test_fuzzed_tensor_entries(data, whole, tmp_path):
    path, header, body = whole
    changed = {name: dict(entry) for name, entry in header.items()}
    for name in data.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=3)):
        changed[name] = data.draw(ENTRY) | (data.draw(st.just({})) if data.draw(st.booleans()) else header[name])
        if data.draw(st.booleans()):
            changed[name] = {**header[name], **data.draw(ENTRY)}
    write(tmp_path / path.name, changed, body)
    never_crashes(tmp_path / path.name)


@given(
    text=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
    size=SIZES.filter(lambda n: n >= 0),
)
@FUZZ
def test_fuzzed_header_bytes_and_lengths(text, size, whole, tmp_path):
    path, _, body = whole
    target = tmp_path / path.name
    target.write_bytes(struct.pack("<Q", min(int(size), 2**64 - 1)) + text + body)
    never_crashes(target)
    write(target, text, body)
    never_crashes(target)


@given(data=st.data())
@settings(FUZZ, max_examples=400)
def test_fuzzed_descriptions_of_a_block(data, whole, tmp_path):
    """The specs and the record inside the metadata, changed in ways that are valid JSON."""
    path, header, body = whole
    description = json.loads(header["__metadata__"]["frozenllm"])
    place = data.draw(st.sampled_from(["top", "spec", "record"]))
    target = {"top": description, "spec": description["specs"][0], "record": description["record"]}[place]
    key = data.draw(st.sampled_from(sorted(target)) | st.text(max_size=5))
    target[key] = data.draw(JSON | SIZES)
    changed = {**header, "__metadata__": {"frozenllm": json.dumps(description)}}
    write(tmp_path / path.name, changed, body)
    never_crashes(tmp_path / path.name)


@given(data=st.data())
@FUZZ
def test_fuzzed_bytes_of_a_pickle(data, folder, tmp_path):
    place = tmp_path / "model"
    place.mkdir(exist_ok=True)
    shutil.copy(folder / "config.json", place)
    path = place / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    content = bytearray(path.read_bytes())
    # The pickle is at the front, the archive's directory at the end; between them are only numbers.
    places = st.integers(0, 9000) | st.integers(-9000, -1) | st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    never_crashes(place)


def test_a_hostile_header_allocates_nothing(whole, tmp_path):
    """Claims of terabytes are refused before memory is asked for: the process may use 2 GB beyond what it has."""
    _, header, body = whole
    files = []
    for number, (shape, offsets) in enumerate(
        [([2**40, 2**20], [0, 2**62]), ([2**40], [0, 2**42]), ([48, 48], [0, 2**50]), ([2**32, 2**32], [0, 0])]
    ):
        files.append(tmp_path / f"{number}.safetensors")
        entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        write(files[-1], {**header, "layers.0.attn.q.weight": entry}, body)
    description = json.loads(header["__metadata__"]["frozenllm"])
    description["specs"][0].update(hidden_size=2**40, intermediate_size=2**40)
    files.append(tmp_path / "spec.safetensors")
    write(files[-1], {**header, "__metadata__": {"frozenllm": json.dumps(description)}}, body)
    code = """
import resource, sys
from frozenllm.core import load_block
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30,) * 2)
for path in sys.argv[1:]:
    try:
        load_block(path)
    except ValueError as error:
        assert path in str(error), error
    else:
        raise SystemExit(path + " was loaded")
"""
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True, timeout=120)


WRITE_META = """
import json, sys
from pathlib import Path
import torch

folder, dim, ffn, layers, shards = Path(sys.argv[1]), 1024, 2816, 18, 2
joined = {"wq": 0, "wk": 0, "wv": 0, "wo": 1}
shapes = {f"attention.{name}": (dim, dim) for name in joined}
shapes |= {"feed_forward.w1": (ffn, dim), "feed_forward.w3": (ffn, dim), "feed_forward.w2": (dim, ffn)}
for shard in range(shards):
    part = {"norm.weight": torch.ones(dim).half()}
    for name, shape in shapes.items():
        along = 1 if name.endswith(("wo", "w2")) else 0
        shape = [n // shards if axis == along else n for axis, n in enumerate(shape)]
        tensor = torch.randn(shape).half()
        part.update({f"layers.{i}.{name}.weight": tensor.clone() for i in range(layers)})
    for name in ("attention_norm", "ffn_norm"):
        part.update({f"layers.{i}.{name}.weight": torch.ones(dim).half() for i in range(layers)})
    torch.save(part, folder / f"consolidated.{shard:02d}.pth")
params = {"dim": dim, "n_heads": 8, "n_layers": layers, "norm_eps": 1e-6}
(folder / "params.json").write_text(json.dumps(params))
"""
MEASURE_LOAD = """
import sys, threading
from frozenllm.core import load_block

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
thread = threading.Thread(target=watch)
thread.start()
block = load_block(sys.argv[1], [5])
done.set()
thread.join()
print(block.num_parameters() * 4, max(peak[0], anonymous()) - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads RssAnon from /proc")
def test_loading_one_layer_of_many_takes_one_layer_of_memory(tmp_path):
    """A Meta checkpoint of two shards, 18 layers, 460 MB: anonymous memory grows by the block and little more."""
    subprocess.run([sys.executable, "-c", WRITE_META, str(tmp_path)], check=True, timeout=300)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.pth")) > 400e6
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE_LOAD, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    size, growth = map(int, measured.stdout.split())
    assert size * 0.9 < growth < size + 60e6
