"""Toy data: rendered scenes with questions and captions in the real data sets' formats, and small encoders.

Nothing is downloaded: scenes are drawn, the encoders start from random weights, and their tokenizer is trained on the
toy text.
"""

from frozenllm.vqa.toy.write import default_root, write_encoders, write_flickr, write_vqa

__all__ = ["default_root", "write_encoders", "write_flickr", "write_vqa"]
