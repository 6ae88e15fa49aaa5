"""A folder of pictures, a concept of each, and all of them in the same prompts, with one warm model.

    python examples/batch.py PHOTOS --prompts "S* in the snow" "a comic panel of S*" --output out/batch

What is there already and was made of the same picture is not made again, so an interrupted run goes on. Masks and
captions lie beside the pictures (anna-mask.png and anna.txt for anna.jpg). A picture that cannot be read is named and
left out. Without a folder it takes the shipped faces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from e4t import E4TPipeline, personalize_many, read_entries
from e4t.demo import example_pictures
from e4t.manifest import Entry


def entries(photos: Path | None, output: Path, domain: str) -> list[Entry]:
    if photos is not None:
        return read_entries(photos, output, domain=domain)
    return [Entry(picture, output / picture.stem, domain) for picture in example_pictures("face")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", type=Path, help="a folder of pictures")
    parser.add_argument("--domain", default="tiny-face", help="a shipped domain, or a domain folder")
    parser.add_argument("--prompts", nargs="+", default=["a photo of S* in the snow", "a watercolour of S*"])
    parser.add_argument("--output", type=Path, default=Path("out/batch"))
    arguments = parser.parse_args()

    wanted = entries(arguments.photos, arguments.output, arguments.domain)
    pipe = E4TPipeline.from_pretrained(arguments.domain)
    for step in personalize_many(wanted, open_pipeline=lambda _: pipe, preview=False):
        if step.outcome is None:
            continue
        if step.outcome.concept is None:
            print(f"left out: {step.entry.image}: {step.outcome.error}")
            continue
        name = step.entry.output.name
        paths = [arguments.output / f"{name}-{number}.png" for number in range(len(arguments.prompts))]
        if step.outcome.status == "kept" and all(path.exists() for path in paths):
            continue
        for path, image in zip(paths, pipe(arguments.prompts, concept=step.outcome.concept).images, strict=True):
            image.save(path)
            print(path)


if __name__ == "__main__":
    main()
