"""Which exact shortcut to take: counted operations, corrected by what was measured.

All counts are multiply-accumulates of the forward pass; the backward pass scales them alike. Legend: B batch, N tokens,
R readout tokens of each sample, D width of the block, d width of the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from frozenllm.core.spec import BlockSpec

# A folded layer whose every token is read must promise at least this ratio of operations (plain / folded, of the whole
# layer) to be taken. Measured with benchmarks/frozen_layer.py: folded products are thinner, and run at a lower rate.
# On a CPU in bfloat16 they gain nothing at the sizes of the paper.
FOLD_ALL_CROSSOVER = {("cpu", torch.float32): 1.05, ("cpu", torch.bfloat16): 1.5}
DEFAULT_CROSSOVER = 1.1  # where nothing has been measured

FLOAT64_COST = {"cpu": 2.0, "cuda": 8.0}  # a float64 operation in float32 ones; consumer GPUs are worse


@dataclass(frozen=True)
class Plan:
    """How to compute the attention of one layer.

    Attributes:
        gram: Whether token norms come from the adapter's Gram matrix instead of the D-wide tokens.
        fold_queries: Whether queries are projected with ``W_q G`` (D x d) instead of ``W_q`` (D x D).
        fold_context: Likewise for keys and values (or for what is absorbed in their place).
        absorb: Whether keys and values are never formed.
        operations: Counted multiply-accumulates, everything before the output projection.
    """

    gram: bool
    fold_queries: bool
    fold_context: bool
    absorb: bool
    operations: float


@dataclass(frozen=True)
class Problem:
    """Sizes of one call.

    Attributes:
        spec: The layer.
        dim: Width d of the host; None where the layer's input is D wide (every layer but the first).
        batch: B.
        length: N.
        rows: R, the readout tokens of each sample; N where every token is read.
        dtype: What the block computes in.
        device: ``"cpu"``, ``"cuda"``, ...
        cached: Whether folded weights are at hand (eval mode).
        can_absorb: False with rotary positions, a norm on keys, or low-rank updates.
    """

    spec: BlockSpec
    dim: int | None
    batch: int
    length: int
    rows: int
    dtype: torch.dtype
    device: str
    cached: bool
    can_absorb: bool


def plan(problem: Problem) -> Plan:
    """The cheapest exact way to compute the attention of one layer."""
    p = problem
    candidates = [_formed(p, fold=False)]
    if p.dim is not None:
        folded = _formed(p, fold=True)
        if p.rows < p.length or _worth_folding_all(p, candidates[0], folded):
            candidates.append(folded)
    # Absorbed scores are R * H rows of d products a token: only a small readout gains.
    if p.can_absorb and p.rows < p.length:
        candidates.append(_absorbed(p, fold=False))
        if p.dim is not None:
            candidates.append(_absorbed(p, fold=True))
    best = candidates[0]
    for candidate in candidates[1:]:  # a loop, since torch.compile cannot trace min() with a key
        best = candidate if candidate.operations < best.operations else best
    return best


def _worth_folding_all(p: Problem, plain: Plan, folded: Plan) -> bool:
    spec = p.spec
    feed_forward = (3 if spec.gated else 2) * spec.intermediate_size
    rest = p.batch * p.rows * spec.hidden_size * (spec.q_size + feed_forward)
    ratio = (plain.operations + rest) / (folded.operations + rest)
    return ratio >= FOLD_ALL_CROSSOVER.get((p.device, p.dtype), DEFAULT_CROSSOVER)


def _norm(p: Problem) -> tuple[bool, float]:
    """Token norms without forming D-wide tokens: from the Gram matrix, or (small widths) directly after all."""
    assert p.dim is not None
    width = p.spec.hidden_size
    tokens = p.batch * p.length
    direct = tokens * width * p.dim
    gram = tokens * p.dim**2 + (0 if p.cached else FLOAT64_COST.get(p.device, 8.0) * width * p.dim**2)
    if p.device == "mps" or direct <= gram:  # no float64 on mps
        return False, direct
    return True, gram


def _queries(p: Problem) -> tuple[bool, float]:
    width, size, rows = p.spec.hidden_size, p.spec.q_size, p.batch * p.rows
    direct = rows * width * size
    if p.dim is None:
        return False, direct
    folded = rows * p.dim * size + (0 if p.cached else width * size * p.dim)
    return folded < direct, min(folded, direct)


def _formed(p: Problem, fold: bool) -> Plan:
    width, size = p.spec.hidden_size, 2 * p.spec.kv_size
    tokens, rows = p.batch * p.length, p.batch * p.rows
    attention = 2.0 * rows * p.length * p.spec.q_size
    if not fold:
        operations = attention + rows * width * p.spec.q_size + tokens * width * size
        operations += tokens * width * p.dim if p.dim else 0
        return Plan(gram=False, fold_queries=False, fold_context=False, absorb=False, operations=operations)
    assert p.dim is not None
    gram, norm_cost = _norm(p)
    fold_queries, query_cost = _queries(p)
    operations = attention + norm_cost + query_cost + rows * width * p.dim + tokens * p.dim * size
    operations += 0 if p.cached else size * width * p.dim
    return Plan(gram=gram, fold_queries=fold_queries, fold_context=True, absorb=False, operations=operations)


def _absorbed(p: Problem, fold: bool) -> Plan:
    spec, width = p.spec, p.spec.hidden_size
    rows = p.batch * p.rows
    basis = p.dim or width
    gram, norm_cost = _norm(p) if p.dim else (False, 0.0)
    fold_queries, query_cost = _queries(p)
    operations = norm_cost + query_cost + 2.0 * rows * spec.num_heads * p.length * basis
    operations += rows * width * p.dim if p.dim else 0
    if fold:
        operations += 2 * rows * spec.q_size * basis + (0 if p.cached else 2 * spec.kv_size * width * basis)
    else:
        operations += 2 * rows * spec.q_size * width
        operations += 2 * rows * spec.num_heads * width * p.dim if p.dim else 0
    return Plan(gram=gram, fold_queries=fold_queries, fold_context=fold, absorb=True, operations=operations)
