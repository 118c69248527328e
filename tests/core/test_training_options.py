"""Options of a config handed to a builder."""

from __future__ import annotations

from typing import Any

import pytest

from frozenllm.core.training import call_with_options


def build(width: int, depth: int = 1, llm: Any = None) -> tuple[int, int, Any]:
    return width, depth, llm


def test_options_known_and_unknown() -> None:
    assert call_with_options(build, {"depth": 3}, "build", 2, llm="x") == (2, 3, "x")
    with pytest.raises(ValueError, match="The model has no option 'deph': see build for those it has"):
        call_with_options(build, {"deph": 3}, "build", 2)


def test_other_type_errors_are_ours() -> None:
    def broken(depth: int) -> None:
        build(1, dim=3)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="unexpected keyword argument 'dim'"):
        call_with_options(broken, {"depth": 3}, "build")
    with pytest.raises(TypeError, match="missing 1 required"):
        call_with_options(build, {}, "build")
