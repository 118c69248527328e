"""Toy data: rendered scenes with questions and captions, and furnished rooms with situated questions, in the real data
sets' formats, and small encoders.

Nothing is downloaded: scenes are drawn, the encoders start from random weights, and their tokenizer is trained on the
toy text.
"""

from frozenllm.vqa.toy.rooms import write_rooms
from frozenllm.vqa.toy.write import write_encoders, write_flickr, write_vqa

__all__ = ["write_encoders", "write_flickr", "write_rooms", "write_vqa"]
