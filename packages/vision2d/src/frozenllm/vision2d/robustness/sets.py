"""The evaluated data sets: ImageNet's validation part and its relatives, their classes, and where their files are.

Facts: Hendrycks & Dietterich, ICLR 2019 (ImageNet-C), Hendrycks et al., CVPR 2021 (ImageNet-A), Hendrycks et al., ICCV
2021 (ImageNet-R), Wang et al., NeurIPS 2019 (ImageNet-Sketch). Classes are timm's lists.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data import ImageNetInfo

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""The corruptions of ImageNet-C and AlexNet's top-1 error on each, over the five severities.

Hendrycks & Dietterich 2019; the official code of the frozen-transformer paper has the same figures in its utils.py.
"""

SEVERITIES = (1, 2, 3, 4, 5)

TITLES = {
    "imagenet": "ImageNet val",
    "imagenet_c": "ImageNet-C",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "imagenet_sketch": "ImageNet-Sketch",
}
"""The data sets by the names they have in configs."""

PUBLISHED_SIZES = {
    "imagenet": 50_000,
    "imagenet_c": 50_000,  # each of its 75 parts
    "imagenet_a": 7_500,
    "imagenet_r": 30_000,
    "imagenet_sketch": 50_889,
}
"""Numbers of images, from which the time left is estimated until a set has been opened."""


@functools.cache
def classes(name: str) -> tuple[str, ...]:
    """The sorted wnids of a data set: all 1000, or the 200 of ImageNet-A or -R."""
    if name not in ("imagenet_a", "imagenet_r"):
        return tuple(ImageNetInfo("imagenet-1k").label_names())
    listed = pkgutil.get_data("timm.data", f"_info/{name}_synsets.txt")
    assert listed is not None
    return tuple(listed.decode().split())


@functools.cache
def class_indices() -> dict[str, int]:
    """Index of every wnid among a classifier's 1000 outputs."""
    return {wnid: index for index, wnid in enumerate(classes("imagenet"))}


@dataclass(frozen=True)
class EvalSet:
    """One set of images that gets one accuracy.

    Attributes:
        name: ``"imagenet_a"``, or ``"imagenet_c/fog/3"``.
        path: Folder of class folders, or a tar file.
    """

    name: str
    path: Path

    @property
    def family(self) -> str:
        """Name of the data set."""
        return self.name.partition("/")[0]

    @property
    def corrupted(self) -> bool:
        """Whether it is a part of ImageNet-C, whose images are cropped and not resized."""
        return self.family == "imagenet_c"

    @property
    def wnids(self) -> tuple[str, ...]:
        """Its classes."""
        return classes(self.family)


def chosen_sets(data: Mapping[str, str | None], names: Sequence[str], partial: bool = False) -> list[EvalSet]:
    """The sets to evaluate, every one checked for being there with the classes that it should have.

    Args:
        data: Path of every data set: ``imagenet`` is the folder that holds ``val/`` or ``val.tar``, the others hold
            their class folders (``imagenet_c``: ``<corruption>/<severity>/<wnid>``) or are tar files of them.
        names: Names of data sets; ``"imagenet_c/fog"`` is one corruption.
        partial: Accept sets that lack classes.

    Raises:
        ValueError: A name is unknown, or a path, a folder or a class is missing or in excess.
    """
    chosen: dict[str, EvalSet] = {}
    for name in names:
        family, _, corruption = name.partition("/")
        if family not in TITLES or (corruption and (family != "imagenet_c" or corruption not in ALEXNET_ERRORS)):
            raise ValueError(
                f"There is no set {name!r}: choose from {', '.join(TITLES)}, or imagenet_c/<corruption> with one of "
                f"{', '.join(ALEXNET_ERRORS)}."
            )
        if not data.get(family):
            raise ValueError(
                f"No folder is given for {TITLES[family]}: set data.{family}=..., or choose the sets to evaluate with "
                f"sets=[{','.join(key for key in TITLES if data.get(key)) or 'imagenet'}]."
            )
        root = Path(str(data[family])).expanduser().absolute()
        for part in _parts(family, corruption, root):
            chosen[part.name] = part
    for part in chosen.values():
        if part.path.is_dir():
            names_there = {path.name for path in part.path.iterdir() if path.is_dir() and path.name[0] != "."}
            check_classes(part, names_there, partial)
    return list(chosen.values())


def check_classes(part: EvalSet, found: Collection[str], partial: bool) -> None:
    """Compare the classes that are there with those that should be.

    Raises:
        ValueError: They differ; the message names the first of them.
    """
    title = TITLES[part.family]
    excess, missing = sorted(set(found) - set(part.wnids)), sorted(set(part.wnids) - set(found))
    if excess:
        raise ValueError(f"{part.path} has folders that are no classes of {title}: {_some(excess)}.")
    if missing and not partial:
        raise ValueError(
            f"{part.path} lacks classes of {title}: {_some(missing)}. Complete it, or set partial=true to evaluate "
            "what is there."
        )


def _parts(family: str, corruption: str, root: Path) -> list[EvalSet]:
    title = TITLES[family]
    if not root.exists():
        raise ValueError(f"The path given for {title} does not exist: {root}.")
    if family == "imagenet_c":
        parts = [
            EvalSet(f"imagenet_c/{name}/{severity}", root / name / str(severity))
            for name in ([corruption] if corruption else ALEXNET_ERRORS)
            for severity in SEVERITIES
        ]
        missing = [f"{part.path.parent.name}/{part.path.name}" for part in parts if not part.path.is_dir()]
        if missing:
            raise ValueError(
                f"{root} lacks folders of ImageNet-C: {_some(missing)}. Complete it, or choose the corruptions to "
                "evaluate with sets=[imagenet_c/<corruption>,...]."
            )
        return parts
    path = root
    if family == "imagenet":
        path = next((at for at in (root / "val", root / "val.tar") if at.exists()), root)
    if path.is_file() and path.suffix != ".tar":
        raise ValueError(f"The path given for {title} is neither a folder nor a .tar file: {path}.")
    return [EvalSet(family, path)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
