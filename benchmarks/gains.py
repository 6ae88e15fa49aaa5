"""What each optimisation gains: the same work with it and without it, timed in turn in one run.

    python benchmarks/gains.py --pairs 3 --sampling-steps 6 --output docs/results/gains.json

Options, file and ratios are those of `performance.py`. "off" is the package's own code with one thing patched back, or
with the other of two settings. Before anything is timed, off has to come to the numbers of on, or the program stops: a
ratio is of equal work. That run also counts operations, whose ratio no other process disturbs.

"kept-weights" goes the other way: on is what the package does not do, because of the memory that it takes. Drawing is
one guided call of the stock pipeline, without decoding; training is the quickest step but the first. On tiny all of it
takes a minute of one idle core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import performance
import torch
import tyro
from performance import PICTURES, PROMPT, SMALL, WHOLE, PerformanceConfig, compared, counted, timed
from torch import Tensor
from torch.utils._pytree import tree_map

from e4t import conditioning, optimizers, personalize
from e4t.cache import CacheConfig, write_cache
from e4t.checkpoint import Concept
from e4t.model import E4TModel
from e4t.models import features
from e4t.models.offsets import WeightOffset, WeightOffsets
from e4t.models.text import Tokens
from e4t.objective import Batch
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pictures_of
from e4t.training import Step

TOLERANCE = 1e-3
"""How far off may be from on, as a share of the largest number: sums in another order, over all steps of a call."""
STEPS = 5  # of training

Work = Callable[[], tuple[float, Tensor]]
"""Seconds, and numbers that depend on all that was done."""
Switch = Callable[[E4TPipeline], AbstractContextManager[Any]]


def gained(config: PerformanceConfig, on: Work, off: Work) -> dict[str, Any]:
    """Seconds of both, and ratios of seconds and operations. Raises ValueError where they are not the same work."""
    (operations, same), (more, other) = looked_at(on), looked_at(off)
    apart = float((other - same).abs().max() / same.abs().max())
    if not apart <= TOLERANCE:
        raise ValueError(f"off is not the same work as on: its numbers are {apart:.2g} of the largest away")
    return {
        **compared({"on": lambda: on()[0], "off": lambda: off()[0]}, config.pairs, warm=True),
        "operations, off / on": round(more / operations, 4),
        "apart": float(f"{apart:.1g}"),
    }


def looked_at(work: Work) -> tuple[int, Tensor]:
    """Operations, and the numbers that work comes to."""
    found: list[Tensor] = []
    return counted(lambda: found.append(work()[1])), found[0]


def switched(
    make: Callable[[PerformanceConfig], Work], switch: Switch, config: PerformanceConfig, *, to_on: bool = False
) -> dict[str, Any]:
    """Work as it is, against work while ``switch`` lasts, which turns one thing off, or ``to_on``."""
    work, (pipe, _) = make(config), pipe_and_concept(config)

    def changed() -> tuple[float, Tensor]:
        with switch(pipe):
            return work()

    return gained(config, changed, work) if to_on else gained(config, work, changed)


@cache
def pipe_and_concept(config: PerformanceConfig) -> tuple[E4TPipeline, Concept]:
    """Those that all parts share: each leaves them as they were."""
    pipe = performance.pipeline(config)
    return pipe, performance.tuned_concept(pipe)


# Drawing


def drawing(config: PerformanceConfig, **changes: Any) -> Work:
    """A concept is put on, drawn as latents, and taken off. Changes are fields of `GenerateConfig`."""
    pipe, concept = pipe_and_concept(config)

    def draw(into: list[Tensor]) -> None:
        with pipe.applied(concept, PROMPT.format("S*"), **changes) as applied:
            embeds = applied.prompt_embeds, applied.negative_prompt_embeds
            into.append(pipe.sampled(*embeds, steps=config.sampling_steps, output_type="latent"))

    def run() -> tuple[float, Tensor]:
        drawn: list[Tensor] = []
        return timed(partial(draw, drawn), config.device)(), drawn[0]

    return run


four_frozen = partial(drawing, embedding="frozen", num_images=4)


def features_of_all_rows(_: E4TPipeline) -> AbstractContextManager[Any]:
    """Of both halves of a guided batch, which have the same pictures."""
    offset = E4TModel.offset

    def of_all(model: E4TModel, noisy: Tensor, timesteps: Tensor, image_half: Tensor) -> Tensor:
        return offset(model, noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), image_half)[-len(noisy) :]

    return mock.patch.object(E4TModel, "offset", of_all)


def features_of_whole_passes(_: E4TPipeline) -> AbstractContextManager[Any]:
    return mock.patch("e4t.model.pooled_features", off_whole_pass)


@torch.no_grad()
def off_whole_pass(unet: Any, sample: Tensor, timesteps: Tensor, empty_prompt: Tensor, *, blocks: str) -> list[Tensor]:
    """`pooled_features`, read off a pass of all of the U-Net."""
    seen: list[Any] = []
    with ExitStack() as hooks:
        for part in (unet.conv_in, *unet.down_blocks, unet.mid_block):
            hooks.callback(part.register_forward_hook(lambda *call: seen.append(call[-1])).remove)
        type(unet).forward(unet, sample, timesteps, empty_prompt.expand(len(sample), -1, -1))
    first, *down, mid = seen
    stages = [[first], *(list(skips) for _, skips in down)]
    return [feature.float().mean(dim=(2, 3)) for feature in features._select(stages, mid, blocks)]


def guided_in_two(pipe: E4TPipeline) -> AbstractContextManager[Any]:
    """A call of the U-Net without the prompt, and one with it."""

    def halves(forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        rows = len(inputs["sample"])
        parts = (slice(rows // 2), slice(rows // 2, None))
        outputs = [forward(**conditioning._rows(inputs, part, of=rows)) for part in parts]
        return tree_map(lambda *both: torch.cat(both), *outputs)

    return conditioning._around(pipe.backbone.unet, halves)


def encoded_for_each(_: E4TPipeline) -> AbstractContextManager[Any]:
    """Prompts are encoded for each of four pictures."""
    embeds = E4TPipeline._embeds

    def each(pipe: E4TPipeline, tokens: Tokens, word: Tensor | None) -> Tensor:
        return embeds(pipe, tokens.repeat(4), word)[::4]

    return mock.patch.object(E4TPipeline, "_embeds", each)


def read_by_the_base(_: E4TPipeline) -> AbstractContextManager[Any]:
    """The prompts of four pictures are also encoded with the class word, as for `dual_path` and `delay`."""
    embeds = E4TPipeline._embeds

    def both(pipe: E4TPipeline, tokens: Tokens, word: Tensor | None) -> Tensor:
        if word is not None:
            embeds(pipe, tokens.repeat(4), None)
        return embeds(pipe, tokens, word)

    return mock.patch.object(E4TPipeline, "_embeds", both)


@contextmanager
def injected(pipe: E4TPipeline) -> Iterator[None]:
    """Weights are composed at every call; the concept, which they are composed of, has to stay meanwhile."""
    injecting = mock.patch.object(WeightOffsets, "fuse", WeightOffsets.inject)
    with injecting, mock.patch.object(WeightOffsets, "drop_concept"):
        yield
    pipe.model.offsets.drop_concept()


# Training


def tuning(config: PerformanceConfig, **changes: Any) -> Work:
    """Changes are fields of `PersonalizeConfig`."""
    pipe, _ = pipe_and_concept(config)
    known, settings = performance.prepared(pipe), {"tune": SMALL, "frozen_timesteps": 1, **changes}
    return lambda: quickest(performance.steps_of_tuning(pipe, config, known, STEPS, **settings))


by_muon = partial(tuning, tune=WHOLE, optimizer="muon")


def quickest(steps: list[Step]) -> tuple[float, Tensor]:
    """Seconds of the quickest step but the first, and the losses of all."""
    return min(step.seconds for step in steps[1:]), torch.tensor([step.loss for step in steps])


def looked_at_anew(pipe: E4TPipeline) -> AbstractContextManager[Any]:
    """The picture is opened and goes through autoencoder and image encoder at every step; one row, not a batch."""
    batches = personalize.batches

    def anew(*arguments: Any) -> Callable[[int], Batch]:
        batch_at = batches(*arguments)

        def looked(index: int) -> Batch:
            batch, seen = batch_at(index), performance.prepared(pipe)
            return replace(batch, latents=seen.latents.expand_as(batch.latents), image_features=seen.image_features)

        return looked

    return mock.patch.object(personalize, "batches", anew)


def by_products(_: E4TPipeline) -> AbstractContextManager[Any]:
    return mock.patch.object(optimizers, "_has_quick_eigenvalues", return_value=False)


def weights_kept(_: E4TPipeline) -> AbstractContextManager[Any]:
    """W (1 + Δ) is composed once in a tuning, in which it stands still; the concept's own D at every pass."""
    compose, known = WeightOffset._compose, dict[WeightOffset, Tensor]()

    def composed(offset: WeightOffset, weight: Tensor) -> Tensor:
        own = offset.concept
        if offset not in known:
            offset.concept = None
            known[offset], offset.concept = compose(offset, weight), own
        return known[offset] if own is None else known[offset] + offset.strength * own()

    return mock.patch.object(WeightOffset, "_compose", composed)


