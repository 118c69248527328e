"""The evaluated model: of a run's checkpoint, of the official release, or of timm."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import OmegaConf
from timm.data import resolve_model_data_config
from torch import nn

from frozenllm.core.training import read_run
from frozenllm.core.training.saved import is_runs, outline

NUM_CLASSES = 1000
WEIGHTS = ("auto", "raw", "ema")
_CHUNK = 1 << 24


@dataclass
class Candidate:
    """A classifier to evaluate.

    Attributes:
        model: With 1000 outputs; in eval mode, on the CPU.
        transform: Arguments of `timm.data.create_transform` for its clean images.
        title: What it is called in tables.
        identity: What tells it from other models: kept in results, and part of the key they are remembered by.
    """

    model: nn.Module
    transform: dict[str, Any]
    title: str
    identity: dict[str, Any] = field(default_factory=dict)


def load_candidate(
    checkpoint: str | None,
    timm_model: str | None = None,
    *,
    weights: str = "auto",
    llm_path: str | None = None,
    precision: str = "fp32",
    official: Mapping[str, Any] | None = None,
) -> Candidate:
    """Load the model to evaluate.

    Args:
        checkpoint: A checkpoint of a run, or of the official release; with ``timm_model``, a file that timm reads, and
            None for that model's pretrained weights.
        timm_model: Name of a timm model.
        weights: Of a run: ``"raw"``, ``"ema"`` (the moving average), or ``"auto"`` for what the run's own validation
            uses.
        llm_path: Where the frozen block's weights are, if not where the training run had them.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; frozen weights are stored in it.
        official: Further arguments of `frozenllm.vision2d.load_official_checkpoint`.

    Raises:
        ValueError: The file is missing, damaged, of no known kind, or has another number of classes than 1000.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}.")
    if checkpoint is None and timm_model is None:
        raise ValueError("Nothing to evaluate is given: set checkpoint=..., or timm_model=<name>.")
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    if path is not None and not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}.")
    if timm_model is not None:
        _only_for_runs(weights, llm_path)
        candidate = _of_timm(timm_model, path)
    elif (kind := _kind(path)) == "run":
        candidate = _of_run(path, weights, llm_path, precision)
    else:
        assert kind == "official"
        _only_for_runs(weights, llm_path)
        candidate = _of_official(path, dict(official or {}))
    outputs = getattr(candidate.model, "num_classes", NUM_CLASSES)
    if outputs != NUM_CLASSES:
        raise ValueError(f"{candidate.title} has {outputs} classes: these data sets need the 1000 of ImageNet-1k.")
    candidate.model.eval()
    candidate.identity["precision"] = precision
    return candidate


def _only_for_runs(weights: str, llm_path: str | None) -> None:
    if weights != "auto" or llm_path is not None:
        raise ValueError("weights=... and llm_path=... are for checkpoints of runs: this one holds one set of weights.")


def _kind(path: Path) -> str:
    try:
        content = outline(path)
    except ValueError as error:
        raise ValueError(f"{error} For a safetensors file, give the name of its model with timm_model=...") from error
    if is_runs(content):
        return "run"
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return "official"
    raise ValueError(
        f"{path} is neither a checkpoint of a run nor of the official release; if timm can read it, give the name of "
        "its model with timm_model=..."
    )


def _of_run(path: Path, weights: str, llm_path: str | None, precision: str) -> Candidate:
    run = read_run(path, weights)
    cfg = run.cfg
    cfg.runtime.precision = precision
    if llm_path is not None:
        cfg.llm.path = llm_path
    model = run.build()
    transform = (cfg.data.val or {}).get("transform")
    chosen = OmegaConf.to_container(transform) if transform else resolve_model_data_config(model)
    identity = {"kind": "run", "checkpoint": str(path.absolute()), "sha256": _sha256(path), "weights": run.weights}
    return Candidate(model, _plain(chosen), f"{cfg.recipe}/{cfg.name}", identity)


def _of_official(path: Path, options: dict[str, Any]) -> Candidate:
    from frozenllm.vision2d import load_official_checkpoint

    given = {key: value for key, value in options.items() if value is not None}
    model = load_official_checkpoint(path, **given)
    # At 224: shorter side to 256, bicubic, central 224, ImageNet's statistics (official datasets.py).
    transform = {"input_size": model.patch_embed.img_size[-1], "crop_pct": 0.875, "interpolation": "bicubic"}
    identity = {"kind": "official", "checkpoint": str(path.absolute()), "sha256": _sha256(path)}
    return Candidate(model, transform, path.name, {**identity, **given})


def _of_timm(name: str, path: Path | None) -> Candidate:
    options = {"checkpoint_path": str(path)} if path is not None else {"pretrained": True}
    try:
        model = timm.create_model(name, **options)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
        raise ValueError(f"timm cannot load {name} from {path or 'its pretrained weights'}: {reason}.") from error
    identity = {"kind": "timm", "model": name, "checkpoint": str(path.absolute()) if path else None}
    identity["sha256"] = _sha256(path) if path else _state_sha256(model)
    return Candidate(model, _plain(resolve_model_data_config(model)), name, identity)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
