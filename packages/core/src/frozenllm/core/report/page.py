"""The page: what the templates are filled with, and the file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from frozenllm.core.report.arms import sections
from frozenllm.core.report.context import PICTURE, section_context
from frozenllm.core.report.maps import picture_uri
from frozenllm.core.report.runs import find_runs
from frozenllm.core.report.studies import MODES
from frozenllm.core.whole_files import write_text

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass
class Lead:
    """What somebody says about the runs, before their figures.

    Attributes:
        headline: One sentence or two.
        introduction: What was done.
        lists: Heading -> sentences.
        pictures: Caption -> picture.
    """

    headline: str
    introduction: str = ""
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str] = "report.html",
    *,
    title: str | None = None,
    study: str = "auto",
    limit: int | None = None,
    samples: int = 6,
    lead: Lead | None = None,
    step_seconds: Mapping[Path, float] | None = None,
) -> Path:
    """Write one page about finished runs, which needs neither their data nor a network.

    Args:
        runs: Run folders, or folders above several.
        path: The HTML file.
        title: Of the page.
        study: ``"auto"`` makes missing studies of one seed of every arm, ``"again"`` makes them all anew, ``"never"``
            reads only.
        limit: For those: at most so many validation samples.
        samples: For those: how many samples they show.
        lead: What stands first.
        step_seconds: See `frozenllm.core.report.arms.sections`.

    Returns:
        The file.

    Raises:
        ValueError: There is no finished run, or the file cannot be written.
    """
    if study not in MODES:
        raise ValueError(f"study must be one of {', '.join(MODES)}, not {study!r}.")
    target = Path(path).expanduser()
    if target.is_dir() or not target.absolute().parent.is_dir():  # said before the work, not after it
        raise ValueError(f"{target} cannot be written: give a file in a folder that exists.")
    found, left_out = find_runs([Path(run) for run in runs])
    resolved = {Path(folder).resolve(): seconds for folder, seconds in (step_seconds or {}).items()}
    made = sections(found, resolved)
    context = {
        "title": title or f"Report on {', '.join(dict.fromkeys(section.domain for section in made))}",
        "lead": lead,
        "lead_pictures": [(caption, picture_uri(p, PICTURE)) for caption, p in lead.pictures.items()] if lead else [],
        "sections": [section_context(section, study, limit, samples) for section in made],
        "runs": len(found),
        "left_out": left_out,
        "date": datetime.date.today().isoformat(),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "seconds": _seconds, "megabytes": _megabytes, "operations": _operations}
    text = environment.get_template("page.html").render(context)
    try:
        write_text(target, text)
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}): name another file.") from error
    return target


def _count(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _megabytes(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value / 1e6:.1f} MB"


def _operations(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    unit, name = next(
        (u, n) for u, n in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")) if value >= u or u == 1
    )
    return f"{value / unit:.3g} {name}".rstrip()
