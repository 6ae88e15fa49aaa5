from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from e4t.config import EncoderConfig
from e4t.models.encoder import ConceptEncoder


def build(**config: object) -> ConceptEncoder:
    torch.manual_seed(0)
    return ConceptEncoder(
        image_widths=[6, 6], unet_widths=[4, 8], embedding_dim=5, config=EncoderConfig().updated(config)
    )


def features(batch: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    image = [torch.randn(batch, 6, generator=generator) for _ in range(2)]
    return image, [torch.randn(batch, width, generator=generator) for width in (4, 8)]


def test_reads_like_the_paper():
    """A linear for each feature, average over the hierarchy, LeakyReLU."""
    encoder, (image, unet) = build(), features()
    linears = [*encoder.image_linears, *encoder.unet_linears]
    mapped = torch.stack([linear(f) for linear, f in zip(linears, [*image, *unet], strict=True)])
    expected = F.leaky_relu(mapped.mean(dim=0), 0.01)
    torch.testing.assert_close(encoder(encoder.image_half(image), unet), expected)


def test_different_images_get_different_embeddings():
    """An early re-implementation averaged over the batch."""
    encoder, (image, unet) = build(), features()
    together = encoder(encoder.image_half(image), unet)
    alone = encoder(encoder.image_half([f[1:2] for f in image]), [f[1:2] for f in unet])
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together[0], together[1])


def test_constant_half_equals_the_whole():
    encoder, (image, unet) = build(), features()
    constant = encoder.image_half([f[:1] for f in image])
    repeated = encoder.image_half([f[:1].expand(3, -1) for f in image])
    torch.testing.assert_close(encoder(constant, unet), encoder(repeated, unet))


def test_concept_vectors():
    encoder, (image, unet) = build(), features()
    before = encoder(encoder.image_half(image), unet)
    encoder.residual.data.fill_(1.0)
    torch.testing.assert_close(encoder(encoder.image_half(image), unet), before + 1)
    encoder.bias.data.fill_(100.0)
    assert (encoder(encoder.image_half(image), unet) > 50).all()
    assert {"bias", "residual"}.isdisjoint(encoder.heads())


def test_linear_head_starts_at_zero_and_learns():
    encoder, (image, unet) = build(head="linear"), features()
    offset = encoder(encoder.image_half(image), unet)
    assert not offset.any()
    (offset * torch.randn(5)).sum().backward()
    assert encoder.head.weight.grad.any()


@pytest.mark.parametrize("gain", [0.1, 1.0])
def test_linear_head_gain(gain):
    encoder, (image, unet) = build(head="linear", head_gain=gain), features()
    assert encoder(encoder.image_half(image), unet).any()


def test_normalize_ignores_scale():
    encoder, (image, unet) = build(normalize=True), features()
    scaled = encoder(encoder.image_half([1000 * f for f in image]), [1000 * f for f in unet])
    torch.testing.assert_close(scaled, encoder(encoder.image_half(image), unet), rtol=1e-3, atol=1e-4)


def test_blind_encoder_is_the_residual():
    encoder = ConceptEncoder(image_widths=[], unet_widths=[], embedding_dim=5, config=EncoderConfig.blind())
    encoder.residual.data.fill_(2.0)
    assert torch.equal(encoder(encoder.image_half([]), []), torch.full((1, 5), 2.0))
