"""What mkdocs does beyond ``mkdocs.yml``: the packages' own pages become pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Put each package's README and changelog under ``packages/``, with links that fit there."""
    for folder in sorted((ROOT / "packages").iterdir()):
        for name, target in (("README.md", f"{folder.name}.md"), ("CHANGELOG.md", f"{folder.name}_changes.md")):
            text = (folder / name).read_text()
            text = re.sub(r"\]\(\.\./\.\./docs/([\w./#-]+)\)", r"](../\1)", text)
            files.append(File.generated(config, f"packages/{target}", content=text))
    return files
