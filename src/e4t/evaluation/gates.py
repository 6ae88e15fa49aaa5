"""What the tiny model has to pass before E4T is worth training on it.

    python -m e4t.evaluation.gates WORK/tiny --judge-folder WORK/tiny/judge-1/face --output WORK/gates.json

- Conditional gain: the relative drop of the denoising loss from another individual's caption to the right one, with the
  same noise and timestep. It is the cheapest honest measure of whether a concept can be taught to this base at all.
- Identity in CLIP's vision tower: what a ridge regression reads in its [CLS] states, against what the judge reads.
- Retrieval: the right caption among 64 that differ in one attribute.
- Words in the text encoder: linear probes for every attribute that captions name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from e4t.evaluation.judge import RESOLUTION, Judge, to_pixels
from e4t.evaluation.metrics import READABLE, explained
from e4t.evaluation.truth import Truth
from e4t.tiny.album import snapshot
from e4t.tiny.captions import alterations, caption, describe, name_of, training_picture
from e4t.tiny.train import clip_pixels, tokenise
from e4t.tiny.world import Picture, draw, stream, words

TIMESTEPS = (100, 300, 500, 600, 700, 800, 900, 999)
LEAST_GAIN, LEAST_IDENTITY, LEAST_RETRIEVAL, LEAST_WORDS = 0.05, 0.8, 0.8, 0.95
CANDIDATES = 64

UNSEEN = 10**8
"""Pictures of the training stream from here on are in nobody's training."""


def described(picture: Picture, seed: object) -> str:
    """A caption that says everything there is to say: the subject's name, or all of its words."""
    rng = stream("gate", seed)
    name = name_of(picture.subject)
    return caption(picture, rng, subject=name or describe(picture.subject.kind, words(picture.subject), rng))


def gate_pictures(count: int, *, named: bool, start: int = UNSEEN) -> list[Picture]:
    """Face pictures nobody trained on: of named individuals, or of validation individuals only words describe."""
    namespace = "train" if named else "validation"
    pictures: list[Picture] = []
    while len(pictures) < count:
        picture = training_picture(start, namespace=namespace, kinds=("face",))
        start += 1
        if picture.art is None and (name_of(picture.subject) is not None) == named:
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
    subjects = [_referred(picture) for picture in pictures]
    right, wrong = (
        [caption(p, stream("gate", n), subject=who) for n, (p, who) in enumerate(zip(pictures, order, strict=True))]
        for order in (subjects, subjects[1:] + subjects[:1])
    )
    return Pairs(latents, right, wrong)


