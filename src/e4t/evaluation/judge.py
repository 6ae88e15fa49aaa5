"""Judges: two networks that read drawings, and share nothing with what they judge.

    python -m e4t.evaluation.judge WORK --judge 1 --kind face --steps 5000

A judge learns from the world's own data about its drawings, which no other network here sees. Its drawings went
through the autoencoder, blur and noise, because that is what generated pictures look like. Judge 1 selects during
development and stays in the work folder; judge 2 fills published tables and is shipped. They differ in architecture and
seed. To resume, run the same command again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from e4t.backbone import fingerprint_of
from e4t.errors import CheckpointError, ConfigError, DataError
from e4t.evaluation.metrics import READABLE, explained, readable
from e4t.evaluation.truth import Readings, Truth, classes_of, shows
from e4t.precision import training_dtype
from e4t.shipped import WEIGHTS
from e4t.tiny.album import snapshot
from e4t.tiny.captions import picture_about, training_picture
from e4t.tiny.columns import Layout
from e4t.tiny.pictures import Shards, draw_shards, load_shards, to_pixels, to_rgb
from e4t.tiny.trained import Trained
from e4t.tiny.world import WORLD_VERSION, Picture, draw

RESOLUTION = 128

RoundTrip = Callable[[Tensor], Tensor]
"""Pixels ``[n, 3, h, w]`` in [-1, 1] through an autoencoder and back."""


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after a group norm, ``[n, width, h, w]`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [(nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)]
        self.layers = nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


class _NextBlock(nn.Module):
    """A depthwise 5 x 5 convolution, then two pointwise ones around a GELU, ``[n, width, h, w]`` to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 4 * width, 1),
            nn.GELU(),
            nn.Conv2d(4 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


def staged(block: Callable[[int], nn.Module], widths: tuple[int, ...], depths: tuple[int, ...]) -> nn.Sequential:
    """A stem of stride 4, then stages of blocks that each halve the size: 128 px to 8 x 8 with three widths."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=4)]
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if i:
            layers += [nn.GroupNorm(8, widths[i - 1]), nn.Conv2d(widths[i - 1], width, 2, stride=2)]
        layers += [block(width) for _ in range(depth)]
    return nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]))


class ResidualTrunk(nn.Module):
    """Judge 1: a small residual network whose last map is kept in place, ``[n, 3, 128, 128]`` to ``[n, 192]``."""

    features = 192

    def __init__(self) -> None:
        super().__init__()
        self.stages = staged(ResidualBlock, (32, 64, 128), (1, 2, 2))
        self.squeeze = nn.Conv2d(128, 20, 1)
        self.join = nn.Linear(20 * 8 * 8, self.features)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.relu(self.join(F.relu(self.squeeze(F.relu(self.stages(pixels)))).flatten(1)))


class AttentiveTrunk(nn.Module):
    """Judge 2: depthwise blocks, then eight learned looks at the picture and where they fell, to ``[n, 224]``."""

    features = 224
    looks = 8

    def __init__(self) -> None:
        super().__init__()
        self.stages = staged(_NextBlock, (48, 96, 144), (1, 2, 3))
        self.where = nn.Conv2d(144, self.looks, 1)
        self.what = nn.Conv2d(144, 40, 1)
        self.join = nn.Linear(self.looks * (40 + 2), self.features)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stages(pixels)
        attention = self.where(x).flatten(2).float().softmax(-1)  # [n, looks, 64]
        seen = torch.cat([self.what(x).flatten(2).float(), _positions(x)], dim=1)  # [n, 42, 64]
        pooled = (attention @ seen.transpose(1, 2)).flatten(1)
        return F.gelu(self.join(pooled.to(x.dtype)))


def _positions(x: Tensor) -> Tensor:
    """Coordinates in [-1, 1] of every place of a map, float32 ``[n, 2, h * w]``."""
    axes = [torch.linspace(-1, 1, side, device=x.device) for side in x.shape[-2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    return grid.expand(len(x), -1, -1)


_TRUNKS: dict[int, type[ResidualTrunk | AttentiveTrunk]] = {1: ResidualTrunk, 2: AttentiveTrunk}


class JudgeNetwork(nn.Module):
    """A trunk with one linear head for all columns of an identity and all classes."""

    def __init__(self, number: int, kind: str) -> None:
        super().__init__()
        self.layout = Layout.of(kind)
        self.trunk = _TRUNKS[number]()
        self.classes = classes_of(kind)
        self.sizes = [self.layout.columns, *map(len, self.classes.values())]
        self.head = nn.Linear(self.trunk.features, sum(self.sizes))

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels ``[n, 3, 128, 128]`` in [-1, 1] to identity ``[n, D]`` and class logits ``[n, options]``, float32.

        Columns of a continuous parameter are standardised; those of a categorical one are logits.
        """
        identity, *classes = self.head(self.trunk(pixels)).float().split(self.sizes, dim=-1)
        return identity, dict(zip(self.classes, classes, strict=True))


@dataclass
class Judge:
    """A trained judge of one kind of subject."""

    network: JudgeNetwork
    number: int
    kind: str
    readable: np.ndarray  # bool [P]: the parameters it reads well enough to count, as measured after its training

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu") -> Self:
        """Read what `save` wrote. Raises CheckpointError where it is missing or of another world."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            weights = load_file(folder / "model.safetensors")
            names = config.pop("readable")
            expected = _description(config["judge"], config["kind"])
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"'{folder}' holds no judge: {error!r}") from error
        if config != expected:
            raise CheckpointError(f"the judge in '{folder}' was trained on another version of the world")
        network = JudgeNetwork(config["judge"], config["kind"])
        network.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
        counted = np.array([name in names for name in network.layout.names])
        return cls(network.to(device).eval(), config["judge"], config["kind"], counted)

    @classmethod
    def of(cls, kind: str, folder: Path | None = None, *, device: str = "cpu") -> Self:
        """The judge of a kind in ``folder``, or else judge 2, which comes with the package.

        Raises CheckpointError where there is none, and ConfigError for one of another kind.
        """
        judge = cls.load(folder or WEIGHTS / "judge-2" / kind, device=device)
        if judge.kind != kind:
            raise ConfigError(f"the judge in '{folder}' reads a {judge.kind}; this is about a {kind}")
        return judge

    def save(self, folder: Path | str) -> None:
        """Write float16 weights and config.json into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: tensor.half().contiguous().cpu() for key, tensor in self.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        names = [name for name, counts in zip(self.layout.names, self.readable, strict=True) if counts]
        config = _description(self.number, self.kind) | {"readable": names}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @property
    def layout(self) -> Layout:
        return self.network.layout

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the weights."""
        return fingerprint_of(self.network)

    @torch.no_grad()
    def read(self, rgb: np.ndarray, *, batch: int = 64) -> Readings:
        """Read pictures, uint8 ``[n, 128, 128, 3]``."""
        device = self.network.head.weight.device
        parts = [self.network(to_pixels(rgb[i : i + batch]).to(device)) for i in range(0, len(rgb), batch)]
        identity = torch.cat([self._shares(part).cpu() for part, _ in parts]).double().numpy()
        classes = {name: torch.cat([c[name].argmax(-1).cpu() for _, c in parts]).numpy() for name in parts[0][1]}
        return Readings(identity, classes)

    def _shares(self, identity: Tensor) -> Tensor:
        """The network's identity output as a reading: numbers in [0, 1], and shares for options."""
        columns = []
        for part in self.layout.slices:
            raw = identity[:, part]
            columns.append(self._numbers(raw, part) if self.layout.continuous[part.start] else raw.softmax(-1))
        return torch.cat(columns, dim=1)

    def _numbers(self, raw: Tensor, part: slice) -> Tensor:
        mean, scale = (torch.from_numpy(values[part]).to(raw) for values in (self.layout.means, self.layout.scales))
        return (raw * scale + mean).clamp(-1 if self.layout.turning[part.start] else 0, 1)


def _description(number: int, kind: str) -> dict[str, Any]:
    """A judge's config.json: everything its weights' meaning depends on."""
    layout = Layout.of(kind)
    return {
        "judge": number,
        "kind": kind,
        "world": WORLD_VERSION,
        "parameters": dict(zip(layout.names, layout.widths, strict=True)),
        "classes": {name: list(options) for name, options in classes_of(kind).items()},
    }


# Training


@dataclass(frozen=True)
class JudgeConfig:
    """How to train a judge; the defaults are as much as the shipped one took in three turns (`runs/tiny.sh`)."""

    work: Path  # the folder of the tiny model's training, with its drawn pictures and its autoencoder
    judge: int = 1
    kind: str = "face"
    steps: int = 24_200
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.998
    own_pictures: int = 0  # so many are drawn for this kind alone; 0: learn from those of the base that show it
    round_trips: int = 30_000  # so many of the first pictures are also there as the autoencoder returns them
    checkpoint_every: int = 250
    device: str = "cpu"
    initial: Path | None = None  # a judge of the same number to go on from; one of another kind lends its trunk

    @property
    def folder(self) -> Path:
        """Where the trained judge goes."""
        return self.work / f"judge-{self.judge}" / self.kind

    @property
    def checkpoint(self) -> Path:
        return self.work / f"judge-{self.judge}-{self.kind}.safetensors"

    @property
    def pictures(self) -> Path:
        return self.work / (f"pictures-{self.kind}" if self.own_pictures else "pictures")

    @property
    def returned(self) -> Path:
        """Where round trips are kept for the other judges."""
        return self.work / (f"round-trips-{self.kind}.npy" if self.own_pictures else "round-trips.npy")

    def picture(self, index: int) -> Picture:
        return picture_about(self.kind, index) if self.own_pictures else training_picture(index)


@dataclass(frozen=True)
class _Targets:
    """`Truth` as tensors: standardised identity ``[n, D]``, visible ``[n, D]``, class indices ``[n]``."""

    identity: Tensor
    visible: Tensor
    classes: dict[str, Tensor]

    @classmethod
    def of(cls, truth: Truth, layout: Layout) -> _Targets:
        identity = np.where(layout.continuous, (truth.identity - layout.means) / layout.scales, truth.identity)
        return cls(
            torch.from_numpy(identity).float(),
            torch.from_numpy(truth.visible),
            {name: torch.from_numpy(indices).long() for name, indices in truth.classes.items()},
        )

    def rows(self, picks: Tensor, device: str) -> _Targets:
        return _Targets(
            self.identity[picks].to(device),
            self.visible[picks].to(device),
            {name: indices[picks].to(device) for name, indices in self.classes.items()},
        )


def judge_loss(layout: Layout, identity: Tensor, classes: dict[str, Tensor], target: _Targets) -> Tensor:
    """Squared error of visible numbers plus cross-entropies of visible options and of classes.

    Every parameter is averaged over the pictures where it is visible; all of identity weighs as much as all classes.
    """
    losses = []
    for part in layout.slices:
        seen = target.visible[:, part.start].float()
        if layout.continuous[part.start]:
            each = (identity[:, part] - target.identity[:, part]).square().mean(1)
        else:
            each = F.cross_entropy(identity[:, part], target.identity[:, part], reduction="none")
        losses.append((each * seen).sum() / seen.sum().clamp(min=1))
    answers = [F.cross_entropy(logits, target.classes[name]) for name, logits in classes.items()]
    return torch.stack(losses).mean() + 0.5 * torch.stack(answers).mean()


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Move the pictures a little and make them worse. Seeded on the CPU."""
    return degrade(_moved(pixels, generator), generator)


def degrade(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the pictures by one random width and add noise of a random level to each."""
    n = len(pixels)
    sigma = 0.3 + 0.9 * float(torch.rand((), generator=generator))
    blurred = (torch.rand(n, generator=generator) < 0.5).to(pixels.device)
    level = 0.12 * torch.rand(n, 1, 1, 1, generator=generator).square()
    noise = (level * torch.randn(pixels.shape, generator=generator)).to(pixels.device)
    pixels = pixels.index_copy(0, blurred.nonzero()[:, 0], _blur(pixels[blurred], sigma))
    return pixels + noise


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every picture turned by up to 5 degrees, scaled by up to 5 % and shifted by up to 5 px of 128."""
    turn, scale, x, y = (2 * torch.rand(4, len(pixels), generator=generator) - 1) * torch.tensor(
        [[5 * torch.pi / 180], [0.05], [0.08], [0.08]]
    )
    cos, sin = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    moves = torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], 1).to(pixels)
    grid = F.affine_grid(moves, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of 7 taps each way, by sums of shifted pictures: convolutions of few channels are slow on CPUs."""
    h, w = pixels.shape[-2:]
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-3, 4)]
    padded = F.pad(pixels, (3, 3, 3, 3), mode="replicate")
    wide, blurred = torch.zeros_like(padded[..., :w]), torch.zeros_like(pixels)
    for at, tap in enumerate(taps):
        wide.add_(padded[..., at : at + w], alpha=tap)
    for at, tap in enumerate(taps):
        blurred.add_(wide[..., at : at + h, :], alpha=tap)
    return blurred / sum(taps) ** 2


