"""Stage 1: train encoder and weight offsets on many pictures of a domain. To resume, run the same again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from e4t.backbone import Backbone
from e4t.batches import batches
from e4t.cache import CachedData
from e4t.checkpoint import BaseModel, TrainedDomain
from e4t.config import PretrainConfig
from e4t.data import ImageData, require_pictures
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, TrainingError
from e4t.model import E4TModel, new_model
from e4t.objective import E4TObjective
from e4t.optimizers import MovingAverage, load_optimizer_tensors, new_optimizer, optimizer_tensors
from e4t.processes import Processes
from e4t.saved import group, prefixed, require_place
from e4t.shards import source_name
from e4t.states import LATEST, States, TrainingState, changes_since, require_fitting
from e4t.training import Step, gradient_scaler, train

_FIRST_LOSSES = 5
_SCALER = ("scale", "_growth_tracker")


def pretrain(
    domain: Domain,
    data: str | Path,
    *,
    backbone: Backbone,
    config: PretrainConfig,
    output: str | Path,
    personalize: Mapping[str, Any] | None = None,
    generate: Mapping[str, Any] | None = None,
) -> Iterator[Step]:
    """Train a domain and write its folder to ``output``: `Pretraining`, step by step."""
    yield from Pretraining(
        domain,
        data,
        backbone=backbone,
        config=config,
        output=output,
        personalize=personalize,
        generate=generate,
    ).steps()


class Pretraining:
    """One training of a domain, from nothing or from where it was.

    ``data`` is a cache, shards, or any other source of pictures (docs/pretraining.md). ``personalize`` and ``generate``
    are settings to record for this domain. States are kept beside ``output``, in ``<output>.training``: with the same
    arguments it goes on from the last one with the very numbers an uninterrupted run would have had. ``resume`` names
    another folder of states, or of one, to begin from. Raises CheckpointError if it was begun with other settings;
    docs/pretraining.md says which may change. ``changes`` are those that did, as they were before.
    """

    def __init__(
        self,
        domain: Domain,
        data: str | Path,
        *,
        backbone: Backbone,
        config: PretrainConfig,
        output: str | Path,
        personalize: Mapping[str, Any] | None = None,
        generate: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
        resume: str = LATEST,
    ) -> None:
        self.output = Path(output)
        require_place(self.output)
        self.states = States(self.output.with_name(f"{self.output.name}.training"), config.keep_states)
        self.processes = processes or Processes()
        self.domain, self.backbone = domain, backbone
        self.recorded = {"personalize": dict(personalize or {}), "generate": dict(generate or {})}
        self.data = data_of(data, backbone, config)
        self.config = config if isinstance(self.data, ImageData) else _as_cached(config, self.data)
        self.model = new_model(backbone, domain, self.config)
        self.optimizer = new_optimizer(
            config.optimizer,
            _parameter_groups(self.model, config),
            weight_decay=config.weight_decay,
            device=backbone.device,
        )
        self.parameters = self.model.encoder.heads() | dict(self.model.offsets.named_parameters())
        self.average = MovingAverage(self.parameters, config.ema_decay) if config.ema_decay else None
        self.scaler = gradient_scaler(config.mixed_precision, backbone.device)
        self.arguments = {
            "domain": domain.to_dict(),
            "data": source_name(data),
            "config": self.config.to_dict(),
            "processes": self.processes.count,
            "base": backbone.fingerprint,
            "image_encoder": backbone.image_encoder_fingerprint if backbone.sees else None,
            "pictures": len(self.data),
        }
        resume = self.states.source(resume)
        self.kept_in = self.states.folder if resume == LATEST else Path(resume)  # where the last state lies
        self.changes: list[dict[str, Any]] = []
        self.start, self.losses = self._resumed(resume)
        if self.start > config.steps:
            raise ConfigError(f"the last saved state is of step {self.start}, and only {config.steps} are asked for")
        if len(set(self.processes.gathered([self.start]))) > 1:
            raise CheckpointError(
                "the processes found different states: the output has to be on a disk that all of them share"
            )

    @property
    def effective_batch(self) -> int:
        """Pictures in an optimiser step, of all processes together."""
        return self.config.batch_size * self.config.accumulation * self.processes.count

    def steps(self) -> Iterator[Step]:
        """Train; states and, at the end, the domain folder are written on the way.

        Raises TrainingError where the loss is no number any more; the last good state is saved by then.
        """
        config, done, saved = self.config, self.start, self.start
        try:
            for step in self._train():
                done = step.number
                self.losses += [step.loss] if len(self.losses) < _FIRST_LOSSES else []
                if self.average is not None:
                    self.average.update(done)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    self._save(done)
                    saved = done
                yield step
        except TrainingError as error:
            if done > saved:
                with suppress(TrainingError):  # its weights are no numbers either
                    self._save(done)
                    saved = done
            raise TrainingError(f"{error}; {self._kept(saved) if done else 'no step was taken'}") from error
        broken = dict(self.processes.gathered(list(self.data.broken.items())))
        if self.processes.is_first:
            self._trained(len(broken)).save(self.output, dtype=config.save_dtype)
        self.processes.wait()

    def _kept(self, step: int) -> str:
        if not step:
            return "no state was saved"
        place = f"'{self.kept_in}'"
        return f"the state after step {step} is kept in {place}: change a setting and add --resume {place} to go on"

    def _train(self) -> Iterator[Step]:
        config, backbone = self.config, self.backbone
        objective = E4TObjective(self.model, config)
        with ExitStack() as stack:
            batch_at = batches(self.model, self.data, config, self.processes, stack)
            if config.gradient_checkpointing:
                stack.enter_context(backbone.gradient_checkpointing())
            stack.enter_context(self.model.offsets.injected())
            stack.enter_context(backbone.differentiable_attention())
            stack.enter_context(backbone.compiled() if config.compile else nullcontext())
            yield from train(
                objective, batch_at, self.optimizer, start=self.start, scaler=self.scaler, processes=self.processes
            )

    def _trained(self, skipped: int) -> TrainedDomain:
        config = self.config
        with self.average.worn() if self.average is not None else nullcontext():
            tensors = {name: tensor.clone() for name, tensor in self.model.domain_tensors().items()}
        return TrainedDomain(
            domain=self.domain,
            base=self.model.base,
            encoder=config.encoder,
            offsets=config.offsets,
            embedding_scale=config.embedding_scale,
            tensors=tensors,
            pretrain=config.to_dict(),
            training={
                "data": self.arguments["data"],
                "pictures": len(self.data),
                "skipped": skipped,
                "processes": self.processes.count,
                "effective_batch": self.effective_batch,
                "learning_rate": config.learning_rate,
                "first_losses": self.losses,
                "changes": self.changes,
            },
            personalize=self.recorded["personalize"],
            generate=self.recorded["generate"],
        )

    # States

    def _save(self, step: int) -> None:
        """Raises TrainingError rather than to keep weights that are no numbers."""
        tensors = _trained_tensors(self.model)
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise TrainingError(f"the weights after step {step} are no numbers any more, so training stopped")
        stream = self.data.stream if isinstance(self.data, ImageData) else None
        known = {**self.arguments, "first_losses": self.losses, "shards": dict(stream.sizes) if stream else {}}
        known["changes"] = self.changes
        known["broken"] = dict(self.processes.gathered(list(self.data.broken.items())))
        self.kept_in = self.states.folder
        if not self.processes.is_first:
            return
        tensors |= prefixed("optimizer", optimizer_tensors(self.optimizer))
        if self.average is not None:
            tensors |= prefixed("average", self.average.tensors)
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors |= {f"scaler/{name}": torch.tensor(float(scaler[name])) for name in _SCALER}
        self.states.save(TrainingState(step, known, tensors))

    def _resumed(self, which: str) -> tuple[int, list[float]]:
        """The step to go on from, 0 without a state, and the first losses so far."""
        state = self.states.load(which)
        if state is None:
            return 0, []
        require_fitting(state, self.arguments, _trained_tensors(self.model), self.optimizer)
        begun = state.arguments
        self.changes = changes_since(state, self.arguments, named=which != LATEST, place=self.kept_in)
        for name, tensor in (state.group("encoder") | state.group("offsets")).items():
            self.parameters[name].data.copy_(tensor)
        load_optimizer_tensors(self.optimizer, state.group("optimizer"))
        if self.average is not None:
            self.average.load(state.group("average"))
        if self.scaler.is_enabled() and (scaler := group(state.tensors, "scaler")):
            self.scaler.load_state_dict(self.scaler.state_dict() | {name: float(one) for name, one in scaler.items()})
        self.data.broken.update(begun["broken"])
        if isinstance(self.data, ImageData) and self.data.stream is not None:
            self.data.stream.sizes.update(begun["shards"])
        return state.step, list(begun["first_losses"])


def require_data(source: str | Path) -> None:
    """Raises DataError where there is nothing to train on, while nothing large is loaded: a cache or any pictures."""
    if CachedData.is_one(source):
        CachedData(source, seed=0)
    else:
        require_pictures(source)


def pictures_of(data: str | Path, backbone: Backbone, config: PretrainConfig) -> ImageData:
    """The training pictures, of the side that the settings say, else the base's own."""
    return ImageData(data, config, config.resolution or backbone.resolution)


