"""Pretrained hosts, and hosts that stay frozen: ``host``, ``host_head``, ``freeze_host`` of the config group model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from frozenllm.core.training import read_run
from frozenllm.video.model import FrozenLLMVideoMAE
from frozenllm.video.pretrained import load_host_checkpoint

_HUB = "hf:"
_RUN = ".pt"  # what the training engine writes; VideoMAE and the official release have .pth


def load_host(model: FrozenLLMVideoMAE, host: str, *, head: bool | None = None) -> list[str]:
    """Start a host from pretrained weights.

    Args:
        model: Its host is overwritten; a frozen layer in it stays.
        host: A pre-training or fine-tuning file of VideoMAE (``.pth``), a folder or file in transformers' layout,
            ``hf:<org/name>`` for such a folder on the hub, or a checkpoint of a run of this project with ``llm=none``
            (``.pt``).
        head: Whether to take the classification head too; None for: where there is one.

    Returns:
        Names of the weights that keep their values.

    Raises:
        ValueError: There is no such host, or it does not fit.
    """
    if host.startswith(_HUB):
        return load_host_checkpoint(model, _from_hub(host.removeprefix(_HUB)), head=head)
    path = Path(host).expanduser()
    if not path.exists():
        raise ValueError(f"model.host: there is nothing at {path}; for a repository on the hub write {_HUB}<name>.")
    return load_host_checkpoint(model, _of_run(path) if path.suffix == _RUN else path, head=head)


def freeze_host(model: FrozenLLMVideoMAE, kept: list[str]) -> None:
    """Leave nothing to train but what the layer in the model trains (its adapters), and what is new in the host.

    Args:
        model: With a layer.
        kept: What `load_host` returned: the head is trained if it is among these.

    Raises:
        ValueError: Nothing would be left to train.
    """
    if model.llm is None:
        raise ValueError("model.freeze_host=true leaves nothing to train in a host alone (llm=none).")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and (name in kept or name.startswith("llm.")))


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(hf_hub_download(repository, "config.json")).parent
        try:
            hf_hub_download(repository, "model.safetensors")
        except LocalEntryNotFoundError:  # also an EntryNotFoundError: the hub cannot be reached
            raise
        except EntryNotFoundError:  # an older repository
            hf_hub_download(repository, "pytorch_model.bin")
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model.host={_HUB}{repository}: the hub cannot give these weights ({reason}).") from error
    return folder


def _of_run(path: Path) -> nn.Module:
    run = read_run(path)
    if run.cfg.llm.kind != "none":
        raise ValueError(f"model.host: {path} has llm={run.cfg.llm.name}; a host comes from a run with llm=none.")
    return run.build()
