"""Motion forecasting with a frozen language-model block: hosts, data of Argoverse 1 and 2, training, submissions."""

from frozenllm.motion.models import MMTransformer, MotionHost, VectorNet

__all__ = ["MMTransformer", "MotionHost", "VectorNet"]
