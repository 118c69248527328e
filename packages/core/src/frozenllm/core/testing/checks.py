"""The checks of the contract; each takes a `Host` and raises AssertionError."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.ablations import random_block
from frozenllm.core.analysis import tapped
from frozenllm.core.block import llm_blocks
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.testing.host import Host


def block_is_unchanged_by_training(host: Host) -> None:
    """Three steps with weight decay leave every byte of the block, which no optimizer holds."""
    model = host.build().train()
    before = [[b.clone() for b in block.buffers()] for _, block in llm_blocks(model)]
    assert before, "The host has no language-model block."
    assert all(before), "The host's block is not frozen."
    held = {p.data_ptr() for p in model.parameters()}
    assert not held & {b.data_ptr() for _, block in llm_blocks(model) for b in block.buffers()}
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        host.loss(model(*host.inputs)).backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True)), "Nothing was trained."
    for (name, block), old in zip(llm_blocks(model), before, strict=True):
        for a, b in zip(old, block.buffers(), strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"{name} changed in training."


def both_adapters_get_gradients(host: Host) -> None:
    """The loss reaches what comes before and after the block."""
    model = host.build().train()
    host.loss(model(*host.inputs)).backward()
    for name, layer in _layers(model):
        for side in ("adapter_in", "adapter_out"):
            gradient = getattr(layer, side).weight.grad
            assert gradient is not None, f"{name}.{side} has no gradient."
            assert gradient.isfinite().all(), f"{name}.{side} has a gradient that is not finite."
            assert gradient.abs().max() > 0, f"{name}.{side} has a gradient of zero."


def training_equals_evaluation(host: Host) -> None:
    """What comes out of the frozen layer does not depend on the mode."""
    for name, layer in _layers(host.build()):
        tokens = torch.randn(2, 7, layer.dim, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            trained, evaluated = layer.train()(tokens), layer.eval()(tokens)
        worst = (trained - evaluated).abs().max()
        assert torch.allclose(trained, evaluated, rtol=1e-4, atol=1e-5), f"{name}: the modes differ by {worst}."


def checkpoints_hold_no_block(host: Host) -> None:
    """A state dict goes through a file and back without the block's weights, and knows the block."""
    model = host.build().eval()
    state = model.state_dict()
    kept = {t.untyped_storage().data_ptr() for t in state.values()}
    blocks = list(llm_blocks(model))
    for name, block in blocks:
        assert not kept & {b.untyped_storage().data_ptr() for b in block.buffers()}, f"{name}'s weights are saved."
        assert state[f"{name}._extra_state"].dtype == torch.uint8
    file = io.BytesIO()
    torch.save(state, file)
    limit = sum(t.numel() * t.element_size() for t in state.values()) + 4096 * (len(state) + 1)
    assert file.tell() <= limit, "The file is larger than what is in it."
    file.seek(0)
    restored = host.build().eval()
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.add_(1.0)
        restored.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(_tensors(restored(*host.inputs)), _tensors(model(*host.inputs)))
    for name, block in blocks:
        other = random_block(block.specs[0], seed=987654321, num_blocks=len(block.specs))
        _refused(restored, {**state, f"{name}._extra_state": other.record.to_tensor()}, "made with another block")
        record = block.record.to_tensor()
        place = bytes(record.tolist()).index(block.record.sha256.encode())
        record[place] = ord("1" if chr(record[place]) == "0" else "0")  # one digit of the hash
        _refused(restored, {**state, f"{name}._extra_state": record}, "whose record has a changed byte")


def shortcuts_equal_dense(host: Host) -> None:
    """Readout, fold and absorb give the output and the gradients of the plain formulation."""
    fast, dense = host.build().eval(), host.build().eval()
    for _, layer in _layers(dense):
        layer.exact = "dense"
    outputs = [model(*host.inputs) for model in (fast, dense)]
    torch.testing.assert_close(_tensors(outputs[0]), _tensors(outputs[1]), rtol=1e-4, atol=1e-5)
    for output in outputs:
        host.loss(output).backward()
    wanted = dict(dense.named_parameters())
    for name, parameter in fast.named_parameters():
        a, b = parameter.grad, wanted[name].grad
        assert (a is None) == (b is None), f"{name} has a gradient on one path only."
        if a is not None and b is not None:
            assert (a - b).norm() <= 1e-3 * b.norm() + 1e-7, f"{name}: the gradients differ."


