"""The original VideoMAE and the official ViT-LLaMA, from their description: weights, files and plain forwards."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from official_llama import attend, llama_forward, llama_state
from torch import Tensor

WIDTH, DEPTH, CLASSES = 64, 2, 7
DECODER_WIDTH, DECODER_DEPTH = 32, 1
LLM_WIDTH, LLM_HEADS, FFN = 48, 4, 132
PATCH, TUBELET, SIDE, FRAMES = 8, 2, 24, 4
State = dict[str, Tensor]


class _Weights:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        return torch.randn(shape, generator=self.generator) * (fan_in**-0.5)

    def linear(self, name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": 0.3 * self(rows)}

    def norm(self, name: str, width: int) -> State:
        return {f"{name}.weight": 1 + 0.1 * self(width), f"{name}.bias": 0.1 * self(width)}

    def blocks(self, prefix: str, depth: int, width: int) -> State:
        state: State = {}
        for i in range(depth):
            b = f"{prefix}blocks.{i}"
            state |= self.norm(f"{b}.norm1", width) | self.norm(f"{b}.norm2", width)
            state |= {f"{b}.attn.qkv.weight": self(3 * width, width)}
            state |= {f"{b}.attn.q_bias": 0.5 * self(width), f"{b}.attn.v_bias": 0.5 * self(width)}
            state |= self.linear(f"{b}.attn.proj", width, width)
            state |= self.linear(f"{b}.mlp.fc1", 4 * width, width) | self.linear(f"{b}.mlp.fc2", width, 4 * width)
        return state

    def patches(self, prefix: str) -> State:
        weight = self(WIDTH, 3, TUBELET, PATCH, PATCH)
        return {f"{prefix}patch_embed.proj.weight": weight, f"{prefix}patch_embed.proj.bias": 0.1 * self(WIDTH)}


def classifier_state(*, llm: bool = False, seed: int = 0) -> State:
    """A fine-tuned model: names and shapes of the original; with ``llm`` those of the official ViT-LLaMA."""
    w = _Weights(seed)
    state = w.patches("") | w.blocks("", DEPTH, WIDTH) | w.norm("fc_norm", WIDTH) | w.linear("head", CLASSES, WIDTH)
    if not llm:
        return state
    state |= llama_state(w, WIDTH, LLM_WIDTH, FFN)
    return state


def pretraining_state(seed: int = 0) -> State:
    """A pre-trained model of the original: the encoder under a prefix, and a decoder."""
    w = _Weights(seed)
    state = w.patches("encoder.") | w.blocks("encoder.", DEPTH, WIDTH) | w.norm("encoder.norm", WIDTH)
    state |= {"mask_token": w(1, 1, DECODER_WIDTH), "encoder_to_decoder.weight": w(DECODER_WIDTH, WIDTH)}
    state |= w.blocks("decoder.", DECODER_DEPTH, DECODER_WIDTH) | w.norm("decoder.norm", DECODER_WIDTH)
    return state | w.linear("decoder.head", 3 * TUBELET * PATCH * PATCH, DECODER_WIDTH)


def write(path: Path, state: State, key: str = "model", **beside: Any) -> Path:
    """A training checkpoint as the original's code writes it."""
    arguments = argparse.Namespace(model="vit_llama_small_patch16_224", lr=1e-3, data_set="SSV2", finetune=None)
    torch.save({key: state, "epoch": 39, "scaler": {"scale": 65536.0}, "args": arguments, **beside}, path)
    return path


def sinusoids(length: int, width: int) -> Tensor:
    """(1, length, width): sine and cosine take turns along the channels, rates fall from 1 to about 1/10000."""
    rates = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()[None]


def layer_norm(x: Tensor, s: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)


def linear(x: Tensor, s: State, name: str) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def run_blocks(x: Tensor, s: State, prefix: str, depth: int, heads: int) -> Tensor:
    for i in range(depth):
        b = f"{prefix}blocks.{i}"
        q_bias, v_bias = s[f"{b}.attn.q_bias"], s[f"{b}.attn.v_bias"]
        bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])  # keys have none
        qkv = F.linear(layer_norm(x, s, f"{b}.norm1"), s[f"{b}.attn.qkv.weight"], bias)
        x = x + linear(attend(*qkv.chunk(3, dim=-1), heads), s, f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(layer_norm(x, s, f"{b}.norm2"), s, f"{b}.mlp.fc1")), s, f"{b}.mlp.fc2")
    return x


def embed(clips: Tensor, s: State, prefix: str = "") -> Tensor:
    """Clips (B, C, T, H, W) to tokens with positions."""
    weight, bias = s[f"{prefix}patch_embed.proj.weight"], s[f"{prefix}patch_embed.proj.bias"]
    x = F.conv3d(clips, weight, bias, stride=(TUBELET, PATCH, PATCH)).flatten(2).transpose(1, 2)
    return x + sinusoids(x.shape[1], WIDTH)


def classify(s: State, clips: Tensor, heads: int = WIDTH // 64) -> Tensor:
    """Blocks, mapper, LLaMA block without positions or mask, RMSNorm, mapper, mean, norm, head."""
    x = llama_forward(s, run_blocks(embed(clips, s), s, "", DEPTH, heads), LLM_HEADS)
    return linear(layer_norm(x.mean(1), s, "fc_norm"), s, "head")


def reconstruct(s: State, clips: Tensor, masked: Tensor) -> Tensor:
    """The pre-training model's output at the masked tokens; masked (B, N) bool."""
    x = embed(clips, s, "encoder.")
    batch, length, _ = x.shape
    x = run_blocks(x[~masked].view(batch, -1, WIDTH), s, "encoder.", DEPTH, 1)
    x = linear(layer_norm(x, s, "encoder.norm"), s, "encoder_to_decoder")
    positions = sinusoids(length, DECODER_WIDTH).expand(batch, -1, -1)
    seen = x + positions[~masked].view(batch, -1, DECODER_WIDTH)
    hidden = s["mask_token"] + positions[masked].view(batch, -1, DECODER_WIDTH)
    x = run_blocks(torch.cat([seen, hidden], dim=1), s, "decoder.", DECODER_DEPTH, 1)
    return linear(layer_norm(x[:, -hidden.shape[1] :], s, "decoder.norm"), s, "decoder.head")


def clips(batch: int = 2, frames: int = FRAMES, side: int = SIDE, seed: int = 7) -> Tensor:
    """(B, C, T, H, W)."""
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(seed))
