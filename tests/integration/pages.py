"""Code blocks, commands and tables of the project's pages, for the tests of the documentation.

A comment in front of a block says what it takes beyond this project and a few seconds: ``<!-- needs: ... -->`` (it is
checked, but not run), or ``<!-- given: ... -->`` with the lines of Python that a reader would have written before.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```[ ]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (needs|given): (.*?) ?-->\s*\Z", re.DOTALL)
_ALIAS = re.compile(r"`(\w+)`[^`.]*? stands\s+for `([^`]+)`")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{3,}\b|[<>]")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file.
        line: Number of its first line.
        language: As written behind the fence.
        code: What it holds, without the indentation of the fence.
        needs: What it cannot be run without; empty if it can.
        given: Python that comes before it.
    """

    page: Path
    line: int
    language: str
    code: str
    needs: str
    given: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line for a shell, with the output that the page shows for it (empty where it shows none)."""

    where: str
    text: str
    output: str = ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found = page.read_text(), []
    for match in _FENCE.finditer(text):
        before, notes = text[: match.start()], {"needs": "", "given": ""}
        while comment := _COMMENT.search(before):
            notes[comment[1]] = comment[2].strip()
            before = before[: comment.start()]
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(page, line, match["language"], code, notes["needs"], notes["given"]))
    return found


def commands(page: Path) -> list[Command]:
    """The commands of a page: those of its shell blocks, and those between backticks in its text and tables."""
    text = page.read_text()
    found = [command for block in blocks(page) for command in _of_block(block)]
    aliases = {name: command for name, command in _ALIAS.findall(" ".join(text.split()))}
    starts = ("python ", "torchrun ", "frozenllm ", "make ", *(f"{name} " for name in aliases))
    for match in _SPAN.finditer(_FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)):
        span = match[1].replace("\\|", "|")
        if span.startswith(starts) and not _PLACEHOLDER.search(span):
            first, _, rest = span.partition(" ")
            where = f"{page.relative_to(ROOT)}: `{span}`"
            found.append(Command(where, f"{aliases.get(first, first)} {rest}"))
    return found


def _of_block(block: Block) -> list[Command]:
    if block.language not in ("bash", "console", "sh"):
        return []
    if block.language == "console" and re.search(r"^\$ ", block.code, re.MULTILINE):
        entries = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]
        pairs = [entry.partition("\n")[::2] for entry in entries]
    else:
        lines = re.sub(r"\\\n\s*", " ", block.code).splitlines()
        pairs = [(line, "") for line in lines]
    return [Command(str(block), line.strip(), output) for line, output in pairs if words(line)]


def words(line: str) -> list[str]:
    """What a shell makes of a line, without its comment."""
    return shlex.split(line, comments=True)


def table_rows(page: Path) -> list[tuple[str, ...]]:
    """The rows of all tables of a page, as tuples of cells."""
    text = _FENCE.sub("", page.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    cells = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
    return [row for row in cells if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
