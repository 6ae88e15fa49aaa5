"""What the tiny model has to pass before E4T is worth training on it.

    python -m e4t.evaluation.gates WORK/tiny --judge-folder WORK/judge-1/face --output WORK/gates.json

- Conditional gain: the relative drop of the denoising loss from another individual's caption to the right one, with the
  same noise and timestep. It is the cheapest honest measure of whether a concept can be taught to this base at all.
- Identity in CLIP's vision tower: what a ridge regression reads in its [CLS] states, against what the judge reads.
- Retrieval: the right caption among 64 that differ in one attribute.
- Words in the text encoder: linear probes for every attribute that captions name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from e4t.evaluation.judge import RESOLUTION, Judge
from e4t.evaluation.metrics import explained
from e4t.evaluation.truth import Truth, concept_of, visible_parameters
from e4t.tiny import architecture
from e4t.tiny.album import snapshot
from e4t.tiny.captions import TRAINING_KINDS, alterations, caption, describe, name_of, training_picture
from e4t.tiny.clip import class_states, clip_pixels
from e4t.tiny.columns import Layout
from e4t.tiny.pictures import to_pixels
from e4t.tiny.train import tokenise
from e4t.tiny.world import Picture, draw, stream, words

TIMESTEPS = (100, 300, 550, 650, 750, 850, 950)
"""The last five are the middles of equal parts of the upper half."""
LEAST_GAIN, LEAST_IDENTITY, LEAST_RETRIEVAL, LEAST_WORDS = 0.05, 0.8, 0.8, 0.95
LEAST_PARAMETERS = 15
STRENGTHS = (1e-3, 1e-2, 1e-1)
CANDIDATES = 64
COLOURLESS = ("pencil sketch", "blueprint", "woodcut", "chalkboard", "neon")
"""Styles that keep no colour of a face; so does a transform, the marble statue."""

UNSEEN = 10**8
"""Pictures of the training stream from here on are in nobody's training."""


def described(picture: Picture, seed: object) -> str:
    """A caption that says everything there is to say: names, or all of the subject's words."""
    return caption(picture, stream("gate", seed), subject=_referred(picture, seed))


def _referred(picture: Picture, seed: object) -> str:
    rng = stream("gate words", seed)
    return name_of(picture.subject) or describe(picture.subject.kind, words(picture.subject), rng)


def gate_pictures(count: int, *, named: bool, kind: str = "face", start: int = UNSEEN) -> list[Picture]:
    """Pictures nobody trained on: of named individuals of ``kind``, or of validation ones only words describe."""
    namespace = "train" if named else "validation"
    kinds = TRAINING_KINDS if kind == "art" else (kind,)
    pictures: list[Picture] = []
    while len(pictures) < count:
        picture = training_picture(start, namespace=namespace, kinds=kinds)
        start += 1
        if (picture.art is not None) == (kind == "art") and (name_of(concept_of(picture, kind)) is not None) == named:
            pictures.append(picture)
    return pictures


def _drawn(pictures: Sequence[Picture]) -> np.ndarray:
    return np.stack([draw(picture, RESOLUTION).rgb for picture in pictures])


# Conditional gain


@dataclass(frozen=True)
class Pairs:
    """Pictures with the right caption and the same caption about another individual."""

    latents: Tensor
    right: list[str]
    wrong: list[str]


def caption_pairs(pipe: Any, count: int, *, named: bool) -> Pairs:
    """Latents, right captions and captions about somebody else for ``count`` pictures."""
    pictures = gate_pictures(count, named=named)
    with torch.no_grad():
        latents = pipe.vae.encode(to_pixels(_drawn(pictures))).latent_dist.mean * pipe.vae.config.scaling_factor
    subjects = [_referred(picture, number) for number, picture in enumerate(pictures)]
    right, wrong = (
        [caption(p, stream("gate", n), subject=who) for n, (p, who) in enumerate(zip(pictures, order, strict=True))]
        for order in (subjects, subjects[1:] + subjects[:1])
    )
    return Pairs(latents, right, wrong)


