"""What the frozen layer costs in training, at LLaMA-7B's sizes: official formulation, dense fused, exact shortcuts.

    python benchmarks/frozen_layer.py                      # everything, several minutes on two cores
    python benchmarks/frozen_layer.py --only vit --dtypes float32 --batches 16

Every figure is a ratio between arms that are timed in turns in one process, so that other load falls on all alike.
Weights are random (speed does not depend on them). The step of the image arms is a whole training step of ViT-S/16 at
224 px, optimizer included; the video arms time the layer alone, forward and backward, on the tokens of one clip.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from common import LLAMA_7B, take_turns, write_figures
from torch import Tensor, nn

from frozenllm.core import BlockSpec, FrozenLLMLayer, LLMBlock, random_block

VIDEO_TOKENS = 1568  # 16 frames in tubelets of 2, 14 x 14 patches


class OfficialFormulation(nn.Module):
    """The layer as the official code computes it: all tokens, separate projections, explicit float32 softmax."""

    def __init__(self, dim: int, block: LLMBlock) -> None:
        super().__init__()
        width = block.hidden_size
        self.adapter_in = nn.Linear(dim, width, bias=False)
        self.adapter_out = nn.Linear(width, dim, bias=False)
        self.heads = block.specs[0].num_heads
        for name, tensor in block.canonical_tensors()[0].items():
            self.register_buffer(name.replace(".", "_"), tensor, persistent=False)

    def norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        wide = x.float()
        x = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x)
        return x if weight is None else x * weight

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor, readout: slice | None = None) -> Tensor:
        dtype = self.attn_q_weight.dtype
        h = F.linear(tokens.to(dtype), self.adapter_in.weight.to(dtype))
        x = self.norm(h, self.attn_norm_weight)
        q, k, v = (self.split(F.linear(x, w)) for w in (self.attn_q_weight, self.attn_k_weight, self.attn_v_weight))
        scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
        attended = scores.float().softmax(dim=-1).type_as(q) @ v
        h = h + F.linear(attended.transpose(1, 2).flatten(-2), self.attn_o_weight)
        x = self.norm(h, self.ffn_norm_weight)
        inner = F.silu(F.linear(x, self.ffn_gate_weight)) * F.linear(x, self.ffn_up_weight)
        h = self.norm(h + F.linear(inner, self.ffn_down_weight), None)
        output = F.linear(h, self.adapter_out.weight.to(dtype)).to(tokens.dtype)
        return output if readout is None else output[:, readout]


class Host(nn.Module):
    """timm's ViT-S/16, with a layer between its blocks and its final norm."""

    def __init__(self, layer: nn.Module | None, drop_path: float = 0.1) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_small_patch16_224", drop_path_rate=drop_path)
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.patch_embed(images)
        x = self.vit.blocks(self.vit.norm_pre(self.vit._pos_embed(x)))
        x = x[:, :1] if self.layer is None else self.layer(x, readout=slice(0, 1))
        return self.vit.forward_head(self.vit.norm(x))


def medians(steps: dict[str, Callable[[], None]], turns: int, device: str) -> dict[str, float]:
    """Median seconds of each step."""
    return {name: statistics.median(times) for name, times in take_turns(steps, turns, device).items()}


