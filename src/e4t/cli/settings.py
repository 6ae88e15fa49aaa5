"""Settings from files and from ``--set NAME=VALUE``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError

Config = TypeVar("Config", PretrainConfig, PersonalizeConfig, GenerateConfig)


def options_of(command: Any, config: type[Any]) -> dict[str, Any]:
    """A command's options that have the names of settings; None where they were not given."""
    return {one.name: getattr(command, one.name) for one in fields(config) if hasattr(command, one.name)}


def overridden(config: Config, pairs: Sequence[str], given: Mapping[str, Any]) -> Config:
    """``config`` with ``NAME=VALUE`` pairs, and on top of them those of ``given`` that are not None.

    All of them at once, because some settings are allowed only together, whatever order they are given in.
    """
    return config.updated(
        set_values(config, pairs) | {name: value for name, value in given.items() if value is not None}
    )


def asked_for(name: str, config: Any, pairs: Sequence[str], given: Mapping[str, Any]) -> Any:
    """A setting as ``NAME=VALUE`` pairs or, on top of them, ``given`` options have it; None where neither does."""
    option = given.get(name)
    return set_values(config, pairs).get(name) if option is None else option


def set_values(config: Any, pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as a dictionary for ``config.updated``, of dictionaries where a name has dots."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair} has no value; write --set {pair}=VALUE")
        _put(values, config, name.strip().split("."), text.strip())
    return values


def _put(values: dict[str, Any], config: Any, names: Sequence[str], text: str) -> None:
    name, *deeper = names
    current = getattr(config, name, None)
    if deeper:
        if not hasattr(current, "updated"):
            raise ConfigError(f"{name!r} is no group of settings of {type(config).__name__}")
        _put(values.setdefault(name, {}), current, deeper, text)
        return
    if hasattr(current, "updated"):
        raise ConfigError(f"{name!r} is a group of settings; write --set {name}.NAME={text}")
    values[name] = _value(text, get_type_hints(type(config)).get(name, str))


_SWITCHES = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def _value(text: str, hint: Any) -> Any:
    """Text as a type hint says. What does not read as one stays text, for the configuration to understand or refuse."""
    if isinstance(hint, UnionType):
        if type(None) in get_args(hint) and text.lower() in ("none", "null"):
            return None
        values = (_value(text, kind) for kind in get_args(hint) if kind is not type(None))
        return next((value for value in values if not isinstance(value, str)), _unquoted(text))
    if get_origin(hint) is tuple:
        return _values(text, get_args(hint)[0])
    if hint is bool:
        return _SWITCHES.get(text.lower(), text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    return _unquoted(text)


def _values(text: str, hint: Any) -> tuple[Any, ...]:
    """``0.8,1.0``, or as JSON and Python write it: ``["to_q", "to_k"]``."""
    inner = text[1:-1].strip() if text[:1] + text[-1:] in ("[]", "()") else text
    parts = inner.removesuffix(",").split(",") if inner or inner == text else []
    return tuple(_value(part.strip(), hint) for part in parts)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def read_sections(path: Path | None) -> dict[str, Any]:
    """The sections of a settings file, each checked; nothing without a file."""
    if path is None:
        return {}
    if not path.exists():
        raise ConfigError(f"there is no settings file '{path}'")
    from e4t.sources import read_json

    sections = read_json(path)
    known: dict[str, type[PretrainConfig] | type[PersonalizeConfig] | type[GenerateConfig]]
    known = {"pretrain": PretrainConfig, "personalize": PersonalizeConfig, "generate": GenerateConfig}
    if not set(sections) <= set(known):
        raise ConfigError(f"'{path}' must hold sections named {', '.join(known)}, and nothing else")
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"section {name!r} of '{path}' must hold names and values")
        known[name].from_dict(section)
    return sections
