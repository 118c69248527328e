"""The hosts of this package, at tiny widths: what the contract of hosts with a frozen layer is checked on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.testing import TINY_LLM, Host, Recipe
from frozenllm.vqa.meter import build_retrieval, build_vqa
from frozenllm.vqa.scenes.build import build_sqa3d

_LLM = {**TINY_LLM, "adapter_init": "default"}
_CLIP = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_ROBERTA = {
    "vocab_size": 30, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16, "pad_token_id": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_SIZES: dict[str, Any] = {
    "image_encoder": _CLIP, "text_encoder": _ROBERTA, "width": 24, "heads": 2, "layers": 1, "dropout": 0.0,
    "init_std": 0.2, "llm": _LLM,
}  # fmt: skip
_IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
_IDS = torch.tensor([[0, 5, 6, 2, 1, 1], [0, 9, 8, 7, 4, 2], [0, 3, 2, 1, 1, 1]])
_MASK = _IDS != 1


class Scores(nn.Module):
    """A retrieval host with a tensor as its output."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    def forward(self, pixel_values: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores of three texts for every image."""
        texts, masks = ids.expand(len(ids), -1, -1), mask.expand(len(ids), -1, -1)
        output = self.host(pixel_values, texts, masks, match_with=torch.tensor([1, 0, 2]))
        return torch.cat([output["rank"], output["match"]], dim=1)


def _host(builder: Any, prepare: Any = None, compiled: bool = False, **options: Any) -> Host:
    return Host(
        build=Recipe(builder, {**_SIZES, **options}, prepare),
        inputs=(_IMAGES, _IDS, _MASK),
        padded=(_IMAGES, torch.where(_MASK, _IDS, torch.tensor(11)), _MASK),
        fullgraph=False,
        compiled=compiled,
    )


_ANSWERS = ["yes", "no", "red", "2"]

TINY_VOTENET = {
    "backbone": {
        "num_points": [24, 16, 12, 8], "radius": [0.5, 0.9, 1.4, 2.0], "num_samples": [8, 8, 4, 4],
        "sa_channels": [[8, 8, 16]] * 4, "fp_channels": [[16, 16], [16, 16]],
    },
    "bbox_head": {
        "vote_module_cfg": {"in_channels": 16, "conv_channels": [16, 16]},
        "vote_aggregation_cfg": {"num_point": 10, "num_sample": 4, "mlp_channels": [16, 16, 16, 16]},
        "pred_layer_cfg": {"in_channels": 16, "shared_conv_channels": [16, 16]},
    },
}  # fmt: skip
TINY_SQA3D: dict[str, Any] = {
    "answers": _ANSWERS, "words": ["i", "look", "at", "the", "red", "wall", "what", "is", "left", "?"],
    "text": {"kind": "lstm", "word_width": 12, "dropout": 0.0}, "width": 24, "heads": 2, "layers": 1, "dropout": 0.0,
    "pool_hidden": 16, "pool_out": 16, "answer_dropout": 0.0, "mean_sizes": [[0.5, 0.5, 0.5], [1.0, 1.0, 0.5]],
    "detector": TINY_VOTENET,
}  # fmt: skip
"""Options of `frozenllm.vqa.scenes.build.build_sqa3d`."""
_PREDICTIONS = ("obj_scores", "sem_scores", "center", "dir_class", "dir_res_norm", "size_class", "size_res_norm")
_POINTS = torch.randn(3, 64, 7, generator=torch.Generator().manual_seed(2))
_SITUATIONS = ["I look at the red wall.", "The wall is left.", "I look left."]
_QUESTIONS = ["What is left?", "Is the wall red?", "What?"]


class SceneOutputs(nn.Module):
    """A host of SQA3D whose output is one tensor of all that its losses read, its detector in evaluation mode: with so
    few samples, BatchNorm's statistics are a matter of chance."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    def train(self, mode: bool = True) -> SceneOutputs:
        """All but the detector."""
        super().train(mode)
        self.host.detector.eval()
        return self

    def forward(self, points: Tensor, situation: list[str], question: list[str]) -> Tensor:
        """Logits of the answers, the pose, and the detector's predictions."""
        out = self.host(points, situation, question)
        found = [out["detected"][name].flatten(1) for name in _PREDICTIONS]
        return torch.cat([out["answers"], out["pose"], *found], dim=1)


HOSTS = {
    "meter visual": _host(build_vqa, compiled=True, answers=_ANSWERS),
    "meter text": _host(build_vqa, answers=_ANSWERS, insert="text"),
    "meter both": _host(build_vqa, answers=_ANSWERS, insert="both"),
    "meter two blocks": _host(build_vqa, answers=_ANSWERS, llm={**_LLM, "layers": [0, 1]}),
    "meter retrieval": _host(build_retrieval, Scores),
    "sqa3d": Host(
        build=Recipe(build_sqa3d, {**TINY_SQA3D, "llm": _LLM}, SceneOutputs),
        inputs=(_POINTS, _SITUATIONS, _QUESTIONS),
        compiled=False,  # mmdet3d's detector takes minutes; the layer alone is compiled as everywhere
    ),
}
