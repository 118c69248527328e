"""Video transformers with a frozen language-model block, on transformers' VideoMAE and pytorchvideo."""

from frozenllm.video.model import FrozenLLMVideoMAE, videomae_config
from frozenllm.video.official import load_official_checkpoint
from frozenllm.video.pretrained import load_host_checkpoint

__all__ = ["FrozenLLMVideoMAE", "load_host_checkpoint", "load_official_checkpoint", "videomae_config"]
