"""The whole bundled model through every route that can express it: the same block, bit for bit where lossless."""

from __future__ import annotations

import shutil
from importlib import resources

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from gguf_files import write_gguf
from hub_server import serve_hub
from safetensors.torch import load_file
from small_models import save_model
from test_weights_meta import write_meta

from frozenllm.core import load_block, save_block
from frozenllm.core.weights import read_block

BUNDLED = resources.files("frozenllm.core.weights") / "bundled"
KINDS = {torch.float16: GGMLQuantizationType.F16, torch.bfloat16: GGMLQuantizationType.BF16}
ROUTES = ["folder", "shards", "bin", "meta", "meta shards", "gguf", "block file", "hub", "hub shards"]


@pytest.fixture(scope="module")
def model():
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)


@pytest.fixture(scope="module", params=list(KINDS), ids=["F16", "BF16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def narrow(precision, model):
    """The bundled model in half precision; its own is float16."""
    copy = type(model)(model.config).to(precision)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.fixture(scope="module")
def folder(narrow, tmp_path_factory):
    return save_model(narrow, tmp_path_factory.mktemp("bundled") / "folder")


def write(route, narrow, folder, place, precision):
    """Make the route's files; returns the source to load."""
    if route in ("folder", "hub"):
        return folder
    if route in ("shards", "hub shards"):
        return save_model(narrow, place, max_shard_size="2MB")
    if route == "bin":
        place.mkdir()
        shutil.copy(folder / "config.json", place)
        torch.save(load_file(folder / "model.safetensors"), place / "pytorch_model.bin")
        return place
    if route.startswith("meta"):
        return write_meta(narrow, place, shards=2 if "shards" in route else 1, dtype=precision)
    if route == "gguf":
        return write_gguf(narrow, place.with_suffix(".gguf"), KINDS[precision], norms=precision)
    save_block(read_block(folder, range(narrow.config.num_hidden_layers)), place.with_suffix(".safetensors"))
    return place.with_suffix(".safetensors")


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_same_block(route, precision, model, narrow, folder, tmp_path, monkeypatch):
    layers = range(model.config.num_hidden_layers)
    source = write(route, narrow, folder, tmp_path / "model", precision)
    if route.startswith("hub"):
        with serve_hub(tmp_path / "home", monkeypatch) as hub:
            hub.add("org/bundled", source)
            block = load_block("org/bundled", layers)
    else:
        block = load_block(source, layers)
    wanted = load_block("bundled", layers)
    if precision == torch.float16:
        assert block.record.sha256 == wanted.record.sha256
    assert block.record.sha256 == load_block(folder, layers).record.sha256
    assert block.record.dtype == str(precision).removeprefix("torch.")
    for one, other in zip(block.buffers(), wanted.buffers(), strict=True):
        assert torch.equal(one, other.to(precision).float())

    # The language model itself, computed by transformers from the same numbers.
    ids = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    exact = type(model)(model.config)
    exact.load_state_dict(narrow.state_dict())
    with torch.no_grad():
        expected = exact.model(ids).last_hidden_state
        embedded = exact.model.embed_tokens(ids)
        out = block(embedded, positions="rotary", attention="causal")
        out = block.apply_final_norm(out, "pretrained")
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        unlike = block.apply_final_norm(block(embedded, attention="causal"), "pretrained")
    assert (unlike - expected).abs().max() > 0.1 * expected.abs().max()  # positions do matter to it


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_0", 0.15)])
def test_quantised_gguf_is_within_the_error_of_its_format(kind, error, model, tmp_path):
    """Every width of the bundled model but that of its feed-forward network (688) fits blocks of 32."""
    path = write_gguf(model, tmp_path / "model.gguf", GGMLQuantizationType[kind], kinds=_left_plain(model))
    block, exact = load_block(path), load_block("bundled")
    for one, other in zip(block.canonical_tensors(), exact.canonical_tensors(), strict=True):
        for name, tensor in one.items():
            assert (tensor - other[name]).norm() <= error * other[name].norm()
    h = torch.randn(2, 16, block.hidden_size, generator=torch.Generator().manual_seed(0))
    for positions in ("none", "rotary"):
        update = exact(h, positions=positions) - h
        assert (block(h, positions=positions) - h - update).norm() <= 2 * error * update.norm()


def _left_plain(model):
    return {"ffn_down": GGMLQuantizationType.F16} if model.config.intermediate_size % 32 else {}
