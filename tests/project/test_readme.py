"""README tells the truth: its code runs, its options exist, its figures are the records'."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "howto" / "cli.md").read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"] > 0


def test_it_is_short() -> None:
    """At most 900 words, tables and code among them."""
    assert len([word for word in README.split() if re.search(r"\w", word)]) <= 900


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert len(links) > 15
    for link in links:
        path, _, heading = link.partition("#")
        if not path.startswith("https://"):
            assert (ROOT / path).exists(), link
            text = (ROOT / path).read_text(encoding="utf-8") if heading else ""
            titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
            assert not heading or heading in {t.lower().replace(" ", "-") for t in titles}, link


def test_the_options_exist() -> None:
    text = README + COMMANDS
    used = set(re.findall(r"^noisin train .*", text, re.MULTILINE))
    known = {field.name for field in fields(TrainConfig)} | {"config", "print_config", "help"}
    assert used
    for option in re.findall(r"noisin train[^\n`]*", text):
        assert set(re.findall(r"--(\w+)", option)) <= known, option


def test_the_layout_names_every_module() -> None:
    layout = CONTRIBUTING.split("## Where things are")[1].split("## ")[0]
    for path in (ROOT / "noisin_pyro").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in layout
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in layout


def test_the_figures_are_the_records() -> None:
    command = [sys.executable, str(ROOT / "results" / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_two_commands_pin_what_they_install(name: str) -> None:
    block = re.search(rf"<!-- {name} command -->\n```\n(.*?)\n```\n<!-- end -->", README)
    assert block and block[1].startswith("pip install -c constraints.txt ")
