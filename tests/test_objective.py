from __future__ import annotations

import pytest
import torch

from e4t.config import PersonalizeConfig
from e4t.objective import Batch, E4TObjective, Prior, masked_mean


def make_batch(model, size=2, **changes):
    generator = torch.Generator().manual_seed(0)
    values = {
        "latents": torch.randn(size, 4, 8, 8, generator=generator),
        "noise": torch.randn(size, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([100, 700])[:size],
        "tokens": model.tokens(["a photo of S*"] * size),
        "image_features": model.image_features(torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1),
    }
    return Batch(**{**values, **changes})


def repeated(batch):
    return Batch(
        batch.latents.repeat(2, 1, 1, 1),
        batch.noise.repeat(2, 1, 1, 1),
        batch.timesteps.repeat(2),
        batch.tokens[[0, 1, 0, 1]],
        [f.repeat(2, 1) for f in batch.image_features],
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_gradients_reach_all_that_is_trained_and_nothing_else(make_backbone, make_model, kind):
    model = make_model(make_backbone(kind))
    with model.offsets.injected():
        E4TObjective(model, PersonalizeConfig(regularisation=0.01))(make_batch(model)).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for module in model.backbone.modules():
        assert all(p.grad is None for p in module.parameters())


def test_features_see_no_prompt_and_the_prediction_sees_the_concept(tiny_model):
    """Both passes go through the encoder half: one with the empty prompt, the other with S* in it."""
    seen = []
    block = tiny_model.backbone.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    handle = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].detach()), with_kwargs=True
    )
    batch = make_batch(tiny_model)
    with torch.no_grad():
        E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.0))(batch)
        handle.remove()
        noisy = tiny_model.backbone.add_noise(batch.latents, batch.noise, batch.timesteps)
        word = tiny_model.word(
            tiny_model.offset(noisy, batch.timesteps, tiny_model.encoder.image_half(batch.image_features))
        )
        empty = tiny_model.prompt_embeds(tiny_model.tokens([""], expected=False), None)
        about = tiny_model.prompt_embeds(batch.tokens, word)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], empty.expand_as(seen[0]))
    torch.testing.assert_close(seen[1], about)


def test_regulariser_is_of_the_offset_alone_and_a_batch_mean(tiny_model):
    """Penalising class + offset, or summing over the batch, lets the word collapse."""
    objective = E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.5))
    batch = make_batch(tiny_model)
    with torch.no_grad():
        loss, doubled = objective(batch), objective(repeated(batch))
        noisy = tiny_model.backbone.add_noise(batch.latents, batch.noise, batch.timesteps)
        offset = tiny_model.offset(noisy, batch.timesteps, tiny_model.encoder.image_half(batch.image_features))
        mean = PersonalizeConfig(regularisation=0.5, regularisation_reduction="mean")
        averaged = E4TObjective(tiny_model, mean)(batch)
    torch.testing.assert_close(loss.regularizer, 0.5 * (offset**2).sum(dim=1).mean())
    torch.testing.assert_close(averaged.regularizer, 0.5 * (offset**2).mean())
    for one, other in zip(vars(loss).values(), vars(doubled).values(), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(loss.total, loss.diffusion + loss.regularizer)
    ratio = 0.1 * offset.norm(dim=1).mean() / tiny_model.class_embedding.norm()
    torch.testing.assert_close(loss.embedding_ratio, ratio)


def test_a_zero_offset_costs_nothing(make_backbone, make_model):
    model = make_model(make_backbone(), head="linear")
    loss = E4TObjective(model, PersonalizeConfig(regularisation=1.0))(make_batch(model))
    assert loss.regularizer == 0
    assert loss.embedding_ratio == 0


def test_every_image_gets_its_own_word_at_every_noise_level(tiny_model):
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    half = tiny_model.encoder.image_half(tiny_model.image_features(pixels))
    noisy = torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1)
    same_time = tiny_model.offset(noisy, torch.tensor([5, 5]), half)
    other_time = tiny_model.offset(noisy, torch.tensor([900, 900]), half)
    assert not torch.allclose(same_time[0], same_time[1])
    assert not torch.allclose(same_time, other_time)


def test_mask():
    error = torch.ones(2, 3, 4, 4)
    error[..., 2:] = 100
    mask = torch.zeros(1, 1, 4, 4)
    assert masked_mean(error, mask) == error.mean()
    mask[..., :2] = 0.5
    assert masked_mean(error, mask) == 1
    assert masked_mean(error, None) == error.mean()


def test_masked_loss(tiny_model):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    objective = E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.0))
    plain = objective(make_batch(tiny_model))
    masked = objective(make_batch(tiny_model, mask=mask))
    assert plain.diffusion != masked.diffusion


def test_pictures_of_the_class_count_as_much_as_their_weight_says(tiny_model):
    batch = make_batch(tiny_model)
    tokens = tiny_model.tokens(["a photo of a face"] * 2, expected=False)
    prior = Prior(batch.latents.flip(0), batch.noise, batch.timesteps, tokens)
    plain = E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.01))(batch)
    reminded = make_batch(tiny_model, prior=prior)

    def extra(weight):
        objective = E4TObjective(tiny_model, PersonalizeConfig(regularisation=0.01, prior_weight=weight))
        return float((objective(reminded).total - plain.total).detach())

    noisy = tiny_model.backbone.add_noise(prior.latents, prior.noise, prior.timesteps)
    seen = tiny_model.denoise(noisy, prior.timesteps, tiny_model.prompt_embeds(tokens))
    target = tiny_model.backbone.target(prior.latents, prior.noise, prior.timesteps)
    forgotten = float(((seen - target) ** 2).mean().detach())
    assert extra(0.0) == pytest.approx(0, abs=1e-6)
    assert extra(1.0) == pytest.approx(forgotten, rel=1e-4)
    assert extra(0.5) == pytest.approx(forgotten / 2, rel=1e-4)


def test_the_word_can_be_held_to_the_nearest_one_of_the_vocabulary(tiny_model):
    """At any other word the penalty is nothing; at the class word both are the same."""
    table = tiny_model.backbone.text_encoder.get_input_embeddings().weight
    near = table[[5, 9]] + 0.01 * torch.randn(2, table.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny_model.nearest_word(near), table[[5, 9]])

    def penalty(word, anchor):
        objective = E4TObjective(tiny_model, PersonalizeConfig(regularisation=1.0, regularisation_anchor=anchor))
        offset = (word - tiny_model.class_embedding) / tiny_model.embedding_scale
        return objective._squared_norm(objective._from_anchor(offset, tiny_model.word(offset))).sum()

    assert penalty(table[[5]], "nearest") == pytest.approx(0, abs=1e-6)
    assert penalty(table[[5]], "class") > 1
    close = tiny_model.class_embedding[None] + 1e-3
    assert penalty(close, "nearest") == pytest.approx(float(penalty(close, "class")), rel=1e-3)


def test_gradients_of_a_word_held_to_the_nearest_reach_the_encoder(make_backbone, make_model):
    model = make_model(make_backbone("epsilon"))
    objective = E4TObjective(model, PersonalizeConfig(regularisation=1.0, regularisation_anchor="nearest"))
    batch = make_batch(model)
    loss = objective(batch)
    plain = E4TObjective(model, PersonalizeConfig(regularisation=1.0))(batch)
    assert loss.diffusion == plain.diffusion
    loss.total.backward()
    assert model.encoder.image_linears[0].weight.grad.any()
