"""Whether pictures copy what is not the concept: the pose and the backdrop of the picture it was learned from.

    python -m e4t.evaluation.copying WORK

A concept is an individual, not a photo of one. Over many concepts, nothing of how the input happened to be taken should
be found again in what is drawn: the correlation that is wanted is 0. Poses are read by a network of their own, which
learns from the world's data about its drawings as judges do. Shapes: n pictures, K numbers of a pose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from e4t.errors import CheckpointError
from e4t.evaluation.judge import RESOLUTION, ResidualBlock, degrade, staged
from e4t.precision import training_dtype
from e4t.shipped import WEIGHTS
from e4t.tiny.canvas import Pose
from e4t.tiny.captions import training_picture
from e4t.tiny.pictures import Shards, load_shards, to_pixels
from e4t.tiny.trained import Trained
from e4t.tiny.world import WORLD_VERSION, Picture, draw

BORDER = 6  # pixels, of 128
READ = 0.5
"""Least share of a number's variance that must be read in drawings for it to count."""
_NUMBERS = tuple(field.name for field in fields(Pose))


def poses(pictures: Sequence[Picture]) -> np.ndarray:
    """``[n, K]``: yaw, pitch, roll, scale, x and y."""
    return np.array([astuple(picture.pose) for picture in pictures])


def backdrop(rgb: np.ndarray) -> np.ndarray:
    """Mean colour of the border of pictures, uint8 ``[n, h, w, 3]``, as ``[n, 3]``."""
    inner = np.zeros(rgb.shape[1:3], bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.asarray(rgb[:, ~inner].mean(1))


def correlation_statistic(given: np.ndarray, drawn: np.ndarray) -> Callable[[np.ndarray], float]:
    """How far numbers of the inputs ``[concepts, K]`` come back in pictures ``[concepts, prompts, K]``.

    The mean over numbers and prompts of the correlation over concepts; what never varies does not count, and NaN is
    where nothing varies.
    """

    def statistic(sample: np.ndarray) -> float:
        one = given[sample][:, None] - given[sample].mean(0)
        other = drawn[sample] - drawn[sample].mean(0)
        bottom = np.sqrt((one**2).sum(0) * (other**2).sum(0))
        varied = bottom > 0
        values = (one * other).sum(0)[varied] / bottom[varied]
        return float(values.mean()) if len(values) else float("nan")

    return statistic


class PoseNetwork(nn.Module):
    """Pixels ``[n, 3, 128, 128]`` in [-1, 1] to standardised poses ``[n, K]``."""

    means: Tensor
    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Small, and the last map is kept in place: where things are is what is asked.
        self.stages = staged(ResidualBlock, (16, 32, 64), (1, 1, 1))
        self.squeeze = nn.Conv2d(64, 12, 1)
        self.join = nn.Linear(12 * 8 * 8, 96)
        self.head = nn.Linear(96, len(_NUMBERS))
        self.register_buffer("means", torch.zeros(len(_NUMBERS)))
        self.register_buffer("scales", torch.ones(len(_NUMBERS)))

    def forward(self, pixels: Tensor) -> Tensor:
        kept = F.relu(self.squeeze(F.relu(self.stages(pixels)))).flatten(1)
        standardised: Tensor = self.head(F.relu(self.join(kept)))
        return standardised.float()


@dataclass
class PoseReader:
    """A trained network, and which numbers of a pose it reads well enough to count, bool ``[K]``."""

    network: PoseNetwork
    counted: np.ndarray

    @classmethod
    def shipped(cls) -> PoseReader:
        return cls.load(WEIGHTS / "pose-reader")

    @classmethod
    def load(cls, folder: Path) -> PoseReader:
        try:
            config = json.loads((folder / "config.json").read_text())
            tensors = load_file(folder / "model.safetensors")
            network = PoseNetwork()
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"'{folder}' holds no pose reader: {error}") from error
        if config["world"] != WORLD_VERSION:
            raise CheckpointError(f"'{folder}' reads version {config['world']} of the drawn world, not {WORLD_VERSION}")
        return cls(network.eval(), np.array([name in config["reads"] for name in _NUMBERS]))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.half().contiguous().cpu() for name, tensor in self.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        reads = [name for name, counts in zip(_NUMBERS, self.counted, strict=True) if counts]
        (folder / "config.json").write_text(json.dumps({"world": WORLD_VERSION, "reads": reads}, indent=2) + "\n")

    @torch.no_grad()
    def read(self, rgb: np.ndarray, *, batch: int = 64) -> np.ndarray:
        """Poses of pictures, uint8 ``[n, 128, 128, 3]``, as ``[n, K]``."""
        parts = [self.network(to_pixels(rgb[i : i + batch])) for i in range(0, len(rgb), batch)]
        return (torch.cat(parts) * self.network.scales + self.network.means).double().numpy()


# Training


@dataclass(frozen=True)
class PoseConfig:
    """How to train the reader."""

    work: Path  # the folder of the tiny model's training, with its drawn pictures
    steps: int = 6_000
    batch: int = 64
    learning_rate: float = 1e-3
    checkpoint_every: int = 500


def train_pose_reader(config: PoseConfig, rgb: np.ndarray | Shards, indices: np.ndarray) -> PoseReader:
    """Train on drawn pictures ``[n, 128, 128, 3]`` and their indices in the training stream; resumes in the folder."""
    torch.manual_seed(0)
    path = config.work / "pose-reader.safetensors"
    network = PoseNetwork().train()
    targets = torch.from_numpy(poses([training_picture(int(index)) for index in indices])).float()
    means, scales = targets.mean(0), targets.std(0)
    trained = Trained({"pose": network}, config.learning_rate, 200, 0.998, config.steps, training_dtype("cpu"))
    trained.load(path)
    while trained.step < config.steps:
        generator = torch.Generator().manual_seed(trained.step)
        picks = torch.randint(len(targets), (config.batch,), generator=generator)
        pixels = degrade(to_pixels(rgb[picks.numpy()]), generator)
        read = network(pixels.to(network.head.weight.dtype))
        loss = trained.update((read - (targets[picks] - means) / scales).square().mean())
        if trained.step % 100 == 0:
            print(json.dumps({"stage": "pose-reader", "step": trained.step, "loss": round(loss, 4)}), flush=True)
        if trained.step % config.checkpoint_every == 0 or trained.step == config.steps:
            trained.save(path)
    finished: PoseNetwork = trained.averaged("pose").half().float().eval()
    finished.means, finished.scales = means, scales
    return PoseReader(finished, np.ones(len(_NUMBERS), bool))


def explained(reader: PoseReader, *, count: int = 400) -> np.ndarray:
    """R² of every number in drawings of validation individuals, ``[K]``."""
    pictures = [training_picture(index, namespace="validation") for index in range(count)]
    read, true = reader.read(np.stack([draw(picture, RESOLUTION).rgb for picture in pictures])), poses(pictures)
    return np.asarray(1 - ((read - true) ** 2).mean(0) / true.var(0))


def main(config: PoseConfig) -> None:
    """Train, see what can be read, save."""
    torch.set_flush_denormal(True)
    rgb, indices = load_shards(config.work / "pictures", size=RESOLUTION)
    reader = train_pose_reader(config, rgb, indices)
    shares = explained(reader)
    reader.counted = shares >= READ
    reader.save(config.work / "pose-reader")
    print(json.dumps(dict(zip(_NUMBERS, shares.round(3).tolist(), strict=True))))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(PoseConfig, config=(tyro.conf.PositionalRequiredArgs,)))
