"""VideoMAE's checkpoints as hosts: the original's files, and folders in transformers' layout.

The original's pre-training files have the encoder under ``encoder.`` beside a decoder, its fine-tuning files have no
prefix; weights are under ``model``, or under ``module`` where DeepSpeed wrote them. Neither stores positions: they are
sines and cosines. transformers writes older names of the attention's biases than its models have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from frozenllm.core.state_dicts import kept_weights, load_exactly
from frozenllm.core.weights.files import SafetensorsFile, TensorFiles, open_tensor_files, read_json
from frozenllm.core.weights.official import OfficialFile
from frozenllm.video.model import FrozenLLMVideoMAE

__all__ = ["load_host_checkpoint", "to_original", "to_transformers"]


_STEM = {"patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.", "norm.": "videomae.layernorm."}
_TAIL = {"head.": "classifier."}
_LAYERS = {"blocks.": "videomae.encoder.layer.", "decoder.blocks.": "decoder.decoder_layers."}
_INNER = {
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "attn.proj.": "attention.output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
_QKV = "attn.qkv.weight"
_PARTS = tuple(f"attention.attention.{name}.weight" for name in ("query", "key", "value"))
_LEGACY = {".attention.attention.q_bias": ".attention.attention.query.bias"}
_LEGACY |= {".attention.attention.v_bias": ".attention.attention.value.bias"}
# Of pre-training only; the classifier averages tokens and has no norm before that. The original leaves these out too.
_PRETRAINING = ("decoder.", "encoder_to_decoder.", "mask_token", "videomae.layernorm.")
_HEAD = "classifier."
_FOREIGN = ("llm.", "llama")


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the original VideoMAE's names, as transformers' models name and shape them.

    Args:
        state: Of a pre-training model (names with ``encoder.`` and ``decoder.``), of a classifier, or of a classifier
            inside another model (``backbone.``). Names that VideoMAE does not have stay as they are.

    Returns:
        A state dict of `VideoMAEForPreTraining` or `VideoMAEForVideoClassification`.

    Raises:
        ValueError: A joint projection cannot be split.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"^(encoder|backbone)\.", "", name)
        prefix, layers, inner = _split(name, _LAYERS)
        if layers is None:
            result[_renamed(name, {**_STEM, **_TAIL})] = tensor
        elif inner == _QKV:
            if tensor.ndim != 2 or len(tensor) % 3:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}: not that of queries, keys and values.")
            for part, rows in zip(_PARTS, tensor.chunk(3), strict=True):
                result[f"{layers}{prefix}.{part}"] = rows
        else:
            result[f"{layers}{prefix}.{_renamed(inner, _INNER)}"] = tensor
    return result


def to_original(state: Mapping[str, Tensor], *, pretraining: bool = False) -> dict[str, Tensor]:
    """Inverse of `to_transformers`.

    Args:
        state: Of `VideoMAEForVideoClassification` or `VideoMAEForPreTraining`, or of a `FrozenLLMVideoMAE` without
            its layer.
        pretraining: Put the encoder under ``encoder.``, as the original's pre-training files have it.

    Returns:
        Weights under the original's names.
    """
    result: dict[str, Tensor] = {}
    state = _without_legacy_names(state)
    back = {new: old for old, new in _LAYERS.items()}
    for name, tensor in state.items():
        prefix, layers, inner = _split(name, back)
        if layers is None:
            renamed = _renamed(name, {new: old for old, new in {**_STEM, **_TAIL}.items()})
        elif inner in _PARTS:
            if inner != _PARTS[0]:
                continue
            stem = name.removesuffix(inner)
            renamed, tensor = f"{layers}{prefix}.{_QKV}", torch.cat([state[stem + part] for part in _PARTS])
        else:
            renamed = f"{layers}{prefix}.{_renamed(inner, {new: old for old, new in _INNER.items()})}"
        encoder = pretraining and name.startswith("videomae.")
        result[f"encoder.{renamed}" if encoder else renamed] = tensor
    return result


def load_host_checkpoint(
    model: FrozenLLMVideoMAE, source: str | os.PathLike[str] | nn.Module, *, head: bool | None = None
) -> list[str]:
    """Start a host from a checkpoint of VideoMAE.

    Positions are computed, so the clips may have another size and length than those of the checkpoint.

    Args:
        model: Its host is overwritten; a frozen layer in it stays.
        source: A pre-training or fine-tuning file of the original (``.pth``), a folder or ``.safetensors`` or ``.bin``
            file in transformers' layout, or one of transformers' VideoMAE models.
        head: Whether to take the classification head; None for: where there is one.

    Returns:
        Names of the weights that were not in the source and keep their values: those of the frozen layer (its
        adapters), of the head where it was left out, and of the norm before it for a pre-training checkpoint. They are
        logged as well.

    Raises:
        ValueError: The source cannot be read, or it is not the same host.
    """
    where, state, heads = _read(source)
    foreign = [name for name in state if name.startswith(_FOREIGN)]
    if foreign:
        raise ValueError(
            f"{where}: has a frozen layer of its own ({foreign[0]}); read it with load_official_checkpoint or "
            "load_state_dict."
        )
    ours = model.config.num_attention_heads
    if heads is not None and heads != ours:
        raise ValueError(f"{where}: has {heads} attention heads, the model {ours}.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_PRETRAINING)}
    has_head = f"{_HEAD}weight" in state
    if head is None:
        head = has_head
    if not head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_HEAD)}
    own = model.state_dict()
    kept = {name for name in own if name.startswith("llm.") or (not head and name.startswith(_HEAD))}
    if not has_head:  # a pre-training checkpoint has neither a head nor the norm before it
        kept |= {name for name in own if name.startswith("fc_norm.")} - state.keys()
    hint = "; head=False keeps the model's own head" if head else " (the head was left out)"
    load_under_own_names(model, state, where, left_out=kept, hint=hint)
    return kept_weights(model, kept, where)


def load_under_own_names(
    model: nn.Module, state: Mapping[str, Tensor], where: object, left_out: Iterable[str] = (), hint: str = ""
) -> None:
    """`load_exactly`, into a model of whatever release of transformers is installed."""
    own = model.state_dict()
    load_exactly(model, {_own_name(name, own): t for name, t in state.items()}, where, left_out, hint)


def _read(source: str | os.PathLike[str] | nn.Module) -> tuple[str, dict[str, Tensor], int | None]:
    """A source's name, its weights under transformers' names, and its number of heads where it tells."""
    if isinstance(source, nn.Module):
        heads = getattr(getattr(source, "config", None), "num_attention_heads", None)
        return type(source).__name__, _unified(source.state_dict()), heads
    path = Path(source).expanduser()
    if path.is_dir():
        heads = read_json(path / "config.json").get("num_attention_heads")
        return str(path), _unified(_all(open_tensor_files(path))), heads
    if path.suffix == ".safetensors":
        return str(path), _unified(_all(SafetensorsFile(path))), None
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}.")
    try:
        return str(path), _unified(OfficialFile(path).tensors), None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _all(files: TensorFiles) -> dict[str, Tensor]:
    return {name: files.read(name) for name in files.names()}


def _unified(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under transformers' names, whichever layout they come in."""
    if any(re.match(r"((encoder|backbone)\.)?patch_embed\.", name) for name in state):
        return to_transformers(state)
    if any(name.startswith("embeddings.") for name in state):  # transformers' bare VideoMAEModel
        state = {f"videomae.{name}": tensor for name, tensor in state.items()}
    return _without_legacy_names(state)


def _without_legacy_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in state.items():
        for old, new in _LEGACY.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        result[name] = tensor
    return result


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """The name in a model of an older transformers, whose attention has its biases beside the projections."""
    if name not in own:
        for old, new in _LEGACY.items():
            if name.endswith(new) and name.removesuffix(new) + old in own:
                return name.removesuffix(new) + old
    return name


def _split(name: str, layers: Mapping[str, str]) -> tuple[str, str | None, str]:
    """A block's index, the prefix of its new name and the rest of its old one; None for names outside the blocks."""
    for old, new in layers.items():
        if name.startswith(old):
            index, _, inner = name.removeprefix(old).partition(".")
            return index, new, inner
    return "", None, name


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
