"""Versions of the packages: ``python tools/release.py check | set | notes | tag | oldest``.

A package's version stands in its ``pyproject.toml``, in the first section of its changelog and in the tag of its
release (``frozenllm-vision2d-v0.2.0``); all three have to agree before anything is built.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPEN = "not yet released"

_VERSION = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
_SECTION = re.compile(r"^## (\S+?), (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TAG = re.compile(r"frozenllm-([a-z0-9]+)-v(.+)")


@dataclass(frozen=True)
class Release:
    """What a package's files say.

    Attributes:
        package: Its folder's name.
        version: Of ``pyproject.toml``.
        newest: Version of the changelog's first section.
        date: That section's date, or `OPEN`.
        notes: What stands in it.
    """

    package: str
    version: str
    newest: str
    date: str
    notes: str

    @property
    def tag(self) -> str:
        """The tag of this version's release."""
        return f"frozenllm-{self.package}-v{self.version}"


def packages(root: Path) -> list[str]:
    """Folders of packages."""
    return sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))


def read(root: Path, package: str) -> Release:
    """What the files of a package say.

    Raises:
        ValueError: There is no such package, or a file lacks its version.
    """
    folder = root / "packages" / package
    if not (folder / "pyproject.toml").is_file():
        raise ValueError(f"There is no package {package}; there are {', '.join(packages(root))}.")
    version = _VERSION.search((folder / "pyproject.toml").read_text())
    if version is None:
        raise ValueError(f'{folder / "pyproject.toml"} has no line version = "...".')
    changelog = (folder / "CHANGELOG.md").read_text()
    sections = list(_SECTION.finditer(changelog))
    if not sections:
        raise ValueError(f"{folder / 'CHANGELOG.md'} has no section ## VERSION, DATE.")
    end = sections[1].start() if len(sections) > 1 else len(changelog)
    return Release(package, version[1], *sections[0].groups(), changelog[sections[0].end() : end].strip())


def check(root: Path, package: str, tag: str | None = None) -> Release:
    """See that version, changelog and (where one is given) tag agree, and that siblings allow this version.

    Args:
        root: The repository.
        package: The package.
        tag: The release's tag: the changelog's section must then have a date.

    Raises:
        ValueError: Something differs; the sentence names both.
    """
    release = read(root, package)
    if not _NUMBER.fullmatch(release.version):
        raise ValueError(f"frozenllm-{package}: {release.version!r} is no version such as 0.2.0 or 0.2.0rc1.")
    if release.newest != release.version:
        raise ValueError(
            f"frozenllm-{package}: pyproject.toml has version {release.version}, the changelog begins with "
            f"{release.newest}."
        )
    if not release.notes:
        raise ValueError(f"frozenllm-{package}: the changelog says nothing about {release.version}.")
    if not (release.date == OPEN or _DATE.fullmatch(release.date)):
        raise ValueError(f"frozenllm-{package}: {release.date!r} in the changelog is neither a date nor {OPEN!r}.")
    if tag is not None and tag != release.tag:
        raise ValueError(f"The tag {tag} is not {release.tag}, which pyproject.toml asks for.")
    if tag is not None and release.date == OPEN:
        raise ValueError(f"frozenllm-{package}: {release.version} has no date in the changelog yet.")
    return release


def package_of(tag: str) -> str:
    """The package that a tag releases.

    Raises:
        ValueError: It is no tag of a release.
    """
    found = _TAG.fullmatch(tag.removeprefix("refs/tags/"))
    if found is None:
        raise ValueError(f"{tag!r} is no tag such as frozenllm-core-v0.2.0.")
    return found[1]


def oldest_core(root: Path, package: str) -> str:
    """The tag of the oldest core that a package allows.

    Raises:
        ValueError: It requires no core.
    """
    read(root, package)
    project = (root / "packages" / package / "pyproject.toml").read_text()
    found = re.search(r'"frozenllm-core(?:\[[\w,]+\])?>=([\d.]+),', project)
    if found is None:
        raise ValueError(f"frozenllm-{package} requires no frozenllm-core.")
    return "frozenllm-core-v" + ".".join([*found[1].split("."), "0", "0"][:3])