def saved_activations(run: Callable[[], Tensor], exclude: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass, weights not counted."""
    own = {t.untyped_storage().data_ptr() for t in [*exclude.parameters(), *exclude.buffers()]}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()  # held until the storages are counted, or addresses could repeat
    total = sum(storages.values())
    del kept
    return total


def layers(dim: int, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    block = random_block(BlockSpec(**LLAMA_7B), dtype=dtype, device=device)
    arms = {
        "official": OfficialFormulation(dim, block),
        "dense": FrozenLLMLayer(dim, block, exact="dense", adapter_init="trunc_normal"),
        "shortcut": FrozenLLMLayer(dim, block, adapter_init="trunc_normal"),
    }
    return {name: arm.to(device) for name, arm in arms.items()}


def bench_vit(dtype: torch.dtype, batch: int, turns: int, device: str) -> dict[str, object]:
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    hosts = {"host": Host(None), **{name: Host(layer) for name, layer in layers(384, dtype, device).items()}}

    def make_step(host: Host) -> Callable[[], None]:
        host.to(device).train()
        optimizer = torch.optim.AdamW(host.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(host(images).float(), labels)
            loss.backward()
            optimizer.step()

        return step

    seconds = medians({name: make_step(host) for name, host in hosts.items()}, turns, device)
    return {
        "what": "vit_small_patch16_224 training step",
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "seconds": seconds,
        "relative_to_host": {name: s / seconds["host"] for name, s in seconds.items()},
        "official_over_shortcut": seconds["official"] / seconds["shortcut"],
    }


def bench_video(dtype: torch.dtype, batch: int, turns: int, device: str) -> dict[str, object]:
    tokens = torch.randn(batch, VIDEO_TOKENS, 384, device=device)
    arms = layers(384, dtype, device)

    def make_run(layer: nn.Module) -> Callable[[], Tensor]:
        return lambda: layer(tokens.requires_grad_()).float().square().mean()

    runs = {name: make_run(layer) for name, layer in arms.items()}
    saved = {name: saved_activations(run, arms[name]) for name, run in runs.items()}
    seconds = medians({name: lambda run=run: run().backward() for name, run in runs.items()}, turns, device)
    return {
        "what": f"layer alone, all {VIDEO_TOKENS} tokens of a clip",
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "seconds": seconds,
        "official_over": {name: seconds["official"] / s for name, s in seconds.items()},
        "dense_over_shortcut": seconds["dense"] / seconds["shortcut"],
        "saved_mebibytes": {name: n / 2**20 for name, n in saved.items()},
        "saved_relative_to_official": {name: n / saved["official"] for name, n in saved.items()},
    }


def profile_layer(dtype: torch.dtype, batch: int, device: str) -> None:
    """Print what the shortcut's time goes to: forward and backward of the layer alone, class token read."""
    layer = FrozenLLMLayer(
        384, random_block(BlockSpec(**LLAMA_7B), dtype=dtype, device=device), adapter_init="trunc_normal"
    )
    tokens = torch.randn(batch, 197, 384, device=device, requires_grad=True)
    layer.to(device)

    def step() -> None:
        layer(tokens, readout=slice(0, 1)).square().sum().backward()

    step()
    with torch.profiler.profile(record_shapes=True) as profile:
        step()
    rows = sorted(profile.key_averages(group_by_input_shape=True), key=lambda e: -e.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"\nshortcut layer alone, {dtype}, batch {batch}: {total / 1e3:.0f} ms")
    for row in rows[:16]:
        shapes = " x ".join(str(shape) for shape in row.input_shapes if shape)
        print(f"  {100 * row.self_cpu_time_total / total:5.1f} %  {row.count:3d} x {row.key}  {shapes}")


def report(row: dict) -> None:
    print(f"\n{row['what']}, {row['dtype']}, batch {row['batch']}")
    for name, seconds in row["seconds"].items():
        line = f"  {name:9s} {seconds:8.3f} s"
        if "relative_to_host" in row:
            line += f"   {row['relative_to_host'][name]:6.2f} x host"
        else:
            line += f"   {row['official_over'][name]:5.2f} x faster than official"
            line += f"   {row['saved_mebibytes'][name]:8.0f} MiB saved ({row['saved_relative_to_official'][name]:.2f})"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["vit", "video"], help="one of the two parts")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32], help="batch sizes of the image part")
    parser.add_argument("--clips", type=int, default=1, help="batch size of the video part")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--profile", action="store_true", help="print what the shortcut's time goes to, nothing else")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}")
    rows = []
    for name in args.dtypes:
        dtype = getattr(torch, name)
        if args.profile:
            profile_layer(dtype, args.batches[0], args.device)
            continue
        if args.only != "video":
            for batch in args.batches:
                rows.append(bench_vit(dtype, batch, args.turns, args.device))
                report(rows[-1])
        if args.only != "vit":
            rows.append(bench_video(dtype, args.clips, args.turns, args.device))
            report(rows[-1])
    if rows:
        write_figures(args.json, rows)


if __name__ == "__main__":
    main()
