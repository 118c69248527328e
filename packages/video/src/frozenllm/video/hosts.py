"""Pretrained hosts: ``host`` and ``host_head`` of the config group model."""

from __future__ import annotations

from pathlib import Path

from frozenllm.core.training.hosts import RUN_SUFFIX, host_of_run
from frozenllm.core.weights.hub import check_hub
from frozenllm.video.model import FrozenLLMVideoMAE
from frozenllm.video.pretrained import load_host_checkpoint

_HUB = "hf:"


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
    return load_host_checkpoint(model, host_of_run(path) if path.suffix == RUN_SUFFIX else path, head=head)


def _from_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    check_hub(repository)
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
