"""Batch i of pre-training, from the seed and i alone: pictures or what is kept of them, noise, timesteps, prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from e4t.backbone import draw_noise
from e4t.cache import CachedData, Seen
from e4t.config import PretrainConfig
from e4t.data import Ahead, ImageData, Views, square_pixels
from e4t.errors import ConfigError, PromptTooLongError
from e4t.model import E4TModel
from e4t.models.text import Tokens
from e4t.objective import Batch
from e4t.processes import Processes
from e4t.training import draw_timesteps, generator_at, timestep_range

Look = Callable[[int], Seen]
Rows = Callable[[int], range]
"""Where this process's rows of a batch are in the order of training."""


def batches(
    model: E4TModel,
    data: ImageData | CachedData,
    config: PretrainConfig,
    processes: Processes | None = None,
    during: ExitStack | None = None,
) -> Callable[[int], Batch]:
    """Batch i; of several processes, the rows that are this one's.

    Random numbers are drawn for the rows of all processes, so that how these are shared out makes no difference.
    Threads that prepare pictures end with ``during``.
    """
    backbone, together = model.backbone, processes or Processes()
    look = _look(model, data, config, together, during or ExitStack())
    prompts = model.tokens(model.domain.prompts)
    low, high = timestep_range(config, backbone.num_timesteps)
    size, rows = config.batch_size * together.count, together.rows(config.batch_size)

    def batch_at(index: int) -> Batch:
        generator = generator_at(config.seed, index)
        seen = look(index)
        shape = (size, *seen.mean.shape[1:])
        drawn = draw_noise(shape, generator)[rows] if config.sample_latents else None
        latents = backbone.latents(seen.mean, seen.std, drawn)
        picks = torch.randint(len(prompts), (size,), generator=generator)[rows]
        noise = draw_noise(shape, generator)[rows].to(backbone.device)
        timesteps = draw_timesteps(size, low, high, generator, stratified=config.stratified_timesteps)[rows]
        tokens = prompts[picks.to(backbone.device)]
        if config.caption_share:
            chosen = torch.rand(size, generator=generator)[rows] < config.caption_share
            tokens = _with_captions(model, tokens, seen.captions, chosen.tolist())
        return Batch(
            latents=latents,
            noise=noise,
            timesteps=timesteps.to(backbone.device),
            tokens=tokens,
            image_features=seen.features,
        )

    return batch_at


def _look(
    model: E4TModel, data: ImageData | CachedData, config: PretrainConfig, processes: Processes, during: ExitStack
) -> Look:
    size, own = config.batch_size * processes.count, processes.rows(config.batch_size)

    def rows(index: int) -> range:
        return range(index * size + own.start, index * size + own.stop)

    if isinstance(data, CachedData):
        return _kept(model, data, rows)
    if not config.cache:
        return _fresh(model, data, rows, size, config.workers, during)
    if data.stream is not None:
        raise ConfigError("cache keeps numbered pictures in memory, and shards have no numbers; use 'e4t cache'")
    return _remembered(model, data, rows)


def _fresh(model: E4TModel, data: ImageData, rows: Rows, size: int, workers: int, during: ExitStack) -> Look:
    """What the frozen networks see in a batch, another view of its pictures every time."""

    def prepared(index: int, run: Callable[..., Iterable[object]]) -> Views:
        data.release(index * size)
        return data.views_at(rows(index), run)

    ahead = Ahead(prepared, workers)
    during.callback(ahead.close)

    def look(index: int) -> Seen:
        views = ahead(index)
        data.use(views, (index + 1) * size)
        mean, std = model.backbone.posterior(views.target)
        return Seen(mean, std, model.image_features(views.reference), views.captions)

    return look


def _remembered(model: E4TModel, data: ImageData, rows: Rows) -> Look:
    """The same of pictures that always look alike, encoded when they first come up and kept on the CPU.

    One at a time: a resumed training meets them in other batches, and batches of another size round differently.
    """
    known: dict[int, Seen] = {}

    def see(place: int) -> Seen:
        (number,) = data.picks([place])
        if number not in known:
            entry = data.entries[number]
            pixels = square_pixels(entry.image(), data.resolution)[None]
            mean, _ = model.backbone.posterior(pixels)
            nothing = mean.new_zeros(1, 1, 1, 1)  # what is drawn from the posterior would not look alike
            known[number] = Seen(mean, nothing, model.image_features(pixels), [entry.caption()]).to("cpu")
        return known[number]

    def look(index: int) -> Seen:
        seen = [data.first_readable(place, see, data.broken) for place in rows(index)]
        return Seen.joined(seen).to(model.backbone.device)

    return look


def _kept(model: E4TModel, data: CachedData, rows: Rows) -> Look:
    """The same from a cache on the disk."""
    config = model.encoder.config

    def look(index: int) -> Seen:
        seen = data.at(rows(index), layer_stride=config.layer_stride)
        return replace(seen, features=seen.features if config.use_image else []).to(model.backbone.device)

    return look


def _with_captions(model: E4TModel, tokens: Tokens, captions: Sequence[str | None], chosen: Sequence[bool]) -> Tokens:
    """The tokens with the rows that were chosen, and have a caption, replaced by it."""
    ids, marks = tokens.ids.clone(), tokens.placeholder.clone()
    for row, (caption, wanted) in enumerate(zip(captions, chosen, strict=True)):
        if wanted and caption:
            replaced = _fitting(model, caption)
            ids[row], marks[row] = replaced.ids[0], replaced.placeholder[0]
    return Tokens(ids, marks)


def _fitting(model: E4TModel, caption: str) -> Tokens:
    """A caption with the placeholder, without its last words where it is too long for the text encoder."""
    words = model.domain.captioned(caption).split()
    while True:
        try:
            return model.tokens([" ".join(words)])
        except PromptTooLongError:
            shorter = words[: len(words) * 9 // 10]
            lost = model.domain.placeholder not in " ".join(shorter)
            words = model.domain.prompts[0].split() if lost else shorter