def kept_pictures(config: PerformanceConfig) -> dict[str, Any]:
    """Pre-training from what the networks saw in pictures once, against pictures that always look alike."""
    pipe, _ = pipe_and_concept(config)
    alike = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0, "sample_latents": False}
    settings = performance.pretraining_settings(config, pipe).updated(alike)
    kept = CacheConfig(dtype="float32", layer_stride=settings.encoder.layer_stride)

    def pretraining(data: Path) -> Work:
        return lambda: quickest(performance.steps_of_pretraining(pipe, settings, STEPS, data))

    with tempfile.TemporaryDirectory() as folder:
        list(write_cache(pictures_of(PICTURES, pipe.backbone, settings), pipe.backbone, kept, Path(folder)))
        return gained(config, pretraining(Path(folder)), pretraining(PICTURES))


GAINS: dict[str, performance.Part] = {
    "conditional-rows": partial(switched, drawing, features_of_all_rows),
    "encoder-half": partial(switched, drawing, features_of_whole_passes),
    "one-batch": partial(switched, drawing, guided_in_two),
    "distinct-prompts": partial(switched, four_frozen, encoded_for_each),
    "no-base-reading": partial(switched, four_frozen, read_by_the_base),
    "fused": partial(switched, drawing, injected),
    "constants": partial(switched, tuning, looked_at_anew),
    "eigenvalues": partial(switched, by_muon, by_products),
    "kept-weights": partial(switched, tuning, weights_kept, to_on=True),
    "kept-pictures": kept_pictures,
}


def main(config: PerformanceConfig) -> None:
    """All in this process, as no peaks are measured."""
    performance.fill(config, GAINS, {"tolerance": TOLERANCE}, run=lambda job, *arguments: job(*arguments))


if __name__ == "__main__":
    main(tyro.cli(PerformanceConfig, config=(tyro.conf.FlagConversionOff,)))
