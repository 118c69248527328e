"""Import every module of a package: ``python tests/integration/import_all.py frozenllm.core [--alone]``.

With ``--alone`` as if nothing were installed but what the package requires.
A module that needs an extra may refuse, if its error names the extra to install.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys


def module_names(package: str) -> list[str]:
    """The package and all its modules, but for ``__main__`` ones, which run."""
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, prefix=f"{package}.", onerror=lambda name: None)
    return [package, *(info.name for info in found if not info.name.endswith("__main__"))]


def main() -> int:
    package = sys.argv[1]
    if "--alone" in sys.argv:
        from brought import Alone

        Alone(package.replace(".", "-")).install()
    failures = 0
    for name in module_names(package):
        try:
            importlib.import_module(name)
        except ImportError as error:
            names_extra = "pip install 'frozenllm-" in str(error)
            print(f"{name}: {'needs an extra' if names_extra else 'FAILED'}: {error}")
            failures += not names_extra
    print(f"{len(module_names(package))} modules, {failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(main())