def train_judge(
    config: JudgeConfig, rgb: np.ndarray | Shards, indices: np.ndarray, *, returned: np.ndarray | None = None
) -> Judge:
    """Train on drawn pictures ``[n, 128, 128, 3]`` and their indices in the training stream ``[n]``.

    ``returned`` holds the first of the same pictures as the autoencoder gives them back; one half of what the judge is
    shown are these, the other half are drawings of all. Resumes from the checkpoint in ``config.work``.
    """
    torch.manual_seed(1000 + config.judge)
    layout = Layout.of(config.kind)
    pictures = [config.picture(int(index)) for index in indices]
    rows = torch.tensor([row for row, picture in enumerate(pictures) if shows(picture, config.kind)])
    if not len(rows):
        raise DataError(f"none of the {len(pictures)} drawn pictures shows a {config.kind}")
    targets = _Targets.of(Truth.of([pictures[row] for row in rows.tolist()], config.kind), layout)
    network: Any = _initial(config).to(config.device).train()
    dtype = training_dtype(config.device)
    trained = Trained({"judge": network}, config.learning_rate, config.warmup, config.ema, config.steps, dtype)
    trained.load(config.checkpoint)
    network.to(memory_format=torch.channels_last)
    first = 0 if returned is None else int((rows < len(returned)).sum())  # so many of them are there as returned

    def losses() -> Iterator[Tensor]:
        while True:
            generator = torch.Generator().manual_seed(10**6 * config.judge + trained.step)
            through = (torch.rand(config.batch, generator=generator) < 0.5) & (first > 0)
            picks = (torch.rand(config.batch, generator=generator) * torch.where(through, first, len(rows))).long()
            pixels = to_pixels(_shown(rgb, returned, rows[picks], through)).to(config.device)
            shown = augment(pixels, generator).to(dtype, memory_format=torch.channels_last)
            identity, classes = network(shown)
            yield judge_loss(layout, identity, classes, targets.rows(picks, config.device))

    _run(config, trained, losses())
    return Judge(
        trained.averaged("judge").half().float().eval(), config.judge, config.kind, np.ones(len(layout.names), bool)
    )


