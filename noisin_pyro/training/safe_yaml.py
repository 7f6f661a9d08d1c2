"""YAML from strangers: values only, each key once, nothing that grows when it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["load_yaml", "parse_yaml"]

MOST_BYTES = 100_000
MOST_LEVELS = 20

_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without repeated keys and without dates; 1e-3 is a number.

    YAML 1.1, which PyYAML reads, asks for a point in every float: ``learning_rate: 1e-3`` would be
    text.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, (dict, list)):
                raise yaml.MarkedYAMLError(problem=f"a list or a mapping is no key, got {key!r}")
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """Values, lists and mappings from YAML.

    Raises:
        ValueError: if it is not YAML, or too long, nested too deeply, with an alias, a tag or a
            repeated key; the sentence names the line.

    Example:
        >>> parse_yaml("{spread: [0.5, 1e-3], noise: none}")
        {'spread': [0.5, 0.001], 'noise': 'none'}
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"YAML must have at most {MOST_BYTES:,} characters, got {len(text):,}")
    levels = 0
    try:
        for event in yaml.parse(text, _Loader):  # it yields one event at a time, without recursion
            if isinstance(event, (yaml.CollectionStartEvent, yaml.CollectionEndEvent)):
                levels += 1 if isinstance(event, yaml.CollectionStartEvent) else -1
            if levels > MOST_LEVELS:
                raise ValueError(f"YAML must have at most {MOST_LEVELS} levels, got more")
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1
                raise ValueError(f"YAML must have no alias, got *{event.anchor} in line {line}")
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"it is no YAML that can be read{where} ({problem})") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: if the file is missing, not UTF-8, or holds something else; the sentence names
            the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * MOST_BYTES)
        values = parse_yaml(data.decode())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give another file") from None
    except ValueError as error:
        raise ValueError(f"{path} is no configuration: {error}") from None
    if not (isinstance(values, dict) and all(isinstance(key, str) for key in values)):
        raise ValueError(
            f"{path} must hold options by their names, such as hidden_size: 128, got "
            f"{str(values)[:60]!r}"
        )
    return values
