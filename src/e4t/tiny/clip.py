"""How CLIP's vision tower learns, aligned to a text tower that is already finished.

Contrast with captions teaches what tells the pictures of one batch apart, and a small tower from nothing is slow at
that. So its [CLS] states also have to say the words of the caption, to say names where they are spelt, and to draw the
picture in small: what they carry is then asked for in full at every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from e4t.tiny.captions import training_picture
from e4t.tiny.spelling import Spelling

ALIKE = 8  # pictures of one scene and style in a batch
SECOND = 4  # one picture in so many is there twice
WORDS_WEIGHT, NAMING_WEIGHT, DRAWING_WEIGHT = 0.3, 0.5, 2.0
MIDDLE = (slice(36, 100), slice(32, 96))  # rows and columns of a 128 px portrait where its face is
_DRAWN = 2 * 3 * 32 * 32


def clip_pixels(rgb: np.ndarray) -> Tensor:
    """uint8 ``[n, h, w, 3]`` to what CLIP looks at, float32 ``[n, 3, h, w]``."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 - mean) / std


def alike(indices: np.ndarray, size: int) -> Tensor:
    """Rows of pictures that share kind of subject, style and scene, ``[groups, size]``; each picture at most once."""

    def key(row: int) -> tuple[str, ...]:
        picture = training_picture(int(indices[row]))
        style = "art" if picture.art else picture.style
        return picture.subject.kind, picture.transform or "", style, picture.scene

    order = sorted(range(len(indices)), key=key)
    return torch.tensor(order[: len(order) // size * size]).view(-1, size)


def class_states(hidden_states: Sequence[Tensor]) -> list[Tensor]:
    """The [CLS] state after every second layer, ``[n, width]`` each: the encoder's input (paper, section 4.1)."""
    return [state[:, 0] for state in hidden_states[2::2]]


@torch.no_grad()
def start_seeing(vision: Any, pixels: Tensor) -> None:
    """Begin with patches whitened by their own statistics and with positions that vary smoothly.

    In plain pixels nearly all variance is broad colour; whitened, edges weigh as much from the first step. Positions
    are sines and cosines as large as that, where the stock beginning drowns them in the patches. ``pixels`` is
    ``[n, 3, h, w]`` of as many pictures as give the statistics.
    """
    embeddings = vision.embeddings
    weight: Tensor = embeddings.patch_embedding.weight  # [width, 3, patch, patch]
    width, patch = weight.shape[0], weight.shape[-1]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    values, vectors = values[-width:], vectors[:, -width:]
    whitening = (vectors / (values + 1e-4 * values[-1]).sqrt()).T
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.double))[0]
    weight.copy_((0.5 * turn @ whitening).view_as(weight))
    side = pixels.shape[-1] // patch
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = math.pi / side * 2 ** torch.linspace(-1, 3, width // 4)
    waves = [wave(axis.flatten()[:, None] * frequencies) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    embeddings.position_embedding.weight[1:] = 0.5 * torch.cat(waves, dim=1)


def rarity(tokens: Tensor, vocabulary: int) -> Tensor:
    """How much each token says, ``[vocabulary]``: minus the logarithm of the share of captions it is in.

    ``tokens`` is ``[n, length]``. Start, end and padding are in all of them and say nothing.
    """
    found = torch.zeros(vocabulary)
    for caption in tokens.long():
        found[caption.unique()] += 1
    return ((len(tokens) + 1) / (found + 1)).log()


class ClassStateHeads(nn.Module):
    """What [CLS] states have to tell while they learn, thrown away afterwards: words, names, and the picture in small.

    Words ``[n, vocabulary]`` are logits; names ``[n, 2, W]`` the moves from the class words to the subject's name and
    to the artist's; the picture ``[n, 6144]`` is as `in_small`. ``width`` is that of the joined states.
    """

    def __init__(self, width: int, vocabulary: int, text_width: int) -> None:
        super().__init__()
        self.words = nn.Linear(width, vocabulary)
        self.names = nn.Linear(width, 2 * text_width)
        self.drawn = nn.Linear(width, _DRAWN)
        self.drawn_bent = nn.Sequential(nn.Linear(width, 1024), nn.GELU(), nn.Linear(1024, _DRAWN))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joined states ``[n, width]`` to words, names and the picture."""
        names = self.names(states).unflatten(-1, (2, -1))
        return self.words(states), names, self.drawn(states) + self.drawn_bent(states)


def in_small(pixels: Tensor) -> Tensor:
    """``[n, 3, 128, 128]`` at a quarter of its size, and the middle at half of it, ``[n, 6144]``."""
    middle = pixels[:, :, MIDDLE[0], MIDDLE[1]]
    return torch.cat([F.avg_pool2d(pixels, 4).flatten(1), F.avg_pool2d(middle, 2).flatten(1)], dim=1)


@dataclass(frozen=True)
class Captioned:
    """A batch: pictures ``[n, 3, 128, 128]``, the token ids of their captions ``[n, L]`` and of captions that are wrong
    in one attribute ``[n, variants, L]``, and whom the right ones may name, as `bearers` gives it."""

    pixels: Tensor
    right: Tensor
    wrong: Tensor
    whom: Tensor


@dataclass(frozen=True)
class ClipObjective:
    """The loss of one batch."""

    clip: Any  # its text tower frozen
    heads: ClassStateHeads
    spelling: Spelling  # frozen
    rarity: Tensor

    def loss(self, batch: Captioned, generator: torch.Generator) -> Tensor:
        """Contrast, words (rare ones weigh more), names and drawing."""
        pixels, right = batch.pixels, batch.right
        images = torch.cat([pixels, view(pixels[::SECOND], generator)])
        seen = self.clip.vision_model(pixel_values=images.to(self.clip.dtype), output_hidden_states=True)
        states = [F.layer_norm(s[: len(pixels)], s.shape[-1:]) for s in class_states(seen.hidden_states)]
        words, names, drawn = self.heads(torch.cat(states, dim=-1))
        weights = self.rarity[right] * (self.spelling.kinds(right) < 0)
        return (
            self._contrast(seen.pooler_output, batch)
            + WORDS_WEIGHT * words_loss(words, right, weights)
            + NAMING_WEIGHT * self._naming(names, batch.whom)
            + DRAWING_WEIGHT * F.mse_loss(drawn.float(), in_small(pixels))
        )

    def _naming(self, names: Tensor, whom: Tensor) -> Tensor:
        """How far the names ``[n, 2, W]`` are from where they are spelt, named or not; 1 for knowing nothing."""
        with torch.no_grad():
            spelt: Tensor = self.spelling.map(whom.to(self.spelling.map.weight)).float()
            there = (whom != 0).any(-1)
        return F.mse_loss(names.float()[there], spelt[there]) / spelt[there].square().mean()

    def _contrast(self, pooled: Tensor, batch: Captioned) -> Tensor:
        """Of the pictures, followed by second views of some; and of their captions, and wrong ones.

        A picture chooses among all captions, and once more among its own wrong ones alone; a caption and a second view
        choose among the pictures. Two views of one drawing are alike in what captions do not say.
        """
        count = len(batch.pixels)
        seen = F.normalize(self.clip.visual_projection(pooled).float(), dim=-1)
        first, second = seen[:count], seen[count:]
        ids = trimmed(batch.right)
        with self.spelling.spoken(self.clip.text_model, ids, batch.whom):
            right = self._said(ids)
        wrong = self._said(trimmed(batch.wrong.flatten(0, 1)))
        own = torch.cat([right[:, None], wrong.view(count, -1, wrong.shape[-1])], dim=1)
        scale = self.clip.logit_scale.float().exp().clamp(max=100)
        target = torch.arange(count, device=seen.device)
        choices = [
            (first @ torch.cat([right, wrong]).T, target),
            (right @ first.T, target),
            (second @ first.T, target[::SECOND]),
            ((own @ first[:, :, None])[..., 0], torch.zeros_like(target)),
        ]
        return torch.stack([F.cross_entropy(scale * likeness, answer) for likeness, answer in choices]).mean()

    def _said(self, ids: Tensor) -> Tensor:
        pooled = self.clip.text_model(input_ids=ids).pooler_output
        return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)


def words_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of each caption's words, whatever their order; 0 where no word has a weight.

    ``logits`` is ``[n, vocabulary]``, ``ids`` and ``weights`` are ``[n, length]``.
    """
    likelihood = logits.float().log_softmax(-1).gather(1, ids)
    return -(likelihood * weights).sum() / weights.sum().clamp(min=1)


def trimmed(ids: Tensor) -> Tensor:
    """Token ids ``[n, length]`` without the padding that no caption needs; every caption keeps its end."""
    return ids[:, : int((ids != ids[0, -1]).sum(dim=1).max()) + 1]


def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A mild random crop and colour change of every picture."""
    n = len(pixels)
    scale = 0.85 + 0.15 * torch.rand(n, generator=generator)
    shift = (torch.rand(n, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
    cropped = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    gain = 1 + 0.1 * torch.randn(n, 1, 1, 1, generator=generator).to(pixels.device)
    return cropped * gain + 0.1 * torch.randn(n, 3, 1, 1, generator=generator).to(pixels.device)
