"""How names are spelt: the class word, moved by a linear map of who bears the name.

Stable Diffusion has read billions of captions, and its words for people lie in some order: near ones name people who
look alike, and a word in between names somebody in between. That is what a personalized word can land on. A few tens of
thousands of pictures with two thousand names in a free table gave nothing of the kind: from the states of names little
more than skin and hair could be told. So here the order is given. While the base learns, the embedding of a name is
computed from the drawn individual by one map that all of them share, and everybody in the pictures can have a name;
afterwards the rows of the two thousand who keep theirs are written into the table, and the map is thrown away.

Shapes: n captions of L tokens, W the width of the text encoder, D the columns of all kinds side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from e4t.tiny.captions import NAMED, names
from e4t.tiny.columns import Layout, identity_columns
from e4t.tiny.world import PARAMETERS, Identity, Picture, identity, is_visible

KINDS = tuple(NAMED)
_WIDTHS = [Layout.of(kind).columns for kind in KINDS]
_NOBODY = -1


def bearer(subject: Identity | None) -> Tensor:
    """Who bears a name, float32 ``[D]``: standardised columns of what can be seen, zeros for other kinds' columns."""
    parts = [torch.zeros(width) for width in _WIDTHS]
    if subject is not None and subject.kind in KINDS:
        layout, parameters = Layout.of(subject.kind), PARAMETERS[subject.kind]
        seen = np.array([is_visible(p, subject.params) for p in parameters])[layout.owners]
        values = (identity_columns(subject) - layout.means) / layout.scales * seen
        parts[KINDS.index(subject.kind)] = torch.from_numpy(values).float()
    return torch.cat(parts)


def bearers(pictures: Sequence[Picture]) -> Tensor:
    """Whom a caption of each picture may name, the subject and the artist, float16 ``[n, 2, D]``."""
    return torch.stack([torch.stack([bearer(p.subject), bearer(p.art)]).half() for p in pictures])


class Spelling(nn.Module):
    """The map from who bears a name to where it lies, and one back from the caption's end, to learn it by."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(sum(_WIDTHS), width, bias=False)
        self.told = nn.Linear(width, 2 * sum(_WIDTHS))
        nn.init.normal_(self.map.weight, std=0.0075)  # moves a name as far as ordinary words are long
        vocabulary = tokenizer.get_vocab()
        self.class_words = [vocabulary[f"{kind}</w>"] for kind in KINDS]
        self.rows = [[vocabulary[f"{name.split()[-1].lower()}</w>"] for name in names(kind)] for kind in KINDS]
        kind_of = torch.full((len(tokenizer),), _NOBODY)
        for number, rows in enumerate(self.rows):
            kind_of[rows] = number
        self.kind_of: Tensor
        self.register_buffer("kind_of", kind_of, persistent=False)

    def kinds(self, ids: Tensor) -> Tensor:
        """Which of `KINDS` each token names, -1 where it is no name, ``[n, L]``."""
        return self.kind_of[ids]

    def spell(self, table: Tensor, ids: Tensor, embedded: Tensor, whom: Tensor) -> Tensor:
        """``embedded`` ``[n, L, W]`` with the embeddings of all names computed. ``whom`` is as `bearers` gives it."""
        kinds = self.kinds(ids)
        moved = self.map(whom.to(self.map.weight))  # [n, 2, W]
        of_artist = (kinds == KINDS.index("art"))[..., None]
        words = table[torch.tensor(self.class_words, device=ids.device)[kinds]]
        named = words + torch.where(of_artist, moved[:, None, 1], moved[:, None, 0])
        return torch.where((kinds != _NOBODY)[..., None], named, embedded)

    def telling_loss(self, pooled: Tensor, ids: Tensor, whom: Tensor) -> Tensor:
        """How wrongly those named are told from the state at the caption's end ``[n, W]``; 1 for knowing nothing."""
        kinds = self.kinds(ids)
        artist = KINDS.index("art")
        named = torch.stack([((kinds != _NOBODY) & (kinds != artist)).any(1), (kinds == artist).any(1)], dim=1)
        whom = whom.float()
        asked = (whom != 0) & named[..., None]
        error = F.mse_loss(self.told(pooled).float().view_as(whom), whom, reduction="none")
        return (error * asked).sum() / asked.sum().clamp(min=1)

    @contextmanager
    def spoken(self, text_encoder: Any, ids: Tensor, whom: Tensor) -> Iterator[None]:
        """While ``text_encoder`` reads ``ids``, names are spelt; differentiable."""
        table = text_encoder.get_input_embeddings()

        def replace_names(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            return self.spell(table.weight, ids, embedded, whom)

        handle = table.register_forward_hook(replace_names)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def write(self, table: Tensor) -> None:
        """Write the rows of all who keep their names into a table of embeddings ``[V, W]``."""
        for word, rows, whom in self._named():
            table[rows] = (table[word] + self.map(whom.to(self.map.weight))).to(table.dtype)

    @torch.no_grad()
    def read(self, table: Tensor) -> None:
        """Find the map that has written the rows of ``table``."""
        moved = torch.cat([table[rows] - table[word] for word, rows, _ in self._named()]).double()
        whom = torch.cat([whom for *_, whom in self._named()]).double()
        self.map.weight.copy_(torch.linalg.lstsq(whom, moved, driver="gelsd").solution.T)

    def _named(self) -> Iterator[tuple[int, list[int], Tensor]]:
        """Of each kind its class word, the rows of its names, and whom they name ``[names, D]``."""
        for kind, word, rows in zip(KINDS, self.class_words, self.rows, strict=True):
            yield word, rows, torch.stack([bearer(identity("train", index, kind)) for index in range(len(rows))])
