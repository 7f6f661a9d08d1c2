"""The files of ``--config``."""

from __future__ import annotations

from typing import Any

__all__ = ["read_config_files"]


def read_config_files(name: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options in the files of ``--config``, and the arguments without them."""
    from argparse import ArgumentParser
    from pathlib import Path

    from noisin_pyro.training.config import check_file, is_run_folder
    from noisin_pyro.training.safe_yaml import load_yaml

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    files, rest = parser.parse_known_args(arguments)
    given: dict[str, Any] = {}
    for path in map(Path, files.config):
        values = load_yaml(path)
        values.update({"precision": "32"} if values.get("precision") == 32 else {})
        try:
            check_file(values)
        except ValueError as error:
            raise ValueError(f"{path} is no configuration: {error}") from None
        if name == "train" and is_run_folder(path.parent) and path.name == "config.yaml":
            values["out"] = str(path.parent)  # also where the folder has been moved
        given.update(values)
    return given, rest
