"""Blocks from the hub, against a server with the hub's API on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from hub_server import serve_hub
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_models import make_model, save_model

from frozenllm.core import FrozenLLMLayer, load_block, reload_blocks
from frozenllm.core.weights import hub_files, open_source, ranges, read_specs
from frozenllm.core.weights.hub import check_hub

COMMIT = "c" * 40
LAYERS = 6
# Refuses every connection but those to this machine, then loads a block in a process of its own.
PROCESS = """
import socket, sys
connect = socket.socket.connect
def guarded(self, address):
    assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), address
    return connect(self, address)
socket.socket.connect = guarded
import torch
torch.set_num_threads(1)
from frozenllm.core import load_block
print(load_block(sys.argv[1], [int(sys.argv[2])]).record.sha256)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sharded model with layers of 3 MB."""
    model = make_model("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=LAYERS).half()
    folder = save_model(model, tmp_path_factory.mktemp("hub") / "model", max_shard_size="3MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with serve_hub(tmp_path / "home", monkeypatch) as server:
        server.add("org/name", folder)
        yield server


def refuse(match, *args, **kwargs):
    """Loading raises one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=match) as caught:
            load_block(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500


def start(hub, tmp_path, layer):
    """Load a layer in another process, which knows the server and the cache from its environment."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("FROZENLLM_CACHE", None)
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", PROCESS, "org/name", str(layer)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def header_bytes(folder):
    """Bytes of all safetensors headers."""
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


# What is read


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_only_the_bytes_of_a_layer_are_served(layer, hub, folder):
    block, local = load_block("org/name", [layer]), load_block(folder, [layer])
    assert all(torch.equal(a, b) for a, b in zip(block.buffers(), local.buffers(), strict=True))
    assert block.record.sha256 == local.record.sha256
    assert (block.record.source, block.record.revision) == ("org/name", COMMIT)
    assert block.record.dtype == "float16"
    assert block.record.layers == local.record.layers
    size = 2 * block.num_parameters()
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size < whole / 4
    assert size <= hub.large_bytes() <= 1.03 * size + header_bytes(folder)


def test_single_files_and_several_layers(hub, folder, tmp_path):
    single = save_model(make_model("gpt2"), tmp_path / "single")  # fused and transposed tensors
    hub.add("org/single", single)
    block, local = load_block("org/single", [2, 0]), load_block(single, [2, 0])
    assert block.record.sha256 == local.record.sha256
    assert hub.large_bytes() <= 1.03 * 4 * (block.num_parameters() + 2 * 48) + header_bytes(single)
    three = load_block("org/name", [0, 3, 5])
    assert three.record.sha256 == load_block(folder, [0, 3, 5]).record.sha256


def test_adjacent_ranges_are_joined_and_cut():
    spans = [(30, 40), (0, 10), (10, 20), (20, 20), (35, 45)]
    assert ranges.join_ranges(spans) == [(0, 20), (30, 45)]
    assert ranges.join_ranges(spans, piece=8) == [(0, 8), (8, 16), (16, 20), (30, 38), (38, 45)]


def test_few_requests_and_several_at_a_time(hub, monkeypatch):
    monkeypatch.setattr(ranges, "PIECE", 2**18)
    monkeypatch.setattr(ranges.join_ranges, "__defaults__", (2**18,))
    hub.faults = {"slow": 0.05}
    block = load_block("org/name", [2])
    pieces = [r for r in hub.requests if r[2] and r[3] == 206 and not r[2].endswith("-7") and "=8-" not in r[2]]
    assert 2 * block.num_parameters() / 2**18 <= len(pieces) < 2 * block.num_parameters() / 2**18 + 8
    assert hub.most_sending >= 3


def test_config_alone_gives_the_spec(hub, folder):
    assert read_specs("org/name", [1]) == read_specs(folder, [1])
    assert hub.large_bytes() == 0


def test_token_goes_to_the_hub_and_not_to_the_store(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load_block("org/name", [1])
    assert hub.tokens >= {"Bearer hf_secret"}
    assert not hub.store_saw_token


def test_bin_shards_are_downloaded_whole_with_a_warning(hub, folder, tmp_path):
    place = tmp_path / "bins"
    place.mkdir()
    shutil.copy(folder / "config.json", place)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in set(weight_map.values()):
        torch.save(load_file(folder / shard), place / shard.replace("safetensors", "bin"))
    renamed = {tensor: shard.replace("safetensors", "bin") for tensor, shard in weight_map.items()}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": renamed}))
    hub.add("org/bins", place)
    with pytest.warns(UserWarning, match=r"no safetensors.*downloading all 0\.00 GB of model-0000\d-of") as caught:
        block = load_block("org/bins", [1])
    assert block.record.sha256 == load_block(folder, [1]).record.sha256
    held = {shard for tensor, shard in renamed.items() if ".layers.1." in tensor or tensor == "model.norm.weight"}
    assert len(caught) == len(held) < len(set(renamed.values()))
    assert {os.path.basename(path) for path in hub.served if path.endswith(".bin")} == held
    hub.forget()
    load_block("org/bins", [1])
    assert hub.large_bytes() == 0


# The cache


def test_cached_blocks_ask_for_the_commit_only(hub, tmp_path):
    block = load_block("org/name", [1])
    hub.forget()
    again = load_block("org/name", [1])
    assert again.record == block.record
    assert [r[:2] for r in hub.requests] == [("HEAD", "/org/name/resolve/main/config.json")]
    files = [path for path in (tmp_path / "home" / "frozenllm").rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {"layers-1.safetensors", "layers-1.lock"}
    assert open_source("org/name").localize((1,)).kind.startswith("hub repository, transformers layout, family llama")


def test_revisions_have_blocks_of_their_own(hub, tmp_path, folder):
    other = save_model(make_model("llama", seed=5), tmp_path / "other")
    first = load_block("org/name", [1])
    hub.add("org/name", other, commit="e" * 40)
    hub.revisions["org/name", "v1"] = "e" * 40
    moved = load_block("org/name", [1])
    assert moved.record.revision == "e" * 40
    assert moved.record.sha256 == load_block(other, [1]).record.sha256 != first.record.sha256
    for source, revision in (("org/name@v1", None), ("org/name", "v1"), ("org/name@v1", "v1"), ("org/name", "e" * 40)):
        assert load_block(source, [1], revision=revision).record == moved.record
    refuse("names another revision than", "org/name@v1", [1], revision="main")
    assert load_block("org/name", [1], revision=COMMIT).record == first.record


def test_reload_uses_the_recorded_commit(hub, folder):
    block = load_block("org/name", [1])
    model = FrozenLLMLayer(8, block).to("meta")
    model.to_empty(device="cpu")
    hub.revisions["org/name", "main"] = "e" * 40  # the branch moved on
    assert reload_blocks(model) == ["block"]
    assert all(torch.equal(a, b) for a, b in zip(block.buffers(), load_block(folder, [1]).buffers(), strict=True))


def test_cache_folder_can_be_chosen(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FROZENLLM_CACHE", str(tmp_path / "chosen"))
    load_block("org/name", [1])
    assert (tmp_path / "chosen" / "org--name" / COMMIT / "layers-1.safetensors").is_file()
    assert not (tmp_path / "home" / "frozenllm").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FROZENLLM_CACHE", str(tmp_path / "file"))
    refuse("file.*: the cache cannot be written", "org/name", [1])


def test_truncated_cache_is_downloaded_again(hub):
    block = load_block("org/name", [1])
    path = open_source("org/name").cache_path((1,))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="truncated.*Downloading the block again"):
        again = load_block("org/name", [1])
    assert again.record == block.record


def test_offline_uses_the_cache(hub, monkeypatch):
    block = load_block("org/name", [1])
    hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_block("org/name", [1]).record == block.record
    refuse("org/name@cccccccccccc: layer 2 is not in the cache, and offline mode is on", "org/name", [2])
    refuse("org/other: config.json is not in the cache, and offline mode is on", "org/other")
    assert not hub.requests


def test_unreachable_hub_uses_the_cache(hub):
    block = load_block("org/name", [1])
    close_session()
    hub.close()
    assert load_block("org/name", [1]).record == block.record
    refuse("org/name@cccccccccccc: layer 2 is not in the cache, and http://127.* cannot be reached", "org/name", [2])
    refuse("org/other: config.json is not in the cache, and http://127.* cannot be reached", "org/other")


def test_an_unreachable_hub_is_given_up_at_once(hub, monkeypatch):
    """huggingface_hub alone sleeps 23 seconds between its attempts; nothing else here sleeps."""
    close_session()
    hub.close()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    refuse("org/other: config.json is not in the cache, and http://127.* cannot be reached", "org/other")
    with pytest.raises(ValueError, match=r"org/other: config.json is not in the cache, and .* cannot be reached"):
        check_hub("org/other")


# Interruptions


def test_killed_download_goes_on_where_it_stopped(hub, folder, tmp_path):
    hub.faults = {"slow": 0.1}
    process = start(hub, tmp_path, 2)
    deadline = time.monotonic() + 60
    while hub.large_bytes() < 1_000_000 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    parts = list((tmp_path / "home" / "frozenllm").rglob("*.parts/*"))
    present = sum(path.stat().st_size for path in parts)
    assert present > 500_000
    time.sleep(0.3)  # the server notices that the client is gone
    hub.faults = {}
    hub.forget()
    block = load_block("org/name", [2])
    assert block.record.sha256 == load_block(folder, [2]).record.sha256
    missing = 2 * (block.num_parameters() + block.hidden_size) - present
    assert missing > 0
    assert missing <= hub.large_bytes() <= missing + header_bytes(folder)
    assert not list((tmp_path / "home" / "frozenllm").rglob("*.parts"))


def test_two_processes_share_one_download(hub, folder, tmp_path):
    hub.faults = {"slow": 0.03}
    processes = [start(hub, tmp_path, 3) for _ in range(2)]
    assert {finish(process) for process in processes} == {load_block(folder, [3]).record.sha256}
    size = 2 * read_specs(folder, [3])[0].num_parameters()
    assert hub.large_bytes() <= 1.03 * size + header_bytes(folder)


def test_broken_connections_are_taken_up_again(hub, folder):
    hub.faults = {"cut": True}
    block = load_block("org/name", [2])
    assert block.record.sha256 == load_block(folder, [2]).record.sha256
    size = 2 * block.num_parameters()
    assert hub.large_bytes() <= 1.03 * size + header_bytes(folder)


# Errors


@pytest.mark.parametrize(
    ("faults", "match"),
    [
        ({"gated": True}, r"org/name: access to this repository is gated; accept its licence at http://127.*hf auth"),
        ({"status": 401}, r"org/name: .*refused access to config.json \(status 401\); log in"),
        ({"status": 403}, r"org/name: .*refused access to config.json \(status 403\); log in"),
        ({"status": 500}, r"org/name: .*could not serve config.json \(status 500\); try again later"),
        ({"status": 418}, r"org/name: .*answered the request for config.json with status 418"),
        ({"store_status": 403}, r"org/name@c{12}: .*refused access to layer 2 \(status 403\)"),
        ({"store_status": 404}, r"org/name@c{12}: .*layer 2"),
        ({"store_status": 503}, r"org/name@c{12}: .*could not serve layer 2 \(status 503\)"),
        ({"ignore_range": True}, r"model-0000\d-of-0000\d.safetensors: .*status 200 instead of 206.*byte ranges"),
        ({"shift_range": 1}, r"safetensors: asked for bytes 0-7, the server answered with bytes 1-7/\d+ and 7 bytes"),
        ({"short": True}, r"safetensors: asked for bytes 0-7, the server answered with bytes 0-7/\d+ and 7 bytes"),
        ({"stuck": True}, r"org/name@c{12}: layer 2 is not in the cache, and .* cannot be reached \(.*peer closed"),
        ({"other_commit": 8}, r"safetensors: the file changed while it was being read"),
        ({"other_etag": 8}, r"safetensors: the file changed while it was being read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_faults_of_the_server(faults, match, hub, tmp_path):
    hub.faults = faults
    refuse(match, "org/name", [2])
    assert not list((tmp_path / "home").rglob("layers-*.safetensors"))
    hub.faults = {}
    load_block("org/name", [2])  # nothing is left behind that hinders the next attempt


def test_unknown_names(hub, folder, tmp_path):
    refuse(r"org/nme: no such file or folder here, and no such repository on http://127", "org/nme")
    refuse(r"org/name: has no revision 'v9'", "org/name@v9")
    refuse(r"org/name: has no revision 'v9'", "org/name", revision="v9")
    refuse(r"'org/na..me': no such file or folder, and not a name that a hub repository can have", "org/na..me")
    refuse(r"org/name has no layer 6: it holds layers 0 to 5", "org/name", [6])
    asked = len(hub.requests)
    for path in ("some/where/else", "./org/name", "models/block.safetensors", str(tmp_path / "missing")):
        refuse("no such file or folder", path)
    assert len(hub.requests) == asked  # paths are never sent to the hub


def test_repositories_that_are_no_models(hub, folder, tmp_path):
    empty, bare, wrong, torn = (tmp_path / name for name in ("empty", "bare", "wrong", "torn"))
    for place in (empty, bare, wrong, torn):
        place.mkdir()
        hub.add(f"org/{place.name}", place)
    refuse(r"org/empty: has no config.json on http://127", "org/empty")
    shutil.copy(folder / "config.json", bare)
    refuse(r"org/bare@c{12}: has a config.json but no weights that can be read", "org/bare")
    (wrong / "config.json").write_text('{"model_type": "bert"}')
    refuse(r"org/wrong@c{12}: Model type 'bert' is not in the table", "org/wrong")
    shutil.copy(folder / "config.json", torn)
    for content in (b"", b"short", b"\xff" * 64, (60).to_bytes(8, "little") + b"x" * 60):
        (torn / "model.safetensors").write_bytes(content)
        refuse(r"model.safetensors: ", "org/torn")


class _Memory:
    """A remote file that is in memory."""

    where = name = "model.safetensors"

    def __init__(self, data):
        self.data, self.size = data, len(data)

    def read(self, start, stop):
        if not 0 <= start <= stop <= len(self.data):
            raise ValueError("outside")
        assert stop - start < 10**6
        return self.data[start:stop]


_JSON = st.recursive(
    st.none() | st.integers(-5, 2**66) | st.text(max_size=5) | st.sampled_from(["F16", "F32", "BF16", "X"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


_HEADERS = st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode())


@settings(max_examples=200, deadline=None)
@given(header=_HEADERS, length=st.none() | st.integers(0, 2**64 - 1))
def test_damaged_headers_are_refused_or_harmless(header, length):
    size = len(header) if length is None else length
    remote = _Memory(size.to_bytes(8, "little") + header + b"\0" * 16)
    try:
        file = hub_files.RemoteSafetensors(remote)
    except ValueError:  # and nothing else
        return
    for name in file.names():
        start, stop = file.span(name)
        assert 8 <= start <= stop <= remote.size
