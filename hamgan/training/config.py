"""The configuration of a training run: one section a component, read from a preset and the command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hamgan import config as configuration
from hamgan.device import Compile
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.training.augment import AugmentConfig
from hamgan.training.ema import EmaConfig
from hamgan.training.step import StepConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training file and what is done to its images."""

    path: str = ""
    """The HDF5 training file, as `hamgan data build` writes it."""
    source: str = ""
    """What to build the file from where it does not exist yet: `emoji` (embedded), a folder or an archive; empty: it must
    exist."""
    resize: str = "lanczos"
    """Filter of that build."""
    flip: bool = True
    """Whether real images are mirrored with probability one half."""
    hold_out: int = 0
    """Images never shown to D, by which the health checks see whether it memorises; 0: none."""
    class_balanced: bool = False
    """Whether every class is shown equally often, whatever its number of images."""

    def __post_init__(self) -> None:
        if self.hold_out < 0:
            raise ValueError(f"data.hold_out is {self.hold_out}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam of one network."""

    lr: float
    """Learning rate."""
    beta1: float = 0.0
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; it must be > 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")


LONGEST = 1e15
"""In any unit; beyond, counts of images are no longer exact."""
DURATION_UNITS = {"step": "steps", "image": "images", "kimg": "kimg", "epoch": "epochs"}


@dataclass(frozen=True, kw_only=True)
class Duration:
    """A length of training."""

    amount: float
    unit: str

    def steps(self, images_per_step: int, num_images: int) -> int:
        """Return the number of G steps, at least 1, rounded up.

        Args:
            images_per_step: Real images shown to D in a G step.
            num_images: In the data set.
        """
        images = {"steps": images_per_step, "images": 1, "kimg": 1000, "epochs": num_images}[self.unit] * self.amount
        return max(-int(-images // images_per_step), 1)


def parse_duration(key: str, text: str) -> Duration:
    """Read `2000 steps`, `500000 images`, `500 kimg` or `40 epochs`.

    Raises:
        ValueError: Naming the key.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*(step|image|kimg|epoch)s?\s*", text)
    if not match or not 0 < float(match[1]) < LONGEST:
        raise ValueError(
            f"{key} is '{text[:100]}'; it must be a length such as '2000 steps', '500 kimg' or '40 epochs'"
        )
    return Duration(amount=float(match[1]), unit=DURATION_UNITS[match[2]])


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes, and how often."""

    stats_every: str = "50 steps"
    """How often a row of statistics is written."""
    grid_every: str = "1000 steps"
    """How often a grid of fixed latents is drawn."""
    health_every: str = "1000 steps"
    """How often diversity, spectral norms and the ham's fit are measured."""
    checkpoint_every: str = "1000 steps"
    """How often a checkpoint and a snapshot are saved."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; beside them the sentinel's healthy ones."""
    keep_snapshots: int = 5
    """How many of the newest snapshots are kept."""
    grid_columns: int = 12
    """Images a class in the grid."""
    grid_classes: int = 16
    """Largest number of classes, one a row, in the grid."""

    def __post_init__(self) -> None:
        for name in ("stats_every", "grid_every", "health_every", "checkpoint_every"):
            parse_duration(f"log.{name}", getattr(self, name))
        for name in ("keep_checkpoints", "keep_snapshots", "grid_columns", "grid_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"log.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class QuickEvalConfig:
    """The cheap evaluation that a run makes of itself; its lowest value decides which snapshot is kept as the best."""

    extractor: str = ""
    """Feature network of `hamgan.metrics`; empty: none."""
    every: str = "5000 steps"
    """How often."""
    num_images: int = 1000
    """Generated images, and real ones at most."""

    def __post_init__(self) -> None:
        parse_duration("eval.every", self.every)
        if self.num_images < 2:
            raise ValueError(f"eval.num_images is {self.num_images}; it must be at least 2")


@dataclass(frozen=True, kw_only=True)
class SentinelConfig:
    """What is done when the health checks say that the run collapses. Its rules: see `hamgan.training.sentinel`."""

    action: Literal["off", "warn", "stop", "rollback"] = "rollback"
    """rollback: go on from the last healthy checkpoint with smaller learning rates and another data order; stop: leave;
    warn: say so; off: no rule is looked at. Non-finite numbers stop a run that does not roll back."""
    grace: str = "10000 steps"
    """Before this the samples' diversity is not judged: it has to be learnt first."""
    patience: int = 2
    """Suspicious health checks in a row that make a collapse."""
    min_diversity: float = 0.2
    """Suspicious: samples of a class differ by less than this times what real images do."""
    min_kept_diversity: float = 0.5
    """Suspicious: the diversity falls below this times the highest so far."""
    min_feature_spread: float = 1e-3
    """Suspicious: D's features of the images of a class differ by less than this times their root mean square."""
    max_sigma_growth: float = 2.0
    """Suspicious: the largest singular value of G or D grows beyond this times its median over the last healthy checks."""
    max_gradient_growth: float = 30.0
    """Suspicious: likewise the gradient's norm."""
    max_rollbacks: int = 3
    """After so many the run stops."""
    lr_factor: float = 0.5
    """Both learning rates are multiplied by this at every rollback."""
    keep_healthy: int = 2
    """How many checkpoints from before the last healthy check are kept, however old."""

    def __post_init__(self) -> None:
        parse_duration("sentinel.grace", self.grace)
        for name in ("patience", "keep_healthy"):
            if getattr(self, name) < 1:
                raise ValueError(f"sentinel.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("min_diversity", "min_kept_diversity", "min_feature_spread", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ValueError(f"sentinel.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("max_sigma_growth", "max_gradient_growth"):
            if not getattr(self, name) > 1:
                raise ValueError(f"sentinel.{name} is {getattr(self, name)}; it must be > 1")
        if not 0 < self.lr_factor <= 1:
            raise ValueError(f"sentinel.lr_factor is {self.lr_factor}; it must be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run depends on."""

    duration: str = "100000 steps"
    """Length of the run: steps (of G), images, kimg (of real images shown to D) or epochs."""
    batch_size: int = 256
    """Global batch of a D step: real images over all processes and accumulated micro-batches."""
    micro_batch: int = 0
    """Images a forward pass on one process; 0: the whole share of the process. Smaller ones accumulate gradients, and batch
    norm then sees the micro-batch only."""
    d_steps: int = 1
    """D steps a G step."""
    anneal: float = 0.0
    """Last fraction of the run over which both learning rates fall linearly towards 0; a longer duration moves it."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Of the networks' convolutions; auto: bf16 where the device computes in it, else fp32."""
    compile: Compile = False
    """Whether the networks go through torch.compile; reduce-overhead also records CUDA graphs (on a GPU only),
    max-autotune also times other kernels before it chooses. Both modes are not measured on a GPU. On a CPU the compiled
    kernels are left out then, and a step may take longer (docs/training.md)."""
    recompute: bool = False
    """Gradient checkpointing: the blocks' inner maps are computed again in the backward pass instead of being kept. The same
    numbers for less memory and about a third more time."""
    device: str = "auto"
    """auto: a GPU if there is one; or a torch device such as cpu."""
    seed: int = 0
    """Of weights, data order and noise."""
    data: DataConfig = field(default_factory=DataConfig)
    """The images."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The generator."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator."""
    g_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4))
    """Adam of G."""
    d_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=4e-4))
    """Adam of D."""
    objective: StepConfig = field(default_factory=StepConfig)
    """The losses."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Differentiable augmentation."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """The average that is sampled."""
    log: LogConfig = field(default_factory=LogConfig)
    """What is written."""
    eval: QuickEvalConfig = field(default_factory=QuickEvalConfig)
    """The run's evaluation of itself."""
    sentinel: SentinelConfig = field(default_factory=SentinelConfig)
    """What is done about a collapse."""

    def __post_init__(self) -> None:
        parse_duration("duration", self.duration)
        for name in ("batch_size", "d_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.micro_batch < 0:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be in [0, 2**63)")
        if self.compile and (self.objective.r1_gamma or self.objective.r2_gamma):
            raise ValueError(
                "compile is on with a gradient penalty; torch.compile has no second derivative: set one off"
            )
        if self.recompute and (self.compile or self.objective.r1_gamma or self.objective.r2_gamma):
            raise ValueError("recompute is on with compile or a gradient penalty; it goes with neither: set one off")
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal is {self.anneal}; it must be in [0, 1]")
        for name in ("resolution", "num_classes"):
            g, d = getattr(self.generator, name), getattr(self.discriminator, name)
            if g != d:
                raise ValueError(f"generator.{name} is {g} and discriminator.{name} is {d}; they must be equal")

    def learning_rate_factor(self, step: int, total_steps: int) -> float:
        """Return what both learning rates are multiplied by in step number `step`, from 0, of `total_steps`."""
        annealed = self.anneal * total_steps
        return min(1.0, (total_steps - step) / annealed) if annealed else 1.0

    def micro_batches(self, world_size: int) -> tuple[int, int]:
        """Return (images a micro-batch, micro-batches a process) of a D step.

        Raises:
            ValueError: If processes or micro-batches do not divide the batch.
        """
        if self.batch_size % world_size:
            raise ValueError(f"batch_size is {self.batch_size}; {world_size} processes do not divide it")
        share = self.batch_size // world_size
        micro = self.micro_batch or share
        if share % micro:
            raise ValueError(f"micro_batch is {micro}; it must divide the {share} images of a process")
        return micro, share // micro


FREE_KEYS = (
    "duration",
    "device",
    "compile",
    "recompute",
    "log.",
    "eval.",
    "data.path",
    "data.source",
    "data.resize",
    "sentinel.action",
    "sentinel.grace",
    "sentinel.patience",
    "sentinel.min_",
    "sentinel.max_",
    "sentinel.keep_healthy",
)
"""Keys that may change when a run is taken up again: they do not change what a step computes (but for
compilation's rounding)."""


def load_config(preset: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a preset with command-line overrides (`--section.key value`) laid over it.

    Raises:
        FileNotFoundError: If there is no such preset.
        ValueError: For an unknown key or a value that is not allowed; names where it stands.
    """
    values, sources = configuration.parse_overrides(overrides)
    mapping = configuration.merge(configuration.read_preset(preset), values)
    return configuration.from_mapping(TrainConfig, mapping, str(preset), sources)
