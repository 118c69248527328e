"""METER's released checkpoints (zdou0830/METER): their names and shapes, mapped onto this host.

Such a file is a Lightning checkpoint: the model under ``state_dict``, beside hyper-parameters and Lightning's own
objects. Nothing but tensors and plain values is read; Lightning's classes are replaced by empty ones.
"""

from __future__ import annotations

import logging
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.state_dicts import kept_weights, load_exactly
from frozenllm.vqa.meter.encoders import resample_positions
from frozenllm.vqa.meter.model import MeterRetrieval, MeterVQA

logger = logging.getLogger(__name__)

_INERT = ("pytorch_lightning.", "lightning.", "sacred.", "omegaconf.")  # packages whose classes such a file may name
_CLIP = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_STEM = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
}
_CROSS = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "crossattention.output.dense": "multihead_attn.out_proj",
    "crossattention.output.LayerNorm": "norm2",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm3",
}
_PLAIN = {
    "cross_modal_image_transform": "trunk.image_map",
    "cross_modal_text_transform": "trunk.text_map",
    "cross_modal_image_pooler.dense": "trunk.image_pooler.dense",
    "cross_modal_text_pooler.dense": "trunk.text_pooler.dense",
    "token_type_embeddings": "trunk.type_embedding",
}
_HEADS = {"vqa_classifier": "head", "itm_score.fc": "match", "rank_output": "rank"}
_CLIP_QKV = re.compile(r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
# CLIP's text side and its unused last layer, RoBERTa's pooler, the heads of other tasks.
_UNUSED = re.compile(
    r"^(mlm_score|nlvr2_classifier|snli_classifier)\.|^text_transformer\.(pooler\.|embeddings\.position_ids)"
    r"|^vit_model\.(positional_embedding|token_embedding|ln_final|text_projection|logit_scale|transformer\.)"
)


class _Inert:
    """Stands in for a class that is not read: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_released(model: MeterVQA | MeterRetrieval, path: str | os.PathLike[str]) -> list[str]:
    """Start a host from a checkpoint of METER's release.

    The frozen layer keeps its own start. So does a head that the file does not have (a pre-trained file has no answer
    head), or whose answers are others in number. Position embeddings of another resolution are resampled as METER does.

    Args:
        model: The host; overwritten.
        path: The ``.ckpt`` file.

    Returns:
        Names of the weights that kept their start; they are logged as well.

    Raises:
        ValueError: One sentence: the file cannot be read, is not METER's, or its sizes are not the host's.
    """
    path = Path(path).expanduser()
    state = translate(read_state(path))
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_extra_state")}
    position = "trunk.image_encoder.embeddings.position_embedding.weight"
    if position in state:
        state[position] = resample_positions(state[position], math.isqrt(len(wanted[position]) - 1))
    heads = tuple(f"{name}." for name in _HEADS.values())
    state = {name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(heads)}
    if isinstance(model, MeterVQA) and "head.3.weight" in state:
        found, own = len(state["head.3.weight"]), len(model.answers)
        if found != own:
            logger.warning("%s answers %d classes, this model %d: its last layer starts anew.", path, found, own)
            state = {name: tensor for name, tensor in state.items() if not name.startswith("head.3.")}
    own_start = [name for name in wanted if name not in state and name.startswith((*heads, "trunk.llm."))]
    records = [name for name in model.state_dict() if name.endswith("_extra_state")]
    load_exactly(model, state, path, left_out=[*own_start, *records])
    if isinstance(model, MeterRetrieval) and "match.weight" in state and "rank.weight" not in state:
        model.start_rank()
    return kept_weights(model, own_start, path)


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """METER's tensors under this host's names; query, key and value are joined in the fusion, split in CLIP.

    Raises:
        ValueError: A name is not METER's, or it is one of the Swin transformer's, which this host does not have.
    """
    if any(name.startswith("vit_model.layers.") for name in state):
        raise ValueError("The checkpoint has a Swin transformer as its image encoder; this host has CLIP's only.")
    result: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if _UNUSED.search(name):
            continue
        if match := re.fullmatch(
            r"cross_modal_(image|text)_layers\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.(\w+)", name
        ):
            side, layer, which, part, kind = match.groups()
            attention = "self_attn" if which == "attention" else "multihead_attn"
            target = f"trunk.fusion.{side}_layers.{layer}.{attention}.in_proj_{kind}"
            joined.setdefault(target, {})[part] = tensor
            continue
        if match := _CLIP_QKV.fullmatch(name):
            encoder = f"trunk.image_encoder.layers.{match[1]}.self_attn"
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{encoder}.{part}_proj.{match[2]}"] = rows
            continue
        result[_new_name(name)] = tensor
    for target, parts in joined.items():
        lacking = [part for part in ("query", "key", "value") if part not in parts]
        if lacking:
            raise ValueError(f"The checkpoint lacks the {lacking[0]} of {target}.")
        result[target] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return result


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a Lightning checkpoint; nothing in it is run.

    Raises:
        ValueError: It is missing, damaged, holds objects that could run code, or no model.
    """
    if not path.is_file():
        raise ValueError(f"The checkpoint {path} does not exist.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated or not a file that torch.save wrote.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        refused = sorted(name for name in names if not name.startswith(_INERT))
        if refused:
            raise ValueError(f"{path} is refused: it holds Python objects ({refused[0]}) that could run code.")
        allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(_Inert, name) for name in names]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # torch raises many kinds on damaged files
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0][:200]}).") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not any(name.startswith("cross_modal_") for name in tensors):
        raise ValueError(f"{path} is not a checkpoint of METER: it has no tensor named cross_modal_*.")
    return tensors


def _new_name(name: str) -> str:
    for old, new in {**_PLAIN, **_HEADS}.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    if name.startswith("text_transformer."):
        return "trunk.text_encoder.model." + name.removeprefix("text_transformer.")
    if match := re.fullmatch(r"cross_modal_(image|text)_layers\.(\d+)\.(.+)\.(weight|bias)", name):
        side, layer, part, kind = match.groups()
        if part in _CROSS:
            return f"trunk.fusion.{side}_layers.{layer}.{_CROSS[part]}.{kind}"
    if name.startswith("vit_model.visual."):
        rest = name.removeprefix("vit_model.visual.")
        encoder = "trunk.image_encoder."
        if rest in _STEM:
            return encoder + _STEM[rest]
        if match := re.fullmatch(r"ln_(pre|post)\.(weight|bias)", rest):
            return f"{encoder}{match[1]}_norm.{match[2]}"
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)", rest):
            layer, part, kind = match.groups()
            if part in _CLIP:
                return f"{encoder}layers.{layer}.{_CLIP[part]}.{kind}"
            if part == "attn.out_proj":
                return f"{encoder}layers.{layer}.self_attn.out_proj.{kind}"
    raise ValueError(f"The checkpoint holds {name}, which METER with CLIP and RoBERTa does not have.")
