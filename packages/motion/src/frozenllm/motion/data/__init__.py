"""Motion data, one representation for Argoverse 1 and 2.

A sample is ``{"inputs", "targets", "scenario", "track", "origin", "heading"}``:

- ``inputs``: ``agents`` (A, history, len(AGENT_FEATURES)) float32, ``agents_valid`` (A, history) bool, ``agent_type``
  (A,) int64, the target in row 0; ``lanes`` (L, P, len(LANE_FEATURES)) float32, ``lanes_valid`` (L, P) bool,
  ``lane_attributes`` (L, len(LANE_ATTRIBUTES)) float32. Names in `frozenllm.motion.scene`; zeros where not valid.
- ``targets``: ``future`` (horizon, 2) float32 and ``valid`` (horizon,) bool; nothing is valid in test sets.
- ``scenario`` and ``track``: ids as strings. ``track`` is empty in the stand-in for a broken sample.
- ``origin`` (2,) and ``heading`` (), float64: the agent frame in the city frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frozenllm.core.toy_folder import named_root
from frozenllm.core.training import TolerantDataset
from frozenllm.motion.data import argoverse1 as av1
from frozenllm.motion.data import argoverse2 as av2
from frozenllm.motion.data.centring import Window, centre
from frozenllm.motion.data.collate import collate_scenes
from frozenllm.motion.data.dataset import Scenes

__all__ = [
    "Scenes",
    "Window",
    "argoverse1",
    "argoverse2",
    "centre",
    "collate_scenes",
    "toy_argoverse1",
    "toy_argoverse2",
]


def argoverse2(
    root: str | os.PathLike[str] | None,
    split: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    radius: float = 100.0,
    history: int = av2.HISTORY,
    horizon: int = av2.HORIZON,
    max_agents: int | None = None,
    max_lanes: int | None = None,
    use_map: bool = True,
    train: bool = False,
    on_error: str = "raise",
) -> TolerantDataset:
    """Argoverse 2's focal tracks.

    Args:
        root: Folder with train, val and test; not looked at where there is a cache.
        split: ``"train"``, ``"val"`` or ``"test"``.
        cache: Read the samples from ``<cache>/<split>``, which `frozenllm.motion.preprocess` makes; None to read the
            scenarios themselves.
        radius: See `Window`, as for the following ones.
        history: Steps of 0.1 s.
        horizon: Steps of 0.1 s.
        max_agents: None for all.
        max_lanes: None for all.
        use_map: False leaves the maps alone.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.

    Raises:
        ValueError: A folder is missing or empty, the cache does not fit, or an option is out of range.
    """
    window = Window(history, horizon, radius, max_agents, max_lanes, use_map)
    options = {"train": train, "on_error": on_error}
    return _cached(cache, "argoverse2", split, window, options, lambda: av2.Argoverse2(root, split, window, **options))


def argoverse1(
    root: str | os.PathLike[str] | None,
    split: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    maps: str | os.PathLike[str] | None = None,
    radius: float = 65.0,
    history: int = av1.HISTORY,
    horizon: int = av1.HORIZON,
    max_agents: int | None = None,
    max_lanes: int | None = None,
    use_map: bool = True,
    train: bool = False,
    on_error: str = "raise",
) -> TolerantDataset:
    """Argoverse 1's tracks called AGENT.

    Args:
        root: Folder with train, val, test_obs; not looked at where there is a cache.
        split: ``"train"``, ``"val"`` or ``"test_obs"``.
        cache: See `argoverse2`.
        maps: Folder of the vector maps; None for ``<root>/map_files``.
        radius: See `argoverse2`, as for the following ones.
        history: Steps of 0.1 s.
        horizon: Steps of 0.1 s.
        max_agents: None for all.
        max_lanes: None for all.
        use_map: False leaves the maps alone.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.

    Raises:
        ValueError: A folder is missing or empty, the cache does not fit, or an option is out of range.
    """
    window = Window(history, horizon, radius, max_agents, max_lanes, use_map)
    options = {"train": train, "on_error": on_error}
    return _cached(
        cache, "argoverse1", split, window, options, lambda: av1.Argoverse1(root, split, window, maps=maps, **options)
    )


def toy_argoverse2(
    root: str | os.PathLike[str] | None, split: str, *, toy: dict[str, int] | None = None, **options: Any
) -> TolerantDataset:
    """`argoverse2` on toy data, which are written where they are missing.

    Args:
        root: Their folder; None for one in the user's cache.
        split: See `argoverse2`.
        toy: Options of `frozenllm.motion.toy.write_toy_argoverse2`.
        **options: Of `argoverse2`.
    """
    from frozenllm.motion.toy import write_toy_argoverse2

    return argoverse2(write_toy_argoverse2(named_root(root), **(toy or {})), split, **options)


def toy_argoverse1(
    root: str | os.PathLike[str] | None, split: str, *, toy: dict[str, int] | None = None, **options: Any
) -> TolerantDataset:
    """`argoverse1` on toy data, which are written where they are missing.

    Args:
        root: Their folder; None for one in the user's cache.
        split: See `argoverse1`.
        toy: Options of `frozenllm.motion.toy.write_toy_argoverse1`.
        **options: Of `argoverse1`.
    """
    from frozenllm.motion.toy import write_toy_argoverse1

    return argoverse1(write_toy_argoverse1(named_root(root), **(toy or {})), split, **options)


def _cached(
    cache: str | os.PathLike[str] | None,
    data: str,
    split: str,
    window: Window,
    options: dict[str, Any],
    uncached: Callable[[], Scenes],
) -> TolerantDataset:
    if cache is None:
        return uncached()
    from frozenllm.motion.cache import CachedScenes

    return CachedScenes(Path(cache) / split, data, split, window, **options)
