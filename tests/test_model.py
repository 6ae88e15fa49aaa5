from __future__ import annotations

import pytest
import torch

from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig
from e4t.domain import Domain
from e4t.errors import MismatchError
from e4t.model import E4TModel
from e4t.personalize import personalize


def features(model):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return model.offset(noisy, torch.tensor([3, 600]), model.encoder.residual[None] * 0)


def prediction(model):
    noisy = torch.ones(1, 4, 8, 8)
    with torch.no_grad():
        return model.denoise(noisy, torch.tensor([3]), model.prompt_embeds(model.tokens(["a photo of S*"])))


def trained(model):
    return TrainedDomain(
        model.domain, model.base, model.encoder.config, model.offsets.config, 0.1, model.domain_tensors()
    )


def test_denoiser_features_always_see_the_base(tiny_model, picture, quick_personalize):
    """Bitwise: before injection, injected, fused, while and after tuning everything, worn, taken off."""
    model = tiny_model
    before = features(model).detach()
    for state in (model.offsets.injected, model.offsets.fused):
        with state():
            assert torch.equal(features(model), before)
            assert not torch.equal(prediction(model), prediction_without(model))
    config = quick_personalize.updated({"tune": ["deltas", "unet", "text_encoder"]})
    concepts = []
    for step in personalize(model, picture, config=config, keep_steps=True):
        assert torch.equal(features(model), before)
        concepts.append(step.concept)
    assert torch.equal(features(model), before)
    with model.wearing(concepts[-1]):
        assert torch.equal(features(model), before)
    assert torch.equal(features(model), before)


def prediction_without(model):
    with model.base_weights():
        return prediction(model)


def test_no_gradients_into_the_feature_pass(tiny_model):
    with tiny_model.offsets.injected():
        features(tiny_model).sum().backward()
    assert all(p.grad is None for p in tiny_model.offsets.parameters())
    assert all(p.grad is not None for p in tiny_model.encoder.unet_linears.parameters())


def test_word_starts_at_the_class(tiny_model):
    weight = tiny_model.backbone.text_encoder.get_input_embeddings().weight
    assert torch.equal(tiny_model.word(torch.zeros(1, 32))[0], weight[tiny_model.class_id])
    moved = tiny_model.word(torch.ones(1, 32), strength=0.5) - tiny_model.class_embedding
    torch.testing.assert_close(moved, torch.full((1, 32), 0.05))


def test_from_domain_is_the_same_model(tiny_model):
    loaded = E4TModel.from_domain(tiny_model.backbone, trained(tiny_model))
    assert torch.equal(features(loaded), features(tiny_model))
    with tiny_model.offsets.fused():
        expected = prediction(tiny_model)
    with loaded.offsets.fused():
        torch.testing.assert_close(prediction(loaded), expected)


def test_another_base_is_refused(tiny_model, make_backbone):
    other = make_backbone()
    other.unet.conv_in.weight.data.add_(1)
    with pytest.raises(MismatchError, match="base model"):
        E4TModel.from_domain(other, trained(tiny_model))


def test_another_image_encoder_is_refused_where_the_domain_sees(tiny_model, make_backbone):
    other = make_backbone()
    other.image_encoder.embeddings.patch_embedding.weight.data.add_(1)
    with pytest.raises(MismatchError, match="image encoder"):
        E4TModel.from_domain(other, trained(tiny_model))
    blind = E4TModel(
        tiny_model.backbone,
        tiny_model.domain,
        encoder=EncoderConfig(use_image=False),
        offsets=OffsetsConfig(),
        embedding_scale=0.1,
    )
    E4TModel.from_domain(other, trained(blind))


def test_concept_of_another_domain_is_refused(tiny_model, picture, quick_personalize):
    face = E4TModel.from_domain(tiny_model.backbone, trained(tiny_model))
    *_, last = personalize(face, picture, config=quick_personalize)
    cat = E4TModel.without_domain(tiny_model.backbone, Domain.named("cat"), embedding_scale=0.1)
    before = prediction(cat)
    with pytest.raises(MismatchError, match=r"'face'.*'cat'"), cat.wearing(last.concept):
        pass
    assert torch.equal(prediction(cat), before)


def test_without_domain_is_the_class_word(tiny_backbone):
    model = E4TModel.without_domain(tiny_backbone, Domain.named("cat"), embedding_scale=0.1)
    before = prediction(model)
    with model.offsets.injected():
        assert torch.equal(prediction(model), before)
    assert not features(model).any()


def test_encoder_without_image_or_without_unet(tiny_backbone):
    for encoder in (EncoderConfig(use_image=False), EncoderConfig(unet_blocks="none")):
        model = E4TModel(
            tiny_backbone, Domain.named("face"), encoder=encoder, offsets=OffsetsConfig(), embedding_scale=0.1
        )
        half = model.encoder.image_half(model.image_features(torch.zeros(1, 3, 16, 16)))
        assert model.offset(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), half).shape == (2, 32)
