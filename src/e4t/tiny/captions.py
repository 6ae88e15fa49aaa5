"""Names for individuals, captions for pictures, and the stream of training pictures.

About 2,000 training faces, 300 cats and 300 artists have invented names, which gives the small model what celebrities
give Stable Diffusion: a space of individuals that words can point into. Everybody else is described by attributes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from e4t.tiny.accessories import ACCESSORIES
from e4t.tiny.canvas import Parameter
from e4t.tiny.scenes import SCENES
from e4t.tiny.styles import STYLES
from e4t.tiny.transforms import TRANSFORMS
from e4t.tiny.world import (
    EXPRESSIONS,
    PARAMETERS,
    Identity,
    Picture,
    identity,
    is_visible,
    random_light,
    random_pose,
    stream,
    words,
)

T = TypeVar("T")

NAMED = {"face": 2000, "cat": 300, "art": 300}
"""How many training individuals of each kind have a name: the first ones of the namespace "train"."""

TRAINING_KINDS: tuple[str, ...] = ("face", "cat")
"""Whose portraits the training stream holds; art styles are among its styles in any case."""

EXPRESSION_PHRASES: dict[str, tuple[str, ...]] = {
    "neutral": ("",),
    "smiling": ("smiling", "with a smile"),
    "laughing": ("laughing", "with a big laugh"),
    "sad": ("looking sad", "with a sad look"),
    "angry": ("looking angry", "with an angry look"),
    "surprised": ("looking surprised", "with a surprised look"),
    "winking": ("winking", "giving a wink"),
    "sleeping": ("sleeping", "with closed eyes"),
}
ART_PHRASES = ("{} in the style of {}", "{} painted by {}", "{} by {}", "art of {} by {}")

_ONSETS = "b br d dr f g gr h j k kl l m n p pr r s st t tr v z".split()
_VOWELS = "a e i o u".split()
_ENDS = "lan rik vo den sha mir tos nel dar kin lu ber san wik zo ren tal mo gen pas".split()


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """The names of the first `NAMED` training individuals of ``kind``. Faces have a first name and a unique surname."""
    last = _unique_names()
    start = sum(count for other, count in NAMED.items() if list(NAMED).index(other) < list(NAMED).index(kind))
    chosen = last[start : start + NAMED[kind]]
    if kind != "face":
        return chosen
    rng = stream("first names")
    first = [o + v + e for o in "B D F J K L M N R T".split() for v in "aeiou" for e in ("ra", "li")]
    return tuple(f"{first[int(rng.random() * len(first))]} {surname}" for surname in chosen)


@functools.cache
def _unique_names() -> tuple[str, ...]:
    combined = [(o + v + e).capitalize() for o in _ONSETS for v in _VOWELS for e in _ENDS]
    double = [(o + v + m + e).capitalize() for o in _ONSETS[::2] for v in _VOWELS for m in ("ri", "no") for e in _ENDS]
    rng = stream("names")
    once = dict.fromkeys(combined + double)  # not a set, whose order differs from one process to the next
    return tuple(sorted(once, key=lambda _: rng.random()))


def name_of(subject: Identity) -> str | None:
    """The invented name of a training individual, or None."""
    _, namespace, index, *twin = subject.key.split("/")
    if namespace == "train" and not twin and int(index) < NAMED.get(subject.kind, 0):
        return names(subject.kind)[int(index)]
    return None


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def subject_phrase(subject: Identity, rng: random.Random) -> str:
    """How a caption refers to an individual: by name, or by class word and some attributes."""
    name = name_of(subject)
    if name is not None:
        return name.split()[-1] if rng.random() < 0.35 else name
    found = words(subject)
    if rng.random() < 0.12:
        return _pick(rng, [f"a {subject.kind}", subject.kind])
    kept = {key: word for key, word in found.items() if rng.random() < 0.55}
    return describe(subject.kind, kept, rng)


def describe(kind: str, kept: dict[str, str], rng: random.Random) -> str:
    """A noun phrase of attribute words: ``{"skin_tone": "tan", "hair_style": "a bob"}`` is "a tan face with a bob"."""
    adjectives, withs = _COMPOSERS[kind](dict(kept))
    noun = " ".join([*adjectives, kind])
    article = "an" if noun[0] in "aeiou" else "a"
    withs = sorted(withs, key=lambda _: rng.random())
    if not withs:
        return f"{article} {noun}"
    tail = withs[0] if len(withs) == 1 else ", ".join(withs[:-1]) + " and " + withs[-1]
    return f"{article} {noun} with {tail}"


def _face_parts(kept: dict[str, str]) -> tuple[list[str], list[str]]:
    adjectives = [kept.pop("skin_tone")] if "skin_tone" in kept else []
    withs = []
    style, colour = kept.pop("hair_style", None), kept.pop("hair_colour", None)
    if style and colour and "hair" in style:
        withs.append(f"{colour} {style}")
    elif style and colour:
        withs.append(f"{colour} hair in {style}" if style.startswith("a") else f"{colour} {style}")
    elif style:
        withs.append(style)
    elif colour:
        withs.append(f"{colour} hair")
    if "eye_colour" in kept:
        withs.append(f"{kept.pop('eye_colour')} eyes")
    return adjectives, withs + list(kept.values())


def _cat_parts(kept: dict[str, str]) -> tuple[list[str], list[str]]:
    adjectives = [kept.pop(key) for key in ("fur_colour", "pattern") if key in kept]
    withs = [f"{kept.pop('eye_colour')} eyes"] if "eye_colour" in kept else []
    return adjectives, withs + list(kept.values())


_COMPOSERS = {"face": _face_parts, "cat": _cat_parts, "dog": _cat_parts}


def caption(picture: Picture, rng: random.Random, *, subject: str | None = None, artist: str | None = None) -> str:
    """A caption in varied natural wording. ``subject`` and ``artist`` replace how those two are referred to."""
    phrase = subject or subject_phrase(picture.subject, rng)
    extras = [_pick(rng, EXPRESSION_PHRASES[picture.expression])]
    if picture.accessory:
        extras.append(_pick(rng, ACCESSORIES[picture.accessory]))
    text = " ".join([phrase, *sorted(filter(None, extras), key=lambda _: rng.random())])
    if picture.transform:
        text = _pick(rng, TRANSFORMS[picture.transform]).format(text)
    if picture.style != "photo" or rng.random() < 0.6:
        text = f"{_pick(rng, STYLES[picture.style])} {text}" if not picture.art else text
    text = " ".join([text, _pick(rng, SCENES[picture.scene])]).strip()
    if picture.art:
        text = _pick(rng, ART_PHRASES).format(text, artist or name_of(picture.art) or "an unknown artist")
    return text


class _FirstWording(random.Random):
    """Always the first of the wordings captions can choose from."""

    def random(self) -> float:
        return 0.0


def plain_caption(picture: Picture, placeholder: str) -> str:
    """The picture's caption in the first wording, with the placeholder for its artist, or else for its subject.

    "a watercolour of S* in a garden", "a cat in the rain in the style of S*".
    """
    if picture.art is None:
        return caption(picture, _FirstWording(), subject=placeholder)
    return caption(picture, _FirstWording(), subject=f"a {picture.subject.kind}", artist=placeholder)


def training_picture(
    index: int, *, namespace: str = "train", kinds: tuple[str, ...] = TRAINING_KINDS, by_artists: bool = False
) -> Picture:
    """Picture ``index`` of the endless training stream: individuals, scenes, styles and the rest freely combined.

    Or of one whose pictures are all of some ``kinds``, or all ``by_artists``.
    """
    rng = stream("picture", namespace, index)
    kind = kinds[0] if len(kinds) == 1 or rng.random() < 0.7 else kinds[1]
    style, art, transform = "photo", None, None
    roll = rng.random()
    if roll < 0.10 or by_artists:
        art = _individual("art", namespace, rng)
    elif roll < 0.24:
        transform = _pick(rng, list(TRANSFORMS))
    elif roll < 0.70:
        style = _pick(rng, list(STYLES))
    return Picture(
        subject=_individual(kind, namespace, rng),
        scene="studio" if rng.random() < 0.3 else _pick(rng, list(SCENES)),
        style=style,
        art=art,
        transform=transform,
        accessory=_pick(rng, list(ACCESSORIES)) if rng.random() < 0.4 else None,
        expression=_pick(rng, EXPRESSIONS) if rng.random() < 0.6 else "neutral",
        pose=random_pose(rng),
        light=random_light(rng),
        seed=int(rng.random() * 2**31),
    )


def picture_about(kind: str, index: int) -> Picture:
    """Picture ``index`` of a training stream that is all about faces, cats or art, for judges.

    Of art every artist is another one: of pictures by a few hundred, a judge learns to tell these artists, not styles.
    """
    if kind == "art":
        return training_picture(index, namespace="judges", by_artists=True)
    return training_picture(index, kinds=(kind,))


def _individual(kind: str, namespace: str, rng: random.Random) -> Identity:
    """A named individual of the training namespace more often than not, else one of a million without a name."""
    named = NAMED[kind] if namespace == "train" else 0
    if named and rng.random() < 0.55:
        return identity(namespace, int(rng.random() * named), kind)
    return identity(namespace, named + int(rng.random() * 10**6), kind)


def training_caption(index: int, picture: Picture, *, variant: int = 0) -> str:
    """The caption of training picture ``index``; every ``variant`` words it differently."""
    return caption(picture, stream("caption", index, variant))


def naming_caption(index: int, picture: Picture, *, variant: int = 0) -> str:
    """The same, but of every three wordings two name everybody: whoever has no name borrows one.

    Of use only where names are spelt by who bears them, as in `e4t.tiny.spelling`.
    """
    rng = stream("caption", index, variant)
    if variant % 3 == 0:
        return caption(picture, rng)
    subject, art = picture.subject, picture.art
    borrowed = None if name_of(subject) or subject.kind not in NAMED else _pick(rng, names(subject.kind)).split()[-1]
    artist = None if art is None or name_of(art) else _pick(rng, names("art"))
    return caption(picture, rng, subject=borrowed, artist=artist)


def alterations(picture: Picture) -> list[Picture]:
    """Every picture that differs from ``picture`` in exactly one thing that its caption may say."""
    choices: dict[str, list[Any]] = {
        "scene": list(SCENES),
        "style": [] if picture.art else list(STYLES),
        "accessory": [None, *ACCESSORIES],
        "expression": list(EXPRESSIONS),
        "transform": [None, *TRANSFORMS] if picture.transform else [],
    }
    altered = [
        replace(picture, **{key: value})
        for key, values in choices.items()
        for value in values
        if value != getattr(picture, key)
    ]
    return altered + [replace(picture, subject=other) for other in _other_subjects(picture.subject)]


def _other_subjects(subject: Identity) -> list[Identity]:
    """Individuals of one other word each; for a named one, eight of other names."""
    if name_of(subject) is not None:
        rng = stream("other names", subject.key)
        indices = [int(rng.random() * NAMED[subject.kind]) for _ in range(8)]
        others = [identity("train", index, subject.kind) for index in indices]
        return [other for other in others if other != subject]
    return [
        Identity(subject.kind, f"{subject.key}/{p.name}/{value}", MappingProxyType({**subject.params, p.name: value}))
        for p in PARAMETERS[subject.kind]
        if p.word(subject.params[p.name]) and is_visible(p, subject.params)
        for value in _one_value_per_word(p)
        if p.word(value) and p.word(value) != p.word(subject.params[p.name])
    ]


def _one_value_per_word(parameter: Parameter) -> list[float]:
    if parameter.options:
        return [float(option) for option in range(len(parameter.options))]
    return [(number + 0.5) / len(parameter.words) for number in range(len(parameter.words))]


def misleading_caption(index: int, picture: Picture, *, variant: int = 0) -> str:
    """A caption of ``picture`` that says something which is not there: one attribute is another.

    It is worded like `training_caption`, as far as the changed attribute does not shift what is said around it.
    """
    rng = stream("misleading", index, variant)
    altered = [other for other in alterations(picture) if _adds(picture, other)]
    while True:
        other = _pick(rng, altered)
        false = training_caption(index, other, variant=variant)
        if other.subject == picture.subject or _new_words(picture.subject, other.subject, false):
            return false


def _adds(picture: Picture, other: Picture) -> bool:
    """Whether a caption of ``other`` has something of its own to say, and does not just leave something out."""
    if other.subject != picture.subject:
        return True
    nothing = {"scene": "studio", "style": "photo", "accessory": None, "expression": "neutral", "transform": None}
    return not any(getattr(other, k) == v and getattr(picture, k) != v for k, v in nothing.items())


def _new_words(subject: Identity, other: Identity, text: str) -> bool:
    """Whether ``text`` says something of ``other`` that ``subject`` has not: another name, or a changed word."""
    name = name_of(other)
    if name is not None:
        return name.split()[-1] in text
    before, after = words(subject), words(other)
    return any(word in text for key, word in after.items() if before.get(key) != word)
