"""Names are the class word, moved by who bears them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from e4t.tiny import architecture
from e4t.tiny.captions import NAMED, names, naming_caption, training_picture
from e4t.tiny.spelling import KINDS, Spelling, bearer, bearers
from e4t.tiny.world import Picture, identity


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    everybody = [name for kind in NAMED for name in names(kind)]
    return architecture.build_tokenizer([*everybody, *NAMED, "a photo of a dog in the style of"], folder)


@pytest.fixture(scope="module")
def spelling(tokenizer: Any) -> Spelling:
    torch.manual_seed(0)
    return Spelling(tokenizer, 16)


def ids_of(tokenizer: Any, *texts: str) -> torch.Tensor:
    return torch.tensor(tokenizer(list(texts), padding="max_length", max_length=12).input_ids)


def test_every_name_is_one_token_of_its_kind(tokenizer: Any, spelling: Spelling) -> None:
    for number, kind in enumerate(KINDS):
        ids = ids_of(tokenizer, *(name.split()[-1] for name in names(kind)))[:, 1]
        assert (spelling.kinds(ids) == number).all()
        assert len(ids.unique()) == NAMED[kind]
    assert (spelling.kinds(ids_of(tokenizer, "a photo of a cat", "art of a face in the style of")) == -1).all()


def test_who_bears_a_name_is_standardised_and_blind_to_what_cannot_be_seen() -> None:
    columns = torch.stack([bearer(identity("train", index)) for index in range(1500)])
    face = columns[:, (columns != 0).any(0)]
    assert face.shape[1] == 69
    assert face.mean(0).abs().median() < 0.05  # but of beards, most of whom are none
    assert not bearer(identity("train", 0, "dog")).any()
    bald = next(s for s in (identity("train", i) for i in range(500)) if s.params["beard"] == 0)
    assert bearer(bald).count_nonzero() < 69


def test_names_are_spelt_by_whom_the_picture_shows(tokenizer: Any, spelling: Spelling) -> None:
    """Whatever name is written, the picture says who it is; other words stay as the table has them."""
    face, cat, art = identity("held-out", 1), identity("held-out", 2, "cat"), identity("held-out", 3, "art")
    whom = bearers([Picture(face, art=art), Picture(cat)])
    table = torch.randn(len(tokenizer), 16)
    first, artist, second = names("face")[5].split()[-1], names("art")[7], names("cat")[9]
    ids = ids_of(tokenizer, f"a photo of {first} in the style of {artist}", f"a photo of {second}")
    spelt = spelling.spell(table, ids, table[ids], whom)
    known = spelling.kinds(ids) >= 0
    torch.testing.assert_close(spelt[~known], table[ids][~known], rtol=0, atol=0)
    expected = [(0, "face", face), (0, "art", art), (1, "cat", cat)]
    for (row, kind, subject), found in zip(expected, spelt[known], strict=True):
        assert known[row].any()
        word = table[tokenizer.get_vocab()[f"{kind}</w>"]]
        torch.testing.assert_close(found, word + spelling.map(bearer(subject)), rtol=1e-3, atol=1e-3)


def test_what_is_written_into_a_table_reads_back(tokenizer: Any, spelling: Spelling) -> None:
    table = torch.randn(len(tokenizer), 16)
    before = table.clone()
    spelling.write(table)
    changed = (table != before).any(1)
    assert int(changed.sum()) == sum(NAMED.values())
    again = Spelling(tokenizer, 16)
    again.read(table)
    subject = bearer(identity("held-out", 0))
    torch.testing.assert_close(again.map(subject), spelling.map(subject), rtol=1e-3, atol=1e-4)


def test_telling_asks_only_for_those_who_are_named(tokenizer: Any, spelling: Spelling) -> None:
    whom = bearers([Picture(identity("held-out", 1)), Picture(identity("held-out", 2))])
    silent = ids_of(tokenizer, "a photo of a face", "a photo of a face")
    pooled = torch.randn(2, 16)
    assert spelling.telling_loss(pooled, silent, whom).item() == 0
    named = ids_of(tokenizer, f"a photo of {names('face')[0]}", "a photo of a face")
    one = spelling.telling_loss(pooled, named, whom)
    other = spelling.telling_loss(pooled, named, torch.stack([whom[0], whom[0]]))
    assert one.item() > 0.5
    torch.testing.assert_close(one, other)


def test_captions_lend_names_to_those_who_have_none() -> None:
    lent = kept = 0
    for index in range(300):
        picture = training_picture(index)
        if picture.subject.key.split("/")[2] >= "2" and len(picture.subject.key.split("/")[2]) > 4:
            texts = [naming_caption(index, picture, variant=variant) for variant in range(3)]
            known = {name.split()[-1] for name in names(picture.subject.kind)}
            lent += all(known & set(text.split()) for text in texts[1:])
            kept += not known & set(texts[0].split())
            again = naming_caption(index, replace(picture), variant=1)
            assert again == texts[1]
    assert lent > 50
    assert kept == lent
