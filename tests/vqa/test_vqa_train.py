"""The training tool, as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_tools import block_weights, call_tool, quick_toys

from frozenllm.core.training import HOST_AND_LAYER, compose_config, evaluate, train
from frozenllm.vqa import train as tool
from frozenllm.vqa.runs import load_run


def test_tool_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    done = call_tool("vqa", "recipe=vqav2", "data.root=/no/such/folder", cwd=tmp_path)  # before CLIP is asked for
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: The data folder /no/such/folder does not exist")


@pytest.fixture
def vqa(tmp_path: Path, vqa_root: Path, tiny: list[str]) -> list[str]:
    return ["llm=bundled", f"data.root={vqa_root}", "data.batch_size=8", "data.answers.min_count=2",
            "schedule.epochs=1", "schedule.warmup_epochs=0", *tiny, f"runs={tmp_path}", "name=it"]  # fmt: skip


def test_trains_resumes_evaluates_and_answers_test_questions(tmp_path: Path, vqa: list[str]) -> None:
    """The recipe of the paper at tiny sizes: accumulation, rates of the parts, RandAugment."""
    recipe = ["recipe=vqav2_llama", *vqa, "llm=bundled", "data.image_size=48", "data.held_out=20", "optim.accumulate=2"]
    recipe += ["optim.lr=1e-4", "data.max_text_len=16"]
    first = train(compose_config(tool.CONFIG, [*recipe, "runtime.stop_after=4"]))
    assert (first.iterations, first.finished, first.frozen) == (4, False, 791_040)
    again = train(compose_config(tool.CONFIG, [*recipe, "resume=true"]))
    assert again.finished
    assert {"vqa/overall", "vqa/yes_no", "vqa/number", "vqa/other", "vqa/soft"} <= set(again.metrics)
    folder = Path(again.run_dir)
    asked = json.loads((Path(recipe[2].split("=")[1]) / "v2_OpenEnded_mscoco_test-dev2015_questions.json").read_text())
    entries = json.loads((folder / "evalai_test-dev2015.json").read_text())
    assert {entry["question_id"] for entry in entries} == {q["question_id"] for q in asked["questions"]}
    assert all(set(entry) == {"question_id", "answer"} for entry in entries)
    assert again.test["evalai/answers"] == len(entries)
    cfg = compose_config(tool.CONFIG, recipe)
    assert evaluate(cfg)["vqa/overall"] == again.metrics["vqa/overall"]
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert not block_weights(state)
    same = [*recipe, "data.answers.min_count=10000", f"data.answers.path={folder}/checkpoints/last.pt"]
    assert evaluate(compose_config(tool.CONFIG, same))["vqa/overall"] == again.metrics["vqa/overall"]
    names = list(load_run(folder / "checkpoints" / "last.pt")[0].answers.names)
    others = (
        (names[:-1], "belongs to another model: shapes differ"),
        ([*names[:-1], "zebra"], r"another answer vocabulary .* data\.answers\.path"),
    )
    for other, words in others:
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match=words):
            evaluate(compose_config(tool.CONFIG, [*recipe, f"data.answers.path={tmp_path}/other.json"]))


def test_broken_images_are_counted(tmp_path: Path, vqa: list[str], vqa_root: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(vqa_root, copy)
    for subset in ("train2014", "val2014", "test2015"):
        sorted((copy / subset).glob("*.jpg"))[0].write_bytes(b"\xff\xd8 not really")
    run = [*vqa, f"data.root={copy}", "data.answers.min_count=1", "runtime.log_interval=1000"]
    result = train(compose_config(tool.CONFIG, [*run, "data.on_error=skip"]))
    assert result.metrics["vqa/unreadable"] >= 1
    assert result.test["evalai/answers"] > result.test["evalai/unreadable"] >= 1  # every question is answered
    with pytest.raises(ValueError, match="cannot be read as an image"):
        train(compose_config(tool.CONFIG, [*run, "overwrite=true"]))


def test_retrieval_recipe(tmp_path: Path, flickr_root: Path, tiny: list[str]) -> None:
    recipe = ["recipe=flickr30k_llama", "llm=mlp", f"data.root={flickr_root}", "data.image_size=48", *tiny]
    recipe += ["data.batch_size=4", "data.negatives=3", "optim.accumulate=2", "optim.lr=1e-4"]
    recipe += ["schedule.epochs=1", "schedule.warmup_epochs=0", f"runs={tmp_path}", "name=it"]
    recipe += ["runtime.log_interval=1"]
    first = train(compose_config(tool.CONFIG, [*recipe, "runtime.stop_after=4"]))
    assert first.iterations == 4
    figures = evaluate(compose_config(tool.CONFIG, recipe))
    assert {f"retrieval/{way}@{k}" for way in ("ir", "tr") for k in (1, 5, 10)} <= set(figures)
    lines = [json.loads(line) for line in (Path(first.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert any({"rank_loss", "match_loss"} <= set(line) for line in lines if line["kind"] == "train")


@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_toy_prints_all_arms(
    task: str, vqa_root: Path, flickr_root: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    root, limit = (vqa_root, 8) if task == "vqa" else (flickr_root, 2)
    fast = [f"data.root={root}", *tiny, "schedule.epochs=1", "schedule.warmup_epochs=0", "data.batch_size=4"]
    fast += [f"data.train.limit={limit}", "data.val.limit=5"]
    fast += ["data.answers.min_count=1", "data.test.limit=4"] if task == "vqa" else []
    seen = quick_toys(monkeypatch, tmp_path, *fast)
    tool.main([] if task == "vqa" else ["task=retrieval"])
    printed = capsys.readouterr().out
    assert all(arm in printed for arm in seen["arms"])
    assert HOST_AND_LAYER.keys() <= seen["arms"].keys()
    assert ("question only (no image)" in seen["arms"]) == (task == "vqa")
    assert tool.TOYS[task].note in printed
