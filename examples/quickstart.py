"""One picture becomes a word, with the small model that comes with the package.

    python examples/quickstart.py [PICTURE] [--prompt TEXT] [--output FOLDER]

Without a picture it takes the first shipped one. Writes a concept folder and a few pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from e4t import E4TPipeline
from e4t.demo import example_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=example_pictures("face")[0])
    parser.add_argument("--domain", default="tiny-face", help="a shipped domain, or a domain folder")
    parser.add_argument("--prompt", default="a pencil sketch of S* at the beach")
    parser.add_argument("--num-images", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("out/quickstart"))
    arguments = parser.parse_args()

    pipe = E4TPipeline.from_pretrained(arguments.domain)
    concept = pipe.personalize(arguments.picture)
    drawn = pipe(arguments.prompt, concept=concept, num_images=arguments.num_images)

    concept.with_preview(drawn.images[0]).save(arguments.output / "concept")
    for image, seed in zip(drawn.images, drawn.seeds, strict=True):
        image.save(arguments.output / f"{seed}.png")
        print(arguments.output / f"{seed}.png")


if __name__ == "__main__":
    main()
