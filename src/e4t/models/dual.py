"""Dual path: every attention is evaluated twice and blended, as tuned with the concept's word and as in the base with
the class word (Arar et al. 2023, arXiv 2307.06925, which calls it that).

It trades likeness for prompts. Only attention is done twice; everything else is the tuned model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def dual_path(
    unet: nn.Module, base_weights: Callable[[], AbstractContextManager[None]], prompt_embeds: Tensor, share: float
) -> Iterator[None]:
    """While it lasts, ``share`` of every attention's output comes from ``base_weights`` and ``prompt_embeds``.

    ``prompt_embeds`` [N, L, width] are the prompts read with the class word; they stand for the last N rows of every
    call, the conditional ones. Calls of parts of the U-Net, such as those for the encoder's features, are left alone.
    """
    path = _DualPath(prompt_embeds, share)
    with base_weights(), ExitStack() as collected:
        for name, module in unet.named_modules():
            if name.rsplit(".", 1)[-1] in ("attn1", "attn2"):
                hook = path.blending(dict[str, Tensor](module.named_parameters()))
                collected.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        collected.callback(unet.register_forward_pre_hook(path.enter).remove)
        collected.callback(unet.register_forward_hook(path.leave, always_call=True).remove)
        hooks = collected.pop_all()
    with hooks:
        yield


class _DualPath:
    """What the hooks share: whether a whole U-Net is running, and not the second evaluation itself."""

    def __init__(self, prompt_embeds: Tensor, share: float) -> None:
        self.prompt_embeds = prompt_embeds
        self.share = share
        self.active = False

    def enter(self, *_: Any) -> None:
        self.active = True

    def leave(self, *_: Any) -> None:
        self.active = False

    def blending(self, base: dict[str, Tensor]) -> Callable[..., Tensor | None]:
        """The hook of one attention, whose base weights are ``base``."""

        def blend(attention: nn.Module, args: Any, kwargs: dict[str, Any], tuned: Tensor) -> Tensor | None:
            if not self.active:
                return None
            self.active = False
            try:
                untuned: Tensor = functional_call(attention, base, args, kwargs | self._with_class_word(kwargs))
            finally:
                self.active = True
            return torch.lerp(tuned, untuned, self.share)

        return blend

    def _with_class_word(self, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The prompts of a cross-attention, their conditional rows replaced; nothing for a self-attention."""
        prompts = kwargs.get("encoder_hidden_states")
        if prompts is None:
            return {}
        rest = prompts[: len(prompts) - len(self.prompt_embeds)]
        return {"encoder_hidden_states": torch.cat([rest, self.prompt_embeds.to(prompts.dtype)])}
