"""VectorNet (Gao et al., CVPR 2020) with a frozen layer and several modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.motion.models.attention import attend
from frozenllm.motion.models.decoders import TokenDecoder
from frozenllm.motion.models.host import LLM, TARGET, Inputs, MotionHost
from frozenllm.motion.models.polyline import PolylineEncoder, with_attributes
from frozenllm.motion.scene import AGENT_FEATURES, AGENT_TYPES, LANE_ATTRIBUTES, LANE_FEATURES


class VectorNet(MotionHost):
    """Polyline encoders, one attention among all polylines, and a decoder on the target agent's token.

    The attention has norm and residual, which the published formula lacks: the frozen layer and the decoder then read
    the target's own history beside what it attends to. The auxiliary task of completing masked polylines is left out,
    as in the published figures without it. The decoder of several modes is this project's (the paper that this
    reproduces does not describe its own).

    Args:
        horizon: Future steps.
        modes: Trajectories K.
        dim: Width of the tokens.
        width: Width of the sub-graph network.
        subgraph_layers: Its layers.
        global_layers: Attentions among the polylines.
        heads: Attention heads.
        hidden: Width of the decoder's hidden layer.
        scales: Also predict Laplace scales.
        insert: See `MotionHost`.
        position_scale: See `MotionHost`.
        llm: See `MotionHost.insert_layer`.
    """

    def __init__(
        self,
        horizon: int,
        modes: int = 6,
        *,
        dim: int = 128,
        width: int = 64,
        subgraph_layers: int = 3,
        global_layers: int = 1,
        heads: int = 1,
        hidden: int = 128,
        scales: bool = False,
        insert: str = "before_decoder",
        position_scale: float = 0.05,
        llm: LLM = None,
    ) -> None:
        super().__init__(dim, insert, position_scale)
        agent_features = len(AGENT_FEATURES) + len(AGENT_TYPES)
        self.agent_encoder = PolylineEncoder(agent_features, width, subgraph_layers, dim)
        lane_features = len(LANE_FEATURES) + len(LANE_ATTRIBUTES)
        self.lane_encoder = PolylineEncoder(lane_features, width, subgraph_layers, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(global_layers))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(global_layers)
        )
        self.decoder = TokenDecoder(dim, hidden, modes, horizon, scales)
        self.insert_layer(llm)

    def polylines(self, inputs: Inputs) -> Tensor:
        """One token per polyline, (B, A + L, dim)."""
        scale = self.position_scale
        agents, lanes = (torch.cat([x[..., :2] * scale, x[..., 2:]], dim=-1) for x in (inputs.agents, inputs.lanes))
        agent_tokens = self.agent_encoder(with_attributes(agents, inputs.agent_types), inputs.agents_valid)
        lane_tokens = self.lane_encoder(with_attributes(lanes, inputs.lane_attributes), inputs.lanes_valid)
        return torch.cat([agent_tokens, lane_tokens], dim=1)

    def interact(self, tokens: Tensor, inputs: Inputs) -> Tensor:
        """The attention among the polylines."""
        valid = self.token_mask(inputs)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            normed = norm(tokens)
            tokens = tokens + attend(attention, normed, normed, valid)
        return tokens

    def encode(self, inputs: Inputs) -> tuple[Tensor]:
        """Tokens (B, A + L, dim) where the frozen layer stands."""
        tokens = self.polylines(inputs)
        return (self.interact(tokens, inputs) if self.insert == "before_decoder" else tokens,)

    def decode(self, tokens: Tensor, inputs: Inputs, *rest: Any) -> dict[str, Tensor]:
        """Outputs from the frozen layer's, which begin with the target's."""
        if self.insert == "after_subgraph":
            tokens = self.interact(tokens, inputs)
        return self.decoder(tokens[:, TARGET])