def data_of(source: str | Path, backbone: Backbone, config: PretrainConfig) -> ImageData | CachedData:
    """What is trained on.

    Raises MismatchError for a cache of another base, or of another image encoder if that is used, and ConfigError for
    pictures where the base cannot see.
    """
    if not CachedData.is_one(source):
        if not backbone.sees:
            raise ConfigError(f"'{source}' is no cache, and the base was opened without its autoencoder")
        return pictures_of(source, backbone, config)
    cached = CachedData(source, seed=config.seed)
    cached.base.check(BaseModel.of(backbone), owner=f"the cache '{source}'", eyes=config.encoder.use_image)
    return cached


def _as_cached(config: PretrainConfig, cached: CachedData) -> PretrainConfig:
    """The settings with how the cached pictures were looked at. Raises ConfigError where that is not as asked for."""
    names, default = ("resolution", "crop_scale", "flip", "color_jitter"), PretrainConfig()
    made = default.updated({name: cached.pictures[name] for name in names})
    for name in names:
        asked, there = getattr(config, name), getattr(made, name)
        if asked not in (getattr(default, name), there):
            raise ConfigError(
                f"{name} is {asked}, but the cache '{cached.folder}' was made with {there}; "
                "leave it out, or make another cache"
            )
    return config.updated({"cache": False, **{name: getattr(made, name) for name in names}})


def _parameter_groups(model: E4TModel, config: PretrainConfig) -> list[dict[str, Any]]:
    offsets_rate = config.offsets_learning_rate
    groups: list[tuple[list[nn.Parameter], float]] = [
        (list(model.encoder.heads().values()), config.learning_rate),
        (model.offsets.domain_parameters(), config.learning_rate if offsets_rate is None else offsets_rate),
    ]
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _trained_tensors(model: E4TModel) -> dict[str, Tensor]:
    return prefixed("encoder", model.encoder.heads()) | prefixed("offsets", dict(model.offsets.named_parameters()))
