"""Information filtering in a trained model of motion forecasting: ``python -m frozenllm.motion.study RUN``.

How active the tokens of lanes and agents are in its validation scenes: the lanes that the target truly drives on
against the others, and the target itself against the other agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from frozenllm.core.analysis import class_attention
from frozenllm.core.analysis.relevance import auroc, pointing, relevant_share, share_inside
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Frame, Mark, Sample, Study
from frozenllm.core.study import (
    HOST,
    LAYER,
    TAPS,
    WEIGHTS,
    activations_of,
    check_counts,
    opened,
    read_studied,
    shown_of,
    study_cli,
    tokens_at,
)
from frozenllm.motion.driven import driven_lanes
from frozenllm.motion.models import MotionHost
from frozenllm.motion.models.host import TARGET, Inputs
from frozenllm.motion.pictures import TARGET_COLOUR, TRUTH_COLOUR, ScenePicture
from frozenllm.motion.scene import LANE_ATTRIBUTES

DRIVEN, ON_DRIVEN = "driven lanes above other lanes (AUROC)", "share of the lanes' activation on driven ones"
TOP_LANE, FOCAL = "most active lane is driven", "target above other agents (AUROC)"
_CHANGES = (DRIVEN, ON_DRIVEN, FOCAL)
_SIDE, _SHOWN = 480, 2


def study(run: str | Path, *, limit: int | None = None, samples: int = 6, weights: str = "auto") -> Study:
    """What is active in the validation scenes of a run.

    Args:
        run: The run folder, or one of its checkpoints.
        limit: At most so many scenes, spread evenly.
        samples: How many of them go into the study as pictures.
        weights: See `frozenllm.core.training.read_run`.

    Raises:
        ValueError: The run is not of motion forecasting, or it or its data cannot be read.
    """
    check_counts(limit, samples)
    saved = read_studied(run, weights)
    model, _, pictured, batches = opened(saved, limit, samples)
    if not isinstance(model, MotionHost):
        kind = saved.cfg.model.get("type")
        raise ValueError(f"{saved.path} is of a run of the model {kind!r}, not of motion forecasting.")
    scores, result = Scores(), Study("Which lanes and agents are active?", "motion")
    for indices, batch in batches:
        keep = batch["targets"]["valid"].any(dim=1).nonzero().flatten().tolist()  # others could not be read
        if not keep:
            continue
        inputs = {name: value[keep] for name, value in batch["inputs"].items()}
        future, valid = batch["targets"]["future"][keep], batch["targets"]["valid"][keep]
        outputs, active = scene_activations(model, inputs)
        scene = Inputs(**inputs)
        agents = inputs["agents"].shape[1]
        driven = _padded(driven_lanes(inputs, future, valid), scene.lane_mask.shape[1])
        crossing = scene.lane_attributes[..., LANE_ATTRIBUTES.index("crossing")] > 0.5
        lanes = scene.lane_mask & ~crossing
        near = -_distance(scene)
        scores.add(DRIVEN, auroc(near, driven, lanes), None, "nearness alone", chance=0.5)
        scores.add(TOP_LANE, pointing(near, driven, lanes), None, "nearness alone",
                   chance=relevant_share(driven, lanes), unit="%")  # fmt: skip
        for (tap, kind), values in active.items():
            _score(scores, values, tap, kind, agents, scene.agent_mask, lanes, driven)
        for row, index in enumerate(keep):
            if indices[index] not in pictured:
                continue
            sample = {name: value[row].cpu() for name, value in inputs.items()}
            told = {"future": future[row].cpu(), "valid": valid[row].cpu()}
            told["trajectories"] = outputs["trajectories"][row].float().cpu()
            told["probabilities"] = outputs["logits"][row].float().softmax(dim=-1).cpu()
            shown = shown_of(active, row)
            modes = len(told["trajectories"])
            title = f"{batch['scenario'][index]}: the best of {modes} modes ends {_miss(told):.1f} m off"
            relevant = torch.zeros(len(next(iter(shown.values()))), dtype=torch.bool)
            relevant[TARGET], relevant[agents:] = True, driven[row].cpu()
            result.samples.append(_sample(title, sample, told, shown, relevant))
            result.samples[-1].key = str(indices[index])
            if len(result.pictures) < _SHOWN:
                name = next(n for n in (f"magnitude at {LAYER}", f"magnitude at {HOST}") if n in shown)
                picture = ScenePicture(sample, told, torch.tensor(shown[name]), title=title, label=name)
                picture.draw()
                picture.canvas.draw()
                caption = f"Scene {len(result.pictures) + 1}: {name}, and what is predicted"
                result.pictures[caption] = Image.fromarray(np.asarray(picture.canvas.buffer_rgba())[..., :3].copy())
    if not len(scores):
        raise ValueError(f"Not one validation scene of {run} can be read, or none has a future.")
    result.findings = scores.findings() + scores.changes(HOST, LAYER, _CHANGES)
    result.notes = list(_NOTES)
    return result


def scene_activations(
    model: MotionHost, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """What a model predicts, and how active the polylines are: (tap, kind) -> (B, A + L), agents first, 0 for padding.

    Kinds are those of `frozenllm.core.analysis.ACTIVATIONS`, and the attention that the target's token pays inside the
    block.

    Args:
        model: In eval mode.
        inputs: A batch on its device.
    """
    mask = model.token_mask(Inputs(**inputs))
    agents = inputs["agents"].shape[1]
    outputs, tokens = tokens_at(
        model, inputs, layer=model.llm, host=lambda: model.tokens(**inputs), taps=(*TAPS, WEIGHTS)
    )
    paid = tokens.pop(WEIGHTS, None)
    active = {(tap, kind): model.per_polyline(v, agents) for tap, kind, v in activations_of(tokens, mask)}
    if paid is not None:
        active[WEIGHTS, "attention"] = model.per_polyline(class_attention(paid, mask, query=TARGET), agents)
    return outputs, active


def _score(
    scores: Scores,
    values: Tensor,
    tap: str,
    kind: str,
    agents: int,
    agent_mask: Tensor,
    lanes: Tensor,
    driven: Tensor,
) -> None:
    """Add a batch of activations (B, A + L)."""
    of_agents, of_lanes = values[:, :agents], values[:, agents:]
    scores.add(DRIVEN, auroc(of_lanes, driven, lanes), tap, kind, chance=0.5)
    if tap in (HOST, LAYER, WEIGHTS):
        chance = relevant_share(driven, lanes)
        scores.add(ON_DRIVEN, share_inside(of_lanes, driven, lanes), tap, kind, chance=chance, unit="%")
        scores.add(TOP_LANE, pointing(of_lanes, driven, lanes), tap, kind, chance=chance, unit="%")
    target = torch.zeros_like(agent_mask)
    target[:, TARGET] = True
    scores.add(FOCAL, auroc(of_agents, target, agent_mask), tap, kind, chance=0.5)


def _padded(driven: Tensor, lanes: int) -> Tensor:
    """With the lane of padding that the models put where there is none."""
    return driven if driven.shape[1] == lanes else driven.new_zeros(len(driven), lanes)


def _distance(scene: Inputs) -> Tensor:
    """Metres from the target's last position (the origin) to the nearest point of each lane, (B, L)."""
    return (
        scene.lanes[..., :2].norm(dim=-1).masked_fill(~scene.lanes_valid, torch.inf).amin(dim=2).nan_to_num(posinf=1e9)
    )


