"""The tiny Stable Diffusion's parts, freshly initialised: stock classes of diffusers and transformers, small.

128 px pictures become 16 x 16 latents of 12 channels. Attention runs at 8 x 8 and 4 x 4: at 16 x 16 it makes a step on
a CPU half as long again. Whether that would pay in quality has not been measured.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from e4t.tiny.clip import ClassStateHeads

RESOLUTION = 128
LATENT_CHANNELS = 12
TEXT_WIDTH = 192
VISION_WIDTH, VISION_LAYERS = 192, 8
MAX_TOKENS = 48
_PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""

_PROJECTIONS = ("logit_scale", "text_projection.weight", "visual_projection.weight")


def build_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of every word in ``captions``; written to ``folder``."""
    from tokenizers import Regex

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    # Every byte also exists as the end of a word, so that words nobody trained on still tokenise.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_vae() -> AutoencoderKL:
    """f = 8, about 3 M parameters; no attention, so that it can train on crops."""
    return AutoencoderKL(
        block_out_channels=(16, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """About 11 M parameters."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=5,
        norm_num_groups=16,
    )


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Text tower of 4 layers, vision tower of 8 on patches of 16 px, both 192 wide."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=RESOLUTION,
        patch_size=16,
        projection_dim=TEXT_WIDTH,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The CLIP whose text tower is the text encoder."""
    return CLIPModel(clip_config(tokenizer))


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Write what the folder of a base has not yet of ``clip``, the vision tower and the projections; float16."""
    vision = CLIPVisionModel(clip.config.vision_config)
    vision.load_state_dict(clip.vision_model.state_dict())
    vision.half().save_pretrained(folder / "image_encoder")
    tensors = {key: tensor.half().contiguous() for key, tensor in clip.state_dict().items() if key in _PROJECTIONS}
    save_file(tensors, folder / "image_encoder" / "projections.safetensors", metadata={"format": "pt"})


def load_clip(folder: Path) -> CLIPModel:
    """The whole CLIP of a base's folder: its text tower is the text encoder, which is stored once."""
    text = CLIPTextModel.from_pretrained(folder / "text_encoder")
    vision = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    configs = {"text_config": text.config.to_dict(), "vision_config": vision.config.to_dict()}
    clip = CLIPModel(CLIPConfig(**configs, projection_dim=TEXT_WIDTH))
    clip.text_model.load_state_dict(text.state_dict())
    clip.vision_model.load_state_dict(vision.state_dict())
    projections = load_file(folder / "image_encoder" / "projections.safetensors")
    clip.load_state_dict({key: tensor.float() for key, tensor in projections.items()}, strict=False)
    return clip.eval()


def build_clip_heads(vocabulary: int) -> ClassStateHeads:
    """What the [CLS] states after every second layer of `build_clip`'s vision tower have to tell while it learns."""
    return ClassStateHeads(VISION_LAYERS // 2 * VISION_WIDTH, vocabulary, TEXT_WIDTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Stable Diffusion's text encoder: the text tower alone."""
    return CLIPTextModel(CLIPTextConfig(**clip_config(tokenizer).text_config.to_dict()))


@functools.cache
def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal signal-to-noise ratio: small latents leave text nothing to say in epsilon."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # as Stable Diffusion's own; trailing spacing does not use it
    )