@torch.no_grad()
def conditional_gain(pipe: Any, pairs: Pairs, timesteps: Sequence[int] = TIMESTEPS) -> dict[int, float]:
    """Relative drop of the loss from the wrong to the right caption, by timestep."""
    states = {
        name: pipe.text_encoder(tokenise(pipe.tokenizer, captions)).last_hidden_state
        for name, captions in (("right", pairs.right), ("wrong", pairs.wrong))
    }
    gains = {}
    for timestep in timesteps:
        noise = torch.randn(pairs.latents.shape, generator=torch.Generator().manual_seed(timestep))
        t = torch.full((len(noise),), timestep)
        noisy = pipe.scheduler.add_noise(pairs.latents, noise, t)
        target = pipe.scheduler.get_velocity(pairs.latents, noise, t)
        loss = {name: float(F.mse_loss(pipe.unet(noisy, t, s).sample, target)) for name, s in states.items()}
        gains[timestep] = 1 - loss["right"] / loss["wrong"]
    return gains


def gain_gate(pipe: Any, count: int = 96) -> dict[str, Any]:
    """Conditional gain for names and for attribute captions, and its mean over the upper half of t."""
    report: dict[str, Any] = {}
    for label, named in (("names", True), ("attributes", False)):
        gains = conditional_gain(pipe, caption_pairs(pipe, count, named=named))
        upper = float(np.mean([gain for t, gain in gains.items() if t >= 500]))
        report[f"gain of {label}"] = {"value": upper, "passed": upper >= LEAST_GAIN, "by_timestep": gains}
    return report


# Identity in the vision tower


@torch.no_grad()
def joined_class_states(clip: Any, rgb: np.ndarray, *, batch: int = 64) -> Tensor:
    """The [CLS] state after every second layer, joined: uint8 ``[n, h, w, 3]`` to ``[n, width * layers / 2]``."""
    parts = []
    for start in range(0, len(rgb), batch):
        pixels = clip_pixels(rgb[start : start + batch])
        hidden = clip.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        parts.append(torch.cat(class_states(hidden), dim=-1))
    return torch.cat(parts)


