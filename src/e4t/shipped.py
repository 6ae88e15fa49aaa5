"""What comes with the package: models by name, and example pictures."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent / "tiny"
WEIGHTS = _HERE / "weights"


def resolve(source: str | Path, *, shipped_first: bool = False) -> str:
    """Where to load from: a folder or hub id as it is, a shipped name ("tiny-face") as its folder in the package.

    A folder of that name in the working directory comes first, except where a name was recorded as `portable`.
    """
    shipped = WEIGHTS / str(source)
    return str(shipped) if shipped.is_dir() and (shipped_first or not Path(source).is_dir()) else str(source)


def portable(name: str) -> str:
    """A shipped model's own name instead of the path it has on this machine."""
    path = Path(name).resolve()
    return path.name if path.parent == WEIGHTS.resolve() else name


def example_pictures(kind: str) -> list[Path]:
    """The shipped pictures of "face", "cat" or "art": concepts that nothing here was trained on."""
    return sorted((_HERE / "examples").glob(f"{kind}-*.png"))
