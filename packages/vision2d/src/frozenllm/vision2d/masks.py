"""Pixel masks on the grid of patch tokens, by a rule that is named: the paper does not say which one it uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

RULES = "any, majority, centre, or fraction>=T with T above 0 and at most 1"


@dataclass(frozen=True)
class TokenRule:
    """When a patch lies on the object.

    Attributes:
        name: ``"any"`` (one pixel is enough), ``"majority"`` (more than half of its pixels), ``"centre"`` (its middle
            pixel, of an even number the one right of and below the middle) or ``"fraction>=0.25"`` (at least that share
            of its pixels).
    """

    name: str = "majority"

    def __post_init__(self) -> None:
        if self.name not in ("any", "majority", "centre"):
            self._fraction()

    def _fraction(self) -> float:
        kind, found, number = self.name.replace(" ", "").partition(">=")
        try:
            least = float(number) if kind == "fraction" and found else 0.0
        except ValueError:
            least = 0.0
        if not 0 < least <= 1:
            raise ValueError(f"The rule for tokens must be {RULES}; not {self.name!r}.")
        return least

    def tokens(self, inside: Tensor, ignored: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Which patches lie on the object, and which count.

        Shares are those of the pixels that are not ignored. A patch with more ignored pixels than others, or whose
        middle pixel is ignored by the rule that looks at nothing else, does not count.

        Args:
            inside: (B, H, W) bool, pixels of the object.
            ignored: (B, H, W) bool, pixels of which nothing is known.
            grid: Rows and columns of patches; they divide H and W.

        Returns:
            Relevant and counted, (B, rows * columns) bool each.

        Raises:
            ValueError: The grid does not divide the picture.
        """
        inside, ignored = _patches(inside & ~ignored, grid), _patches(ignored, grid)
        if self.name == "centre":
            height, width = inside.shape[-2:]
            relevant, counted = (m[..., height // 2, width // 2] for m in (inside, ~ignored))
            return relevant, counted
        known = (~ignored).sum(dim=(-1, -2))
        hits = inside.sum(dim=(-1, -2))
        counted = known * 2 >= ignored.shape[-1] * ignored.shape[-2]
        if self.name == "any":
            relevant = hits > 0
        elif self.name == "majority":
            relevant = hits * 2 > known
        else:
            relevant = (hits > 0) & (hits >= self._fraction() * known)
        return relevant & counted, counted


def _patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) -> (B, rows * columns, patch height, patch width)."""
    rows, columns = grid
    _, height, width = pixels.shape
    if height % rows or width % columns:
        raise ValueError(f"A picture of {height} x {width} pixels has no grid of {rows} x {columns} patches.")
    split = pixels.unflatten(2, (columns, width // columns)).unflatten(1, (rows, height // rows))
    return split.transpose(2, 3).flatten(1, 2)  # B, rows, patch height, columns, patch width before
