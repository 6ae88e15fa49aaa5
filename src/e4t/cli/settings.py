"""Settings from files and from ``--set NAME=VALUE``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError

Config = TypeVar("Config", PretrainConfig, PersonalizeConfig, GenerateConfig)


def overridden(config: Config, pairs: Sequence[str], given: Mapping[str, Any]) -> Config:
    """``config`` with ``NAME=VALUE`` pairs, and then with those of ``given`` that are not None."""
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair} has no value; write --set {pair}=VALUE")
        config = config.updated(_nested(config, name.strip().split("."), text.strip()))
    return config.updated({name: value for name, value in given.items() if value is not None})


def _nested(config: Any, names: Sequence[str], text: str) -> dict[str, Any]:
    current = getattr(config, names[0], None)
    if len(names) > 1:
        if not hasattr(current, "updated"):
            raise ConfigError(f"{names[0]!r} is no group of settings of {type(config).__name__}")
        return {names[0]: _nested(current, names[1:], text)}
    if hasattr(current, "updated"):
        raise ConfigError(f"{names[0]!r} is a group of settings; write --set {names[0]}.NAME={text}")
    return {names[0]: _value(names[0], text, current)}


def _value(name: str, text: str, current: Any) -> Any:
    """Text as the type of the value it replaces."""
    try:
        value = None if text.lower() == "none" else json.loads(text)
    except json.JSONDecodeError:
        value = text
    if isinstance(current, tuple):
        return tuple(part.strip() for part in text.split(",")) if not isinstance(value, list) else tuple(value)
    allowed: tuple[type, ...] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}.get(type(current), ())
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise ConfigError(f"{name} is {text!r}; it must be of the kind of {current!r}")
    return value


def read_sections(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no settings file '{path}'") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not JSON: {error}") from error
    known: dict[str, type[PretrainConfig] | type[PersonalizeConfig] | type[GenerateConfig]]
    known = {"pretrain": PretrainConfig, "personalize": PersonalizeConfig, "generate": GenerateConfig}
    if not isinstance(sections, dict) or not set(sections) <= set(known):
        raise ConfigError(f"'{path}' must hold sections named {', '.join(known)}, and nothing else")
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"section {name!r} of '{path}' must hold names and values")
        known[name].from_dict(section)
    return sections