def _initial(config: JudgeConfig) -> JudgeNetwork:
    if config.initial is None:
        return JudgeNetwork(config.judge, config.kind)
    earlier = Judge.load(config.initial)
    if earlier.number != config.judge:
        raise CheckpointError(
            f"'{config.initial}' holds judge {earlier.number}; --initial needs one built as judge {config.judge}"
        )
    if earlier.kind == config.kind:
        return earlier.network
    network = JudgeNetwork(config.judge, config.kind)
    network.trunk = earlier.network.trunk
    return network


def _shown(rgb: np.ndarray | Shards, returned: np.ndarray | None, rows: Tensor, through: Tensor) -> np.ndarray:
    """The pictures of ``rows``, as returned by the autoencoder where ``through`` says so."""
    shown: np.ndarray = rgb[rows.numpy()]
    if returned is not None:
        shown[through.numpy()] = returned[rows[through].numpy()]
    return shown


def _run(config: JudgeConfig, trained: Trained, losses: Iterator[Tensor]) -> None:
    recent: list[float] = []
    while trained.step < config.steps:
        recent.append(trained.update(next(losses)))
        if trained.step % 50 == 0:
            print(
                json.dumps({"stage": config.checkpoint.stem, "step": trained.step, "loss": np.mean(recent)}), flush=True
            )
            recent.clear()
        if trained.step % config.checkpoint_every == 0 or trained.step == config.steps:
            trained.save(config.checkpoint)


