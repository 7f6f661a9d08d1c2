"""A distribution by its class path: what a name may import and call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributions import Laplace

from noisin_pyro.training.class_path import build_distribution
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.folder import load_run


def named(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


def test_a_distribution_of_the_known_packages_is_built() -> None:
    built = build_distribution(named("torch.distributions.Laplace", loc=0.0, scale=2.0))
    assert isinstance(built, Laplace) and built.scale == 2.0


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


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        (named("os.system", command="true"), "must lie in torch.distributions, .* got 'os.system'"),
        (named("torch.distributionsx.Normal"), "must lie in torch.distributions"),
        (named("torch.load", f="x"), "must lie in torch.distributions"),
        (named("torch.distributions.utils.torch.os.system"), "cannot be built"),
        (named("torch.distributions.constraints.real"), "is no distribution"),
        (named("noisin_pyro.cli.main"), "is no distribution"),
        (named("torch.distributions.Distribution"), "is abstract"),
        (named("torch.distributions.ExponentialFamily"), "is abstract"),
        (named("pyro.distributions.TorchDistribution"), "is abstract"),
        (named("torch.distributions.Normal", loc="0", scale=1.0), "init_args must be numbers"),
        (named("torch.distributions.Normal", scale=-1.0, loc=0.0), "cannot be built"),
        (named("..x"), "names no distribution"),
        ({"class_path": "a.b", "args": {}}, "names no distribution"),
        ({"class_path": 3}, "names no distribution"),
        ({}, "names no distribution"),
    ],
)
def test_refusals(noise: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_distribution(noise)


def test_a_configuration_is_refused_without_torch() -> None:
    with pytest.raises(ValueError, match="class_path must lie in"):
        TrainConfig(noise="os.system")
