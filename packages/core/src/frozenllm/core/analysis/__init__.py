"""The information-filtering study (Pang et al., section 5 and A.3): what a model's tokens hold around its frozen layer.

Light: torch alone. Works on any model with a `frozenllm.core.FrozenLLMLayer` inside::

    from frozenllm.core.analysis import magnitude, tapped

    with torch.no_grad(), tapped(model) as taps:
        model(images)
    maps = magnitude(taps["adapter_out"][:, 1:])  # (B, patches), 0 to 1
"""

from frozenllm.core.analysis.activations import class_attention, frequency, magnitude
from frozenllm.core.analysis.attention import attention_of
from frozenllm.core.analysis.minmax import min_max
from frozenllm.core.analysis.taps import LayerTaps, Taps, tapped

__all__ = ["LayerTaps", "Taps", "attention_of", "class_attention", "frequency", "magnitude", "min_max", "tapped"]