def _miss(told: Mapping[str, Tensor]) -> float:
    """Metres between the last known position and the nearest mode's."""
    last = int(told["valid"].nonzero().max())
    return float((told["trajectories"][:, last] - told["future"][last]).norm(dim=-1).min())


def _sample(
    title: str,
    inputs: Mapping[str, Tensor],
    told: Mapping[str, Tensor],
    shown: dict[str, list[float]],
    relevant: Tensor,
) -> Sample:
    """A scene from above, the target heading to the right; a line for each polyline that lies in the picture."""
    future = told["future"][told["valid"]]
    seen = torch.cat([inputs["agents"][TARGET][inputs["agents_valid"][TARGET]][:, :2], future])
    low, high = seen.amin(dim=0), seen.amax(dim=0)
    middle, reach = (low + high) / 2, max(20.0, 0.6 * float((high - low).max()))

    def place(points: Tensor) -> Tensor:
        """Shares of the picture's side, from its upper left corner."""
        return (points - middle) / (2 * reach) * torch.tensor([1.0, -1.0]) + 0.5

    tracks = [place(track[known][:, :2]) for track, known in zip(inputs["agents"], inputs["agents_valid"], strict=True)]
    lanes = [
        place(torch.cat([v[known][:, :2], v[known][-1:, :2] + v[known][-1:, 2:4]]))
        for v, known in zip(inputs["lanes"], inputs["lanes_valid"], strict=True)
    ]
    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    canvas = ImageDraw.Draw(picture)
    for lines, colour, width in ((lanes, "#cbd5e1", 1), (tracks[1:], "#475569", 1), (tracks[:1], TARGET_COLOUR, 3)):
        for line in lines:
            _draw(canvas, line, colour, width)
    _draw(canvas, place(torch.cat([torch.zeros(1, 2), future])), TRUTH_COLOUR, 3)
    marks = [mark for token, line in enumerate([*tracks, *lanes]) if (mark := _mark(line, token)) is not None]
    frame = Frame(picture, marks, "from above; blue: the target as observed, green: where it goes")
    return Sample(title, [frame], shown, relevant.tolist())


def _draw(canvas: ImageDraw.ImageDraw, line: Tensor, colour: str, width: int) -> None:
    if len(line) > 1:
        canvas.line([tuple(point) for point in (line * _SIDE).tolist()], fill=colour, width=width)


def _mark(line: Tensor, token: int) -> Mark | None:
    """What of a polyline lies in the picture; None for nothing."""
    inside = line[((line >= 0) & (line <= 1)).all(dim=1)]
    if not len(inside):
        return None
    if len(inside) == 1:
        return Mark("point", tuple(round(v, 4) for v in inside[0].tolist()), token)
    return Mark("line", tuple(round(v, 4) for v in inside.flatten().tolist()), token)


_NOTES = (
    "A token stands for a polyline: the track of an agent, or a lane. Activations are scaled to 0 to 1 within a scene, "
    "over all of its polylines; crossings of pedestrians are not counted among the lanes.",
    "A lane is driven if the target is on it for 0.3 s or more after the present: the nearest centreline within 2 m "
    "that runs its way (45 degrees). No data set says it; this is its future laid on the map.",
    "The kind 'nearness alone' needs no model: it ranks lanes by their distance from where the target is now, and is "
    "what an activation must beat to say something about the future. Chance of a share is the share of lanes that are "
    "driven.",
    "Attention is what the target's token pays inside the language-model block.",
)


main = partial(study_cli, "motion", study, doc=__doc__)
"""The command line; takes its arguments, or None for the process's."""

if __name__ == "__main__":
    main()
