"""Reads records, each checked against the JSON schema in ``record.yaml``."""

from __future__ import annotations

import json
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from noisin_pyro.training.infinities import with_infinities
from noisin_pyro.training.safe_yaml import load_yaml

__all__ = ["read_record"]

_REMEDY = "move it away to run it again"


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a file, None if there is no file.

    A perplexity that is null in the file, because it exceeds the largest float, is infinite.

    Raises:
        ValueError: if the file holds something else; the sentence names the file and the entry.
    """
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a folder of this name, or no right to read it
        raise ValueError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from None


@lru_cache(maxsize=10_000)
def _read(path: Path, changed: int, size: int) -> dict[str, Any]:
    """Reads a file; the result is cached until its time or size changes."""
    try:
        record = json.loads(
            path.read_bytes(),
            parse_constant=_refuse,
            parse_int=_whole,
            parse_float=_finite,
            object_hook=with_infinities,
        )
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path} is no record of a run, it is not JSON or has a number beyond all bounds; "
            f"{_REMEDY}"
        ) from None
    known = _validator().schema["properties"]["schema"]["const"]
    version = record.get("schema") if isinstance(record, dict) else None
    if isinstance(version, int) and version > known:
        raise ValueError(
            f"{path} is a record of version {version}, from a newer noisin_pyro, and this one "
            f"reads version {known}; install the newer one, or {_REMEDY}"
        )
    error = best_match(_validator().iter_errors(record))
    if error is not None:
        entry = error.json_path.removeprefix("$.")
        reason = error.message if len(error.message) < 100 else "it has another type"
        raise ValueError(f"{path} is no record of a run, {entry}: {reason}; {_REMEDY}")
    epochs, best = len(record["history"]), record["best_epoch"]
    if not min(1, epochs) <= best <= epochs:
        raise ValueError(f"{path} has best_epoch {best} of {epochs} in its history; {_REMEDY}")
    if record["finished"] and not (record["final"] or record["diverged"]):
        raise ValueError(f"{path} is finished, but has neither final nor diverged; {_REMEDY}")
    for row in record["history"]:
        if len(row["spread"]) != record["config"]["layers"]:
            raise ValueError(f"{path} has no spread for each of its layers; {_REMEDY}")
    whole: dict[str, Any] = record
    return whole


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _whole(digits: str) -> int:
    """A whole number of at most 63 bits, which is finite as a float."""
    number = int(digits)
    if abs(number) >= 2**63:
        raise ValueError(f"{digits} is too large")
    return number


def _finite(digits: str) -> float:
    """A number that is no infinity, as 1e400 would be."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large")
    return number


@cache
def _validator() -> Any:
    return Draft202012Validator(load_yaml(Path(__file__).with_name("record.yaml")))
