"""What a step costs: against torch's counts and allocations of a real layer, and closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from frozenllm.core import BlockSpec, FrozenLLMLayer, random_block
from frozenllm.core.cli import main
from frozenllm.core.commands.cost import process_memories
from frozenllm.core.cost import HOSTS, LLMS, block_bytes, host_step, layer_step, meta_block, meta_host, trained
from frozenllm.core.flops import count_flops

SPEC = BlockSpec(hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=192)
DIM, BATCH, TOKENS = 32, 3, 40
DOCS = Path(__file__).parents[2] / "docs"


def _real(exact: str, blocks: int) -> tuple[FrozenLLMLayer, Tensor]:
    torch.manual_seed(0)
    layer = FrozenLLMLayer(DIM, random_block(SPEC, num_blocks=blocks), exact=exact).train()
    return layer, torch.randn(BATCH, TOKENS, DIM, requires_grad=True)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("readout", [None, 1])
@pytest.mark.parametrize("exact", ["dense", "auto"])
def test_operations_are_those_of_the_real_layer(exact: str, readout: int | None, blocks: int) -> None:
    layer, tokens = _real(exact, blocks)
    rows = None if readout is None else slice(0, readout)
    real = count_flops(lambda: layer(tokens, readout=rows).sum().backward())
    counted = layer_step(meta_block(SPEC, blocks), DIM, BATCH, TOKENS, readout, exact=exact, device="cpu")
    assert counted.flops == real


@pytest.mark.parametrize("readout", [None, 1])
@pytest.mark.parametrize("exact", ["dense", "auto"])
def test_kept_bytes_are_what_the_real_layer_allocates(exact: str, readout: int | None) -> None:
    layer, tokens = _real(exact, 1)
    rows = None if readout is None else slice(0, readout)
    layer(tokens, readout=rows)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = layer(tokens, readout=rows)
    # What the forward pass leaves allocated, but for its output; the layer's input was there before.
    left = sum(event.self_cpu_memory_usage for event in profiler.key_averages()) - output.nbytes
    step = layer_step(meta_block(SPEC), DIM, BATCH, TOKENS, readout, exact=exact, device="cpu")
    counted = step.kept - tokens.nbytes
    assert counted == pytest.approx(left, rel=0.03)


def test_recomputing_keeps_the_input_and_runs_forward_once_more() -> None:
    block = meta_block(SPEC)
    kept, recomputed = (layer_step(block, DIM, BATCH, TOKENS, None, exact="dense", recompute=r) for r in (False, True))
    assert recomputed.kept == BATCH * TOKENS * DIM * 4
    layer, tokens = _real("dense", 1)
    last = 2 * BATCH * TOKENS * 128 * DIM  # nothing is kept after the last product: torch does not repeat it
    assert recomputed.flops - kept.flops == count_flops(lambda: layer(tokens)) - last


@pytest.mark.parametrize(
    ("quantize", "dtype"), [(None, torch.float32), (None, torch.bfloat16), ("int8", torch.bfloat16)]
)
def test_block_bytes_are_those_of_a_real_block(quantize: str | None, dtype: torch.dtype) -> None:
    real = random_block(SPEC, dtype=dtype)
    expected = sum(b.nbytes for b in real.buffers()) - 128 * dtype.itemsize  # but for the model's last norm
    counted = block_bytes(meta_block(SPEC, dtype=dtype, quantize=quantize))
    if quantize is None:
        assert counted == expected == SPEC.num_parameters() * dtype.itemsize
    else:  # a byte a weight, and a scale in bfloat16 for each of the rows: q, k, v, o, gate, up, down
        rows = 128 + 64 + 64 + 128 + 192 + 192 + 128
        assert counted == (SPEC.num_parameters() - 2 * 128) + 2 * rows + 2 * 2 * 128


def test_blocks_have_the_published_numbers_of_weights() -> None:
    # Embedding, head and last norm are what is left of LLaMA-7B's 6,738,415,616, 13B's 13,015,864,320 and Llama 2
    # 70B's 68,976,648,192 weights.
    for name, whole, layers, vocabulary in (
        ("llama-7b", 6_738_415_616, 32, 32000),
        ("llama-13b", 13_015_864_320, 40, 32000),
        ("llama-70b", 68_976_648_192, 80, 32000),
    ):
        spec = LLMS[name]
        assert layers * spec.num_parameters() + (2 * vocabulary + 1) * spec.hidden_size == whole


def test_host_is_a_vision_transformer() -> None:
    shape = HOSTS["vit-s"]
    host = meta_host(shape)
    assert (
        trained(host) == 22_050_664 - 198 * 384
    )  # timm's vit_small_patch16_224, which has positions and a class token
    n, d = shape.tokens, shape.dim
    forward = 12 * (24 * n * d * d + 4 * n * n * d) + 2 * n * shape.patch * d + 2 * d * shape.classes
    attention = 12 * 2 * n * n * d  # the scores once more in the backward pass
    step = host_step(shape, 2, torch.float32)
    assert step.flops == 2 * (3 * forward + attention - 2 * n * shape.patch * d)  # images need no gradient


def test_memory_of_processes() -> None:
    shape = HOSTS["vit-t"]
    host = {"parameters": 1000, "flops": 0, "kept": 50}
    one, ddp, fsdp = process_memories(7, 24, 5, shape, host, [1, 4])
    assert (one["weights"], one["gradients"], one["optimizer"]) == (4096, 4096, 8192)
    assert one["total"] == 7 + 55 + 4 * 4096
    assert (ddp["gradients"], ddp["exchanged"]) == (2 * 4096, 2 * 4096 * 3 // 4)
    assert (fsdp["gradients"], fsdp["optimizer"]) == (1024, 2048)
    assert fsdp["weights"] == 1024 + 4 * 12 * 192**2
    assert fsdp["block"] == ddp["block"] == 7


class _FromView(nn.Module):
    """A host that hands a view of a parameter on that was made under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 6))
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            view = self.queries.view(2, 2, 6)
        return self.linear(view) + x


