"""METER (Dou et al., CVPR 2022) with a frozen language-model block."""

from frozenllm.vqa.meter.build import build_retrieval, build_trunk, build_vqa
from frozenllm.vqa.meter.model import MeterRetrieval, MeterTrunk, MeterVQA

__all__ = ["MeterRetrieval", "MeterTrunk", "MeterVQA", "build_retrieval", "build_trunk", "build_vqa"]
