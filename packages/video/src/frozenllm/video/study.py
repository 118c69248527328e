"""Information filtering in a trained video model: ``python -m frozenllm.video.study RUN``.

Which tokens and frames of its validation clips survive low and high thresholds; and where the data knows it (the toy
videos do), how much of the activation is on the object, and whether frames in which something happens stand out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.analysis.relevance import auroc, pointing, relevant_share, share_inside
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Frame, Sample, Study, grid_marks
from frozenllm.core.study import (
    HOST,
    LAYER,
    activations_of,
    check_counts,
    opened,
    read_studied,
    readable,
    shown_of,
    study_cli,
    tokens_at,
)
from frozenllm.video.data import VideoDataset
from frozenllm.video.model import FrozenLLMVideoMAE
from frozenllm.video.study_pictures import chart, sheet, shown
from frozenllm.video.toy import CLASSES
from frozenllm.video.truth import ClipTruth, pixels, read_truth

LOW, HIGH = 0.3, 0.7
"""Thresholds. Chosen: the paper shows videos at a low and a high one, and does not say which."""
ON_OBJECT, OF_OBJECT = "share of activation on the object", "object above background (AUROC)"
KEY_FRAMES, TOP_FRAME = "moving frames above resting ones (AUROC)", "most active frame moves"
_CHANGES = (ON_OBJECT, OF_OBJECT, KEY_FRAMES)


def study(run: str | Path, *, limit: int | None = None, samples: int = 6, weights: str = "auto") -> Study:
    """What is active in the validation clips of a run.

    Args:
        run: The run folder, or one of its checkpoints.
        limit: At most so many clips, spread evenly.
        samples: How many of them go into the study as pictures.
        weights: See `frozenllm.core.training.read_run`.

    Raises:
        ValueError: The run is not of a video model, or it or its data cannot be read.
    """
    check_counts(limit, samples)
    saved = read_studied(run, weights).expect("a video classifier", "videomae")
    model, data, pictured, batches = opened(saved, limit, samples)
    assert isinstance(data, VideoDataset)
    assert isinstance(model, FrozenLLMVideoMAE)
    truth = read_truth(data)
    scores, profiles, result = Scores(), {}, Study("Which tokens and frames of a clip are active?", "video")
    known_moves = 0
    for indices, clips, labels in readable(batches):
        outputs, tokens = tokens_at(model, clips, layer=model.llm, host=lambda clips=clips: model.tokens(clips))
        truths = [None if truth is None else truth.clip(index, model.grid) for index in indices]
        on_object, moves = _stacked(truths, model.grid)
        known_moves += int(_partly(moves).sum())
        active = {(tap, kind): values.cpu() for tap, kind, values in activations_of(tokens)}
        for (tap, kind), values in active.items():
            _score(scores, values, tap, kind, on_object, moves, model.grid)
            profiles.setdefault((tap, kind), []).append(values.unflatten(1, model.grid))
        guesses = outputs.argmax(dim=1).tolist()
        for row, index in enumerate(indices):
            if index in pictured:
                clip = pixels(clips[row].cpu(), data.transform)  # type: ignore
                title = f"{_name(saved.cfg, labels[row])}, predicted {_name(saved.cfg, guesses[row])}"
                result.samples.append(_sample(title, clip, shown_of(active, row), truths[row], model.grid))
                result.samples[-1].key = str(index)
    if not len(scores):
        raise ValueError(f"Not one validation clip of {run} can be read.")
    tap = LAYER if any(name == LAYER for name, _ in profiles) else HOST
    result.findings = scores.findings() + scores.changes(HOST, LAYER, _CHANGES)
    result.notes = _notes(truth is not None, known_moves)
    for number, sample in enumerate(result.samples[:2], start=1):
        caption = f"Clip {number} ({sample.title}): what stays of it above the thresholds, magnitude at {tap}"
        result.pictures[caption] = sheet(sample, f"magnitude at {tap}", model.grid, (LOW, HIGH))
    taps = [(name, torch.cat(profiles[name, "magnitude"])) for name in (HOST, LAYER) if (name, "magnitude") in profiles]
    result.pictures["Share of tokens above the thresholds along the clip, magnitude"] = chart(taps, (LOW, HIGH))
    return result


def _score(
    scores: Scores,
    values: Tensor,
    tap: str,
    kind: str,
    on_object: Tensor | None,
    moves: Tensor | None,
    grid: tuple[int, int, int],
) -> None:
    """Add a batch of activations (B, N): everything before and after the layer, and what is asked of the object and of
    frames at all taps."""
    frames = values.unflatten(1, grid).flatten(2)  # (B, T', H' W')
    if tap in (HOST, LAYER):
        for threshold in (LOW, HIGH):
            above = frames > threshold
            scores.add(f"tokens above {threshold}", above.float().mean(dim=(1, 2)), tap, kind, unit="%")
            scores.add(f"frames with a token above {threshold}", above.any(2).float().mean(1), tap, kind, unit="%")
            if on_object is not None:
                inside = share_inside(above.flatten(1).float(), on_object)
                scores.add(f"tokens above {threshold} that are on the object", inside, tap, kind,
                           chance=relevant_share(on_object), unit="%")  # fmt: skip
    if on_object is not None:
        inside, chance = share_inside(values, on_object), relevant_share(on_object)
        scores.add(ON_OBJECT, inside, tap, kind, chance=chance, unit="%")
        scores.add(OF_OBJECT, auroc(values, on_object), tap, kind, chance=0.5)
    if moves is not None:
        of_frames = frames.mean(dim=2)
        scores.add(KEY_FRAMES, auroc(of_frames, moves), tap, kind, chance=0.5)
        if tap in (HOST, LAYER):
            top = pointing(of_frames, moves).masked_fill(~_partly(moves), torch.nan)
            scores.add(TOP_FRAME, top, tap, kind, chance=relevant_share(moves), unit="%")


def _stacked(truths: Sequence[ClipTruth | None], grid: tuple[int, int, int]) -> tuple[Tensor | None, Tensor | None]:
    """Tokens on the object (B, N) and moving frames (B, T'): none of a clip that nothing is known of."""
    if all(entry is None for entry in truths):
        return None, None
    nothing = torch.zeros(grid, dtype=torch.bool)
    on_object = torch.stack([(nothing if entry is None else entry.on_object).flatten() for entry in truths])
    return on_object, torch.stack([nothing[:, 0, 0] if entry is None else entry.moves for entry in truths])


def _partly(moves: Tensor | None) -> Tensor:
    """Clips in which some frames move and others rest."""
    return torch.zeros(0, dtype=torch.bool) if moves is None else moves.any(dim=1) & ~moves.all(dim=1)


def _sample(
    title: str, clip: Tensor, values: dict[str, list[float]], truth: ClipTruth | None, grid: tuple[int, int, int]
) -> Sample:
    """A clip (T, 3, S, S) as its tokens see it: a picture for each of their times, the first of its frames."""
    times, rows, columns = grid
    each = len(clip) // times
    frames = []
    for time in range(times):
        picture = Image.fromarray((shown(clip[time * each]) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        caption = f"frames {time * each} to {time * each + each - 1}" if each > 1 else f"frame {time}"
        if truth is not None and not bool(truth.moves.all()):
            caption += ", moving" if truth.moves[time] else ", resting"
        frames.append(Frame(picture, grid_marks(rows, columns, time * rows * columns), caption))
    relevant = None if truth is None else truth.on_object.flatten().tolist()
    return Sample(title, frames, values, relevant)


def _name(cfg: object, label: int) -> str:
    of_toys = str(cfg.data.val.type).startswith("toy_")  # type: ignore[attr-defined]
    return CLASSES[label] if of_toys and label < len(CLASSES) else f"class {label}"


def _notes(known: bool, with_key_frames: int) -> list[str]:
    notes = [
        "A token is a tubelet: a patch over a few frames, which are called a frame here. Activations are scaled to 0 "
        "to 1 within a clip, over all of its frames; a frame's activation is the mean of its tokens'.",
        "The tap host is what leaves the host's last block; adapter_out is what leaves the frozen layer, and is "
        "averaged for the class.",
    ]
    if not known:
        return [
            *notes,
            "The data does not say where the object is, nor which frames matter: thresholds are all there is.",
        ]
    notes.append(
        "A token is on the object if the object's box covers half of it or more. Chance is the share of tokens "
        "(or frames) that are: what activation that knows nothing would give."
    )
    if not with_key_frames:
        notes.append("The object moves in all frames of every clip, so no frame tells more than another.")
    else:
        notes.append(
            "The object goes round a circle while it moves and rests where it began, so that resting frames say "
            "nothing about the class: a frame is informative if the object moves in it."
        )
    return notes


main = partial(study_cli, "video", study, doc=__doc__)
"""The command line; takes its arguments, or None for the process's."""

if __name__ == "__main__":
    main()
