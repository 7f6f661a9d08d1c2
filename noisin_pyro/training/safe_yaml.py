"""Reads YAML that may come from a stranger: no tags, aliases or repeated keys, limited in size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

try:
    import yaml
except ImportError as error:
    raise ImportError('TrainConfig needs PyYAML; run pip install "noisin-pyro[lm]"') from error

__all__ = ["load_yaml", "parse_yaml"]

MOST_BYTES = 100_000
MOST_LEVELS = 20

_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without dates, with text keys that occur once; 1e-3 is a number.

    YAML 1.1, which PyYAML reads, requires a point in a float, so ``learning_rate: 1e-3`` would be
    text.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("timestamp", "float", "merge", "value")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Constructs a mapping after checking that its keys are text and occur once."""
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                problem = f"a key must be text, got {name!r}"
            elif name in seen:
                problem = f"the key {name!r} is repeated"
            else:
                seen.add(name)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
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
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"YAML cannot be read{line}: {error.problem}") from None
    except yaml.YAMLError:  # a character that YAML does not allow
        raise ValueError("YAML must be printable text, got a control character") from None
    except (ValueError, OverflowError):  # such as 0x_, which PyYAML takes for a number
        raise ValueError("YAML has a number or a character that cannot be read") from None


def _check_events(text: str) -> None:
    """Checks levels, aliases and tags without building values, which would need recursion."""
    levels = 0
    for event in yaml.parse(text, _Loader):
        levels += isinstance(event, yaml.CollectionStartEvent)
        levels -= isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if levels > MOST_LEVELS:
            problem = f"there must be at most {MOST_LEVELS} levels"
        elif isinstance(event, yaml.AliasEvent):
            problem = f"there must be no alias, got *{event.anchor}"
        elif tag := getattr(event, "tag", None):
            problem = f"there must be no tag, got {tag}"
        elif isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # raises an error at half of a surrogate pair, "\\ud800"
        if problem:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


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
    if not isinstance(values, dict):
        found = "nothing" if values is None else repr(str(values)[:60])
        raise ValueError(
            f"{path} must hold options by their names, such as hidden_size: 128, got {found}"
        )
    return values
