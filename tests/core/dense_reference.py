"""The frozen layer written out in plain torch, without fusion or shortcut: the oracle of the exactness tests."""

from __future__ import annotations

import math

import torch


def norm(x, tensors, name, spec):
    weight = tensors.get(f"{name}.weight")
    bias = tensors.get(f"{name}.bias")
    gain = torch.ones(x.shape[-1], dtype=x.dtype) if weight is None else weight + spec.norm_offset
    if spec.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + spec.norm_eps) * gain
    return x if bias is None else x + bias


def _rms(x, weight, spec):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + spec.norm_eps) * (weight + spec.norm_offset)


def linear(x, tensors, name):
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def _rotate(x, spec):
    """(N, head_dim) of one head, default rotary frequencies, each pair turned on its own."""
    width = int(spec.head_dim * spec.rotary_fraction)
    out = x.clone()
    for i in range(width // 2):
        angle = torch.arange(x.shape[0], dtype=x.dtype) * spec.rotary_base ** (-2 * i / width)
        a, b = x[:, i], x[:, i + width // 2]
        out[:, i] = a * torch.cos(angle) - b * torch.sin(angle)
        out[:, i + width // 2] = b * torch.cos(angle) + a * torch.sin(angle)
    return out


def _attention(x, tensors, spec, valid, positions, attention):
    """Self-attention of one sample (N, D), head by head."""
    length = x.shape[0]
    q, k, v = (linear(x, tensors, f"attn.{part}") for part in "qkv")
    if spec.qk_norm == "full":
        q, k = _rms(q, tensors["attn.q_norm.weight"], spec), _rms(k, tensors["attn.k_norm.weight"], spec)
    allowed = valid[None, :].expand(length, length).clone()
    if attention == "causal":
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        allowed &= distance >= 0
        if spec.sliding_window is not None:
            allowed &= distance < spec.sliding_window
    heads = []
    for head in range(spec.num_heads):
        served_by = head // (spec.num_heads // spec.num_kv_heads)
        at, kv_at = head * spec.head_dim, served_by * spec.head_dim
        qh, kh = q[:, at : at + spec.head_dim], k[:, kv_at : kv_at + spec.head_dim]
        vh = v[:, kv_at : kv_at + spec.head_dim]
        if spec.qk_norm == "head":
            qh, kh = _rms(qh, tensors["attn.q_norm.weight"], spec), _rms(kh, tensors["attn.k_norm.weight"], spec)
        if positions == "rotary":
            qh, kh = _rotate(qh, spec), _rotate(kh, spec)
        scale = spec.query_scale if spec.query_scale is not None else 1 / math.sqrt(spec.head_dim)
        scores = qh @ kh.T * scale
        if spec.attn_softcap is not None:
            scores = spec.attn_softcap * torch.tanh(scores / spec.attn_softcap)
        top = scores.masked_fill(~allowed, -1e30).amax(-1, keepdim=True).detach()
        weights = torch.exp((scores - top).masked_fill(~allowed, -math.inf))
        total = weights.sum(-1, keepdim=True)
        heads.append(torch.where(total > 0, weights / total.clamp_min(1e-300), 0.0) @ vh)
    return linear(torch.cat(heads, -1), tensors, "attn.o")


def _activation(x, name):
    if name == "silu":
        return x / (1 + torch.exp(-x))
    if name == "relu":
        return x.clamp_min(0)
    if name == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _feed_forward(x, tensors, spec):
    inner = linear(x, tensors, "ffn.up")
    if spec.gated:
        inner = _activation(linear(x, tensors, "ffn.gate"), spec.activation) * inner
    else:
        inner = _activation(inner, spec.activation)
    return linear(inner, tensors, "ffn.down")


def reference_block(h, tensors, spec, valid=None, positions="none", attention="bidirectional"):
    """One decoder layer on one sample (N, D)."""
    valid = torch.ones(h.shape[0], dtype=torch.bool) if valid is None else valid
    place, scale = spec.norm_placement, spec.residual_scale

    def attend(x):
        return _attention(x, tensors, spec, valid, positions, attention)

    if spec.residual == "parallel":
        update = attend(norm(h, tensors, "attn_norm", spec))
        return h + scale * (update + _feed_forward(norm(h, tensors, "ffn_norm", spec), tensors, spec))
    if place == "pre":
        h = h + scale * attend(norm(h, tensors, "attn_norm", spec))
        return h + scale * _feed_forward(norm(h, tensors, "ffn_norm", spec), tensors, spec)
    if place == "post_sublayer":
        h = h + scale * norm(attend(h), tensors, "attn_out_norm", spec)
        return h + scale * norm(_feed_forward(h, tensors, spec), tensors, "ffn_out_norm", spec)
    if place == "sandwich":
        h = h + scale * norm(attend(norm(h, tensors, "attn_norm", spec)), tensors, "attn_out_norm", spec)
        update = _feed_forward(norm(h, tensors, "ffn_norm", spec), tensors, spec)
        return h + scale * norm(update, tensors, "ffn_out_norm", spec)
    assert place == "post_residual"
    h = norm(h + scale * attend(h), tensors, "attn_norm", spec)
    return norm(h + scale * _feed_forward(h, tensors, spec), tensors, "ffn_norm", spec)


def reference_layer(tokens, adapter_in, adapter_out, layers, specs, mask=None, output_norm="unit", **options):
    """The whole frozen layer on a batch (B, N, d); every argument in one dtype (float64 for an oracle)."""
    outputs = []
    for index, sample in enumerate(tokens):
        valid = None if mask is None else mask[index]
        h = sample @ adapter_in.T
        for tensors, spec in zip(layers, specs, strict=True):
            h = reference_block(h, tensors, spec, valid, **options)
        if output_norm == "unit":
            h = norm(h, {}, "none", specs[-1])
        outputs.append(h @ adapter_out.T)
    return torch.stack(outputs)
