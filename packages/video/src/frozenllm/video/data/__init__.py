"""Video data: Something-Something V2 as frames or files, other videos, toy videos; what a config names under ``type``.

`annotations` reads lists, `frames` and `files` are where videos are stored, `decoding` opens files, and `dataset` makes
samples of them.
"""

from frozenllm.core.training import UNREADABLE
from frozenllm.video.data.builders import encoded_videos, ssv2_frames, toy_frames, toy_videos, video_csv
from frozenllm.video.data.dataset import VideoDataset, collate_videos
from frozenllm.video.data.decoding import read_video

__all__ = [
    "UNREADABLE",
    "VideoDataset",
    "collate_videos",
    "encoded_videos",
    "read_video",
    "ssv2_frames",
    "toy_frames",
    "toy_videos",
    "video_csv",
]
