"""Motion-forecasting hosts with a place for a frozen layer."""

from frozenllm.motion.models.host import MotionHost
from frozenllm.motion.models.mmtransformer import MMTransformer
from frozenllm.motion.models.vectornet import VectorNet

__all__ = ["MMTransformer", "MotionHost", "VectorNet"]
