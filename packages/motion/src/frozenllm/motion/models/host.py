"""What the motion hosts share: their inputs, the place of the frozen layer, and which polyline a token stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer, LLMBlock, build_llm_layer
from frozenllm.motion.scene import AGENT_TYPES

LLM = str | Mapping[str, Any] | nn.Module | None
INSERTS = ("before_decoder", "after_subgraph")
TARGET = 0
"""Row of the agent whose future is predicted, among agents and tokens."""


class MotionHost(nn.Module, ABC):
    """Base of the hosts. A subclass builds its parts, then calls `insert_layer`, and implements `encode` and `decode`.

    The frozen layer reads one token per polyline, agents first (paper C.4 and Figure G; the tensor itself is not
    published), under a mask of the polylines that are not padding.

    Args:
        dim: Width of the tokens.
        insert: ``"before_decoder"``: after all that the host computes on its tokens, where the decoder reads the target
            agent's token alone and nothing else is computed; ``"after_subgraph"``: on what the polyline encoders made.
        position_scale: Positions are multiplied by this, so that tens of metres become numbers near one.

    Attributes:
        llm: The layer, or None.
    """

    llm: nn.Module | None

    def __init__(self, dim: int, insert: str, position_scale: float) -> None:
        super().__init__()
        if insert not in INSERTS:
            raise ValueError(f"model.insert must be one of {', '.join(INSERTS)}, not {insert!r}.")
        self.dim = dim
        self.insert = insert
        self.position_scale = position_scale

    def insert_layer(self, llm: LLM) -> None:
        """Build what stands in the frozen layer's place; last, so that under one seed all hosts start equal.

        Args:
            llm: A source of weights, the mapping of the ``llm`` config group, a block, a ready layer with the forward
                signature of `frozenllm.core.FrozenLLMLayer`, or ``"none"``/None for the host alone.
        """
        if isinstance(llm, LLMBlock):
            self.llm = FrozenLLMLayer(self.dim, llm)
        elif isinstance(llm, nn.Module):
            self.llm = llm
        else:
            self.llm = build_llm_layer(self.dim, llm, adapter_init="default")

    @abstractmethod
    def encode(self, inputs: Inputs) -> Any:
        """Everything up to the place of the frozen layer: its tokens first, then what else `decode` needs."""

    @abstractmethod
    def decode(self, tokens: Tensor, inputs: Inputs, *rest: Any) -> dict[str, Tensor]:
        """From the tokens that left the frozen layer to the outputs."""

    def token_mask(self, inputs: Inputs) -> Tensor:
        """(B, N) bool: which tokens stand for a polyline."""
        return torch.cat([inputs.agent_mask, inputs.lane_mask], dim=1)

    def per_polyline(self, values: Tensor, num_agents: int) -> Tensor:
        """Values per token (B, N) as values per polyline (B, A + L), agents first."""
        return values

    def forward(
        self,
        agents: Tensor,
        agents_valid: Tensor,
        agent_type: Tensor,
        lanes: Tensor,
        lanes_valid: Tensor,
        lane_attributes: Tensor,
    ) -> dict[str, Tensor]:
        """Predict the future of the agent in row 0.

        Args:
            agents: (B, A, T, len(AGENT_FEATURES)) float32, see `frozenllm.motion.scene`.
            agents_valid: (B, A, T) bool.
            agent_type: (B, A) int64.
            lanes: (B, L, P, len(LANE_FEATURES)) float32.
            lanes_valid: (B, L, P) bool.
            lane_attributes: (B, L, len(LANE_ATTRIBUTES)) float32.

        Returns:
            ``trajectories`` (B, K, steps, 2), ``logits`` (B, K), and ``scales`` where the model has them.
        """
        inputs = Inputs(agents, agents_valid, agent_type, lanes, lanes_valid, lane_attributes)
        tokens, *rest = self.encode(inputs)
        if self.llm is not None:
            readout = [TARGET] if self.reads_target_token else None
            tokens = self.llm(tokens, mask=self.token_mask(inputs), readout=readout)
        return self.decode(tokens, inputs, *rest)

    def tokens(self, **inputs: Tensor) -> Tensor:
        """The tokens (B, N, dim) where the frozen layer stands, or would; arguments as for `forward`."""
        return self.encode(Inputs(**inputs))[0]

    @property
    def reads_target_token(self) -> bool:
        """Whether nothing but the target's token of the frozen layer's output reaches the decoder."""
        return self.insert == "before_decoder"


class Inputs:
    """A batch, with masks of what is no padding, and at least one lane and one vector."""

    def __init__(
        self,
        agents: Tensor,
        agents_valid: Tensor,
        agent_type: Tensor,
        lanes: Tensor,
        lanes_valid: Tensor,
        lane_attributes: Tensor,
    ) -> None:
        if lanes.shape[1] == 0 or lanes.shape[2] == 0:  # no map in reach of anyone: one lane of padding
            batch = lanes.shape[0]
            lanes = lanes.new_zeros(batch, 1, 1, lanes.shape[-1])
            lanes_valid = lanes_valid.new_zeros(batch, 1, 1)
            lane_attributes = lane_attributes.new_zeros(batch, 1, lane_attributes.shape[-1])
        self.agents = agents.masked_fill(~agents_valid[..., None], 0.0)
        self.agents_valid = agents_valid
        self.lanes = lanes.masked_fill(~lanes_valid[..., None], 0.0)
        self.lanes_valid = lanes_valid
        target = torch.arange(agents.shape[1], device=agents.device) == TARGET
        self.agent_mask = agents_valid.any(dim=-1) | target  # also where a sample could not be read: never no token
        self.lane_mask = lanes_valid.any(dim=-1)
        types = nn.functional.one_hot(agent_type, len(AGENT_TYPES)).to(agents.dtype)
        self.agent_types = types.masked_fill(~self.agent_mask[..., None], 0.0)
        self.lane_attributes = lane_attributes.masked_fill(~self.lane_mask[..., None], 0.0)
