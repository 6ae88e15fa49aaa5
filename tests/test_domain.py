from __future__ import annotations

import json

import pytest

from e4t.domain import BUILT_IN, Domain
from e4t.errors import ConfigError


def test_built_in_and_new_domains():
    assert set(BUILT_IN) == {"face", "cat", "art"}
    assert Domain.named("cat") is BUILT_IN["cat"]
    assert Domain.named("dog").class_word == "dog"


def test_prompts_hold_the_placeholder():
    assert all("S*" in prompt for domain in BUILT_IN.values() for prompt in domain.prompts)


def test_round_trip():
    domain = Domain("dog", "dog", placeholder="<it>", templates=("{} here",))
    assert Domain.from_dict(json.loads(json.dumps(domain.to_dict()))) == domain
    assert domain.prompts == ("<it> here",)


@pytest.mark.parametrize("values", [{"placeholder": " "}, {"templates": ()}, {"templates": ("a photo",)}])
def test_refused(values):
    with pytest.raises(ConfigError):
        Domain("dog", "dog", **values)


def test_a_foreign_field_is_named_in_one_short_sentence():
    with pytest.raises(ConfigError, match="no field called 'xxx") as caught:
        Domain.from_dict({**Domain.named("face").to_dict(), "x" * 10_000: 1})
    assert len(str(caught.value)) < 120


def test_a_caption_carries_the_placeholder():
    face = Domain.named("face")
    assert face.captioned("a smiling Face of a face") == "a smiling S* of a face"
    assert face.captioned("{} at sea") == "S* at sea"
    assert face.captioned("S* beside another face") == "S* beside another face"
    assert face.captioned("two surfaces") == "a photo of S*, two surfaces"


def test_a_placeholder_is_text_whatever_is_in_it():
    odd = Domain("face", "face", placeholder=r"\1<a\g>")
    assert odd.captioned("a smiling face") == r"a smiling \1<a\g>"


def test_the_prompt_to_try_is_of_something_in_a_style_and_else_of_the_concept():
    assert Domain.named("art").example == "a cat in the snow in the style of S*"
    assert Domain.named("dog").example == "a pencil sketch of S*"
