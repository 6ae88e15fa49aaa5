from __future__ import annotations

import warnings

import pytest
import torch

from e4t.errors import ConfigError, PromptError, PromptTooLongError
from e4t.models.text import class_token, encode, tokenize


@pytest.fixture
def face(tiny_backbone):
    return class_token(tiny_backbone.tokenizer, "face")


def tokens(backbone, face, *prompts, **options):
    return tokenize(backbone.tokenizer, prompts, placeholder="S*", class_id=face, **options)


def test_same_ids_as_the_class_word_written_out(tiny_backbone, face):
    found = tokens(tiny_backbone, face, "a photo of S* at the beach")
    written = tiny_backbone.tokenizer(["a photo of face at the beach"], padding="max_length", return_tensors="pt")
    assert torch.equal(found.ids, written.input_ids)
    assert found.placeholder.nonzero().tolist() == [[0, 4]]


@pytest.mark.parametrize(
    ("prompt", "count"), [("S*", 1), ("S* and S*", 2), ("S*S*", 2), ("(S*)", 1), ("S*'s beach", 1), ("s*", 0)]
)
def test_where_placeholders_are(tiny_backbone, face, prompt, count):
    found = tokens(tiny_backbone, face, prompt, expected=False)
    assert found.placeholder.sum() == count
    assert (found.ids[found.placeholder] == face).all()


def test_missing_placeholder_warns(tiny_backbone, face):
    with pytest.warns(UserWarning, match=r"no S\*"):
        tokens(tiny_backbone, face, "a photo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens(tiny_backbone, face, "a photo", expected=False)


def test_token_limit_counts_the_placeholder(tiny_backbone, face):
    limit = tiny_backbone.tokenizer.model_max_length
    fits = "S*" + " a" * (limit - 3)
    assert tokens(tiny_backbone, face, fits).ids.shape == (1, limit)
    with pytest.raises(PromptTooLongError, match=f"{limit + 1} tokens"):
        tokens(tiny_backbone, face, fits + " a")


def test_class_word_must_be_one_token(tiny_backbone):
    with pytest.raises(ConfigError, match="one"):
        class_token(tiny_backbone.tokenizer, "a cat")


def test_no_prompts(tiny_backbone, face):
    with pytest.raises(PromptError):
        tokens(tiny_backbone, face)


def test_class_embedding_changes_nothing(tiny_backbone, face):
    encoder = tiny_backbone.text_encoder
    found = tokens(tiny_backbone, face, "a photo of S*", "S*")
    word = encoder.get_input_embeddings().weight[face]
    assert torch.equal(encode(encoder, found, word), encode(encoder, found))


def test_embeddings_per_sample_differentiable_and_hook_removed(tiny_backbone, face):
    encoder = tiny_backbone.text_encoder
    found = tokens(tiny_backbone, face, "a photo of S*", "S* at the beach")
    plain = encode(encoder, found)
    words = torch.randn(2, 32, requires_grad=True)
    both = encode(encoder, found, words)
    torch.testing.assert_close(both[1:], encode(encoder, found[1:], words[1:]))
    assert torch.equal(both[:, 0], plain[:, 0])  # causal: the start token comes before the placeholder
    assert not torch.allclose(both[0, 4], plain[0, 4])
    both[0].sum().backward()
    assert words.grad[0].any()
    assert not words.grad[1].any()
    assert torch.equal(encode(encoder, found), plain)
    assert not encoder.get_input_embeddings()._forward_hooks


def test_hook_is_removed_after_an_error(tiny_backbone, face):
    encoder = tiny_backbone.text_encoder
    with pytest.raises(RuntimeError):
        encode(encoder, tokens(tiny_backbone, face, "S*"), torch.randn(1, 31))
    assert not encoder.get_input_embeddings()._forward_hooks
