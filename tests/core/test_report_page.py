"""The report's page, from run folders made by hand."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import make_study, three_arms, write_run
from scipy import stats

from frozenllm.core.analysis.study import Finding, Study, read_study
from frozenllm.core.cli import main
from frozenllm.core.report import Lead, write_report
from frozenllm.core.report.arms import paired_difference, sections
from frozenllm.core.report.context import _finding
from frozenllm.core.report.runs import find_runs
from frozenllm.core.report.studies import Studied, finding_groups

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Tables as rows of texts, addresses, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [named[key] or "" for key in ("src", "href", "action", "data") if key in named]
        if tag == "img":
            self.images.append(named)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def maps_of(text: str) -> list[dict[str, Any]]:
    """What the script of the page reads."""
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_arms(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write_report([folder], folder.parent / "report.html", study="never").read_text()


def test_tables_hold_the_runs_figures(text: str) -> None:
    page = Page(text)
    head, host, frozen, random = page.rows[:4]
    assert head == ["arm", "accuracy/top1", "to the host", "best", "seeds"]
    assert host == ["host", "81.00 ±\N{NO-BREAK SPACE}1.41", "host", "82.00 ±\N{NO-BREAK SPACE}1.41", "2"]
    low, high = stats.ttest_rel([90, 91], [80, 82]).confidence_interval()
    assert frozen[2] == f"+9.50 [{low:+.2f}, {high:+.2f}]"
    assert random[1:3] == ["87.00 ±\N{NO-BREAK SPACE}2.83", "+6.00 [-6.71, +18.71]"]
    costs = {row[0]: row[1:] for row in page.rows if len(row) == 9}
    assert costs["frozen"][:4] == ["1,234", "5,678", "13.0 ms", "1.30\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"]
    assert costs["host"][1:4] == ["0", "10.0 ms", "1.00\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"]
    assert costs["host"][5:] == ["20.0 ms", "2.5 G", "4 G"]
    assert f"{5:064x}" in text
    assert "org/model at abc123, layer 5, stored as float16" in text


def test_nothing_is_asked_of_a_network(text: str) -> None:
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "url(" not in text
    assert len(page.images) == 3 + 3  # figures, and the pictures of three studies
    assert all(image["alt"] for image in page.images)
    curves = [base64.b64decode(i["src"].split(",")[1]) for i in page.images if "svg" in i["src"]]  # type: ignore
    assert len(curves) == 3
    assert all(b"<svg" in curve and b"http-equiv" not in curve for curve in curves)
    assert len(text) < 400_000


def test_maps_hold_activations_to_the_last_digit(text: str, folder: Path) -> None:
    (data,) = maps_of(text)
    assert [arm["name"] for arm in data["arms"]] == ["host", "frozen", "random"]
    assert data["activations"][0] == "magnitude at adapter_out"
    assert len(data["samples"]) == 4
    assert len(data["pictures"]) == 1 + 3 + 1 + 1  # once each, though three arms show them
    assert len(data["marks"]) == 1 + 3 + 1 + 1
    for place, name in enumerate(("host", "frozen", "random")):
        study = read_study(folder / name / "seed0")
        assert study is not None
        for number, sample in enumerate(study.samples):
            view = data["samples"][number]["views"][place]
            assert view["title"] == sample.title
            assert view["relevant"] == (
                None if sample.relevant is None else "".join("01"[flag] for flag in sample.relevant)
            )
            for activation, values in sample.activations.items():
                whole = np.frombuffer(base64.b64decode(view["activations"][activation]), "<u2")
                assert (whole / data["scale"]).tolist() == values
            for frame, kept in zip(sample.frames, view["frames"], strict=True):
                assert [mark[1] for mark in data["marks"][kept["marks"]]] == [mark.token for mark in frame.marks]


def test_findings_stand_beside_each_other(text: str) -> None:
    page = Page(text)
    start = page.rows.index(["where", "host", "frozen", "random", "chance"])
    values = [f"{40 + i}.0 % [38.0 to 43.0 %]" for i in range(3)]
    assert page.rows[start + 1 : start + 3] == [
        ["magnitude at host", *values, "25.0 %"],
        ["magnitude at adapter out", "\N{EN DASH}", *values[1:], "25.0 %"],
    ]
    assert "IoU, honest threshold" in page.texts


def test_seeds_are_averaged_and_chance_has_a_range(folder: Path) -> None:
    def of(value: float, chance: float) -> Study:
        return Study("", "", [Finding("rank", value, "host", low=value - 1, high=value + 1, chance=chance, unit="x")])

    arms = sections(find_runs([folder])[0])[0].arms
    (row,) = finding_groups([Studied(arms[0], [of(1.0, 0.5), of(2.0, 0.5)]), Studied(arms[1], [of(5.0, 0.75)])])["rank"]
    assert [[f.value for f in entry or ()] for entry in row.values] == [[1.0, 2.0], [5.0]]
    assert (row.where, row.chance) == ("host", "0.500 to 0.750 x")
    assert _finding(row.values[0]) == {"value": "1.500 x", "range": "1.000 to 2.000 x", "seeds": 2}
    assert _finding(row.values[1]) == {"value": "5.000 x", "range": "4.000 to 6.000 x", "seeds": 1}


def test_samples_with_other_pictures_go_by_their_key(tmp_path: Path) -> None:
    for place, kind in enumerate(("none", "random")):
        study = make_study(place)
        for number, sample in enumerate(study.samples):
            sample.frames[0].picture.putpixel((0, 0), (place, number, 0))  # a domain that draws its answer
            sample.key = str(number)
        study.samples = study.samples[:: 1 - 2 * place]  # in another order
        study.save(write_run(tmp_path / "runs" / kind, 80.0, kind))
    (data,) = maps_of(write_report([tmp_path / "runs"], tmp_path / "a.html", study="never").read_text())
    assert [[view["title"] for view in sample["views"]] for sample in data["samples"]] == [
        [title] * 2 for title in ("picture", "clip", "points", "lines")
    ]


def test_other_samples_do_not_stand_beside_each_other(tmp_path: Path) -> None:
    """Runs studied on other samples, whose pictures are as large: each stands alone."""
    for place, kind in enumerate(("none", "random")):
        study = make_study(place)
        study.samples = study.samples[:1]
        study.samples[0].frames[0].picture.putpixel((0, 0), (place, 7, 0))
        study.save(write_run(tmp_path / "runs" / kind, 80.0, kind))
    (data,) = maps_of(write_report([tmp_path / "runs"], tmp_path / "a.html", study="never").read_text())
    assert [[view["arm"] for view in sample["views"]] for sample in data["samples"]] == [[0], [1]]


def test_names_and_titles_are_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    name = "<img onerror=alert(3)>"
    study = make_study(0, answer=evil)
    study.notes.append(evil)
    study.save(write_run(tmp_path / "runs" / name, 80.0, config={"recipe": evil, "model": {"type": evil}}))
    write_run(tmp_path / "runs" / "other", 81.0, "random")
    lead = Lead(evil, evil, {evil: [evil]})
    text = write_report([tmp_path / "runs"], tmp_path / "a.html", title=evil, study="never", lead=lead).read_text()
    assert "<script>alert" not in text
    assert "<img onerror" not in text
    assert "<img src=x" not in text
    assert text.count("<script") == text.count("</script>") == 2
    (data,) = maps_of(text)
    assert data["arms"][0]["name"] == name
    assert data["samples"][0]["views"][0]["title"] == f"picture{evil}"
    assert evil in "".join(Page(text).texts)


def test_names_may_hold_dollars(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a$x^$", 80.0)
    write_run(tmp_path / "runs" / "b", 81.0, "random")
    assert "a$x^$" in write_report([tmp_path / "runs"], tmp_path / "a.html", study="never").read_text()


def test_layers_become_a_figure(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "host", 70.0)
    for layer in (0, 2, 10):
        write_run(tmp_path / "runs" / f"layer{layer}", 80.0 - layer, "pretrained", layer=layer)
    write_run(tmp_path / "runs" / "random", 75.0, "random")
    page = Page(write_report([tmp_path / "runs"], tmp_path / "a.html", study="never").read_text())
    assert [row[0] for row in page.rows[1:4]] == ["host", "layer10", "random"]
    assert any(
        text.startswith("Layer 0 does best (80.00), layer 10 worst (70.00). The means lie within 10.00.")
        and text.endswith("2 of 3 layers are better than host on average.")
        for text in page.texts
    )
    assert {"layer0", "layer2"} <= {row[0] for row in page.rows if len(row) == 9}
    assert any("layer 2: 78.00" in (image["alt"] or "") for image in page.images)


def test_a_section_for_every_domain_and_metric(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a/none", 80.0)
    write_run(tmp_path / "runs/b/none", 1.5, config={"imports": ["frozenllm.other.train"]})
    other = {"best": "minADE", "best_mode": "min", "imports": ["frozenllm.other.train"]}
    write_run(tmp_path / "runs/b/ade", 1.25, config=other, summary={"test": {"minADE": 1.5}})
    text = write_report([tmp_path / "runs"], tmp_path / "a.html", study="never").read_text()
    assert re.findall(r"<h2>([^<]*: [^<]*)</h2>", text) == [
        "nodomain: accuracy/top1", "other: minADE", "other: accuracy/top1",
    ]  # fmt: skip
    assert text.count("Lower is better.") == 1
    assert ["ade", "1.250", "2.250", "1.500", "1"] in Page(text).rows


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_interval_is_students(count: int) -> None:
    drawn = np.random.default_rng(count)
    host, arm = drawn.normal(50, 3, count), drawn.normal(53, 3, count)
    found = paired_difference(dict(enumerate(arm)), {**dict(enumerate(host)), 99: 0.0})
    expected = stats.ttest_rel(arm, host).confidence_interval()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.pairs) == (pytest.approx((arm - host).mean()), count)


def test_without_common_seeds_there_is_no_interval() -> None:
    found = paired_difference({1: 5.0, 2: 7.0}, {3: 4.0})
    assert found is not None
    assert (found.mean, found.low, found.pairs) == (2.0, None, 0)
    assert paired_difference({}, {3: 4.0}) is None


def test_times_of_two_kinds_are_not_compared(folder: Path) -> None:
    runs, _ = find_runs([folder])
    times = {run.folder: 0.02 for run in runs if "host" in str(run.folder)}
    host, frozen, _ = sections(runs, times)[0].arms
    assert (host.row.step_seconds, frozen.row.step_seconds, frozen.relative_step) == (0.02, None, None)


def test_damaged_and_unfinished_runs_are_named(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs)
    (write_run(runs / "cut", 1.0) / "summary.json").write_text('{"metr')
    (write_run(runs / "half", 1.0, summary={"finished": False})).touch()
    (write_run(runs / "going", 1.0) / "summary.json").unlink()
    (write_run(runs / "garbled", 1.0) / "config.yaml").write_text("a: [1\n")
    (write_run(runs / "foreign", 1.0) / "config.yaml").write_text("a: 1\n")
    write_run(runs / "blank", 1.0, summary={"metrics": {}})
    with pytest.warns(UserWarning, match="is left out") as warned:
        text = write_report([runs, tmp_path / "nowhere"], tmp_path / "a.html", study="never").read_text()
    assert len([w for w in warned if "left out" in str(w.message)]) == 7
    assert "6 finished runs, 7 left out." in text
    for name, reason in (
        ("cut", "summary.json is damaged"), ("half", "stopped after 3 epochs"), ("going", "no summary.json yet"),
        ("garbled", "config.yaml is not that of a run"), ("foreign", "config.yaml is not"), ("nowhere", "is no folder"),
        ("blank", "no value of accuracy/top1"),
    ):  # fmt: skip
        assert re.search(rf"{name}</code> [^<]*{reason}", text), name
    (runs / "frozen/seed0/checkpoints/last.pt").write_bytes(b"no checkpoint")
    (runs / "frozen/seed0/study/study.json").write_text("{")
    with pytest.warns(UserWarning, match="make the study again"):
        text = write_report([runs / "frozen"], tmp_path / "b.html", study="never").read_text()
    assert "record cannot be read" in text


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(folder), "-o", str(page), "--title", "Mine", "--study", "never"]) == 0
    assert "<h1>Mine</h1>" in page.read_text()
    assert f"wrote {page} (0." in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty")], "There is no finished run to report on."),
        ([str(tmp_path / "missing")], "There is no finished run to report on."),
        ([str(folder), "-o", str(tmp_path / "no" / "page.html")], "cannot be written"),
        ([str(folder), "-o", str(tmp_path)], "cannot be written"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
