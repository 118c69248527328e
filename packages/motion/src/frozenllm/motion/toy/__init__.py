"""Toy traffic in the on-disk formats of Argoverse 2 and Argoverse 1.

Where a road bends, an intersection lies ahead or a light is red, the map says what constant velocity does not.
"""

from frozenllm.motion.toy.argoverse1 import write_toy_argoverse1
from frozenllm.motion.toy.argoverse2 import write_toy_argoverse2

__all__ = ["write_toy_argoverse1", "write_toy_argoverse2"]
