"""Which patches are active before and after the frozen layer, and are they those of the object?

``python -m frozenllm.vision2d.study RUN`` studies a finished run on its validation images, with their masks where the
data has them: ImageNet-S's (``--masks ROOT``, or a folder ``<split>-segmentation`` beside the images), or the ink
of the toy digits. Prints the findings and writes the study into the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from frozenllm.core.analysis.findings import interval_finding, mean_finding, of_analysis
from frozenllm.core.analysis.study import Finding, Frame, Sample, Study, grid_marks
from frozenllm.core.study import check_counts, spread_indices, study_cli
from frozenllm.vision2d.measures import Measured, measure

KINDS = ("magnitude", "frequency", "attention")
OPTIONS = {
    "masks": {"type": Path, "help": "root of ImageNet-S, or of data in its layout (default: the run's own images)"},
    "rule": {
        "default": "majority",
        "help": "when a patch lies on the object: any, majority, centre, fraction>=T (default: %(default)s)",
    },
    "on_error": {
        "choices": ["raise", "skip"],
        "help": "what to do about images and masks that cannot be read (default: the run's data.on_error)",
    },
}
_PICTURE = 224  # pixels, at least: small pictures are enlarged without smoothing


def study(
    run: str | Path,
    *,
    limit: int | None = None,
    samples: int = 6,
    weights: str = "auto",
    masks: str | Path | None = None,
    rule: str = "majority",
    on_error: str | None = None,
) -> Study:
    """Study a finished run.

    Args:
        run: The run folder, or one of its checkpoints.
        limit: At most so many validation images, spread evenly.
        samples: How many images the study shows.
        weights: See `frozenllm.core.training.read_run`.
        masks: Root of ImageNet-S; None for the run's own images.
        rule: See `frozenllm.vision2d.masks.TokenRule`.
        on_error: ``"raise"`` or ``"skip"``, for images and masks that cannot be read; None for the run's own choice.

    Raises:
        ValueError: The run, its data or the masks cannot be read, or an option is unknown.
    """
    check_counts(limit, samples)
    measured = measure(run, masks=masks, rule=rule, limit=limit, weights=weights, on_error=on_error)
    return describe(measured, rule, samples)


def describe(measured: Measured, rule: str, samples: int = 6) -> Study:
    """The study of what was measured.

    Args:
        measured: From `measure`.
        rule: The rule for patches it was measured with.
        samples: How many images it shows.
    """
    found = findings(measured)
    shown = spread_indices(len(measured.names), samples) if samples else []
    rows, columns = measured.analysis.grid or (0, 0)
    return Study(
        title=f"Which patches are active in {measured.title}, and do they lie on {measured.what}?",
        domain="vision2d",
        findings=found,
        samples=[_sample(measured, place) for place in shown],
        notes=[*_notes(measured, rule, rows * columns), *measured.notes],
        pictures=_pictures(found, measured),
    )


def findings(measured: Measured) -> list[Finding]:
    """Every measure of a run, with intervals over images."""
    found = of_analysis(measured.analysis, measured.relevant, measured.counted, measured.names, what=measured.what)
    if measured.coherence is not None:
        interval = measured.coherence.interval()
        found.append(interval_finding("Gradient coherence of the host, mean cosine of pairs", interval, chance=0.0))
    outputs = measured.analysis.outputs
    if outputs is not None and measured.own_classes:
        right = (outputs.argmax(dim=1) == measured.targets).float()
        chance = 1 / outputs.shape[1]
        accuracy = mean_finding("Accuracy on these images", right, chance=chance, unit="%")
        found += [accuracy] if accuracy is not None else []
    return found


def _notes(measured: Measured, rule: str, patches: int) -> list[str]:
    notes = [
        "Intervals are 95 % percentile bootstrap intervals over images; they say nothing about other training seeds.",
        "The effective rank is the exponential of the entropy of the centred tokens' singular values: "
        f"between 1 and {patches - 1}.",
    ]
    if measured.coherence is not None:
        notes.append(
            f"Gradient coherence: mean cosine between the gradients of the host's weights (without head and adapters) "
            f"for every two of {len(measured.coherence.norms)} validation images, at the final weights."
        )
    if measured.relevant is None:
        return [*notes, "The images have no masks: give ImageNet-S with --masks to see whether the object is active."]
    known = int((measured.relevant & measured.counted).any(dim=1).sum())
    return [
        f"A patch lies on {measured.what} by the rule '{rule}'; the paper does not give its rule.",
        f"{known} of {len(measured.names)} images have such a patch; the others are left out.",
        "Honest threshold: one for all images, chosen on half of them, applied to the other half, and the other way "
        "round. The best threshold of each image is the paper's, chosen with the true mask in hand: an upper bound.",
        "Chance: the same activations on random patches of the same image, thresholds chosen in the same way.",
        "The tap 'pixels' holds the patches' normalised pixels: what the picture itself gives before any network.",
        "Activation on the object over elsewhere: ratio of mean magnitudes, averaged as a geometric mean.",
        *notes,
    ]


def _sample(measured: Measured, place: int) -> Sample:
    picture = measured.images.picture(measured.places[place])
    if min(picture.size) < _PICTURE:
        factor = -(-_PICTURE // min(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    assert measured.analysis.grid is not None
    relevant = measured.relevant
    return Sample(
        title=_title(measured, place),
        frames=[Frame(picture, grid_marks(*measured.analysis.grid))],
        activations={
            f"{kind} at {tap}": values[place].tolist() for (kind, tap), values in measured.analysis.activations.items()
        },
        relevant=None if relevant is None else relevant[place].tolist(),
        key=measured.names[place],
    )


def _title(measured: Measured, place: int) -> str:
    title = measured.names[place]
    outputs = measured.analysis.outputs
    if outputs is None or not measured.own_classes:
        return title
    guess, truth = int(outputs[place].argmax()), int(measured.targets[place])
    names = measured.classes if len(measured.classes) == outputs.shape[1] else [str(i) for i in range(outputs.shape[1])]
    return f"{title}: {names[truth]}, " + ("recognised" if guess == truth else f"taken for {names[guess]}")


def _pictures(found: Sequence[Finding], measured: Measured) -> dict[str, Image.Image]:
    from frozenllm.vision2d.study_pictures import depth_lines, dots  # matplotlib takes a second to import

    pictures = {}
    by_kind = {kind: [f for f in found if f.kind == kind and f.name.startswith("IoU")] for kind in KINDS}
    panels = {
        title: {kind: [f for f in fs if mark in f.name] for kind, fs in by_kind.items() if fs}
        for title, mark in (("honest threshold", "honest"), ("best of each image (upper bound)", "upper bound"))
    }
    if any(by_kind.values()):
        pictures[f"IoU of active patches with {measured.what}, by tap and kind of activation"] = dots(panels, "IoU, %")
    ratios = [f for f in found if f.name.startswith("Activation on")]
    ranks = [f for f in found if f.name.startswith("Effective rank")]
    deep = {"activation on the object\nover elsewhere": {"": ratios}} if ratios else {}
    deep |= {"effective rank": {"": ranks}} if ranks else {}
    if deep:
        caption = "Along the depth of the network: how much more active the object is, and the tokens' effective rank"
        pictures[caption] = depth_lines(deep, baseline={"activation on the object\nover elsewhere": 1.0})
    return pictures


main = partial(study_cli, "vision2d", study, doc=__doc__, extra=OPTIONS)
"""The command line; takes its arguments, or None for the process's."""

if __name__ == "__main__":
    main()
