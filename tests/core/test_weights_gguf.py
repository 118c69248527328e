"""Blocks from GGUF files, against the same model in transformers' layout and against transformers' own reader."""

from __future__ import annotations

import builtins
import resource
import struct
import sys

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, quants
from gguf_files import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import make_model, save_model

from frozenllm.core import FrozenLLMLayer, load_block, reload_blocks, save_block
from frozenllm.core.weights import open_source, read_block, read_specs
from frozenllm.core.weights.gguf import ARCHITECTURES
from frozenllm.core.weights.gguf_header import read_header

FAMILIES = [
    "llama", "llama_biased", "llama3", "llama_linear", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3",
    "phi3_long", "olmo2", "granite",
]  # fmt: skip


def make(name, **options):
    # GGUF has no query scale for Gemma 2; llama.cpp takes the head's width, and so do the real small models.
    return make_model(name, **({"query_pre_attn_scalar": 16} if name == "gemma2" else {}), **options)


def wide_llama(width=256):
    """Rows as long as the blocks of the K formats."""
    return make_model("llama", hidden_size=width, intermediate_size=width, num_hidden_layers=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small valid file."""
    return write_gguf(make("llama", num_hidden_layers=1), tmp_path_factory.mktemp("gguf") / "plain.gguf")


def refuse(path, match=None):
    with pytest.raises(ValueError, match=match) as caught:
        load_block(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# What is read


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_transformers_layout(name, tmp_path):
    model = make(name)
    path = write_gguf(model, tmp_path / "model.gguf", GGMLQuantizationType.F32)
    folder = save_model(model, tmp_path / "folder")
    for layer in (0, -1):
        block, wanted = load_block(path, [layer]), load_block(folder, [layer])
        tolerance = 3e-7 if "gemma" in name else 0.0  # 1 + weight was rounded to float32
        for one, other in zip(block.buffers(), wanted.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        h = torch.randn(2, 24, block.hidden_size, generator=torch.Generator().manual_seed(0))
        ways = [("none", "bidirectional"), ("rotary", "bidirectional")]
        if name not in ("mistral", "qwen2"):  # whose files do not tell the sliding window
            ways.append(("rotary", "causal"))
        for positions, attention in ways:
            out = block(h, positions=positions, attention=attention)
            expected = wanted(h, positions=positions, attention=attention)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 * (expected - h).abs().max().item())
        if "gemma" not in name:
            assert block.record.sha256 == wanted.record.sha256


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma2", "phi3"])
def test_equals_what_transformers_reads_from_the_file(name, tmp_path):
    pytest.importorskip("accelerate", reason="transformers asks for it to read GGUF")
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.padding_token_id": 0}
    write_gguf(make(name), tmp_path / "model.gguf", GGMLQuantizationType.F16, metadata=tokens)
    transformers.utils.logging.disable_progress_bar()
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    model = make(name, seed=1)
    model.load_state_dict(read.state_dict())
    block = load_block(tmp_path / "model.gguf", [1])
    wanted = load_block(save_model(model, tmp_path / "folder"), [1])
    for one, other in zip(block.buffers(), wanted.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.BF16])
def test_half_precision_files_keep_their_bits(kind, tmp_path):
    dtype = torch.float16 if kind == GGMLQuantizationType.F16 else torch.bfloat16
    model = make("llama").to(dtype)
    wanted = load_block(save_model(model, tmp_path / "folder"), [2])
    block = load_block(write_gguf(model, tmp_path / "model.gguf", kind), [2])
    assert all(torch.equal(one, other) for one, other in zip(block.buffers(), wanted.buffers(), strict=True))
    assert block.record.dtype == wanted.record.dtype == str(dtype).removeprefix("torch.")
    # llama.cpp's converter widens norms to float32, which is another hash; with the source's norms it is the same.
    assert block.record.sha256 != wanted.record.sha256
    same = load_block(write_gguf(model, tmp_path / "narrow.gguf", kind, norms=dtype), [2])
    assert same.record.sha256 == wanted.record.sha256


def test_spec_needs_no_weights(plain):
    (spec,) = read_specs(plain)
    assert (spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.intermediate_size) == (48, 4, 2, 72)
    assert spec.norm_eps == 1e-6
    source = open_source(plain)
    assert source.kind == "GGUF file, architecture llama"
    assert source.layers == (0,)
    assert source.source == str(plain)


def test_blocks_of_a_file_are_saved_and_reloaded(tmp_path):
    path = write_gguf(wide_llama(), tmp_path / "model.gguf", GGMLQuantizationType.Q8_0)
    block = load_block(path)
    save_block(block, tmp_path / "block.safetensors")
    assert load_block(tmp_path / "block.safetensors").record.sha256 == block.record.sha256
    model = FrozenLLMLayer(8, block).to("meta")
    model.to_empty(device="cpu")
    assert reload_blocks(model) == ["block"]
    again = load_block(path)
    assert all(torch.equal(one, other) for one, other in zip(block.buffers(), again.buffers(), strict=True))


# Quantised weights


def values_q4_k(rows):
    """Sub-blocks of 32 weights ``d * scale * q - dmin * min``, 6-bit scales and mins: (d, dmin, scales, mins, q)."""
    blocks = rows.reshape(-1, 8, 32)
    low = np.minimum(blocks.min(-1), 0)
    step = (blocks.max(-1) - low) / 15
    d = (step.max(-1) / 63).astype(np.float16)
    dmin = (-low.min(-1) / 63).astype(np.float16)
    scales = np.clip(np.round(step / d[:, None].astype(np.float32)), 1, 63).astype(np.uint8)
    mins = np.clip(np.round(-low / dmin[:, None].astype(np.float32)), 0, 63).astype(np.uint8)
    fine, coarse = d[:, None].astype(np.float32) * scales, dmin[:, None].astype(np.float32) * mins
    q = np.clip(np.round((blocks + coarse[..., None]) / fine[..., None]), 0, 15).astype(np.uint8)
    return d, dmin, scales, mins, q


def pack_q4_k(rows):
    """ggml's ``block_q4_K``: d and dmin (float16), 12 bytes of scales and mins, 128 bytes of 4-bit weights."""
    packed = bytearray()
    for d, dmin, scales, mins, q in zip(*values_q4_k(rows), strict=True):
        sixes = bytearray(12)
        for j in range(4):
            sixes[j] = scales[j] | (scales[j + 4] >> 4) << 6
            sixes[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
            sixes[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4
        nibbles = bytearray()
        for pair in range(4):  # two sub-blocks share 32 bytes, low halves first
            nibbles += bytes(q[2 * pair, i] | q[2 * pair + 1, i] << 4 for i in range(32))
        packed += d.tobytes() + dmin.tobytes() + sixes + nibbles
    return np.frombuffer(bytes(packed), np.uint8).reshape(rows.shape[0], -1)


def unpacked_q4_k(rows):
    d, dmin, scales, mins, q = (part.astype(np.float32) for part in values_q4_k(rows))
    values = (d[:, None] * scales)[..., None] * q - (dmin[:, None] * mins)[..., None]
    return values.reshape(rows.shape).astype(np.float32)


def values_q6_k(rows):
    """Sub-blocks of 16 weights ``d * scale * (q - 32)`` with signed 8-bit scales: (d, scales, q)."""
    blocks = rows.reshape(-1, 16, 16)
    step = np.abs(blocks).max(-1) / 31
    d = (step.max(-1) / 127).astype(np.float16)
    scales = np.clip(np.round(step / d[:, None].astype(np.float32)), 1, 127).astype(np.int8)
    scales[:, ::3] *= -1  # scales are signed
    fine = d[:, None].astype(np.float32) * scales
    q = (np.clip(np.round(blocks / fine[..., None]), -32, 31) + 32).astype(np.uint8)
    return d, scales, q


def pack_q6_k(rows):
    """ggml's ``block_q6_K``: low 4 bits (128 bytes), high 2 bits (64 bytes), 16 scales, d (float16)."""
    packed = bytearray()
    for d, scales, q in zip(*values_q6_k(rows), strict=True):
        q = q.reshape(256)
        low, high = bytearray(128), bytearray(64)
        for half in (0, 1):
            for i in range(32):
                a, b, c, e = (int(q[128 * half + 32 * part + i]) for part in range(4))
                low[64 * half + i] = a & 15 | (c & 15) << 4
                low[64 * half + 32 + i] = b & 15 | (e & 15) << 4
                high[32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6
        packed += low + high + scales.tobytes() + d.tobytes()
    return np.frombuffer(bytes(packed), np.uint8).reshape(rows.shape[0], -1)


def unpacked_q6_k(rows):
    d, scales, q = (part.astype(np.float32) for part in values_q6_k(rows))
    return ((d[:, None] * scales)[..., None] * (q - 32)).reshape(rows.shape).astype(np.float32)


def unpacked_by_the_library(kind):
    return lambda rows: quants.dequantize(quants.quantize(rows, kind), kind)


@pytest.mark.parametrize(
    ("kind", "pack", "unpacked", "error", "bits"),
    [
        ("Q8_0", None, None, 0.01, 8.5),
        ("Q4_0", None, None, 0.12, 4.5),
        ("Q4_K", pack_q4_k, unpacked_q4_k, 0.12, 4.5),
        ("Q6_K", pack_q6_k, unpacked_q6_k, 0.03, 6.5625),
    ],
)
def test_quantised_weights(kind, pack, unpacked, error, bits, tmp_path):
    kind = GGMLQuantizationType[kind]
    model = wide_llama()
    path = write_gguf(model, tmp_path / "model.gguf", kind, pack={kind: pack} if pack else None)
    exact = load_block(save_model(model, tmp_path / "folder")).canonical_tensors()[0]
    block, contents = load_block(path), read_block(path)
    unpacked = unpacked or unpacked_by_the_library(kind)
    for name, tensor in block.canonical_tensors()[0].items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, exact[name])
            continue
        assert torch.equal(tensor, torch.from_numpy(unpacked(exact[name].numpy())))
        assert 0 < (tensor - exact[name]).norm() / exact[name].norm() < error
    assert block.record.dtype == kind.name
    weights = sum(tensor.numel() for tensor in exact.values() if tensor.ndim == 2)
    assert contents.nbytes == weights * bits / 8 + 2 * 256 * 4
    save_block(block, tmp_path / "block.safetensors")
    again = load_block(tmp_path / "block.safetensors")
    assert again.record.sha256 == block.record.sha256


def test_mixed_formats_are_all_named(tmp_path):
    finer = {"attn_v": GGMLQuantizationType.Q8_0, "ffn_down": GGMLQuantizationType.Q8_0}  # as llama.cpp's mixes do
    path = write_gguf(wide_llama(), tmp_path / "model.gguf", GGMLQuantizationType.Q4_0, kinds=finer)
    assert load_block(path).record.dtype == "Q4_0+Q8_0"


# Refusals


def test_missing_library_is_named(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    refuse(plain, r'needs the gguf library: pip install "frozenllm-core\[gguf\]"')


def test_the_library_is_imported_only_for_gguf_files(monkeypatch):
    imported, real = [], builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: imported.append(name) or real(name, *rest))
    load_block("bundled")
    assert "gguf" not in imported


def test_unusable_files_are_named(plain, tmp_path):
    model, path = make("llama", num_hidden_layers=1), tmp_path / "model.gguf"

    def changed(match, **metadata):
        write_gguf(model, path, metadata={key.replace("__", "."): value for key, value in metadata.items()})
        refuse(path, match)

    changed(r"architecture 'mamba' cannot be read.*llama, qwen2", general__architecture="mamba")
    changed(r"is one of 3 parts.*llama-gguf-split", split__count=3)
    changed(r"lacks llama.block_count", llama__block_count=None)
    changed(r"llama.block_count must be a positive", llama__block_count=0)
    changed(r"llama.embedding_length must be a positive", llama__embedding_length="wide")
    changed(r"head_count_kv differs between layers", llama__attention__head_count_kv=[2, 4])
    changed(r"layer 1 is missing", llama__block_count=2)
    changed(r"shape \(24, 48\), but its metadata asks for \(48, 48\)", llama__attention__head_count_kv=4)
    changed(r"shape", llama__feed_forward_length=2**31)
    changed(r"num_heads .* multiple", llama__attention__head_count_kv=3)
    (tmp_path / "text.gguf").write_text("hello")
    refuse(tmp_path / "text.gguf", "is not a GGUF file")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refuse(tmp_path / "empty.gguf", "is not a GGUF file")
    extra = make("llama_biased", num_hidden_layers=1)
    extra.model.layers[0].mlp.gate_proj.bias = None  # a bias of ffn.up alone
    write_gguf(extra, path)
    refuse(path, "incomplete: no tensor blk.0.ffn_gate.bias")


def header_of(*parts, version=3, tensors=0, entries=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(value):
    return struct.pack("<Q", len(value)) + value


HUGE = 2**63
HOSTILE = {
    "entries": header_of(entries=HUGE),
    "tensors": header_of(tensors=HUGE),
    "both": header_of(tensors=2**64 - 1, entries=2**64 - 1),
    "key": header_of(struct.pack("<Q", HUGE) + b"x" * 99, entries=1),
    "string": header_of(text(b"k"), struct.pack("<IQ", 8, HUGE), entries=1),
    "array of bytes": header_of(text(b"k"), struct.pack("<IIQ", 9, 0, HUGE), entries=1),
    "array of strings": header_of(text(b"k"), struct.pack("<IIQ", 9, 8, HUGE // 8), entries=1),
    "array of nothing": header_of(text(b"k"), struct.pack("<IIQ", 9, 99, HUGE), entries=1),
    "nested arrays": header_of(text(b"k"), struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, entries=1),
    "type": header_of(text(b"k"), struct.pack("<I", 13), b"\0" * 64, entries=1),
    "text": header_of(text(b"\xff\xfe"), struct.pack("<IB", 0, 1), entries=1),
    "twice": header_of(*[text(b"k") + struct.pack("<IB", 0, 1)] * 2, entries=2),
    "alignment 0": header_of(text(b"general.alignment"), struct.pack("<II", 4, 0), entries=1),
    "alignment 3": header_of(text(b"general.alignment"), struct.pack("<II", 4, 3), entries=1),
    "dimensions": header_of(text(b"t"), struct.pack("<I", 2**31), b"\0" * 64, tensors=1),
    "no dimensions": header_of(text(b"t"), struct.pack("<I", 0), b"\0" * 64, tensors=1),
    "product": header_of(text(b"t"), struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0), tensors=1),
    "names twice": header_of(*[text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 0)] * 2, tensors=2),
    "version 1": header_of(version=1),
    "version 99": header_of(version=99),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "no header": b"GGUF",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case, tmp_path, little_memory):
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[case])
    refuse(path, "truncated or not a GGUF file")


@pytest.fixture
def little_memory():
    """At most 500 MB more than there are now."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc to know how much memory is in use")
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 500 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


_FUZZ = settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_FUZZ
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data, plain, tmp_path, little_memory):
    """Bytes of the header changed, or the end cut off: an error in one sentence, or a block of other numbers."""
    content = bytearray(plain.read_bytes())
    end = min(tensor.start for tensor in read_header(plain).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, end - 9))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            struct.pack_into("<Q", content, at, data.draw(st.sampled_from([0, 1, 2**31, 2**32, 2**62, 2**64 - 1])))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(4, len(content))) :]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        load_block(path)
    except ValueError as error:
        sentence = str(error)
    else:
        return
    assert str(path) in sentence
    assert "\n" not in sentence


@_FUZZ
@given(content=st.binary(max_size=200), counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_noise_is_refused(content, counts, tmp_path, little_memory):
    path = tmp_path / "model.gguf"
    path.write_bytes(header_of(content, tensors=counts[0], entries=counts[1]))
    refuse(path)


def test_every_architecture_is_tested():
    assert {make_model(name).config.model_type for name in FAMILIES} - {"mistral"} == set(ARCHITECTURES)
