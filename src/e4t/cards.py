"""The model cards of domains and concepts."""

from __future__ import annotations

from typing import Any

from e4t.domain import Domain
from e4t.provenance import public_name


def domain_card(domain: Domain, base: str, steps: Any) -> str:
    """Of a domain that was pre-trained on the base model ``base``."""
    base = public_name(base)
    return f"""---
base_model: {base}
library_name: e4t
tags: [text-to-image, diffusers, personalization, e4t]
---
# Domain “{domain.name}”

Encoder and weight offsets (encoder-based domain tuning, arXiv 2302.12228) for the base model `{base}`,
pre-trained for {steps} steps. One image becomes the word `{domain.placeholder}`:

```python
from e4t import E4TPipeline

pipe = E4TPipeline.from_pretrained("path/to/this/folder")
concept = pipe.personalize("image.png")
pipe("{domain.example}", concept=concept).images[0].save("drawn.png")
```

All settings are in `config.json`; its sections `personalize` and `generate` override the package's defaults.
"""


_REPLAY_WARNING = """> **This folder holds the picture itself**, as latents of the autoencoder: whoever has the folder
> can look at it. It keeps what tuning starts from instead of its result, and is tuned again when it is used.

"""


def concept_card(
    domain: Domain, domain_id: str | None, base: str, *, steps: int, preview: str | None, replay: bool
) -> str:
    """Of a concept; ``preview`` is the file of its picture, if there is one, and ``replay`` how it is kept."""
    base = public_name(base)
    shown = f"![What it draws]({preview})\n\n" if preview else ""
    warning = _REPLAY_WARNING if replay else ""
    needs, opened = f"its domain (`{domain_id}`) and", 'from_pretrained("path/to/the/domain")'
    if domain_id is None:
        needs, opened = "no domain, only", f'from_base("path/to/the/base", class_word="{domain.class_word}")'
    return f"""---
base_model: {base}
library_name: e4t
instance_prompt: {domain.placeholder}
tags: [text-to-image, diffusers, personalization, e4t]
---
# A concept of the domain “{domain.name}”

{shown}{warning}Learned from one image in {steps} step{"s" * (steps != 1)}. Needs {needs}
the base model `{base}`; say `{domain.placeholder}` in a prompt to draw it:

```python
from e4t import Concept, E4TPipeline

pipe = E4TPipeline.{opened}
concept = Concept.load("path/to/this/folder")
pipe("{domain.example}", concept=concept).images[0].save("drawn.png")
```
"""
