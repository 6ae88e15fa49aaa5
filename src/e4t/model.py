"""A backbone with the two trained parts of a domain: the concept encoder and the weight offsets.

What both stages of training and sampling share: predicting the concept's word from a noisy latent, reading prompts with
that word, and applying a concept to the weights and taking it off again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from e4t.backbone import Backbone
from e4t.checkpoint import BaseModel, Concept, TrainedDomain
from e4t.config import EncoderConfig, OffsetsConfig, PretrainConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, MismatchError
from e4t.models.encoder import ConceptEncoder
from e4t.models.features import feature_widths, pooled_features
from e4t.models.offsets import WeightOffsets
from e4t.models.text import Tokens, class_token, encode, tokenize
from e4t.models.tuned import TunedWeights
from e4t.saved import group, prefixed

_WHOLE = ("encoder", "unet", "unet_vectors", "text_encoder")
"""What can be tuned as a whole module, or all of its kind in it."""


class E4TModel(nn.Module):
    """Encoder and offsets of a domain on a frozen backbone. Its parameters are the trained ones only."""

    class_embedding: Tensor
    empty_prompt: Tensor

    def __init__(
        self,
        backbone: Backbone,
        domain: Domain,
        *,
        encoder: EncoderConfig,
        offsets: OffsetsConfig,
        embedding_scale: float,
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        """``heads`` are the encoder's, where they are known; else, as the offsets, they begin at random.

        Raises CheckpointError for heads that are not of this encoder, and ConfigError for a base that cannot be one.
        """
        super().__init__()
        taken, made = backbone.unet.config.in_channels, backbone.vae.config.latent_channels
        if taken != made:
            raise ConfigError(
                f"the U-Net takes {taken} channels where latents have {made}; an inpainting model cannot be the base, "
                "but can draw with the plain model's concepts: pass its U-Net to applied(..., also=[unet])"
            )
        self.backbone = backbone
        self.domain = domain
        self.domain_id: str | None = None
        self.embedding_scale = embedding_scale
        self.base = BaseModel.of(backbone)
        self.class_id = class_token(backbone.tokenizer, domain.class_word)
        self.encoder = _build_encoder(backbone, encoder, heads)
        self.offsets = WeightOffsets(backbone.unet, offsets)
        self.tuned: dict[str, TunedWeights] = {}
        with torch.no_grad():
            word = backbone.text_encoder.get_input_embeddings().weight[self.class_id].detach().float().clone()
            empty = encode(backbone.text_encoder, self.tokens([""], expected=False)).float()
        self.register_buffer("class_embedding", word, persistent=False)  # v_class [D]
        self.register_buffer("empty_prompt", empty, persistent=False)  # [1, L, width]
        self.to(backbone.device)

    @classmethod
    def from_domain(cls, backbone: Backbone, trained: TrainedDomain) -> E4TModel:
        """Raises MismatchError if the domain was trained on other weights of the base or of the image encoder."""
        looks = trained.encoder.use_image and backbone.image_encoder is not None
        trained.base.check(BaseModel.of(backbone), owner=f"the domain '{trained.domain.name}'", eyes=looks)
        model = cls(
            backbone,
            trained.domain,
            encoder=trained.encoder,
            offsets=replace(trained.offsets, form="none"),  # theirs are loaded, in another form than they may have had
            embedding_scale=trained.embedding_scale,
            heads=group(trained.tensors, "encoder"),
        )
        model.domain_id = trained.id
        if trained.offsets.form != "none":
            model.offsets.load_domain_state(group(trained.tensors, "offsets"))
        return model.requires_grad_(False)

    @classmethod
    def without_domain(cls, backbone: Backbone, domain: Domain, *, embedding_scale: float) -> E4TModel:
        """From the bare class word: no encoder inputs, zero offsets."""
        model = cls(
            backbone,
            domain,
            encoder=EncoderConfig.blind(),
            offsets=OffsetsConfig(form="none"),
            embedding_scale=embedding_scale,
        )
        return model.requires_grad_(False)

    @cached_property
    def blank(self) -> E4TModel:
        """The same in float32 without values, on the meta device: to count with. Nothing in it is trained."""
        with torch.device("meta"):
            model = E4TModel(
                self.backbone.blank(),
                self.domain,
                encoder=self.encoder.config,
                offsets=self.offsets.config,
                embedding_scale=self.embedding_scale,
            )
        return model.requires_grad_(False)

    def domain_tensors(self) -> dict[str, Tensor]:
        """What a `TrainedDomain` stores."""
        return prefixed("encoder", self.encoder.heads()) | prefixed("offsets", self.offsets.domain_state())

    # The concept's word

    def image_features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels [B, 3, H, W] → [CLS] of every n-th CLIP layer, [B, width] each; none if the encoder takes none."""
        config = self.encoder.config
        return self.backbone.image_features(pixels, layer_stride=config.layer_stride) if config.use_image else []

    def offset(self, noisy: Tensor, timesteps: Tensor, image_half: Tensor) -> Tensor:
        """E(I, z_t, t) [B, D], with the denoiser's features from the base weights and without gradients into them."""
        with self.base_weights():
            features = pooled_features(
                self.backbone.unet, noisy, timesteps, self.empty_prompt, blocks=self.encoder.config.unet_blocks
            )
        offset: Tensor = self.encoder(image_half, features)
        return offset.expand(len(noisy), -1)

    def word(self, offset: Tensor, *, strength: float = 1.0) -> Tensor:
        """v* = v_class + s E, [B, D]."""
        return self.class_embedding + strength * self.embedding_scale * offset

    @torch.no_grad()
    def nearest_word(self, words: Tensor) -> Tensor:
        """The embeddings of the vocabulary's words that are nearest to ``words``, [B, D] float32 each."""
        table = self.backbone.text_encoder.get_input_embeddings().weight
        lengths = torch.linalg.vector_norm(table, dim=-1, dtype=torch.float32) ** 2
        products = words.to(table.dtype) @ table.T
        nearest: Tensor = table[(lengths - 2 * products.float()).argmin(dim=-1)].float()
        return nearest

    def tokens(self, prompts: Sequence[str], *, expected: bool = True) -> Tokens:
        """Tokenised prompts on the model's device; a warning where an ``expected`` placeholder is missing."""
        return tokenize(
            self.backbone.tokenizer,
            prompts,
            placeholder=self.domain.placeholder,
            class_id=self.class_id,
            expected=expected,
        ).to(self.backbone.device)

    def prompt_embeds(self, tokens: Tokens, word: Tensor | None = None) -> Tensor:
        """[B, L, width]: the prompts read with the concept's word."""
        return encode(self.backbone.text_encoder, tokens, word)

    def denoise(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The U-Net's prediction, float32."""
        dtype = self.backbone.dtype
        prediction: Tensor = self.backbone.unet(
            noisy.to(dtype), timesteps, encoder_hidden_states=prompt_embeds.to(dtype), return_dict=False
        )[0]
        return prediction.float()

    # Weights

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """The U-Net as it was loaded, whatever has been injected, fused or tuned since."""
        with ExitStack() as stack:
            stack.enter_context(self.offsets.base_weights())
            for part in self.tuned.keys() & {"unet", "unet_vectors"}:
                stack.enter_context(self.tuned[part].base_weights())
            yield

    @contextmanager
    def base_text_encoder(self) -> Iterator[None]:
        """The text encoder as it was loaded, whatever has been tuned since."""
        tuned = self.tuned.get("text_encoder")
        with tuned.base_weights() if tuned is not None else nullcontext():
            yield

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the U-Net's weights as they were loaded: what is tuned whole is float32 meanwhile."""
        with self.base_weights():
            return self.backbone.dtype

    def tunable(self, part: str) -> TunedWeights:
        """Weights of "unet" (but those with offsets), "text_encoder" or "encoder" (its heads) to be tuned whole.

        "unet_vectors" are biases and norms alone.
        """
        if part == "encoder":
            return TunedWeights(self.encoder, skip=(self.encoder.bias, self.encoder.residual))
        if part == "unet_vectors":
            matrices = [p for p in self.backbone.unet.parameters() if p.ndim > 1]
            return TunedWeights(self.backbone.unet, skip=matrices, packed=True)
        if part == "unet":
            return TunedWeights(self.backbone.unet, skip=[linear.weight for linear, _ in self.offsets.items()])
        return TunedWeights(self.backbone.text_encoder)

    def start_tuning(self, parts: Sequence[str], *, delta_rank: int, seed: int) -> dict[str, list[nn.Parameter]]:
        """Make parts (`config.TUNABLE`) trainable, and nothing else, with offsets injected; `take_off` undoes it."""
        self.requires_grad_(False)
        found: dict[str, list[nn.Parameter]] = {}
        for part in dict.fromkeys(parts):
            if part in _WHOLE:
                self.tuned[part] = self.tunable(part)
                found[part] = self.tuned[part].start()
            elif part == "deltas":
                with _seeded(seed):
                    self.offsets.add_concept(delta_rank)
                found[part] = self.offsets.concept_parameters()
            else:
                found[part] = [getattr(self.encoder, part)]
        self.offsets.inject()
        for parameters in found.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        return found

    def put_on(self, concept: Concept, *, strength: float = 1.0, weights: float | None = None) -> None:
        """Put a concept's vectors and weights in place, fused; all of them or, after an error, none.

        ``weights`` scales the weights alone: between 0 and 1 they are an average of tuned and untuned. None: strength.

        Raises MismatchError for a concept of another domain, and OffsetsError while one is on: its tuned weights would
        be taken for the base.
        """
        self.offsets.require("ejected", "apply")
        try:
            self._put_on(concept, strength if weights is None else weights)
        except BaseException:
            self.take_off()
            raise

    def check(self, concept: Concept) -> None:
        """Raise MismatchError for a concept of another base model or domain."""
        concept.base.check(self.base, owner="the concept")
        concept.check(self.domain, self.domain_id)

    def _put_on(self, concept: Concept, strength: float) -> None:
        self.check(concept)
        if concept.to_be_replayed:
            raise CheckpointError("the concept keeps only what its tuning starts from; tune it again with replayed()")
        length = len(concept.tensors["image_half"])
        if length != self.backbone.embedding_dim:
            raise MismatchError(
                f"the concept's vectors have {length} numbers, but words of '{self.backbone.name}' have "
                f"{self.backbone.embedding_dim}"
            )
        self.encoder.bias.data.copy_(concept.tensors["bias"])
        self.encoder.residual.data.copy_(concept.tensors["residual"])
        self.offsets.load_concept_state(concept.group("deltas"))
        self.offsets.set_strength(strength)
        for part in _WHOLE:
            if difference := concept.group(part):
                self.tuned[part] = self.tunable(part)
                self.tuned[part].apply(difference, strength=1.0 if part == "encoder" else strength)
        self.offsets.fuse()
        self.offsets.drop_concept()  # it is in the weights now, and may be as large as they are

    def take_off(self) -> None:
        """The domain and base exactly as they were before `put_on`."""
        self.offsets.eject()
        self.offsets.drop_concept()
        self.offsets.set_strength(1.0)
        for tuned in self.tuned.values():
            tuned.restore()
        self.tuned.clear()
        with torch.no_grad():
            self.encoder.bias.zero_()
            self.encoder.residual.zero_()

    @contextmanager
    def wearing(self, concept: Concept, *, strength: float = 1.0, weights: float | None = None) -> Iterator[E4TModel]:
        self.put_on(concept, strength=strength, weights=weights)
        try:
            yield self
        finally:
            self.take_off()


def new_model(backbone: Backbone, domain: Domain, config: PretrainConfig) -> E4TModel:
    """An untrained domain on a backbone; its initial weights follow from the seed.

    Raises ConfigError where there would be nothing to train.
    """
    sees = config.encoder.use_image or config.encoder.sees_noise
    if not sees and config.offsets.form == "none":
        raise ConfigError("nothing can be learned: the encoder has no input, and there are no offsets")
    with _seeded(config.seed):
        model = E4TModel(
            backbone,
            domain,
            encoder=config.encoder,
            offsets=config.offsets,
            embedding_scale=config.embedding_scale,
        )
    model.encoder.bias.requires_grad_(False)  # a concept's own, not a domain's
    model.encoder.residual.requires_grad_(False)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Modules made inside have values that follow from the seed; no generator of the caller's notices."""
    with torch.random.fork_rng(devices=[]):  # the CPU's, on which modules are made
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would set those of GPUs too
        yield


def _build_encoder(backbone: Backbone, config: EncoderConfig, heads: Mapping[str, Tensor] | None) -> ConceptEncoder:
    with torch.device("meta") if heads is not None else nullcontext():  # what is known need not be drawn at random
        encoder = ConceptEncoder(
            image_widths=_image_widths(backbone, config, heads or {}),
            unet_widths=feature_widths(backbone.unet, config.unet_blocks),
            embedding_dim=backbone.embedding_dim,
            config=config,
        )
    if heads is not None:
        _fill(encoder, heads)
    return encoder


def _image_widths(backbone: Backbone, config: EncoderConfig, heads: Mapping[str, Tensor]) -> list[int]:
    """Of the image encoder's layers; without one, as known heads have them."""
    if not config.use_image:
        return []
    if backbone.image_encoder is None and heads:
        weights = [tensor for name, tensor in heads.items() if re.fullmatch(r"image_linears\.\d+\.weight", name)]
        return [weight.shape[1] for weight in weights if weight.ndim == 2]  # what is odd, `_fill` finds
    if config.layer_stride > backbone.image_layers:
        raise ConfigError(
            f"encoder.layer_stride is {config.layer_stride}, but the image encoder has {backbone.image_layers} layers, "
            "so none would be seen; choose fewer, or set encoder.use_image to false"
        )
    return [backbone.image_width] * (backbone.image_layers // config.layer_stride)


def _fill(encoder: ConceptEncoder, heads: Mapping[str, Tensor]) -> None:
    """Copies of known heads into an encoder without values; the concept's own vectors are zero."""
    wanted = encoder.heads()
    needed, found = ({name: tensor.shape for name, tensor in one.items()} for one in (wanted, heads))
    if odd := [name for name, _ in needed.items() ^ found.items()]:
        raise CheckpointError(f"the domain's encoder does not fit this base model: '{min(odd)}' is missing or odd")
    values = {name: tensor.to(torch.float32, copy=True) for name, tensor in heads.items()}
    own = {name: torch.zeros(encoder.embedding_dim) for name in ("bias", "residual")}
    encoder.load_state_dict({**values, **own}, assign=True)
