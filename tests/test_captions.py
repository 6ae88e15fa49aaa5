"""Captions: varied, deterministic, short enough, true to the picture."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e4t.tiny import captions
from e4t.tiny.accessories import ACCESSORIES
from e4t.tiny.captions import (
    NAMED,
    alterations,
    caption,
    misleading_caption,
    name_of,
    names,
    training_caption,
    training_picture,
)
from e4t.tiny.scenes import SCENES
from e4t.tiny.world import EXPRESSIONS, Picture, identity, stream, words


def test_captions_are_deterministic_and_varied() -> None:
    picture = training_picture(5)
    assert training_caption(5, picture) == training_caption(5, training_picture(5))
    assert len({training_caption(5, picture, variant=v) for v in range(12)}) > 3


def test_captions_say_what_is_there() -> None:
    for index in range(200):
        picture = training_picture(index)
        text = training_caption(index, picture)
        assert text == " ".join(text.split()), "no double spaces"
        assert "{" not in text
        assert any(wording in text for wording in SCENES[picture.scene])
        if picture.accessory:
            assert any(wording in text for wording in ACCESSORIES[picture.accessory])


def test_named_individuals_are_called_by_name_only() -> None:
    subject = identity("train", 17)
    name = str(name_of(subject))
    for variant in range(20):
        text = caption(Picture(subject), stream("test", variant))
        assert name.split()[-1] in text
        assert not any(word in text.removeprefix("a photo of ") for word in words(subject).values() if len(word) > 4)


def test_nameless_individuals_are_described_by_their_own_words() -> None:
    for index in range(30):
        subject = identity("validation", index)
        text = captions.describe("face", words(subject), stream("test", index))
        assert text.split()[0] in ("a", "an")
        assert "face" in text
        for word in words(subject).values():
            assert word in text


def test_the_subject_can_be_replaced() -> None:
    picture = Picture(identity("x", 0), scene="beach", style="watercolour", accessory="crown")
    text = caption(picture, stream("test"), subject="S*")
    assert "S*" in text
    assert "face" not in text
    artistic = Picture(identity("x", 0), art=identity("x", 0, "art"))
    assert "S*" in caption(artistic, stream("test"), artist="S*")


def test_every_expression_has_words() -> None:
    assert set(captions.EXPRESSION_PHRASES) == set(EXPRESSIONS)
    for expression, phrases in captions.EXPRESSION_PHRASES.items():
        assert all(phrases) == (expression != "neutral")


def test_names_are_many_and_unique() -> None:
    surnames = [name.split()[-1] for kind in NAMED for name in names(kind)]
    assert len(set(surnames)) == sum(NAMED.values())


def test_every_process_says_the_same() -> None:
    program = (
        "from e4t.tiny.captions import *\n"
        "pictures = [training_picture(i) for i in range(40)]\n"
        "print([names(kind) for kind in NAMED], [name_of(p.subject) for p in pictures])\n"
        "print([(training_caption(i, p), misleading_caption(i, p)) for i, p in enumerate(pictures)])\n"
        "print(pictures)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, env=environment)
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(program, {})
    assert child.stdout == here.getvalue() != ""


def test_every_caption_fits_the_text_encoder(tmp_path: Path) -> None:
    architecture = pytest.importorskip("e4t.tiny.architecture")
    pictures = [training_picture(i) for i in range(600)]
    texts = [training_caption(i, picture, variant=v) for i, picture in enumerate(pictures) for v in range(3)]
    tokenizer = architecture.build_tokenizer(texts, tmp_path)
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) <= architecture.MAX_TOKENS


def test_alterations_change_one_thing() -> None:
    for index in range(60):
        picture = training_picture(index)
        altered = alterations(picture)
        assert len(altered) >= 40
        for other in altered:
            changed = [key for key in vars(picture) if getattr(other, key) != getattr(picture, key)]
            assert len(changed) == 1
            before, after = words(picture.subject), words(other.subject)
            if changed == ["subject"] and name_of(picture.subject) is None:
                # Parameters that show only under another one come and go with it.
                own = other.subject.key.removeprefix(picture.subject.key).split("/")[1]
                assert before[own] != after.get(own)


def test_misleading_captions_are_wrong_and_deterministic() -> None:
    for index in range(100):
        picture = training_picture(index)
        wrong = misleading_caption(index, picture)
        assert wrong != training_caption(index, picture)
        assert wrong == misleading_caption(index, training_picture(index))


def test_leaving_something_out_misleads_nobody() -> None:
    picture = Picture(identity("train", 10**6), scene="beach", style="mosaic", accessory="crown", expression="sad")
    plain = {"scene": "studio", "style": "photo", "accessory": None, "expression": "neutral"}
    kept = [other for other in alterations(picture) if captions._adds(picture, other)]
    assert kept
    assert not any(getattr(other, name) == value for other in kept for name, value in plain.items())
