"""`OccupancyBackbone`: tells the neck which cells hold points.

Behind the first convolution with a norm, cells without points are no longer 0, so the neck cannot see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn


class OccupancyBackbone(BaseModule):
    """A backbone, with a map of its input's occupied cells behind its own maps.

    For `FrozenLLMNeck` with ``empty="occupancy"``. State dicts of the detector without this wrapper load into it.

    Args:
        backbone: Config of the backbone, or the module. Its input must be 0 where there is nothing, as the maps of
            mmdet3d's middle encoders are.
        init_cfg: As for every module of mmengine.
    """

    def __init__(self, backbone: Mapping[str, Any] | nn.Module, *, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        if isinstance(backbone, Mapping):
            from mmdet3d.registry import MODELS

            backbone = MODELS.build(backbone)
        self.backbone = backbone
        self.register_load_state_dict_pre_hook(inner_names("backbone", ("backbone.",)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            x: (B, C, H, W).

        Returns:
            The backbone's maps, then (B, 1, H, W): 1 where a channel of ``x`` is not 0, in the dtype of ``x``.
        """
        occupied = (x.detach() != 0).any(dim=1, keepdim=True).to(x.dtype)  # first: backbones may work in place
        return (*self.backbone(x), occupied)


def inner_names(inner: str, own: tuple[str, ...]) -> Callable[..., None]:
    """A hook for loading: names of the module within, where it stood alone, become ``<inner>.<name>``.

    Args:
        inner: Name of the module within.
        own: Beginnings of names that belong to the wrapper itself.
    """
    return _InnerNames(inner, own)


class _InnerNames:  # a class, so that modules with the hook can be pickled
    def __init__(self, inner: str, own: tuple[str, ...]) -> None:
        self.inner = inner
        self.own = own

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if not name.startswith(self.own):
                state[f"{prefix}{self.inner}.{name}"] = state.pop(key)