def ridge(features: Tensor, targets: Tensor, *, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression on standardised features; returns what `predict` needs."""
    mean, spread = features.mean(0), features.std(0) + 1e-6
    x = torch.cat([(features - mean) / spread, torch.ones(len(features), 1)], dim=1).double()
    gram = x.T @ x + strength * len(x) * torch.eye(x.shape[1], dtype=torch.double)
    return mean, spread, torch.linalg.solve(gram, x.T @ targets.double())


def predict(fit: tuple[Tensor, Tensor, Tensor], features: Tensor) -> Tensor:
    """Apply what `ridge` found."""
    mean, spread, solution = fit
    x = torch.cat([(features - mean) / spread, torch.ones(len(features), 1)], dim=1)
    return x.double() @ solution


def identity_gate(clip: Any, judge: Judge, *, fit: int = 3000, count: int = 400) -> dict[str, Any]:
    """Share of the variance the judge explains on validation individuals that a ridge on [CLS] states explains too.

    Over the parameters that the judge reads, each fitted where it can be seen, on plain pictures of training
    individuals; a parameter that CLIP reads better than the judge counts as read like the judge's. It is not passed
    with a judge that reads fewer than `LEAST_PARAMETERS`: such a judge knows too little to ask for.
    """
    shown = {"train": fit, "validation": count}
    pictures = {name: [snapshot(name, i, judge.kind) for i in range(n)] for name, n in shown.items()}
    rgb = {name: _drawn(each) for name, each in pictures.items()}
    truth = {name: Truth.of(each, judge.kind) for name, each in pictures.items()}
    states = {name: joined_class_states(clip, each) for name, each in rgb.items()}
    right = truth["validation"]
    ours = _predicted(judge.layout, states["train"], truth["train"], states["validation"])
    read = {"judge": judge.read(rgb["validation"]).identity, "clip": ours}
    shares = {name: explained(judge.layout, each, right.identity, right.visible) for name, each in read.items()}
    counted = np.flatnonzero(judge.readable)
    both = np.minimum(shares["clip"], shares["judge"])[counted].clip(0)
    value = float(both.sum() / shares["judge"][counted].sum())
    details = {judge.layout.names[i]: [round(float(shares[name][i]), 3) for name in read] for i in counted}
    return {
        "identity in [CLS]": {
            "value": value,
            "passed": value >= LEAST_IDENTITY and len(counted) >= LEAST_PARAMETERS,
            "parameters": len(counted),
            "judge and ridge": details,
        }
    }


def _predicted(layout: Layout, features: Tensor, truth: Truth, unseen: Tensor) -> np.ndarray:
    """What ridges fitted on ``features`` and ``truth`` say of ``unseen``: one for each parameter, where it shows."""
    columns = []
    for part in layout.slices:
        rows = torch.from_numpy(truth.visible[:, part.start])
        target = torch.from_numpy(truth.identity[:, part])
        columns.append(predict(_tuned_ridge(features[rows], target[rows]), unseen))
    return torch.cat(columns, dim=1).numpy()


def _tuned_ridge(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ridge whose strength does best on the last fifth of what it is fitted on."""
    held = len(features) // 5
    losses = {
        strength: float(
            (predict(ridge(features[:-held], target[:-held], strength=strength), features[-held:]) - target[-held:])
            .square()
            .mean()
        )
        for strength in STRENGTHS
    }
    return ridge(features, target, strength=min(losses, key=losses.__getitem__))


# Retrieval


@torch.no_grad()
def retrieval_gate(clip: Any, tokenizer: Any, count: int = 200) -> dict[str, Any]:
    """How often the right caption is the nearest of 64 that differ from it in one attribute.

    Over pictures that have 64: without colour, much that captions say of a face cannot be seen.
    """
    drawable = gate_pictures(2 * count, named=False)
    pictures = [p for n, p in enumerate(drawable) if len(_candidates(p, n)) == CANDIDATES][:count]
    seen = clip.visual_projection(clip.vision_model(pixel_values=clip_pixels(_drawn(pictures))).pooler_output)
    hits = []
    for number, picture in enumerate(pictures):
        captions = _candidates(picture, number)
        read = clip.text_projection(clip.text_model(input_ids=tokenise(tokenizer, captions)).pooler_output)
        likeness = F.normalize(read, dim=-1) @ seen[number]
        hits.append(bool(likeness[0] > likeness[1:].max()))  # a tie is a miss
    value = float(np.mean(hits))
    return {"retrieval": {"value": value, "passed": value >= LEAST_RETRIEVAL, "candidates": CANDIDATES}}


def _candidates(picture: Picture, number: int) -> list[str]:
    """The right caption first, then others: the same words about pictures that visibly differ in one attribute."""
    right = described(picture, number)
    altered = [other for other in alterations(picture) if _visibly_different(picture, other)]
    others = sorted({described(other, number) for other in altered} - {right})
    stream("candidates", number).shuffle(others)
    return [right, *others[: CANDIDATES - 1]]


def _visibly_different(picture: Picture, other: Picture) -> bool:
    """Whether the one changed word of the subject can be seen in ``picture``; anything else can."""
    if other.subject == picture.subject:
        return True
    changed = next(name for name, value in picture.subject.params.items() if other.subject.params[name] != value)
    colourless = picture.style in COLOURLESS or picture.transform == "marble statue"
    if colourless and changed.endswith(("colour", "tone")):
        return False
    names = list(picture.subject.params)
    return bool(visible_parameters(picture.subject, picture)[names.index(changed)])


# Words in the text encoder


def words_gate(pipe: Any, *, fit: int = 4000, count: int = 1000) -> dict[str, Any]:
    """Accuracy of linear probes on the text encoder's token states for every attribute; the worst one counts.

    Beside it what the same probes read in an untrained text encoder: much of it is in the tokens themselves.
    """
    texts, answers = _captions_and_answers(fit + count)
    trained = _probe(_caption_states(pipe.text_encoder, pipe.tokenizer, texts), answers, fit)
    torch.manual_seed(0)
    fresh = architecture.build_text_encoder(pipe.tokenizer)
    untrained = _probe(_caption_states(fresh, pipe.tokenizer, texts), answers, fit)
    worst = min(trained.values())
    return {
        "words": {
            "value": worst,
            "passed": worst >= LEAST_WORDS,
            "accuracy": trained,
            "untrained": min(untrained.values()),
        }
    }


def _probe(states: Tensor, answers: dict[str, list[str]], fit: int) -> dict[str, float]:
    """Accuracy of one linear probe per attribute, fitted on the first ``fit`` captions, on the rest."""
    accuracy = {}
    for name, labels in answers.items():
        options = sorted(set(labels))
        target = torch.tensor([options.index(label) for label in labels])
        solution = ridge(states[:fit], F.one_hot(target[:fit], len(options)), strength=1e-4)
        accuracy[name] = float((predict(solution, states[fit:]).argmax(-1) == target[fit:]).double().mean())
    return accuracy


@torch.no_grad()
def _caption_states(text_encoder: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Token states, ``[n, 3 * width]``: a caption's own ones averaged, that of its end, and the padding's averaged.

    The U-Net reads all of them, and this base keeps much in the padding.
    """
    parts = []
    for start in range(0, len(texts), 250):
        ids = tokenise(tokenizer, texts[start : start + 250])
        states = text_encoder(ids).last_hidden_state
        ends = (ids == tokenizer.eos_token_id).int().argmax(-1, keepdim=True)  # the first one; padding follows
        own = (torch.arange(ids.shape[1]) <= ends)[..., None]
        means = [(states * where).sum(1) / where.sum(1).clamp(min=1) for where in (own, ~own)]
        parts.append(torch.cat([means[0], states[torch.arange(len(ids)), ends[:, 0]], means[1]], dim=-1))
    return torch.cat(parts)


def _captions_and_answers(count: int) -> tuple[list[str], dict[str, list[str]]]:
    """Full captions of unnamed faces, and what each says about every attribute."""
    pictures = gate_pictures(count, named=False)
    answers: dict[str, list[str]] = {
        "scene": [picture.scene for picture in pictures],
        "accessory": [picture.accessory or "" for picture in pictures],
        "expression": [picture.expression for picture in pictures],
        "transform": [picture.transform or "" for picture in pictures],
        "style": [picture.style for picture in pictures],
    }
    said = [words(picture.subject) for picture in pictures]
    for name in sorted(set().union(*said)):
        answers[name] = [found.get(name, "") for found in said]
    return [described(picture, number) for number, picture in enumerate(pictures)], answers


def gate(model: tyro.conf.Positional[Path], output: Path, judge_folder: Path | None = None) -> None:
    """Print the gates of ``model``, a folder as the recipe exports it, and write them to ``output`` as JSON.

    Without a judge, the gate of identity is left out. The exit code is 1 if a gate is not passed.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model)
    clip = architecture.load_clip(model)
    report = gain_gate(pipe) | words_gate(pipe) | retrieval_gate(clip, pipe.tokenizer)
    if judge_folder is not None:
        report |= identity_gate(clip, Judge.load(judge_folder))
    output.write_text(json.dumps(report, indent=2) + "\n")
    for name, values in report.items():
        print(f"{'passed' if values['passed'] else 'FAILED'}  {name}: {values['value']:.3f}")
    if not all(values["passed"] for values in report.values()):
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(gate)
