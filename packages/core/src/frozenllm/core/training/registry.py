"""The registry scope ``frozenllm``: what a config may name under ``type``.

Every registry is a child of mmengine's root registry of the same kind. A plain name is looked up here first and then in
mmengine's own; ``mmdet3d.VoteNet`` reaches another project's scope.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from mmengine import registry as root
from mmengine.registry import build_from_cfg

SCOPE = "frozenllm"


class Registry(root.Registry):
    """mmengine's registry, except that registering the same object twice is no error.

    A module that runs as ``__main__`` and is imported again under its own name registers everything twice.
    """

    def _register_module(
        self, module: Callable[..., Any], module_name: str | list[str] | None = None, force: bool = False
    ) -> None:
        names = [module_name] if isinstance(module_name, str) else module_name or [module.__name__]
        for name in names:
            known = self._module_dict.get(name)
            if known is not None and not force and _same(known, module):
                continue
            if known is not None and not force:
                raise ValueError(
                    f"The {self.name} name {name!r} is taken by {known.__module__}.{known.__qualname__}; "
                    f"{module.__module__}.{module.__qualname__} needs another one."
                )
            super()._register_module(module, module_name=name, force=force)


def mistake_in(error: BaseException) -> str | None:
    """What an error of a registry's ``build`` says of the config it was given; None for an error of another kind.

    That is a type that is not registered, or an argument that the type does not take.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or root.__name__.partition(".")[0] not in {name.partition(".")[0] for name in frames}:
        return None
    if isinstance(error, KeyError) and "registry" in str(error):  # mmengine's message goes on for several lines
        return f"{str(error.args[0]).split('. ')[0]}: check the type, and the config's imports."
    in_the_call = frames[-1] == build_from_cfg.__module__  # where arguments are missing, or too many
    if isinstance(error, TypeError) and (in_the_call or "unexpected keyword argument" in str(error)):
        said = str(error).replace(".__init__()", "").replace("()", "")
        return f"{said}: check the keys beside its type in the config."
    return None


def _same(a: Callable[..., Any], b: Callable[..., Any]) -> bool:
    # A module that runs as `__main__` and its import hold two objects for one definition.
    return a is b or (a.__qualname__ == b.__qualname__ and "__main__" in (a.__module__, b.__module__))


def _child(parent: root.Registry) -> Registry:
    return Registry(parent.name, parent=parent, scope=SCOPE)


MODELS = _child(root.MODELS)
"""Models and tasks: classes or functions that return a module."""
DATASETS = _child(root.DATASETS)
"""Map-style data sets."""
TRANSFORMS = _child(root.TRANSFORMS)
"""Batch transforms: ``(inputs, targets) -> (inputs, targets)``."""
METRICS = _child(root.METRICS)
"""Metrics (`frozenllm.core.training.Metric`)."""
FUNCTIONS = _child(root.FUNCTIONS)
"""Collate functions."""
HOOKS = _child(root.HOOKS)
LOOPS = _child(root.LOOPS)
RUNNERS = _child(root.RUNNERS)
DATA_SAMPLERS = _child(root.DATA_SAMPLERS)
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS)
OPTIMIZERS = _child(root.OPTIMIZERS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS)

# mmengine imports `<scope>.registry` whenever it resolves a name, and warns where there is no such module.
sys.modules.setdefault(f"{SCOPE}.registry", sys.modules[__name__])
