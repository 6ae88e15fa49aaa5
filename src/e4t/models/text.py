"""Prompts whose placeholder carries a given word embedding.

CLIP's tokenizer lowercases and splits "S*", so prompts are split at the placeholder *before* they are tokenised. The
class word's id stands in its place, and a hook on the embedding layer replaces those rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from e4t.errors import ConfigError, PromptError, PromptTooLongError


@dataclass(frozen=True)
class Tokens:
    """Tokenised prompts: ids [B, L] and where the placeholder stands [B, L]."""

    ids: Tensor
    placeholder: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Tokens:
        return replace(self, ids=self.ids[rows], placeholder=self.placeholder[rows])

    def repeat(self, count: int) -> Tokens:
        """Every row ``count`` times in a row: [B * count, L]."""
        return Tokens(self.ids.repeat_interleave(count, 0), self.placeholder.repeat_interleave(count, 0))

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.placeholder.to(device))


def class_token(tokenizer: Any, class_word: str) -> int:
    """The id of a class word, which must be a single known token."""
    ids = _plain_ids(tokenizer, class_word)
    if len(ids) != 1:
        raise ConfigError(f"the class word {class_word!r} is {len(ids)} tokens; choose a word that is one")
    return ids[0]


def tokenize(
    tokenizer: Any, prompts: Sequence[str], *, placeholder: str, class_id: int, expected: bool = True
) -> Tokens:
    """Tokenise prompts with the class word's id at each placeholder.

    Raises PromptTooLongError beyond the tokenizer's ``model_max_length`` (77 for CLIP), start and end token included.
    Warns if a prompt has no placeholder where one is ``expected``: it will be drawn without the concept.
    """
    if not prompts:
        raise PromptError("no prompt was given")
    for prompt in prompts:
        if expected and placeholder not in prompt:
            warnings.warn(f"the prompt {prompt!r} has no {placeholder}: the concept will not appear", stacklevel=2)
    rows = [_row(tokenizer, prompt, placeholder, class_id) for prompt in prompts]
    ids, marks = zip(*rows, strict=True)
    return Tokens(torch.tensor(ids), torch.tensor(marks))


def encode(text_encoder: nn.Module, tokens: Tokens, embedding: Tensor | None = None) -> Tensor:
    """Tokens [B, L] and word embeddings [B, D] or [D] for their placeholders → prompt embeddings [B, L, width].

    Differentiable in ``embedding``. Without one the class word is read as it is.
    """
    with _replaced_rows(text_encoder, tokens.placeholder, embedding):
        prompt_embeds: Tensor = text_encoder(tokens.ids)[0]
    return prompt_embeds


@contextmanager
def _replaced_rows(text_encoder: Any, marks: Tensor, embedding: Tensor | None) -> Iterator[None]:
    if embedding is None:
        yield
        return
    rows = embedding[:, None] if embedding.dim() == 2 else embedding

    def replace_rows(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return torch.where(marks[..., None], rows.to(output.dtype), output)

    handle = text_encoder.get_input_embeddings().register_forward_hook(replace_rows)
    try:
        yield
    finally:
        handle.remove()


def _row(tokenizer: Any, prompt: str, placeholder: str, class_id: int) -> tuple[list[int], list[bool]]:
    ids, marks = [tokenizer.bos_token_id], [False]
    for index, piece in enumerate(prompt.split(placeholder)):
        if index:
            ids.append(class_id)
            marks.append(True)
        piece_ids = _plain_ids(tokenizer, piece)
        ids += piece_ids
        marks += [False] * len(piece_ids)
    ids.append(tokenizer.eos_token_id)
    limit = tokenizer.model_max_length
    if len(ids) > limit:
        shown = repr(prompt) if len(prompt) <= 200 else f"{prompt[:200]!r}..."
        raise PromptTooLongError(f"the prompt {shown} is {len(ids)} tokens long; the text encoder takes {limit}")
    padding = limit - len(ids)
    return ids + [tokenizer.pad_token_id] * padding, marks + [False] * (padding + 1)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []
    return ids
