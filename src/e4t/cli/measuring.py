"""Commands that measure: benchmark and evaluate."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import shipped
from e4t.cli.options import (
    BaseOptions,
    Device,
    File,
    Folder,
    Integer,
    Json,
    Many,
    OptionalBase,
    Output,
    Reading,
    Result,
    Text,
    each,
)
from e4t.cli.terminal import device_of, progress_bar, quiet, require_extra, status
from e4t.config import at_least
from e4t.errors import ConfigError


@dataclass(frozen=True)
class Benchmark:
    """Compare E4T with Textual Inversion, DreamBooth, LoRA and words on drawn concepts. The same command resumes."""

    domain: Annotated[Many[str], arg(metavar="DOMAIN ...", help_behavior_hint="")] = ()
    """Domains that come with the package, or domain folders; with --base, also just a class word such as dog. Default:
    those of the size that are shipped."""
    base: OptionalBase = None
    """Another copy of the domain's base model; with a class word, any base model."""
    size: Literal["quick", "standard", "full"] = "quick"
    """quick: minutes; standard: an hour; full: days. All can be resumed."""
    config: File = None
    """A JSON file with fields of a plan (docs/benchmark.md), on top of the size; options given here come on top."""
    output: Output = Path("out/benchmark")
    """Where report.html, results.csv, results.json and the records go."""
    method: Annotated[Many[str], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Some of the methods only, such as "DreamBooth + prior"; a wrong name lists all. Default: those of the size."""
    images: Folder = None
    """Your own concepts instead of drawn ones: a folder of pictures, and of folders with several pictures of one."""
    prompts: Annotated[Many[str], arg(metavar="PROMPT ...", help_behavior_hint="")] = ()
    """What your own concepts are drawn for, with S* in each. Default: up to eight that suit anything."""
    clip: Text = None
    """The CLIP that measures likeness: a folder or hub id. Default: the base's own, where it has a whole one."""
    faces: bool = False
    """Whether a face recogniser (dlib's, the extra faces) compares the faces in your own pictures too."""
    domain_base: Folder = None
    """A U-Net tuned on the domain's pictures (e4t.evaluation.domain_base), to start further methods from."""
    namespace: Text = None
    """Where drawn concepts come from: any word makes new ones. Default: as the size says."""
    concepts: Integer = None
    """How many concepts of each domain. Default: as the size says, and all of your own pictures."""
    seeds: Integer = None
    """How many pictures of every prompt. Default: as the size says."""
    processes: Integer = None
    """Work on so many concepts at a time, each in a process of one thread. Default: 2 on a processor of several cores,
    else 1."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)
    json: Json = False

    def run(self) -> Result:
        from dataclasses import replace

        require_extra("benchmark", "cv2", "matplotlib", "peft", "resvg_py")
        from e4t.evaluation.benchmark import PLANS, compare
        from e4t.evaluation.contest import DrawnContest, OwnContest
        from e4t.evaluation.report import FILES
        from e4t.sources import read_json
        from e4t.writing import require_room

        require_room(self.output)
        given = read_json(self.config) if self.config else {}
        plan = PLANS[self.size].updated(given)
        usual = plan.domains if "domains" in given else tuple(name for name in plan.domains if name in shipped())
        domains = each(self.domain) or usual
        if len(domains) > 1 and (self.images or self.domain_base or self.base):
            raise ConfigError("--images, --base and --domain-base are of one domain: say which with --domain")
        for option, used in (("--faces", self.faces), ("--prompts", each(self.prompts))):
            if used and not self.images:
                raise ConfigError(f"{option} is about pictures of your own: name their folder with --images")
        if self.namespace and self.images:
            raise ConfigError("--namespace is where drawn concepts come from: leave it or --images out")
        for name in ("concepts", "seeds", "processes"):
            at_least(name, getattr(self, name), 1)
        plan = replace(
            plan,
            domains=tuple(domains),
            methods=each(self.method) or plan.methods,
            namespace=self.namespace or plan.namespace,
            concepts=self.concepts or (sys.maxsize if self.images and "concepts" not in given else plan.concepts),
            seeds=self.seeds or plan.seeds,
        )
        if self.images and "num_inference_steps" not in given:
            plan = replace(plan, num_inference_steps=None)  # those of the sizes are for the shipped base
        quiet()
        with progress_bar("benchmark") as progress:
            device = device_of(self.device)
            several = device == "cpu" and (os.cpu_count() or 1) > 1
            options: dict[str, Any] = {
                "device": device,
                "base": self.base,
                "reading": self.base_model.given(),
                "clip": self.clip,
                "domain_base": self.domain_base,
                "keep": self.output / "records",
            }
            own: dict[str, Any] = {"prompts": each(self.prompts), "faces": self.faces}
            make = [
                partial(OwnContest, name, plan, self.images, **own, **options)
                if self.images
                else partial(DrawnContest, name, plan, **options)
                for name in domains
            ]
            for step in compare(make, self.output, processes=self.processes or (2 if several else 1)):
                progress.at(step.done, step.total, step.text, seconds_left=step.left)
        paths = [self.output / name for name in FILES]
        return Result(paths, {"paths": paths})


@dataclass(frozen=True)
class Evaluate:
    """Examine a domain on drawn individuals it has never seen: identity, prompt and both, with intervals."""

    domain: Annotated[Positional[str], arg(metavar="DOMAIN")]
    """A domain folder or a shipped domain."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")] = Path("out/evaluation.json")
    """The report; a table (.md) and a contact sheet (.png) come beside it."""
    namespace: str = "held-out-2"
    """Where the individuals come from: any word makes new ones."""
    count: int = 50
    """How many individuals."""
    steps: Annotated[Many[int], arg(metavar="N ...", help_behavior_hint="")] = ()
    """Numbers of tuning steps to examine. Default: 0, 1, 5 and 15."""
    judge_folder: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Use this judge instead of the shipped one. Published tables use the shipped judge, so choose settings with
    another."""
    base: OptionalBase = None
    """Another copy of the base model."""
    num_inference_steps: int = 25
    """Denoising steps of every picture."""
    mask: bool = True
    """Give personalizing the drawing's mask."""
    caption: bool = False
    """Tell personalizing what the drawing shows, as e4t personalize --caption does. That is more than the concept only
    for art: a face's or a cat's drawing is a plain photo."""
    seed: int = 0
    """Seed of all pictures."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""
    base_model: Reading = field(default_factory=BaseOptions)
    json: Json = False

    def run(self) -> Result:
        at_least("count", self.count, 2)  # likeness is told by how far individuals are apart
        at_least("num-inference-steps", self.num_inference_steps, 1)
        counts = each(self.steps) or (0, 1, 5, 15)
        for steps in counts:
            at_least("steps", steps, 0)
        require_extra("tiny", "cv2", "resvg_py")
        from e4t.writing import require_room

        require_room(self.output.parent)
        from e4t.evaluation.evaluate import evaluate
        from e4t.evaluation.judge import Judge
        from e4t.pipeline import E4TPipeline

        quiet()
        device = device_of(self.device)
        options: dict[str, Any] = {"device": device, **self.base_model.given()}
        with status("loading the model"):
            pipe = E4TPipeline.from_pretrained(self.domain, base=self.base, **options)
            judge = Judge.of(pipe.domain.class_word, self.judge_folder, device=device)
        with progress_bar("evaluate") as progress:
            examined = itertools.count(1)
            evaluation = evaluate(
                pipe,
                self.namespace,
                self.count,
                steps=counts,
                judge=judge,
                seed=self.seed,
                num_inference_steps=self.num_inference_steps,
                use_mask=self.mask,
                use_caption=self.caption,
                progress=lambda text: progress.at(next(examined), self.count, text),
            )
        paths = evaluation.write(self.output)
        return Result(paths, {"paths": paths, "report": evaluation.report})
