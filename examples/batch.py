"""A folder of pictures, a concept of each, and all of them in the same prompts, with one warm model.

    python examples/batch.py PHOTOS --prompts "S* in the snow" "a comic panel of S*" --output out/batch

What is there already is not made again, so an interrupted run goes on. A picture that cannot be read is named and left
out. Without a folder it takes the shipped faces.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from e4t import Concept, E4TError, E4TPipeline
from e4t.demo import example_pictures

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def concepts(pipe: E4TPipeline, pictures: list[Path], output: Path) -> Iterator[tuple[str, Concept]]:
    for picture in pictures:
        folder = output / picture.stem
        try:
            if not folder.is_dir():
                pipe.personalize(picture).save(folder)
            yield picture.stem, Concept.load(folder)
        except E4TError as error:
            print(f"left out: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", type=Path, help="a folder of pictures")
    parser.add_argument("--domain", default="tiny-face", help="a shipped domain, or a domain folder")
    parser.add_argument("--prompts", nargs="+", default=["a photo of S* in the snow", "a watercolour of S*"])
    parser.add_argument("--output", type=Path, default=Path("out/batch"))
    arguments = parser.parse_args()
    found = sorted(arguments.photos.iterdir()) if arguments.photos else example_pictures("face")
    pictures = [path for path in found if path.suffix.lower() in SUFFIXES]

    pipe = E4TPipeline.from_pretrained(arguments.domain)
    for name, concept in concepts(pipe, pictures, arguments.output):
        paths = [arguments.output / f"{name}-{number}.png" for number in range(len(arguments.prompts))]
        if all(path.exists() for path in paths):
            continue
        for path, image in zip(paths, pipe(arguments.prompts, concept=concept).images, strict=True):
            image.save(path)
            print(path)


if __name__ == "__main__":
    main()
