"""What runs here: versions, devices, threads."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "timm", "transformers", "mmengine", "hydra-core", "numpy", "safetensors")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "OMP_NUM_THREADS", "RANK", "SLURM_JOB_ID", "WORLD_SIZE")


def environment() -> dict[str, Any]:
    """Versions, devices, threads, and the variables that change how a run runs; plain values, ready for JSON."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": dict(_versions()),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "command": sys.argv,
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of what matters here, and of this project's packages."""
    known = {name: version for name in PACKAGES if (version := _version(name))}
    own = {d.name: d.version for d in importlib.metadata.distributions() if (d.name or "").startswith("frozenllm")}
    return known | dict(sorted(own.items()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