def test_counting_takes_views_made_under_no_grad() -> None:
    model = _FromView()
    assert count_flops(lambda: model(torch.zeros(2, 2, 5))) == 2 * 4 * 6 * 5


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_counting_sees_into_torchs_own_layers(precision: torch.dtype) -> None:
    """In evaluation these are one fused operation, which hides its products, and fails in bfloat16 while counted."""
    width, hidden = 16, 40
    layer = nn.TransformerEncoderLayer(width, 2, hidden, 0.0, "gelu", batch_first=True).eval()
    tokens, mask = torch.randn(1, TOKENS, width), torch.zeros(1, TOKENS, dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        counted = count_flops(lambda: layer(tokens.to(precision), src_key_padding_mask=mask))
    linear = 4 * width * width + 2 * width * hidden  # four projections, two layers of the feed-forward network
    assert counted == 2 * TOKENS * (linear + 2 * TOKENS * width)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_agrees_with_torch() -> None:
    layer, tokens = _real("dense", 1)
    layer.exact = "dense"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(tokens)
    assert count_flops(lambda: layer(tokens)) == counter.get_total_flops()


def test_the_docs_show_real_output(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "cost.md").read_text()
    examples = [block.split("\n```")[0] for block in page.split("```console\n$ ")[1:]]
    assert len(examples) == 2
    for example in examples:
        command, _, printed = example.partition("\n")
        assert main(command.split()[1:]) == 0
        assert capsys.readouterr().out.strip() == printed.strip(), command


def test_json_holds_what_the_tables_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "cost",
                "--llm",
                "llama-7b",
                "--host",
                "vit-t",
                "--batch",
                "2",
                "--gpus",
                "2",
                "--blocks",
                "2",
                "--quantize",
                "int8",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    llm = found["llms"]["llama-7b"]
    assert llm["weights"] == 2 * LLMS["llama-7b"].num_parameters()
    assert [row["strategy"] for row in llm["processes"]] == ["ddp", "fsdp"]
    assert llm["processes"][0]["block"] == llm["stored"]["int8"]
    assert llm["steps"]["shortcuts"]["flops"] < llm["steps"]["plain"]["flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--llm gpt-5", "--llm must be one of"),
        ("--host resnet", "--host must be one of"),
        ("--batch 0", "--batch must be positive"),
        ("--gpus 0", "--gpus must be positive"),
        ("--llm llama-7b --source bundled", "not both"),
        ("--dtype float3", "float3"),
        ("--quantize int2", "int2"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
