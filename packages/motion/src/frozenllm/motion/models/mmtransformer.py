"""A stacked transformer after mmTransformer (Liu et al., CVPR 2021) with a frozen layer.

Sizes and the order of stages are those of the released model; its training code was never released, and its
region-based training is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.motion.models.attention import DecoderLayer, EncoderLayer, Stack, step_encoding
from frozenllm.motion.models.decoders import ProposalDecoder
from frozenllm.motion.models.host import LLM, TARGET, Inputs, MotionHost
from frozenllm.motion.models.polyline import PolylineEncoder, with_attributes
from frozenllm.motion.scene import AGENT_FEATURES, AGENT_TYPES, LANE_ATTRIBUTES, LANE_FEATURES

_MOTION = [AGENT_FEATURES.index(name) for name in ("dx", "dy", "cos_heading", "sin_heading", "t")]


class MMTransformer(MotionHost):
    """K proposals per agent read its own motion, then the map, then (through one token per agent) each other.

    Motion stage: a transformer encoder over an agent's steps and a decoder whose K queries are learned. Map stage: an
    encoder over the lanes' tokens and a decoder in which the proposals read them. Social stage: the proposals of an
    agent become one token, and an encoder runs over those of all agents. The head reads the target's proposals, each
    beside the target's token.

    With ``insert="before_decoder"`` the frozen layer reads the social stage's agent tokens and the map stage's lane
    tokens, and the head the target's token of its output. With ``"after_subgraph"`` it stands before the map stage and
    reads what the encoders of single polylines made: K tokens for every agent, one for every lane.

    Args:
        horizon: Future steps.
        modes: Proposals K.
        dim: Width of the tokens.
        hidden: Width of feed-forward parts.
        heads: Attention heads.
        layers: Layers of each encoder and decoder.
        width: Width of the lanes' sub-graph network.
        subgraph_layers: Its layers.
        position_dim: Width of the agents' position code.
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
        hidden: int = 256,
        heads: int = 2,
        layers: int = 2,
        width: int = 32,
        subgraph_layers: int = 2,
        position_dim: int = 64,
        scales: bool = False,
        insert: str = "before_decoder",
        position_scale: float = 0.05,
        llm: LLM = None,
    ) -> None:
        super().__init__(dim, insert, position_scale)
        self.modes = modes
        sizes = layers, dim, heads, hidden
        self.step_embedding = nn.Linear(len(_MOTION) + len(AGENT_TYPES), dim)
        self.motion_encoder = Stack(EncoderLayer, *sizes)
        self.motion_decoder = Stack(DecoderLayer, *sizes)
        lane_features = len(LANE_FEATURES) + len(LANE_ATTRIBUTES)
        self.lane_subgraph = PolylineEncoder(lane_features, width, subgraph_layers, 2 * width)
        self.lane_embedding = nn.Linear(2 * width, dim)
        self.lane_encoder = Stack(EncoderLayer, *sizes)
        self.lane_decoder = Stack(DecoderLayer, *sizes)
        self.position_code = _mlp(2, position_dim, position_dim)
        self.with_position = _mlp(dim + position_dim, dim, dim)
        self.summary = _mlp(modes * dim, dim, dim)
        self.social_fusion = _mlp(dim + position_dim, dim, dim)
        self.social_encoder = Stack(EncoderLayer, *sizes)
        self.decoder = ProposalDecoder(2 * dim, dim, horizon, scales)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.queries = nn.Parameter(torch.empty(modes, dim))  # proposals start far from each other
        nn.init.orthogonal_(self.queries)
        self.insert_layer(llm)

    def motion_stage(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Proposals (B, A, K, dim) from each agent's own history, and the agents' position code (B, A, C)."""
        batch, agents, steps = inputs.agents_valid.shape
        features = with_attributes(inputs.agents[..., _MOTION], inputs.agent_types)
        x = self.step_embedding(features)
        x = (x + step_encoding(steps, self.dim, x)).masked_fill(~inputs.agents_valid[..., None], 0.0).flatten(0, 1)
        valid = inputs.agents_valid.flatten(0, 1)
        memory = self.motion_encoder(x, valid)
        # A sum, since torch's counter of operations refuses views of a parameter that are made under no_grad.
        queries = x.new_zeros(batch * agents, 1, self.modes, self.dim) + self.queries
        proposals = self.motion_decoder(queries, memory, valid).view(batch, agents, self.modes, self.dim)
        code = self.position_code(last_position(inputs.agents[..., :2], inputs.agents_valid) * self.position_scale)
        spread = code[:, :, None].expand(-1, -1, self.modes, -1)
        return self.with_position(torch.cat([spread, proposals], dim=-1)), code

    def lanes(self, inputs: Inputs) -> Tensor:
        """One token per lane, (B, L, dim)."""
        lanes = torch.cat([inputs.lanes[..., :2] * self.position_scale, inputs.lanes[..., 2:]], dim=-1)
        return self.lane_embedding(
            self.lane_subgraph(with_attributes(lanes, inputs.lane_attributes), inputs.lanes_valid)
        )

    def map_and_social_stage(
        self, proposals: Tensor, lanes: Tensor, code: Tensor, inputs: Inputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Agent tokens (B, A, dim), lane tokens (B, L, dim), proposals (B, A, K, dim)."""
        lanes = self.lane_encoder(lanes, inputs.lane_mask)
        proposals = self.lane_decoder(proposals, lanes, inputs.lane_mask)
        summary = self.summary(proposals.flatten(2))
        agents = self.social_encoder(self.social_fusion(torch.cat([code, summary], dim=-1)), inputs.agent_mask)
        return agents, lanes, proposals

    def encode(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The tokens where the frozen layer stands; the target's proposals, or the position code."""
        proposals, code = self.motion_stage(inputs)
        lanes = self.lanes(inputs)
        if self.insert == "after_subgraph":
            return torch.cat([proposals.flatten(1, 2), lanes], dim=1), code
        agents, lanes, proposals = self.map_and_social_stage(proposals, lanes, code, inputs)
        return torch.cat([agents, lanes], dim=1), proposals[:, TARGET]

    def decode(self, tokens: Tensor, inputs: Inputs, *rest: Any) -> dict[str, Tensor]:
        """Outputs from the frozen layer's, which begin with the target's."""
        if self.insert == "after_subgraph":
            (code,) = rest
            split = code.shape[1] * self.modes
            proposals = tokens[:, :split].unflatten(1, (-1, self.modes))
            agents, _, proposals = self.map_and_social_stage(proposals, tokens[:, split:], code, inputs)
            token, proposals = agents[:, TARGET], proposals[:, TARGET]
        else:
            (proposals,) = rest
            token = tokens[:, TARGET]
        return self.decoder(torch.cat([token[:, None].expand_as(proposals), proposals], dim=-1))

    def token_mask(self, inputs: Inputs) -> Tensor:
        """(B, N) bool: which tokens stand for a polyline."""
        if self.insert == "before_decoder":
            return super().token_mask(inputs)
        return torch.cat([inputs.agent_mask.repeat_interleave(self.modes, dim=1), inputs.lane_mask], dim=1)

    def per_polyline(self, values: Tensor, num_agents: int) -> Tensor:
        """Values per token as values per polyline, agents first; an agent's is the mean of its proposals'."""
        if self.insert == "before_decoder":
            return values
        split = num_agents * self.modes
        agents = values[:, :split].unflatten(1, (num_agents, self.modes)).mean(dim=-1)
        return torch.cat([agents, values[:, split:]], dim=1)


def last_position(positions: Tensor, valid: Tensor) -> Tensor:
    """Position (B, A, 2) at the last valid step of (B, A, T, 2); zeros where there is none."""
    steps = torch.arange(1, valid.shape[-1] + 1, device=valid.device)
    last = (valid * steps).argmax(dim=-1)
    return torch.take_along_dim(positions, last[..., None, None], dim=2).squeeze(2)


def _mlp(size: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))
