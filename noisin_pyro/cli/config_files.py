"""Reads the YAML files of ``--config``."""

from __future__ import annotations

from typing import Any, get_type_hints

from noisin_pyro.cli.commands import COMMANDS

__all__ = ["read_config_files"]


def read_config_files(name: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Reads the files of ``--config``.

    Args:
        name: the command, ``train`` or ``tune``.
        arguments: the typed arguments.

    Returns:
        The options in the files, where a later file overrides an earlier one, and the arguments
        without ``--config``.

    Raises:
        ValueError: if a file is no configuration.
        ArgumentError: if a ``--config`` names no file.
    """
    from argparse import ArgumentParser
    from pathlib import Path

    from noisin_pyro.training.config import check_file, check_types, is_run_folder
    from noisin_pyro.training.former_names import renamed
    from noisin_pyro.training.safe_yaml import load_yaml

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    files, rest = parser.parse_known_args(arguments)
    hints = get_type_hints(COMMANDS[name])  # of tune those of trials and storage too
    own = {key: hints[key] for key in hints.keys() - {"config", "fixed", "return"}}
    given: dict[str, Any] = {}
    for path in map(Path, files.config):
        values = renamed(load_yaml(path))
        if values.get("precision") == 32:  # YAML reads 32 as a number
            values["precision"] = "32"
        of_tune = {key: values.pop(key) for key in own.keys() & values.keys()}
        try:
            check_types(of_tune, own)
            check_file(values)
        except ValueError as error:
            raise ValueError(f"{path} is no configuration: {error}") from None
        if name == "train" and is_run_folder(path.parent) and path.name == "config.yaml":
            values["out"] = str(path.parent)  # wherever the run folder lies now
        given.update(values | of_tune)
    return given, rest
