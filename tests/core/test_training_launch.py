"""Sweeps through Slurm and Ray: the launchers' settings, and runs through the one that needs no cluster."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from processes import call
from tinydomain.train import CONFIG

from frozenllm.core.training import compose_config
from frozenllm.core.training.composition import VERSION_BASE

# The launchers' own keys, as of hydra-submitit-launcher 1.2.0 and hydra-ray-launcher 1.2.2: in their place where they
# are not installed. A key that they do not have is an error when a config is composed.
SUBMITIT = """
    submitit_folder timeout_min cpus_per_task gpus_per_node tasks_per_node mem_gb nodes name stderr_to_stdout partition
    qos comment constraint exclude gres cpus_per_gpu gpus_per_task mem_per_gpu mem_per_cpu account signal_delay_s
    max_num_timeout additional_parameters array_parallelism setup
"""
PLUGINS = {"submitit_slurm": "hydra_plugins.hydra_submitit_launcher", "ray": "hydra_plugins.hydra_ray_launcher"}


def _installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:
        return False


@dataclasses.dataclass
class _RayConf:
    init: dict[str, Any] = dataclasses.field(default_factory=lambda: {"address": None})
    remote: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Ray:
    _target_: str = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
    ray: _RayConf = dataclasses.field(default_factory=_RayConf)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both launchers' configs are known to Hydra."""
    Plugins.instance()  # registers those that are installed
    store = ConfigStore.instance()
    monkeypatch.setitem(store.repo, "hydra", {**store.repo.get("hydra", {})})
    group = dict(store.repo["hydra"].get("launcher", {}))
    monkeypatch.setitem(store.repo["hydra"], "launcher", group)
    if not _installed(PLUGINS["submitit_slurm"]):
        slurm = dataclasses.make_dataclass("Slurm", [(key, Any, None) for key in SUBMITIT.split()])
        store.store(group="hydra/launcher", name="submitit_slurm", node=slurm())
    if not _installed(PLUGINS["ray"]):
        store.store(group="hydra/launcher", name="ray", node=_Ray())


def _launcher(*overrides: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG, version_base=VERSION_BASE):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    return cfg.hydra.launcher


def test_slurm_settings_are_keys_of_the_launcher(launchers: None) -> None:
    launcher = _launcher("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    assert set(launcher) - {"_target_"} == set(SUBMITIT.split())
    assert (launcher.partition, launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == ("gpu", 1, 1, 1)
    assert launcher.timeout_min == 1440


def test_ray_settings_are_keys_of_the_launcher(launchers: None) -> None:
    launcher = _launcher("hydra/launcher=ray_gpu", "hydra.launcher.ray.init.address=auto")
    assert OmegaConf.to_container(launcher.ray) == {
        "init": {"address": "auto"},
        "remote": {"num_gpus": 1, "num_cpus": 8},
    }


@pytest.mark.parametrize(
    ("choice", "extra", "plugin"), [("slurm", "slurm", "submitit_slurm"), ("ray_gpu", "ray", "ray")]
)
def test_a_missing_launcher_names_its_extra(choice: str, extra: str, plugin: str) -> None:
    if _installed(PLUGINS[plugin]):
        pytest.skip(f"the extra [{extra}] is installed")
    with pytest.raises(ValueError, match=rf"needs the extra \[{extra}\]: pip install 'frozenllm-core\[{extra}\]'"):
        compose_config(CONFIG, [f"hydra/launcher={choice}"])


@pytest.mark.slow  # processes of their own, which the launcher looks after every few seconds
def test_a_sweep_runs_as_jobs(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra [slurm]")
    sweep = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2", "optim.lr=1e-3,2e-3", "name=rates"]
    short = [f"runs={tmp_path}", "runtime.stop_after=1", "runtime.plots=false"]
    done = call([sys.executable, "-m", "tinydomain.train", *sweep, *short], tmp_path, PYTHONPATH=":".join(sys.path))
    assert done.returncode == 0, done.stderr
    runs = sorted(path.parent.name for path in (tmp_path / "tiny" / "rates").glob("*/summary.json"))
    assert runs == ["optim.lr=0.001", "optim.lr=0.002"]
    assert (tmp_path / "sweeps" / ".submitit").is_dir()