def copies_share_the_block(host: Host) -> None:
    """A deep copy (for a moving average, say) has its own adapters and the same block."""
    model = host.build()
    clone = copy.deepcopy(model)
    for (name, a), (_, b) in zip(llm_blocks(model), llm_blocks(clone), strict=True):
        shared = [x.data_ptr() == y.data_ptr() for x, y in zip(a.buffers(), b.buffers(), strict=True)]
        assert all(shared), f"{name} was copied."
    for (_, own), (_, copied) in zip(_layers(model), _layers(clone), strict=True):
        assert own.adapter_in.weight.data_ptr() != copied.adapter_in.weight.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(_tensors(clone.eval()(*host.inputs)), _tensors(model.eval()(*host.inputs)))


def tapping_changes_nothing(host: Host) -> None:
    """Tapped, the host gives what it gives untapped, and the taps hold every token of its layers."""
    model = host.build().eval()
    with torch.no_grad():
        plain = model(*host.inputs)
        with tapped(model) as taps:
            seen = model(*host.inputs)
    torch.testing.assert_close(_tensors(seen), _tensors(plain), rtol=1e-4, atol=1e-5)
    for name, layer in taps.layers.items():
        assert layer["host"].shape == layer["adapter_out"].shape, f"{name}: tokens are missing."


def padding_does_not_leak(host: Host) -> None:
    """Values at masked places do not reach the output; for hosts with a mask only."""
    assert host.padded is not None, "The host under test has no `padded` inputs: leave this check out."
    model = host.build().eval()
    with torch.no_grad():
        a, b = host.masked_output(model(*host.inputs)), host.masked_output(model(*host.padded))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def runs_in_bfloat16(host: Host) -> None:
    """Autocast to bfloat16, block included, gives finite outputs and gradients near those in float32."""
    model = host.build().train()
    with torch.no_grad():
        exact = host.loss(host.build().train()(*host.inputs))
    for _, block in llm_blocks(model):
        block.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*host.inputs)
    loss = host.loss(output)
    loss.backward()
    assert abs(loss - exact) <= 0.1 * abs(exact) + 1e-3, f"loss {loss:.4g} in bfloat16, {exact:.4g} in float32"
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"{name} has no finite gradient."


def layers_compile_without_breaks(host: Host) -> None:
    """`torch.compile` traces each frozen layer, with and without a mask and a readout, as one graph."""
    for name, layer in _layers(host.build().train()):
        tokens = torch.randn(2, 7, layer.dim, generator=torch.Generator().manual_seed(0))
        mask = torch.arange(7).expand(2, 7) < torch.tensor([[7], [4]])
        for arguments in ((tokens,), (tokens, mask, slice(0, 1))):
            torch.compiler.reset()
            found = torch._dynamo.explain(layer)(*arguments)
            assert found.graph_break_count == 0, f"{name} has graph breaks: {found.break_reasons}"
            assert found.graph_count == 1, f"{name} is traced as {found.graph_count} graphs."


def compiles(host: Host) -> None:
    """`torch.compile` traces the host, forward and backward, and changes nothing."""
    plain, compiled = host.build().train(), host.build().train()
    torch.compiler.reset()
    traced = torch.compile(compiled, backend="aot_eager", fullgraph=host.fullgraph)
    outputs = [model(*host.inputs) for model in (plain, traced)]
    torch.testing.assert_close(_tensors(outputs[0]), _tensors(outputs[1]), rtol=1e-4, atol=1e-5)
    for output in outputs:
        host.loss(output).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            assert (a.grad - b.grad).norm() <= 1e-3 * a.grad.norm() + 1e-7, f"{name}: the gradients differ."


def _layers(model: nn.Module) -> Iterator[tuple[str, FrozenLLMLayer]]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, FrozenLLMLayer)]
    assert found, "The host has no frozen layer."
    return iter(found)


def _refused(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    try:
        model.load_state_dict(state)
    except (ValueError, RuntimeError):
        return
    raise AssertionError(f"A checkpoint {what} was accepted.")


def _tensors(output: Any) -> Any:
    """The output in a form that `torch.testing.assert_close` compares."""
    return dict(output) if isinstance(output, dict) else output
