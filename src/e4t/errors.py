"""Every error this package raises on purpose. All say in one sentence what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class E4TError(Exception):
    """Base of all errors of this package."""


class ConfigError(E4TError):
    """A setting has a value that cannot work."""


class UnfaithfulError(ConfigError):
    """An export would lose too much of a concept; ``table`` has a row of what is kept for each choice there is."""

    def __init__(self, message: str, table: Sequence[Any]) -> None:
        super().__init__(message)
        self.table = tuple(table)


class ImageError(E4TError):
    """A picture cannot be read or used."""


class PromptError(E4TError):
    """A prompt cannot be encoded."""


class PromptTooLongError(PromptError):
    """A prompt has more tokens than the text encoder takes, the placeholder's included."""


class OffsetsError(E4TError):
    """Weight offsets are used in a state that does not allow it: injected twice, fused into bfloat16, ..."""


class CheckpointError(E4TError):
    """A domain, concept or training folder is missing, broken or of another format version."""


class MismatchError(CheckpointError):
    """A concept belongs to another domain, or a domain to another base model."""


class DataError(E4TError):
    """A training folder holds no usable pictures."""


class TrainingError(E4TError):
    """A training cannot go on: its loss is no longer a number."""


def install_extra(name: str) -> str:
    """How an extra is installed, to end a refusal with: e4t is on no package index, so from where it lies."""
    return f"install the extra with pip install '.[{name}]' in the checkout of e4t"


def lacks(module: str, extra: str) -> ConfigError:
    """The refusal where a module is not installed that comes with an extra."""
    return ConfigError(f"this needs {module}: {install_extra(extra)}")


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says: on GPUs torch has a class for it, on CPUs words."""
    words = "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words