def _referred(picture: Picture) -> str:
    rng = stream("gate", picture.subject.key)
    return name_of(picture.subject) or describe(picture.subject.kind, words(picture.subject), rng)


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
def class_states(clip: Any, rgb: np.ndarray, *, batch: int = 64) -> Tensor:
    """The [CLS] state after every second layer, joined: uint8 ``[n, h, w, 3]`` to ``[n, width * layers / 2]``."""
    parts = []
    for start in range(0, len(rgb), batch):
        pixels = clip_pixels(rgb[start : start + batch])
        hidden = clip.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        parts.append(torch.cat([state[:, 0] for state in hidden[2::2]], dim=-1))
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

    Over the parameters that the judge reads; fitted on plain pictures of training individuals.
    """
    shown = {"train": fit, "validation": count}
    pictures = {name: [snapshot(name, i, judge.kind) for i in range(n)] for name, n in shown.items()}
    rgb = {name: _drawn(each) for name, each in pictures.items()}
    truth = {name: Truth.of(each, judge.kind) for name, each in pictures.items()}
    states = {name: class_states(clip, each) for name, each in rgb.items()}
    solution = ridge(states["train"], torch.from_numpy(truth["train"].identity), strength=1e-3)
    right = truth["validation"]
    read = {"judge": judge.read(rgb["validation"]).identity, "clip": predict(solution, states["validation"]).numpy()}
    shares = {name: explained(judge.layout, each, right.identity, right.visible) for name, each in read.items()}
    counted = shares["judge"] >= READABLE
    value = float(shares["clip"][counted].clip(0).sum() / shares["judge"][counted].sum())
    details = {name: [round(float(shares[k][i]), 3) for k in read] for i, name in enumerate(judge.layout.names)}
    return {
        "identity in [CLS]": {
            "value": value,
            "passed": value >= LEAST_IDENTITY,
            "parameters": int(counted.sum()),
            "judge and ridge": details,
        }
    }


# Retrieval


@torch.no_grad()
def retrieval_gate(clip: Any, tokenizer: Any, count: int = 200) -> dict[str, Any]:
    """How often the right caption is the nearest of 64 that differ from it in one attribute."""
    pictures = gate_pictures(count, named=False)
    seen = clip.visual_projection(clip.vision_model(pixel_values=clip_pixels(_drawn(pictures))).pooler_output)
    hits = []
    for number, picture in enumerate(pictures):
        captions = _candidates(picture, number)
        read = clip.text_projection(clip.text_model(input_ids=tokenise(tokenizer, captions)).pooler_output)
        hits.append(int((F.normalize(read, dim=-1) @ seen[number]).argmax()) == 0)
    value = float(np.mean(hits))
    return {"retrieval": {"value": value, "passed": value >= LEAST_RETRIEVAL, "candidates": CANDIDATES}}


def _candidates(picture: Picture, number: int) -> list[str]:
    """The right caption first, then others: the same words about pictures that differ in one attribute."""
    right = described(picture, number)
    others = sorted({described(other, number) for other in alterations(picture)} - {right})
    stream("candidates", number).shuffle(others)
    return [right, *others[: CANDIDATES - 1]]


# Words in the text encoder


@torch.no_grad()
def words_gate(pipe: Any, *, fit: int = 4000, count: int = 1000) -> dict[str, Any]:
    """Accuracy of linear probes on the text encoder's token states, averaged over a caption, for every attribute."""
    texts, answers = _captions_and_answers(fit + count)
    states = torch.cat(
        [
            _mean_states(pipe, texts[start : start + 250])
            for start in range(0, len(texts), 250)  # a caption's own tokens; padding says nothing new
        ]
    )
    accuracy = {}
    for name, labels in answers.items():
        options = sorted(set(labels))
        target = torch.tensor([options.index(label) for label in labels])
        solution = ridge(states[:fit], F.one_hot(target[:fit], len(options)), strength=1e-4)
        accuracy[name] = float((predict(solution, states[fit:]).argmax(-1) == target[fit:]).double().mean())
    worst = min(accuracy.values())
    return {"words": {"value": worst, "passed": worst >= LEAST_WORDS, "accuracy": accuracy}}


def _mean_states(pipe: Any, texts: list[str]) -> Tensor:
    ids = tokenise(pipe.tokenizer, texts)
    states = pipe.text_encoder(ids).last_hidden_state
    ends = (ids == pipe.tokenizer.eos_token_id).int().argmax(-1, keepdim=True)  # the first end of text; padding follows
    real = (torch.arange(ids.shape[1]) <= ends)[..., None]
    return torch.cat([(states * real).sum(1) / real.sum(1), states[torch.arange(len(ids)), ends[:, 0]]], dim=-1)


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

    Without a judge, the gate of identity is left out.
    """
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    pipe = StableDiffusionPipeline.from_pretrained(model)
    clip = CLIPModel.from_pretrained(model / "image_encoder")
    report = gain_gate(pipe) | words_gate(pipe) | retrieval_gate(clip, pipe.tokenizer)
    if judge_folder is not None:
        report |= identity_gate(clip, Judge.load(judge_folder))
    output.write_text(json.dumps(report, indent=2) + "\n")
    for name, values in report.items():
        print(f"{'passed' if values['passed'] else 'FAILED'}  {name}: {values['value']:.3f}")


if __name__ == "__main__":
    tyro.cli(gate)
