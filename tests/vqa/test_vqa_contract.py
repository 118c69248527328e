"""The contract of hosts with a frozen layer, on METER in its variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenllm.core.testing import CONTRACT, Host, compiles
from frozenllm.vqa.meter import MeterRetrieval, MeterVQA, build_trunk

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3, "adapter_init": "default"}
CLIP = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
ROBERTA = {
    "vocab_size": 30,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "visual": {},
    "text": {"insert": "text"},
    "both": {"insert": "both"},
    "retrieval": {"retrieval": True},
    "two blocks": {"llm": {**LLM, "layers": [0, 1]}},
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[0, 5, 6, 2, 1, 1], [0, 9, 8, 7, 4, 2], [0, 3, 2, 1, 1, 1]])
MASK = IDS != 1
OTHER = torch.where(MASK, IDS, torch.tensor(11))  # other words where the mask says padding


class Scores(nn.Module):
    """A retrieval host with a tensor as its output."""

    def __init__(self, host: MeterRetrieval) -> None:
        super().__init__()
        self.host = host

    def forward(self, pixel_values: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores of three texts for every image."""
        texts, masks = ids.expand(len(ids), -1, -1), mask.expand(len(ids), -1, -1)
        output = self.host(pixel_values, texts, masks, match_with=torch.tensor([1, 0, 2]))
        return torch.cat([output["rank"], output["match"]], dim=1)


def host(retrieval: bool = False, **options: Any) -> Host:
    def build() -> nn.Module:
        torch.manual_seed(0)
        settings = {"width": 24, "heads": 2, "layers": 1, "dropout": 0.0, "init_std": 0.2, "llm": LLM, **options}
        trunk = build_trunk(CLIP, ROBERTA, **settings)
        return Scores(MeterRetrieval(trunk)) if retrieval else MeterVQA(trunk, ["yes", "no", "red", "2"])

    return Host(build=build, inputs=(IMAGES, IDS, MASK), padded=(IMAGES, OTHER, MASK), fullgraph=False)


CASES = [
    pytest.param(check, variant, id=f"{check.__name__}-{variant}")
    for check in CONTRACT
    for variant in VARIANTS
    if check is not compiles or variant == "visual"
]


@pytest.mark.parametrize(("check", "variant"), CASES)
def test_contract(check: Callable[[Host], None], variant: str) -> None:
    check(host(**VARIANTS[variant]))
