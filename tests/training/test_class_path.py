"""A run folder imports nothing that its noise names, unless it is trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from noisin_pyro.noise.class_path import build_distribution
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.folder import load_run


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when the module ``hostile`` is imported."""
    path = tmp_path / "imported"
    code = f"""
import pathlib, torch
pathlib.Path({str(path)!r}).touch()
class Noise(torch.distributions.Normal):
    def __init__(self):
        super().__init__(0.0, 1.0)
"""
    (tmp_path / "hostile.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("hostile", None)
    return path


def test_a_run_folder_imports_nothing_unless_it_is_trusted(marker: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("vocabulary.txt", "model.safetensors"):
        (run / name).write_text("")
    (run / "config.yaml").write_text("noise: {class_path: hostile.Noise}")
    with pytest.raises(ValueError, match=r"got 'hostile.Noise'; .* add --trust_code true"):
        load_run(run)
    (run / "config.yaml").write_text("noise: {class_path: hostile.Noise}\ntrust_code: true")
    with pytest.raises(ValueError, match="trust_code stands on the command line, never in a file"):
        load_run(run)
    assert not marker.exists()
    build_distribution({"class_path": "hostile.Noise"}, trust_code=True)
    assert marker.exists()


def test_a_configuration_is_refused_without_torch() -> None:
    with pytest.raises(ValueError, match="class_path must lie in"):
        TrainConfig(noise="os.system")
