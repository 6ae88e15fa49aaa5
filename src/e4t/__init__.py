"""Encoder-based domain tuning: one image becomes a word of a text-to-image model, in a few tuning steps.

Names are imported on first use, so that ``import e4t`` costs milliseconds and does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e4t.backbone import Backbone as Backbone
    from e4t.checkpoint import Concept as Concept
    from e4t.checkpoint import TrainedDomain as TrainedDomain
    from e4t.config import GenerateConfig as GenerateConfig
    from e4t.config import PersonalizeConfig as PersonalizeConfig
    from e4t.config import PretrainConfig as PretrainConfig
    from e4t.domain import Domain as Domain
    from e4t.errors import E4TError as E4TError
    from e4t.manifest import personalize_many as personalize_many
    from e4t.manifest import read_entries as read_entries
    from e4t.pipeline import E4TPipeline as E4TPipeline

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "e4t.backbone",
    "Concept": "e4t.checkpoint",
    "Domain": "e4t.domain",
    "E4TError": "e4t.errors",
    "E4TPipeline": "e4t.pipeline",
    "GenerateConfig": "e4t.config",
    "PersonalizeConfig": "e4t.config",
    "PretrainConfig": "e4t.config",
    "TrainedDomain": "e4t.checkpoint",
    "personalize_many": "e4t.manifest",
    "read_entries": "e4t.manifest",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'e4t' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
