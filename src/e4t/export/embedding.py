"""The frozen word alone, and beside weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from e4t.export.labels import embedding_metadata, file_metadata
from e4t.export.merged import cast
from e4t.export.places import write_files
from e4t.export.probe import share_covered
from e4t.export.source import Report, Source, report


def export_embedding(source: Source) -> Report:
    model, probe, word = source.pipe.model, source.probe, source.merged.word
    export = probe.predict(model, word, {})
    native = probe.predict(model, word, source.merged.changes)
    kept = share_covered(export, native, probe.predict(model, None, {}))
    notes: tuple[str, ...] = ()
    if source.merged.changes_weights:
        notes = (f"the changed weights are not in the file; without them the word keeps {kept:.0%} of the concept",)
    metadata = embedding_metadata(source) | {"e4t.kept": f"{kept:.4f}", "e4t.notes": " ".join(notes)}
    path = source.places.main
    write_files({path: (word_tensors(source, source.dtype), metadata)})
    return report(source, [path], kept=kept, notes=notes)


def word_tensors(source: Source, dtype: str) -> dict[str, Tensor]:
    """One key, as every reader wants it: the token, [1, D]."""
    return {source.places.token: cast("the embedding", source.merged.word.reshape(1, -1), dtype)}


def write_with_embedding(source: Source, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> list[Path]:
    places = source.places
    assert places.embedding is not None
    word = (word_tensors(source, "float32"), embedding_metadata(source))
    write_files({places.main: (tensors, file_metadata(source) | dict(metadata)), places.embedding: word})
    return [places.main, places.embedding]
