"""`FrozenLLMNeck` and `OccupancyBackbone` by themselves: no detector, no mmdet3d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frozenllm.pointcloud.detection import FrozenLLMNeck, OccupancyBackbone
from frozenllm.pointcloud.detection.neck import at_size

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
DIM = 12


def neck(**options: Any) -> FrozenLLMNeck:
    torch.manual_seed(0)
    return FrozenLLMNeck(DIM, LLM, **options)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def occupancy(batch: int, height: int, width: int, share: float = 0.3, seed: int = 2) -> Tensor:
    draw = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(seed))
    return (draw < share).float()


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), size=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=st.integers(0, 99))
@pytest.mark.parametrize("residual", [False, True])
def test_occupied_cells_see_one_another_only(residual: bool, batch: int, size: tuple[int, int], seed: int) -> None:
    """Against each sample's occupied tokens alone, through the layer without a mask."""
    module = neck(residual=residual, empty="occupancy").eval()
    filled = occupancy(batch, *size, share=0.4, seed=seed)
    features = noise(batch, DIM, *size, seed=seed)
    with torch.no_grad():
        changed = module([features, filled])[0]
        for sample in range(batch):
            chosen = filled[sample, 0].bool()
            wanted = features[sample].clone() if residual else torch.zeros_like(features[sample])
            if chosen.any():
                tokens = features[sample][:, chosen].T.unsqueeze(0)
                wanted[:, chosen] = wanted[:, chosen] + module.llm(tokens)[0].T
            torch.testing.assert_close(changed[sample], wanted, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(fine=st.tuples(st.integers(1, 9), st.integers(1, 9)), factor=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_coarse_cell_is_occupied_where_a_fine_one_within_is(fine: tuple[int, int], factor: int, seed: int) -> None:
    coarse = (fine[0], fine[1])
    filled = occupancy(2, fine[0] * factor, fine[1] * factor, seed=seed)
    found = at_size(filled, coarse)
    for b in range(2):
        for i in range(coarse[0]):
            for j in range(coarse[1]):
                part = filled[b, 0, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
                assert bool(found[b, i, j]) == bool(part.any())


def test_every_kind_of_map_keeps_its_shape() -> None:
    module = neck().eval()
    with torch.no_grad():
        cells = module(noise(2, DIM, 3, 4))
        assert cells.shape == (2, DIM, 3, 4)
        torch.testing.assert_close(module(noise(2, DIM, 3, 4).flatten(2)), cells.flatten(2))
        torch.testing.assert_close(module(noise(2, DIM, 3, 4).view(2, DIM, 3, 2, 2)).flatten(2), cells.flatten(2))
        given_dict = {
            "seed_points": noise(2, 12, 3),
            "seed_features": noise(2, DIM, 3, 4).flatten(2),
            "seed_indices": 1,
        }
        seeds = module(given_dict)
    torch.testing.assert_close(seeds["seed_features"], cells.flatten(2))
    assert seeds["seed_points"] is given_dict["seed_points"]
    assert given_dict["seed_features"] is not seeds["seed_features"]  # the backbone's dict stays as it was


def test_zeros_are_empty_cells() -> None:
    features = noise(2, DIM, 4, 4) * occupancy(2, 4, 4)
    by_zeros, by_map = neck(empty="zeros").eval(), neck(empty="occupancy").eval()
    with torch.no_grad():
        torch.testing.assert_close(by_zeros(features), by_map([features, occupancy(2, 4, 4)])[0])


def test_a_level_of_several_and_the_others_untouched() -> None:
    maps = (noise(2, DIM, 4, 4), noise(2, 7, 2, 2))
    changed = neck(level=0)(maps)
    assert changed[1] is maps[1]
    assert not torch.allclose(changed[0], maps[0])


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(x),)


def test_a_backbone_with_occupancy_takes_the_plain_one_s_weights() -> None:
    plain = _Scale()
    wrapped = nn.ModuleDict({"backbone": OccupancyBackbone(_Scale())})
    wrapped.load_state_dict(nn.ModuleDict({"backbone": plain}).state_dict())
    x = noise(2, DIM, 3, 3) * occupancy(2, 3, 3)
    changed, filled = wrapped["backbone"](x)
    torch.testing.assert_close(changed, plain(x)[0])
    assert torch.equal(filled, occupancy(2, 3, 3))
    wrapped.load_state_dict(wrapped.state_dict())  # its own, too


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"empty": "holes"}, None, "empty must be occupancy, zeros or None, not 'holes'"),
        ({}, noise(2, 5, 3, 3), "FrozenLLMNeck\\(dim=12\\) got a map of shape \\(2, 5, 3, 3\\)"),
        ({"level": 2}, [noise(1, DIM, 2, 2)], "level=2 is none of the backbone's 1 map"),
        ({"empty": "occupancy"}, noise(1, DIM, 2, 2), "needs a list whose last entry is the occupancy map"),
        ({"empty": "occupancy"}, [noise(1, DIM, 2, 2)] * 2, "wrap the backbone in OccupancyBackbone"),
        ({}, {"sa_xyz": []}, "needs seed_features or fp_features, and the backbone gives sa_xyz"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neck(**options)(inputs)


def test_a_neck_without_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an llm"):
        FrozenLLMNeck(DIM, "none")
