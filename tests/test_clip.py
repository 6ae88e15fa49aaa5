"""How CLIP's vision tower learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from e4t.tiny import architecture
from e4t.tiny import clip as learning
from e4t.tiny.captions import NAMED, misleading_caption, names, training_caption, training_picture
from e4t.tiny.clip import Captioned, ClipObjective, class_states, clip_pixels, in_small, rarity, start_seeing, trimmed
from e4t.tiny.spelling import Spelling, bearers
from e4t.tiny.train import tokenise
from e4t.tiny.world import draw

COUNT = 8

Batch = tuple[Any, Captioned]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """A tokenizer, and the first training pictures with right and wrong captions."""
    pictures = [training_picture(index) for index in range(COUNT)]
    right = [training_caption(index, picture) for index, picture in enumerate(pictures)]
    wrong = [misleading_caption(i, picture, variant=v) for i, picture in enumerate(pictures) for v in range(2)]
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    everybody = [name for kind in NAMED for name in names(kind)]
    tokenizer = architecture.build_tokenizer([*right, *wrong, *everybody, *NAMED], folder)
    pixels = clip_pixels(np.stack([draw(picture, 128).rgb for picture in pictures]))
    ids = tokenise(tokenizer, right), tokenise(tokenizer, wrong).view(COUNT, 2, -1)
    return tokenizer, Captioned(pixels, *ids, bearers(pictures))


def _objective(batch: Batch) -> ClipObjective:
    tokenizer, captioned = batch
    torch.manual_seed(0)
    clip = architecture.build_clip(tokenizer)
    clip.text_model.requires_grad_(False)
    heads = architecture.build_clip_heads(len(tokenizer))
    spelling = Spelling(tokenizer, architecture.TEXT_WIDTH).requires_grad_(False)
    return ClipObjective(clip, heads, spelling, rarity(captioned.right, len(tokenizer)))


def test_every_second_class_state_is_asked_for_and_the_text_tower_is_not(
    batch: Batch,
) -> None:
    objective = _objective(batch)
    objective.loss(batch[1], torch.Generator().manual_seed(0)).backward()
    vision = objective.clip.vision_model
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in vision.parameters())
    assert all(parameter.grad is None for parameter in objective.clip.text_model.parameters())
    with torch.no_grad():
        states = vision(pixel_values=batch[1].pixels, output_hidden_states=True).hidden_states
    assert len(class_states(states)) == architecture.VISION_LAYERS // 2
    torch.testing.assert_close(class_states(states)[-1], states[-1][:, 0])
    assert objective.heads.words.in_features == sum(state.shape[-1] for state in class_states(states))


def test_a_few_steps_tell_right_captions_from_wrong_ones(
    batch: Batch,
) -> None:
    objective = _objective(batch)
    start_seeing(objective.clip.vision_model, batch[1].pixels)
    learned = [*objective.clip.vision_model.parameters(), *objective.clip.visual_projection.parameters()]
    learned += [*objective.clip.text_projection.parameters(), *objective.heads.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    losses = []
    for step in range(30):
        loss = objective.loss(batch[1], torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    told = {"right": batch[1].right.roll(1, 0), "whom": batch[1].whom.roll(1, 0)}
    of_another = replace(batch[1], **told)
    shuffled = objective.loss(of_another, torch.Generator().manual_seed(0))
    assert shuffled.item() > 2 * losses[-1]


def test_whitened_patches_weigh_alike(batch: Batch) -> None:
    pixels = clip_pixels(np.stack([draw(training_picture(index), 128).rgb for index in range(40)]))
    torch.manual_seed(0)
    vision = architecture.build_clip(batch[0]).vision_model
    embeddings = vision.embeddings
    with torch.no_grad():
        before = embeddings.patch_embedding(pixels).transpose(0, 1).flatten(1)
        start_seeing(vision, pixels)
        after = embeddings.patch_embedding(pixels).transpose(0, 1).flatten(1)
    uneven = [np.ptp(np.log(np.linalg.eigvalsh(np.cov(x.numpy())))) for x in (before, after)]
    assert uneven[1] < 0.3 * uneven[0]
    places = embeddings.position_embedding.weight[1:]
    likeness = torch.nn.functional.cosine_similarity(places[0], places, dim=-1)
    assert likeness[1] > likeness[7]  # neighbours in a row are alike
    assert likeness[8] > likeness[56]  # and in a column


def test_trimming_keeps_every_end() -> None:
    start, end = 8, 9
    ids = torch.tensor([[start, 1, end, end, end, end], [start, 1, 2, 3, end, end]])
    torch.testing.assert_close(trimmed(ids), ids[:, :5])
    full = torch.tensor([[start, 1, 2, end], [start, end, end, end]])
    torch.testing.assert_close(trimmed(full), full)


def test_what_everybody_says_says_nothing() -> None:
    tokens = torch.tensor([[8, 1, 9, 9], [8, 1, 2, 9], [8, 1, 1, 9]])
    said = rarity(tokens, 10)
    assert said[8] == said[1] == said[9] == 0
    assert 0 < said[2] < said[3]


def test_the_picture_in_small() -> None:
    pixels = torch.zeros(2, 3, 128, 128)
    pixels[1, :, 36:100, 32:96] = 1
    small = in_small(pixels)
    assert small.shape == (2, 6144)
    assert small[0].abs().sum() == 0
    assert small[1, 3072:].min() == 1  # nothing but the middle
    assert 0 < small[1, :3072].mean() < 0.3


def test_groups_look_alike() -> None:
    indices = np.arange(3000, 7000)
    groups = learning.alike(indices, 8)
    assert groups.shape == (500, 8)
    assert len(groups.unique()) == 4000
    pictures_of = [[training_picture(int(indices[row])) for row in group] for group in groups.tolist()]
    assert np.mean([len({p.subject.kind for p in group}) == 1 for group in pictures_of]) > 0.95
    assert np.mean([len({p.scene for p in group}) <= 2 for group in pictures_of]) > 0.5
    assert np.mean([len({p.subject.key for p in group}) == 8 for group in pictures_of]) > 0.9
