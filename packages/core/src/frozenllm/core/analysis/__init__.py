"""The information-filtering study (Pang et al., section 5 and A.3): what a model's tokens hold around its frozen layer.

Light: torch alone. Works on any model with a `frozenllm.core.FrozenLLMLayer` inside::

    from frozenllm.core.analysis import magnitude, tapped

    with torch.no_grad(), tapped(model) as taps:
        model(images)
    maps = magnitude(taps["adapter_out"][:, 1:])  # (B, patches), 0 to 1
"""

from frozenllm.core.analysis.activations import (
    ACTIVATIONS,
    activation_named,
    class_attention,
    frequency,
    magnitude,
)
from frozenllm.core.analysis.amplification import block_outputs, effective_rank, inside_outside
from frozenllm.core.analysis.analyse import Analysis, analyse
from frozenllm.core.analysis.attention import attention_of
from frozenllm.core.analysis.bootstrap import Interval, bootstrap, geometric_mean, paired_difference
from frozenllm.core.analysis.coherence import GradientCoherence, gradient_coherence
from frozenllm.core.analysis.minmax import min_max
from frozenllm.core.analysis.relevance import auroc, pointing, relevant_share, share_inside
from frozenllm.core.analysis.taps import LayerTaps, Taps, tapped
from frozenllm.core.analysis.thresholds import THRESHOLDS, Overlap, halves, honest, iou_table, oracle, overlap

__all__ = [
    "ACTIVATIONS",
    "THRESHOLDS",
    "Analysis",
    "GradientCoherence",
    "Interval",
    "LayerTaps",
    "Overlap",
    "Taps",
    "activation_named",
    "analyse",
    "attention_of",
    "auroc",
    "block_outputs",
    "bootstrap",
    "class_attention",
    "effective_rank",
    "frequency",
    "geometric_mean",
    "gradient_coherence",
    "halves",
    "honest",
    "inside_outside",
    "iou_table",
    "magnitude",
    "min_max",
    "oracle",
    "overlap",
    "paired_difference",
    "pointing",
    "relevant_share",
    "share_inside",
    "tapped",
]
