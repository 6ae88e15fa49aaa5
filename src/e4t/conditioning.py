"""What stands between a stock pipeline and the U-Net while a concept is on: words, and whose weights are used when.

The stock pipeline calls the U-Net as ever. A hook in front of it puts the concept's word into the conditional rows;
what follows may send some calls, or some rows, through the base's weights.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from e4t.errors import ConfigError
from e4t.model import E4TModel
from e4t.models.text import Tokens

Forward = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The hook in front of the U-Net: the rows of the prompts, as the timestep at hand wants them.

    With ``image_half`` [D] the word v* is predicted from the very sample and timestep the U-Net is called with; without
    it the rows stay what they are. From the timestep ``until`` on, where denoising begins, they are ``class_prompts``
    [N, L, width] instead: the prompts read with the class word. ``words`` collects v* [N, D] of every call.
    """

    model: E4TModel
    tokens: Tokens
    image_half: Tensor | None
    strength: float
    class_prompts: Tensor | None
    until: float
    words: list[Tensor]

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        call = bound.arguments
        prompts: Tensor = call["encoder_hidden_states"]
        count = len(self.tokens)
        if len(prompts) not in (count, 2 * count):
            raise ConfigError(
                f"the concept was applied for {count} pictures, but the U-Net is called with {len(prompts)} rows"
            )
        if self.class_prompts is not None and is_early(call["timestep"], self.until):
            conditional = self.class_prompts
        elif self.image_half is not None:
            conditional = self._live(call, self.image_half)
        else:
            return None
        call["encoder_hidden_states"] = torch.cat([prompts[:-count], conditional.to(prompts.dtype)])
        return bound.args, bound.kwargs

    def _live(self, call: dict[str, Any], image_half: Tensor) -> Tensor:
        count = len(self.tokens)
        channels = self.model.backbone.vae.config.latent_channels  # inpainting models append mask and image
        sample = call["sample"][-count:, :channels].float()
        timesteps = torch.as_tensor(call["timestep"], device=sample.device).reshape(-1)[-count:].expand(count)
        word = self.model.word(self.model.offset(sample, timesteps, image_half[None]), strength=self.strength)
        self.words.append(word)
        return self.model.prompt_embeds(self.tokens, word)


def is_early(timestep: Any, until: float) -> bool:
    """Whether a call of the U-Net is of the first part of denoising, at ``until`` or noisier."""
    return float(torch.as_tensor(timestep).max()) >= until


@contextmanager
def base_first(model: E4TModel, until: float) -> Iterator[None]:
    """While it lasts, calls at the timestep ``until`` or noisier go through the U-Net's base weights.

    Layout and style are decided there, and with them whether a prompt is followed; who it is comes later (delayed
    subject conditioning, Xiao et al. 2023, arXiv 2305.10431).
    """

    def around(tuned: Forward, inputs: dict[str, Any]) -> Any:
        if not is_early(inputs["timestep"], until):
            return tuned(**inputs)
        with model.base_weights():
            return tuned(**inputs)

    with _around(model.backbone.unet, around):
        yield


@contextmanager
def base_for_negatives(model: E4TModel, count: int) -> Iterator[None]:
    """While it lasts, the first ``count`` of ``2 * count`` rows go through the U-Net's base weights."""

    def around(tuned: Forward, inputs: dict[str, Any]) -> Any:
        if len(inputs["sample"]) != 2 * count:
            return tuned(**inputs)
        with model.base_weights():
            without = tuned(**_rows(inputs, slice(count), of=2 * count))
        within = tuned(**_rows(inputs, slice(count, None), of=2 * count))
        return tree_map(lambda *both: torch.cat(both), without, within)

    with _around(model.backbone.unet, around):
        yield


def _rows(inputs: dict[str, Any], part: slice, *, of: int) -> dict[str, Any]:
    """Some rows of every tensor that has ``of`` of them."""
    rows: dict[str, Any] = tree_map(
        lambda x: x[part] if isinstance(x, Tensor) and x.ndim and len(x) == of else x, inputs
    )
    return rows


@contextmanager
def _around(unet: Any, around: Callable[[Forward, dict[str, Any]], Any]) -> Iterator[None]:
    """While it lasts, ``around`` gets the U-Net's forward pass, and its inputs by name, instead of being by-passed."""
    tuned, replaced = unet.forward, "forward" in vars(unet)  # by offloading, for one
    signature = inspect.signature(tuned)

    @functools.wraps(tuned)  # hooks ask for its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(tuned, dict(signature.bind(*args, **kwargs).arguments))

    unet.forward = forward
    try:
        yield
    finally:
        if replaced:
            unet.forward = tuned
        else:
            del unet.forward
