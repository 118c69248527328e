"""Every ImageNet recipe trains four steps, is resumed on the way, and is evaluated on the whole family."""

from __future__ import annotations

from pathlib import Path

import pytest
from tinydomain.helpers import assert_same, history, read
from toy_imagenet import RECIPES, arguments, figures, tiny

from frozenllm.core.training import compose_config, evaluate, train
from frozenllm.vision2d.robustness import main
from frozenllm.vision2d.train import CONFIG


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_resumes_and_evaluates(
    recipe: str, toy_imagenet: dict[str, Path], family: dict[str, Path], tmp_path: Path
) -> None:
    """Recipes of both kinds read both layouts; all other choices are the recipe's."""
    data = toy_imagenet["folders" if "small" in recipe else "tars"]

    def config(*more: str):
        return compose_config(CONFIG, [f"recipe={recipe}", *tiny(recipe, tmp_path, data), *more])

    first = train(config("runtime.stop_after=2"))
    assert (first.iterations, first.finished) == (2, False)
    result = train(config("resume=true"))
    assert (result.iterations, result.finished) == (4, True)
    last, best = (Path(result.run_dir) / "checkpoints" / name for name in ("last.pt", "best.pt"))
    checkpoint = read(last)
    assert checkpoint["ema"].keys() <= checkpoint["state_dict"].keys()
    assert any(key.endswith("llm.adapter_in.weight") for key in checkpoint["state_dict"]) == ("llama" in recipe)
    assert [line["iter"] for line in history(result.run_dir) if line["kind"] == "val"] == [2, 4]
    assert evaluate(config("eval_only=true", f"checkpoint={last}")) == pytest.approx(result.metrics)
    assert evaluate(config("eval_only=true", f"checkpoint={best}"))["accuracy/top1"] == result.best["value"]
    sets = "sets=[imagenet,imagenet_c/fog,imagenet_a,imagenet_r,imagenet_sketch]"
    main(arguments(last, family, tmp_path / "robustness", sets))
    assert figures(tmp_path / "robustness")["complete"]


def test_resumed_recipe_equals_an_uninterrupted_one(toy_imagenet: dict[str, Path], tmp_path: Path) -> None:
    """With all that draws random numbers: repeated augmentation, mixup and cutmix, erasing, drop path."""
    weights = []
    for name, stops in (("whole", []), ("parts", ["runtime.stop_after=1", "runtime.stop_after=2"])):
        settings = [*tiny("imagenet_vit_small_llama", tmp_path, toy_imagenet["tars"]), f"name={name}"]
        for number, stop in enumerate([*stops, None]):
            more = [*([stop] if stop else []), *(["resume=true"] if number else [])]
            result = train(compose_config(CONFIG, ["recipe=imagenet_vit_small_llama", *settings, *more]))
        assert (result.iterations, result.finished) == (4, True)
        content = read(Path(result.run_dir) / "checkpoints" / "last.pt")
        weights.append({key: content[key] for key in ("state_dict", "ema")})
    assert_same(*weights)
