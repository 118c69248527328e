"""VQAv2 and Flickr30k, read from their published files or from METER's."""

from frozenllm.vqa.data.captions import CaptionDataset, GalleryDataset, flickr30k
from frozenllm.vqa.data.flickr30k import flickr30k_images
from frozenllm.vqa.data.questions import VQADataset, vqav2
from frozenllm.vqa.data.records import CaptionedImage, VQARecord
from frozenllm.vqa.data.vqav2 import answers_of, held_out_images, vqav2_records

__all__ = [
    "CaptionDataset",
    "CaptionedImage",
    "GalleryDataset",
    "VQADataset",
    "VQARecord",
    "answers_of",
    "flickr30k",
    "flickr30k_images",
    "held_out_images",
    "vqav2",
    "vqav2_records",
]
