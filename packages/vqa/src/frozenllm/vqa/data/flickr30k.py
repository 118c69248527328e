"""Flickr30k with Karpathy's splits: as published (json and images), and as METER packs it into Arrow files.

METER trains on train and val, and reads the test file for "val" and "test" alike. By default every part is itself here;
``protocol="meter"`` does as METER does.
"""

from __future__ import annotations

from pathlib import Path

from frozenllm.vqa.data.records import PROTOCOLS, CaptionedImage, check_choice, field, find_root, open_arrow, read_json
from frozenllm.vqa.data.vqav2 import FORMATS, PARTS
from frozenllm.vqa.images import ArrowImage, ImageFile

_METER = {"train": ("train", "val"), "val": ("test",), "test": ("test",)}
_JSON = ("karpathy/dataset_flickr30k.json", "dataset_flickr30k.json")
_WHAT = "Flickr30k: karpathy/dataset_flickr30k.json and flickr30k-images"


def flickr30k_images(
    root: str | None, part: str, *, protocol: str = "honest", format: str = "json"
) -> list[CaptionedImage]:
    """The captioned images of a part.

    Args:
        root: The folder, or ``"toy"``.
        part: ``"train"``, ``"val"`` or ``"test"``.
        protocol: ``"honest"``: Karpathy's parts. ``"meter"``: train with val, and test for both others.
        format: ``"json"`` (as published) or ``"arrow"`` (METER's files).

    Raises:
        ValueError: A file is missing or damaged, an option is unknown, or the part is empty.
    """
    check_choice("part", part, PARTS)
    check_choice("protocol", protocol, PROTOCOLS)
    check_choice("format", format, FORMATS)
    folder = find_root(root, "flickr30k", _WHAT)
    splits = _METER[part] if protocol == "meter" else (part,)
    return [image for split in splits for image in (_arrow if format == "arrow" else _json)(folder, split)]


def _json(folder: Path, split: str) -> list[CaptionedImage]:
    path = next((folder / name for name in _JSON if (folder / name).is_file()), folder / _JSON[0])
    found = [
        CaptionedImage(
            image_id=field(path, entry, "filename", str),
            image=ImageFile(folder / "flickr30k-images" / field(path, entry, "filename", str)),
            captions=tuple(field(path, sentence, "raw", str) for sentence in entry["sentences"]),
        )
        for entry in read_json(path, "images")
        if field(path, entry, "split", str) == split and field(path, entry, "sentences", list)
    ]
    if not found:
        raise ValueError(f"{path} has no captioned image of the split {split!r}.")
    return found


def _arrow(folder: Path, split: str) -> list[CaptionedImage]:
    path = folder / f"f30k_caption_karpathy_{split}.arrow"
    table = open_arrow(path, ("image", "caption", "image_id"))
    names, captions = table["image_id"].to_pylist(), table["caption"].to_pylist()
    if not names:
        raise ValueError(f"{path} holds no images.")
    if not all(isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts) for texts in captions):
        raise ValueError(f"{path} has an image without captions.")
    return [
        CaptionedImage(str(name), ArrowImage(table, row, str(path)), tuple(texts))
        for row, (name, texts) in enumerate(zip(names, captions, strict=True))
    ]