def set_version(root: Path, package: str, version: str, date: str | None = None) -> list[Path]:
    """Write a version into a package: a new section of the changelog, or a date for the open one.

    For core, the ranges of the domains that require it go along where a new minor version begins.

    Args:
        root: The repository.
        package: The package.
        version: The version.
        date: The day of the release, ``YYYY-MM-DD``; None leaves the section open.

    Returns:
        The files that were changed.

    Raises:
        ValueError: The version or the date is none, or the version is not newer.
    """
    if not _NUMBER.fullmatch(version):
        raise ValueError(f"{version!r} is no version such as 0.2.0 or 0.2.0rc1.")
    if date is not None and not _DATE.fullmatch(date):
        raise ValueError(f"{date!r} is no date such as 2026-11-22.")
    before = read(root, package)
    if _order(version) < _order(before.version):
        raise ValueError(f"frozenllm-{package}: {version} is older than {before.version}.")
    folder = root / "packages" / package
    heading = f"## {version}, {date or OPEN}"
    changelog = (folder / "CHANGELOG.md").read_text()
    if before.newest == version or before.date == OPEN:
        changelog = _SECTION.sub(heading, changelog, count=1)
    else:
        first = _SECTION.search(changelog)
        assert first is not None
        changelog = f"{changelog[: first.start()]}{heading}\n\n{changelog[first.start() :]}"
    texts = {folder / "CHANGELOG.md": changelog}
    project = (folder / "pyproject.toml").read_text()
    texts[folder / "pyproject.toml"] = _VERSION.sub(f'version = "{version}"', project, count=1)
    for sibling in packages(root):
        path = root / "packages" / sibling / "pyproject.toml"
        major, minor = version.split(".")[:2]
        wanted = rf"\g<1>>={major}.{minor},<{major}.{int(minor) + 1}"
        text = texts.get(path) or path.read_text()
        texts[path] = re.sub(rf"(frozenllm-{package}(?:\[[\w,]+\])?)>=[\d.]+,<[\d.]+", wanted, text)
    changed = [path for path, text in texts.items() if path.read_text() != text]
    for path in changed:
        path.write_text(texts[path])
    return changed


def _order(version: str) -> tuple[int, int, int, str]:
    """Sorts versions; a candidate comes before its release."""
    major, minor, rest = version.split(".")
    patch, kind = re.fullmatch(r"(\d+)(.*)", rest).groups()  # type: ignore[union-attr]
    return int(major), int(minor), int(patch), kind or "z"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checks = commands.add_parser("check", help="compare version, changelog and tag; without a tag, of all packages")
    checks.add_argument("--tag", help="such as frozenllm-core-v0.2.0: only this package, and its section has a date")
    sets = commands.add_parser("set", help="write a version")
    sets.add_argument("package", help="such as core")
    sets.add_argument("version", help="such as 0.2.0")
    sets.add_argument("--date", help="the day of the release, YYYY-MM-DD (default: the section stays open)")
    others = {
        "notes": "print what a release's changelog says",
        "tag": "print a package's tag",
        "oldest": "print the tag of the oldest core that a package allows",
    }
    for name, text in others.items():
        commands.add_parser(name, help=text).add_argument("package", help="such as core, or a tag")
    return parser


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line; returns the exit code, 1 where something does not agree."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "check":
            names = [package_of(args.tag)] if args.tag else packages(root)
            tag = args.tag and args.tag.removeprefix("refs/tags/")
            for release in [check(root, name, tag) for name in names]:
                print(f"{release.tag}: {release.date}")
        elif args.command == "set":
            for path in set_version(root, args.package, args.version, args.date):
                print(path.relative_to(root))
        else:
            name = package_of(args.package) if "-v" in args.package else args.package
            release = read(root, name)
            told = {
                "notes": lambda: release.notes,
                "tag": lambda: release.tag,
                "oldest": lambda: oldest_core(root, name),
            }
            print(told[args.command]())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
