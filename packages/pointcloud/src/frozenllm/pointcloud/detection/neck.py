"""`FrozenLLMNeck`: a frozen layer between the backbone and the head of a 3D detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from frozenllm.core import build_llm_layer
from frozenllm.pointcloud.detection.occupancy import inner_names

EMPTY = ("occupancy", "zeros", None)


class FrozenLLMNeck(BaseModule):
    """Applies a frozen layer to the tokens of one feature map.

    Takes what mmdet3d's backbones give, and gives back the same with one map changed:

    - VoteNet's dict (`PointNet2SASSG` and others): the seed features ``fp_features[-1]`` (or ``seed_features``), one
      token per seed;
    - a list or tuple of maps (`SECOND`): the map ``level``, one token per cell;
    - one map, (B, C, H, W) in bird's-eye view, (B, C, D, H, W) of voxels, or (B, C, N) of points.

    Empty cells are no tokens: nothing attends to them, and what comes out there is 0 (with ``residual``, what was there
    before). Tokens carry no positions of their own, as in the paper (section 3.1); the host's features do.

    Args:
        dim: Channels C of the map.
        llm: As `frozenllm.core.build_llm_layer` takes it; a mapping, ``"bundled"``, a hub repository, ...
        level: Which map of a list; -1 is the coarsest of mmdet3d's backbones.
        residual: Add the layer's output to its input. Off in the paper's formulation (section 3.1).
        empty: How empty cells are known: ``"occupancy"`` takes the last entry of the list, which `OccupancyBackbone`
            adds; ``"zeros"`` takes cells where every channel is 0 (maps straight from a scatter or sparse encoder,
            before any convolution with a norm); None takes every cell as a token.
        neck: Config of the neck that takes the maps afterwards, such as the detector's own SECONDFPN. State dicts of
            the detector without `FrozenLLMNeck` load into it.
        init_cfg: As for every module of mmengine.

    Raises:
        ValueError: An option is unknown, or there is no layer to add.
    """

    def __init__(
        self,
        dim: int,
        llm: Mapping[str, Any] | str,
        *,
        level: int = -1,
        residual: bool = False,
        empty: str | None = None,
        neck: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if empty not in EMPTY:
            raise ValueError(f"empty must be occupancy, zeros or None, not {empty!r}.")
        layer = build_llm_layer(dim, llm, adapter_init="default")
        if layer is None:
            raise ValueError("FrozenLLMNeck needs an llm; the host alone is the config without this neck.")
        self.dim = dim
        self.level = level
        self.residual = residual
        self.empty = empty
        self.llm = layer
        self.neck: nn.Module | None = None
        if neck is not None:
            from mmdet3d.registry import MODELS

            self.neck = MODELS.build(neck)
            self.register_load_state_dict_pre_hook(inner_names("neck", ("llm.", "neck.")))

    def forward(self, inputs: Any) -> Any:
        """Change one map.

        Args:
            inputs: A dict, a sequence of maps or one map, see above.

        Returns:
            The same kind; what ``neck`` makes of it, where there is one.

        Raises:
            ValueError: The input has no such map, or another number of channels.
        """
        if isinstance(inputs, Mapping):
            outputs: Any = self._seeds(inputs)
        elif isinstance(inputs, Tensor):
            if self.empty == "occupancy":
                raise ValueError('empty="occupancy" needs a list whose last entry is the occupancy map.')
            outputs = self.change(inputs)
        else:
            outputs = self._levels(inputs)
        return outputs if self.neck is None else self.neck(outputs)

    def change(self, features: Tensor, occupied: Tensor | None = None) -> Tensor:
        """Apply the layer to a map.

        Args:
            features: (B, C, ...) with any number of axes behind the channels.
            occupied: (B, ...) bool, True where there is something; None as ``empty`` says.

        Returns:
            The changed map.
        """
        if features.ndim < 3 or features.shape[1] != self.dim:
            raise ValueError(f"FrozenLLMNeck(dim={self.dim}) got a map of shape {tuple(features.shape)}.")
        tokens = features.flatten(2).transpose(1, 2)
        if occupied is None and self.empty == "zeros":
            occupied = (features != 0).any(dim=1)
        if occupied is None:
            changed = self.llm(tokens)
        else:
            changed = self._occupied_only(tokens, occupied.flatten(1))
        if self.residual:
            changed = tokens + changed
        return changed.transpose(1, 2).reshape(features.shape)

    def _occupied_only(self, tokens: Tensor, occupied: Tensor) -> Tensor:
        """The layer on occupied tokens, brought together so that empty ones cost nothing; 0 elsewhere."""
        count = max(1, int(occupied.sum(dim=1).max()))
        order = occupied.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        index = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        mask = occupied.gather(1, order)
        changed = self.llm(tokens.gather(1, index), mask=mask)
        changed = torch.where(mask.unsqueeze(-1), changed, 0.0)
        return torch.zeros_like(tokens).scatter(1, index, changed.to(tokens.dtype))

    def _seeds(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = dict(inputs)
        if "seed_features" in inputs:
            outputs["seed_features"] = self.change(inputs["seed_features"])
        elif inputs.get("fp_features"):
            outputs["fp_features"] = [*inputs["fp_features"][:-1], self.change(inputs["fp_features"][-1])]
        else:
            raise ValueError(
                f"FrozenLLMNeck needs seed_features or fp_features, and the backbone gives {', '.join(inputs)}."
            )
        return outputs

    def _levels(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        maps = list(inputs)
        occupancy = maps.pop() if self.empty == "occupancy" else None
        if not -len(maps) <= self.level < len(maps):
            raise ValueError(f"level={self.level} is none of the backbone's {len(maps)} map(s).")
        if occupancy is not None and (occupancy.ndim != maps[0].ndim or occupancy.shape[1] != 1):
            raise ValueError(
                f'empty="occupancy" needs a map (B, 1, ...) of them behind the others, not {tuple(occupancy.shape)}: '
                "wrap the backbone in OccupancyBackbone."
            )
        features = maps[self.level]
        occupied = None if occupancy is None else at_size(occupancy, features.shape[2:])
        maps[self.level] = self.change(features, occupied)
        return maps


def at_size(occupancy: Tensor, size: Sequence[int]) -> Tensor:
    """An occupancy map at a coarser resolution: a cell is occupied where any cell within it is.

    Args:
        occupancy: (B, 1, H, W), 0 where empty.
        size: The resolution.

    Returns:
        (B, *size) bool.
    """
    pool = {2: nn.functional.adaptive_max_pool2d, 3: nn.functional.adaptive_max_pool3d}.get(len(size))
    if pool is None:
        raise ValueError(f"Occupancy is known for maps of 2 or 3 axes, not {len(size)}.")
    return pool(occupancy.float(), tuple(size)).squeeze(1) > 0
