"""What the pages say is true: their snippets run, their commands are accepted, their figures agree."""

from __future__ import annotations

import re
import shutil

import pytest
import shell
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict
from pages import PAGES, ROOT, blocks, commands, table_rows, words

from frozenllm.core import cli
from frozenllm.core.training.composition import VERSION_BASE, resolve, with_recipe

QUICK = ("frozenllm families", "frozenllm inspect bundled", "frozenllm extract bundled --layers 4 5 -o llm.safetensors")
"""Commands that are run, and whose output on a page is compared with theirs."""


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module", autouse=True)
def config_files_are_read_once():
    """Hydra reads dozens of files for every config, with a slow reader; they do not change here."""
    read, known = ImportlibResourcesConfigSource.load_config, {}

    def load(self, config_path):
        key = (self.path, config_path)
        if key not in known:
            known[key] = read(self, config_path)
        found = known[key]
        return type(found)(**{**found.__dict__, "config": found.config.copy()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImportlibResourcesConfigSource, "load_config", load)
        yield


@pytest.fixture(scope="module")
def composed():
    """Composes a command's config, each combination once; sweeps with the first and the last of their values."""
    seen = set()

    def compose_once(package, config, arguments):
        arguments = [word for word in arguments if word not in ("-m", "--multirun", "--help")]
        if "--cfg" in arguments:
            del arguments[arguments.index("--cfg") : arguments.index("--cfg") + 2]
        parsed = OverridesParser.create().parse_overrides(arguments)
        for choice in (0, -1):
            overrides = []
            for override, text in zip(parsed, arguments, strict=True):
                if override.is_sweep_override():
                    text = f"{override.get_key_element()}={list(override.sweep_string_iterator())[choice]}"
                overrides.append(text)
            key = (package, config, *sorted(overrides))
            if key not in seen:
                seen.add(key)
                GlobalHydra.instance().clear()
                with initialize_config_module(package, version_base=VERSION_BASE):
                    cfg = compose(config, overrides=overrides, return_hydra_config=True)
                recipe = cfg.hydra.runtime.choices.get("recipe")
                with open_dict(cfg):
                    del cfg["hydra"]
                resolve(with_recipe(cfg, recipe))

    return compose_once


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_snippets_run(page, tmp_path, monkeypatch):
    """Those of a page one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what needs a network says so on the page
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.language != "python":
            continue
        code = compile("\n" * (block.line - 1) + block.code, block.page, "exec")
        if not block.needs:
            exec(block.given, names)
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_accepted(page, composed):
    wrong = []
    for command in commands(page):
        try:
            shell.check(command.text, composed)
        except Exception as error:
            wrong.append(f"{command.where}: {command.text}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_shown_output_is_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = [command for page in PAGES for command in commands(page) if command.output.strip()]
    ran = 0
    for command in shown:
        if command.text in QUICK:
            assert cli.main(words(command.text)[1:]) == 0
            assert capsys.readouterr().out.strip() == command.output.strip(), f"{command.where}: {command.text}"
            ran += 1
    assert ran >= 3


def test_collected_figures_are_those_of_their_pages():
    """The page of all measurements repeats the tables of the others, and adds none of its own."""
    collected = ROOT / "docs/performance.md"
    others = {row for page in PAGES if page != collected for row in table_rows(page)}
    rows = table_rows(collected)
    assert len(rows) > 30
    strangers = [row for row in rows if row not in others]
    assert not strangers, f"performance.md has rows that no other page has: {strangers[:5]}"


def test_every_page_is_linked_from_the_readme_or_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        path = str(page.relative_to(ROOT / "docs"))
        assert re.search(rf"(?<![\w/]){re.escape(path)}$", navigation, re.MULTILINE), f"{path} is not in mkdocs.yml"


def test_make_help_names_the_targets():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()
    for target in set(targets) - {"help", "clean"}:
        assert re.search(rf"^# make {target}\b", text, re.MULTILINE), f"make help does not tell of {target}"
    assert shutil.which("make")