@torch.no_grad()
def round_trip(rgb: np.ndarray, vae: RoundTrip, *, batch: int = 32) -> np.ndarray:
    """Pictures, uint8 ``[n, h, w, 3]``, as ``vae`` gives them back."""
    return np.concatenate([to_rgb(vae(to_pixels(rgb[i : i + batch]))) for i in range(0, len(rgb), batch)])


def cached_round_trips(config: JudgeConfig, rgb: np.ndarray | Shards, vae: RoundTrip) -> np.ndarray:
    """`round_trip` of the first ``config.round_trips`` pictures, kept in the work folder for the other judges.

    What an earlier judge left there is used, and taken further where it is too short.
    """
    path = config.returned
    count = min(config.round_trips, len(rgb))
    cached = np.load(path, mmap_mode="r") if path.exists() else rgb[:0]
    if len(cached) >= count:
        return np.asarray(cached[:count])
    returned = np.concatenate([cached, round_trip(rgb[len(cached) : count], vae)])
    beside = path.with_suffix(".partial.npy")
    np.save(beside, returned)
    beside.rename(path)
    return returned


def autoencoder(folder: Path, *, device: str = "cpu") -> RoundTrip:
    """The autoencoder of a diffusers folder as a round trip."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).to(device, training_dtype(device)).eval()

    def through(pixels: Tensor) -> Tensor:
        latents = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mean
        return vae.decode(latents).sample.float()  # type: ignore[no-any-return]

    return through


def main(config: JudgeConfig) -> None:
    """Train, save, and print how many parameters are readable on drawings of individuals never trained on."""
    torch.set_flush_denormal(True)
    for drawn in draw_shards(config.pictures, config.own_pictures, about=config.kind, size=RESOLUTION):
        print(json.dumps({"drawn": drawn}), flush=True)
    rgb, indices = load_shards(config.pictures, config.own_pictures or None, size=RESOLUTION)
    vae = autoencoder(config.work / "tiny" / "vae", device=config.device) if config.round_trips else None
    judge = train_judge(config, rgb, indices, returned=cached_round_trips(config, rgb, vae) if vae else None)
    judge.readable = readable_parameters(judge, vae)
    report = examine(judge, vae)
    judge.save(config.folder)
    print(json.dumps(report | {"config": {k: str(v) for k, v in asdict(config).items()}}))


def readable_parameters(judge: Judge, through: RoundTrip | None, *, count: int = 400) -> np.ndarray:
    """Which parameters count in scores, bool ``[P]``: those read in plain pictures of validation individuals.

    Plain, because many parameters cannot be seen in every style.
    """
    pictures = [snapshot("validation", index, judge.kind) for index in range(count)]
    rgb = np.stack([draw(picture, RESOLUTION).rgb for picture in pictures])
    read, truth = judge.read(round_trip(rgb, through) if through else rgb), Truth.of(pictures, judge.kind)
    return readable(judge.layout, read.identity, truth.identity, truth.visible, least=READABLE[judge.kind])


def examine(
    judge: Judge, vae: RoundTrip | None = None, *, count: int = 400, namespace: str = "validation"
) -> dict[str, Any]:
    """R² per parameter and accuracy per class on all sorts of pictures of ``namespace``, through ``vae`` if given."""
    stream = (training_picture(i, namespace=namespace) for i in range(100 * count))
    pictures = [p for _, p in zip(range(count), (p for p in stream if shows(p, judge.kind)), strict=False)]
    rgb = np.stack([draw(picture, RESOLUTION).rgb for picture in pictures])
    readings, truth = judge.read(round_trip(rgb, vae) if vae else rgb), Truth.of(pictures, judge.kind)
    shares = explained(judge.layout, readings.identity, truth.identity, truth.visible)
    return {
        "readable": int(judge.readable.sum()),
        "explained": dict(zip(judge.layout.names, shares.round(3).tolist(), strict=True)),
        "accuracy": {
            name: round(float((answers == truth.classes[name]).mean()), 3) for name, answers in readings.classes.items()
        },
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(JudgeConfig, config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagConversionOff)))
