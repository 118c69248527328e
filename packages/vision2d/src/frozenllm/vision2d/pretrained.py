"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, through huggingface_hub's mixin.

A saved model is a folder of three files: ``model.safetensors`` with everything that was or can be trained, without the
frozen block; ``config.json`` with the architecture, its arguments and a pointer to the block (source, revision,
layers, SHA-256); and a model card. ``config.json`` is also one of timm's, so that
``timm.create_model("local-dir:<folder>", pretrained=True)`` and ``hf-hub:`` read models of the registered variants.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from frozenllm.core import LLMBlock
from frozenllm.core.portable import describe_llm_layer, rebuild_llm_layer
from frozenllm.vision2d.card import is_public, model_card

__all__ = ["HubModel", "describe_model", "rebuild_model"]

_NOT_RECORDED = ("llm", "device", "dtype", "weight_init")  # the layer is described apart; the rest is of one run
_CONFIG_KEYS = ("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads")
T = TypeVar("T", bound="HubModel")


class HubModel(
    PyTorchModelHubMixin,
    library_name="frozenllm",
    pipeline_tag="image-classification",
    tags=["frozenllm", "timm", "vision-transformer", "image-classification"],
    paper_url="https://arxiv.org/abs/2310.12973",
):
    """The hub's methods for a vision transformer with a frozen layer; a base class of `FrozenLLMViT`.

    ``model.save_pretrained(folder)`` and ``model.push_to_hub("org/name")`` write; ``FrozenLLMViT.from_pretrained(folder
    or "org/name", block=None)`` reads, takes the frozen block from its recorded source again, and verifies it.
    ``block`` names another place where the same block is, or is the block itself.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments: timm's class does not keep all of them."""
        instance = super().__new__(cls, *args, **kwargs)
        names = list(inspect.signature(VisionTransformer.__init__).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        instance._arguments = {name: value for name, value in given.items() if name not in _NOT_RECORDED}
        return instance

    def _save_pretrained(self, save_directory: Path) -> None:
        description = describe_model(self)
        super()._save_pretrained(save_directory)
        text = json.dumps(description, indent=2, sort_keys=True)
        (save_directory / constants.CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls: type[T],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        config: dict[str, Any] | None = None,
        block: LLMBlock | str | Path | None = None,
        **kwargs: Any,
    ) -> T:
        if config is None:
            raise ValueError(
                f"{model_id}: no {constants.CONFIG_NAME} can be read there; is it what save_pretrained wrote?"
            )
        unknown = sorted(name for name, value in kwargs.items() if name not in config or config[name] is not value)
        if unknown:
            raise ValueError(
                f"from_pretrained takes no {', '.join(unknown)}: the saved model settles its arguments. Use block= for "
                "the frozen block, and reset_classifier afterwards for another head."
            )
        try:
            model = rebuild_model(cls, config, block)
        except ValueError as error:
            raise ValueError(f"{model_id}: {error}") from error
        model.to(map_location)
        weights = Path(model_id) / constants.SAFETENSORS_SINGLE_FILE
        if Path(model_id).is_dir():
            file = str(weights)
        else:
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(
                model_id,
                weights.name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        try:
            return cls._load_as_safetensor(model, file, map_location, strict)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{file}: cannot be read into the model that its config.json describes: {error}"
            ) from error

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Upload the model; arguments and return value are those of the mixin's method.

        Warns where the frozen block's source is on this machine, so that others must say where they have it.
        """
        source = describe_llm_layer(self.llm).get("record", {}).get("source")  # type: ignore[attr-defined]
        if source is not None and not is_public(source):
            warnings.warn(
                f"The frozen block was read from {source}, which is on this machine: others will have to give "
                "from_pretrained block=, a place where they have it. A block read from a repository on the hub is "
                "found by itself.",
                stacklevel=2,
            )
        return super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id, **(model_card_kwargs or {})}, **kwargs)

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """A model card that says what the model is and where its frozen block comes from.

        Args:
            **kwargs: ``model_card_kwargs`` of `save_pretrained`: ``text`` is added to the card, all others are fields
                of its header, such as ``license`` or ``datasets``.
        """
        return model_card(describe_model(self), self._hub_mixin_info.model_card_data, **kwargs)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Everything about a model but its weights, as JSON can hold it.

    Args:
        model: A `FrozenLLMViT`.

    Returns:
        ``architecture``, ``model_args``, ``pretrained_cfg`` and so on as in timm's ``config.json``, and ``frozenllm``
        as `frozenllm.core.portable.describe_llm_layer` gives it.

    Raises:
        ValueError: An argument cannot be written as JSON, or the model was taken apart after it was built.
    """
    arguments = {**model._arguments, **_current(model)}
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"The argument {name}={value!r} cannot be written to config.json; build the model with timm's name of "
                "it (a string), or save its state dict."
            ) from None
    layer = describe_llm_layer(model.llm)
    _require_rebuildable(model, arguments)
    settings = dict(getattr(model, "pretrained_cfg", None) or {})
    known = {"mean", "std", "crop_pct", "interpolation", "input_size", "fixed_input_size", "crop_mode"}
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items() if key in known}
    settings.update(num_classes=model.num_classes, first_conv="patch_embed.proj", classifier="head")
    image = arguments.get("img_size")
    if image is not None:
        settings["input_size"] = [arguments["in_chans"], *image]
    return {
        "architecture": (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
        "model_args": {**arguments, "llm": layer["llm"]},
        "pretrained_cfg": settings,
        "frozenllm": layer,
    }


def rebuild_model(cls: type[T], description: Mapping[str, Any], block: LLMBlock | str | Path | None = None) -> T:
    """The model that `describe_model` described, its weights untrained, its frozen block read and verified.

    Args:
        cls: `FrozenLLMViT`.
        description: What `describe_model` returned.
        block: Another place where the block is, or the block itself.

    Raises:
        ValueError: The description cannot be read, or the block cannot be found.
    """
    if not isinstance(description.get("frozenllm"), Mapping) or not isinstance(description.get("model_args"), Mapping):
        raise ValueError("config.json does not describe a vision transformer with a frozen layer.")
    arguments = {name: value for name, value in description["model_args"].items() if name != "llm"}
    layer = rebuild_llm_layer(int(arguments.get("embed_dim", 768)), description["frozenllm"], block)
    try:
        model = cls(**arguments, llm=layer)
    except TypeError as error:
        raise ValueError(f"config.json has arguments that the model does not take ({error}).") from error
    settings = {"architecture": description.get("architecture"), **(description.get("pretrained_cfg") or {})}
    model.pretrained_cfg = model.default_cfg = {  # type: ignore[attr-defined]
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return model


def _current(model: Any) -> dict[str, Any]:
    """Arguments that timm's methods may have changed since the model was built."""
    return {
        "img_size": None if model.patch_embed.img_size is None else list(model.patch_embed.img_size),
        "patch_size": list(model.patch_embed.patch_size),
        "in_chans": model.patch_embed.proj.in_channels,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "llm_position": model.llm_index,
    }


def _require_rebuildable(model: Any, arguments: Mapping[str, Any]) -> None:
    """Raise where the arguments do not give a host with the same weights."""
    with torch.device("meta"):
        again = type(model)(**arguments, llm=None)
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith("llm.")}
    theirs = {name: tuple(t.shape) for name, t in again.state_dict().items()}
    if ours != theirs:
        other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise ValueError(
            f"The model was changed after it was built, and config.json cannot say how ({', '.join(other[:3])}); save "
            "its state dict instead."
        )
