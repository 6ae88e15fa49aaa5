"""What a domain is: a kind of concept with a coarse word for it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from e4t.errors import ConfigError

_PHOTO_TEMPLATES = (
    "a photo of {}",
    "a close-up photo of {}",
    "a portrait of {}",
    "a picture of {}",
    "a cropped photo of {}",
    "a good photo of {}",
    "a bright photo of {}",
    "a rendition of {}",
)
_ART_TEMPLATES = (
    "art by {}",
    "a painting in the style of {}",
    "an artwork by {}",
    "a picture in the style of {}",
    "a rendering in the style of {}",
    "a work of art by {}",
)

_PEOPLE = ("face", "portrait", "person", "people", "human", "man", "woman", "child", "baby", "boy", "girl")


@dataclass(frozen=True)
class Domain:
    """A kind of concept that is pre-trained once.

    ``class_word`` must be a single token of the text encoder: its embedding is where every concept starts.
    ``templates`` are neutral training prompts with ``{}`` where the placeholder goes.
    """

    name: str
    class_word: str
    placeholder: str = "S*"
    templates: tuple[str, ...] = _PHOTO_TEMPLATES

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.class_word, self.placeholder, *self.templates)):
            raise ConfigError("name, class word, placeholder and templates of a domain must be text")
        if not self.placeholder.strip():
            raise ConfigError("the placeholder is empty; use a word no prompt has, such as 'S*'")
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ConfigError(f"every prompt template of domain '{self.name}' needs a {{}} for the placeholder")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates with the placeholder filled in."""
        return tuple(template.replace("{}", self.placeholder) for template in self.templates)

    @property
    def is_style(self) -> bool:
        """Whether its concepts are ways of drawing, which have no place of their own in a picture."""
        return self.class_word == "art" or self.templates == _ART_TEMPLATES

    @property
    def shows_people(self) -> bool:
        return self.class_word in _PEOPLE

    @property
    def example(self) -> str:
        """A prompt to try: of a style, a picture of something else; of all other concepts, a picture of them."""
        shown = "a cat in the snow in the style" if self.is_style else "a pencil sketch"
        return f"{shown} of {self.placeholder}"

    def captioned(self, caption: str) -> str:
        """A caption that names the concept: with the placeholder, by itself, for ``{}`` or for the class word.

        Where it has none of these, it comes after the first template.
        """
        if self.placeholder in caption:
            return caption
        if "{}" in caption:
            return caption.replace("{}", self.placeholder)
        class_word = rf"\b{re.escape(self.class_word)}\b"
        replaced, count = re.subn(class_word, lambda _: self.placeholder, caption, count=1, flags=re.I)
        return replaced if count else f"{self.prompts[0]}, {caption}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Domain:
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"a domain has no field called {min(unknown)[:60]!r}")
        return cls(**{**values, "templates": tuple(values["templates"])})

    @classmethod
    def named(cls, name: str) -> Domain:
        """A built-in domain, or a new one whose class word is its name."""
        return BUILT_IN.get(name) or cls(name, class_word=name)


BUILT_IN = {
    "face": Domain("face", class_word="face"),
    "cat": Domain("cat", class_word="cat"),
    "art": Domain("art", class_word="art", templates=_ART_TEMPLATES),
}
