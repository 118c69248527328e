"""Which module imports which: no circles, and arrows that point one way (tools -> domain -> core)."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENES, POINTCLOUD = "frozenllm.vqa.scenes", "pointcloud"
"""What alone may import another domain, and which: through the extra ``[scenes]``."""


def modules() -> dict[str, Path]:
    """All modules of the packages by name."""
    found = {}
    for path in ROOT.glob("packages/*/src/frozenllm/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts[3:]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(nodes: Iterable[ast.AST], known: Iterable[str], *, late: bool) -> Iterator[str]:
    """Modules that a piece of code imports.

    Args:
        nodes: The code.
        known: Names of our modules: ``from package import name`` is of the module ``package.name`` if there is one.
        late: Also what is imported when a function is called, and what type checkers alone see.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            assert node.module
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif late or not _is_late(node):
            yield from imported(ast.iter_child_nodes(node), known, late=late)


def _is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> what is run before it, when it is imported: what it imports, and the packages that this lies in."""
    edges: dict[str, set[str]] = {}
    for name, source in sources.items():
        edges[name] = set()
        for target in set(imported(ast.parse(source).body, sources, late=False)) & sources.keys() - {name}:
            parts = target.split(".")
            above = {".".join(parts[:end]) for end in range(2, len(parts))} & sources.keys()
            edges[name] |= {target, *(package for package in above if not f"{name}.".startswith(f"{package}."))}
    return edges


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle; None where there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_nothing_is_imported_in_a_circle() -> None:
    edges = graph({name: path.read_text() for name, path in modules().items()})
    assert len(edges) > 200
    assert sum(map(len, edges.values())) > 500
    found = circle(edges)
    assert found is None, f"these import each other: {' <- '.join(found or [])}"


def test_a_circle_would_be_found() -> None:
    sources = {"frozenllm.a": "from frozenllm.b import x", "frozenllm.b": "def f():\n    import frozenllm.a"}
    assert circle(graph(sources)) is None
    sources["frozenllm.b"] = "if True:\n    from frozenllm import a"
    assert set(circle(graph(sources)) or ()) == {"frozenllm.a", "frozenllm.b"}
    through = {"frozenllm.p": "import frozenllm.q", "frozenllm.p.m": "", "frozenllm.q": "import frozenllm.p.m"}
    assert circle(graph(through)) is not None  # importing frozenllm.p.m runs frozenllm.p


def test_arrows_point_one_way() -> None:
    """Core imports no domain, and no domain another, but that 3D scenes may use point clouds; inside functions too."""
    known = modules()
    for name, path in known.items():
        package = name.split(".")[1]
        allowed = {"core", package} | ({POINTCLOUD} if name.startswith(SCENES) else set())
        for target in imported(ast.parse(path.read_text()).body, known, late=True):
            if target.startswith("frozenllm."):
                assert target.split(".")[1] in allowed, f"{name} imports {target}"


def test_training_and_analysis_know_nothing_of_each_other() -> None:
    known = modules()
    for one, other in (("training", "analysis"), ("analysis", "training")):
        for name in (name for name in known if name.startswith(f"frozenllm.core.{one}")):
            targets = set(imported(ast.parse(known[name].read_text()).body, known, late=True))
            assert not {t for t in targets if t.startswith(f"frozenllm.core.{other}")}, name
