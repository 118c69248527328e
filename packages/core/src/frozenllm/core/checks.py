"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from frozenllm.core.checkup import Check
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.toy_folder import toy_root
from frozenllm.core.weights import load_block
from frozenllm.core.weights.hub import cache_root


def _layer(device: str, dtype: torch.dtype) -> tuple[float, str]:
    """Largest relative difference between the shortcuts and the plain computation; and the block's hash."""
    torch.manual_seed(0)
    block = load_block("bundled")
    layer = FrozenLLMLayer(48, block).to(device).eval()
    tokens = torch.randn(2, 9, 48, device=device)
    with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
        layer.exact = "dense"
        plain = layer(tokens)[:, :1].float()
        layer.exact = "auto"
        short = layer(tokens, readout=slice(0, 1)).float()
    return ((short - plain).norm() / plain.norm()).item(), block.record.sha256


def _bundled() -> str:
    error, digest = _layer("cpu", torch.float32)
    if not error < 1e-5:
        raise RuntimeError(f"the exact shortcuts differ from the plain computation by {error:.1e}")
    return f"sha256 {digest[:12]}; shortcuts and plain computation differ by {error:.0e}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        if _driver_sees_a_gpu():
            raise RuntimeError(f"there is a GPU, but torch {torch.__version__} cannot use it")
        return "none here: everything runs on the CPU"
    error, _ = _layer("cuda", torch.bfloat16)
    if not error < 0.05:
        raise RuntimeError(f"the layer in bfloat16 differs from its plain computation by {error:.1e}")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{names}: the layer runs in bfloat16"


def _driver_sees_a_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60)
    return listed.returncode == 0 and "GPU" in listed.stdout


def _folders() -> str:
    for folder in (cache_root(), toy_root()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RuntimeError(f"{folder} cannot be written ({error.strerror})") from error
    return f"{cache_root()} and {toy_root()} can be written"


def _train() -> str:
    import hydra
    import mmengine
    from matplotlib.figure import Figure

    import frozenllm.core.training  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        Figure().savefig(Path(folder) / "empty.png")
    return f"hydra-core {hydra.__version__}, mmengine {mmengine.__version__}"


def _gguf() -> str:
    import gguf
    import numpy as np

    values = np.linspace(-1, 1, 64, dtype=np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    if abs(gguf.dequantize(gguf.quantize(values, kind), kind) - values).max() > 0.01:
        raise RuntimeError("unpacked weights are not what was packed")
    return "packs and unpacks Q8_0"


def _tensorboard() -> str:
    import tensorboard
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            writer.add_scalar("loss", 1.0, 0)
        if not any(os.scandir(folder)):
            raise RuntimeError("no file was written")
    return f"tensorboard {tensorboard.__version__} writes a file"


def _wandb() -> str:
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="doctor", settings=wandb.Settings(silent=True))
        run.log({"loss": 1.0})
        run.finish()
    return f"wandb {wandb.__version__} writes an offline run"


CHECKS = (
    Check("bundled block and layer", _bundled, "pip install --force-reinstall --no-deps frozenllm-core"),
    Check("GPU", _gpu, "install a build of torch for the CUDA version that nvidia-smi shows"),
    Check("cache folders", _folders, "name folders that can be written: FROZENLLM_CACHE, HF_HOME, XDG_CACHE_HOME"),
    Check(
        "[train] training engine", _train, "pip install 'frozenllm-core[train]'", ("hydra", "mmengine", "matplotlib")
    ),
    Check("[gguf] blocks from GGUF files", _gguf, "pip install 'frozenllm-core[gguf]'", ("gguf",)),
    Check("[tensorboard] curves", _tensorboard, "pip install 'frozenllm-core[tensorboard]'", ("tensorboard",)),
    Check("[wandb] curves", _wandb, "pip install 'frozenllm-core[wandb]'", ("wandb",)),
)
