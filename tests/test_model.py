from __future__ import annotations

import pytest
import torch

from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig, PretrainConfig
from e4t.domain import Domain
from e4t.errors import ConfigError, MismatchError
from e4t.model import E4TModel, new_model
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
    drawn, domain = torch.get_rng_state(), trained(tiny_model)
    loaded = E4TModel.from_domain(tiny_model.backbone, domain)
    assert torch.equal(torch.get_rng_state(), drawn)  # no random values are made to be thrown away
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(loaded.encoder.heads()[n].data_ptr() != t.data_ptr() for n, t in tiny_model.encoder.heads().items())
    assert (loaded.offsets.config.form, loaded.offsets.config.rank) == ("lowrank", 3)
    counted = sum(p.numel() for p in loaded.blank.parameters())
    assert counted == sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in tiny_model.parameters())
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


def test_the_caller_s_random_numbers_are_left_alone(tiny_backbone, monkeypatch):
    """Those of GPUs too, which `torch.manual_seed` would set anew."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("every device was seeded"))
    drawn = torch.get_rng_state()
    model = new_model(tiny_backbone, Domain.named("face"), PretrainConfig(seed=3))
    model.start_tuning(("deltas",), delta_rank=2, seed=3)
    model.take_off()
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_concept_that_is_worn_is_held_once(tiny_model, picture, quick_personalize, rank):
    """In the weights: its matrices, as large as they are, would stay on the device beside them."""
    config = quick_personalize.updated({"tune": ("deltas",), "delta_rank": rank})
    *_, last = personalize(tiny_model, picture, config=config)
    before = prediction(tiny_model)
    for _ in range(2):
        with tiny_model.wearing(last.concept, strength=2.0):
            assert tiny_model.offsets.concept_parameters() == []
            assert not torch.equal(prediction(tiny_model), before)
    assert torch.equal(prediction(tiny_model), before)


def test_an_encoder_that_would_see_no_layer_is_refused(tiny_backbone):
    def built(**encoder):
        config = PretrainConfig(encoder=EncoderConfig(**encoder))
        return new_model(tiny_backbone, Domain.named("face"), config)

    assert len(built(layer_stride=4).encoder.image_linears) == 1
    with pytest.raises(ConfigError, match="layer_stride is 5, but the image encoder has 4 layers"):
        built(layer_stride=5)
    assert len(built(layer_stride=5, use_image=False).encoder.image_linears) == 0


def test_the_type_of_the_base_is_known_while_its_weights_are_tuned(tiny_backbone, make_model):
    for module in tiny_backbone.modules():
        module.half()
    model = make_model(tiny_backbone)
    model.start_tuning(("unet", "text_encoder"), delta_rank=0, seed=0)
    assert (tiny_backbone.dtype, model.base_dtype) == (torch.float32, torch.float16)
    tuned = tiny_backbone.text_encoder.dtype
    with model.base_text_encoder():
        assert (tuned, tiny_backbone.text_encoder.dtype) == (torch.float32, torch.float16)
    assert tiny_backbone.text_encoder.dtype == torch.float32
    model.take_off()
