"""A trained generator in one safetensors file: weights, its configuration and where it came from. No pickle.

The metadata are texts: `format`, `version`, `generator` (the configuration as JSON), `class_names` (a JSON list) and
`provenance` (a JSON object: preset, step, nimg, data set, source of imported weights). From version 2 on there may be
standing statistics: `standing_stats` (a JSON list of levels: truncation, num_images, batch_size), the tensors of level i being
named `standing_stats/<i>/<name of the buffer>`. A file without them is written as version 1, which older hamgans read.
"""

import json
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from hamgan import config as configuration
from hamgan.checkpoint import write_atomically
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.sampling.latents import check_truncation
from hamgan.sampling.standing import StandingStatistics, running_names, statistics_at, with_statistics

FORMAT = "hamgan-snapshot"
VERSION = 2
STANDING = "standing_stats"

BatchNormMode = Literal["auto", "running", "standing"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A generator made ready to draw at a truncation."""

    generator: Generator
    """In evaluation mode; shares its weights with the snapshot's."""
    batch_norm: str
    """Which statistics its batch norms use, for cards and for the user."""
    warning: str = ""
    """What the user should know; empty: nothing."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a snapshot file holds."""

    generator: Generator
    """In evaluation mode, on the CPU."""
    class_names: tuple[str, ...] = ()
    """Name of each class; empty where unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Plain values that say where the weights came from."""
    standing: tuple[StandingStatistics, ...] = ()
    """Batch norm's statistics by truncation, as `hamgan recalibrate` measures them."""

    def at(self, truncation: float | None, batch_norm: BatchNormMode = "auto") -> Prepared:
        """Return the generator with the batch-norm statistics that a truncation asks for.

        Args:
            truncation: BigGAN's, as in `sampling.latents`; None: the plain normal.
            batch_norm: running: training's running averages. standing: the stored level, or the linear blend of the two
                around the truncation; nothing is extrapolated. auto: standing where truncation is given and the levels
                reach it, else running, with a warning where truncation is given.

        Raises:
            ValueError: If truncation is out of range, or `standing` is asked for and the stored levels do not reach it.
        """
        check_truncation(truncation)
        running = Prepared(generator=self.generator, batch_norm="running statistics of training")
        if batch_norm == "running" or (batch_norm == "auto" and truncation is None):
            return running
        found = statistics_at(self.standing, truncation)
        if found is not None:
            text = f"standing statistics at truncation {found.label} ({found.num_images} images)"
            return Prepared(generator=with_statistics(self.generator, found), batch_norm=text)
        levels = ", ".join(level.label for level in self.standing)
        why = f"has standing statistics for {levels} only" if levels else "has no standing statistics"
        wanted = "none" if truncation is None else f"{truncation:g}"
        command = f"hamgan recalibrate SNAPSHOT --truncations {wanted}"
        if batch_norm == "standing":
            raise ValueError(f"truncation is {wanted}; the snapshot {why}: {command}")
        warning = f"truncation is {wanted} and the snapshot {why}; batch norm keeps training's running ones: {command}"
        return Prepared(generator=self.generator, batch_norm=running.batch_norm, warning=warning)


def write(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot atomically.

    Raises:
        ValueError: If the ham's stored bases are one for each sample of some batch, or of another rank than its
            configuration's.
        OSError: If it cannot be written; what was there stays.
    """
    _check_shapes(path, _skeleton(snapshot.generator.config), snapshot.generator.state_dict())
    metadata = {
        "format": FORMAT,
        "version": str(VERSION if snapshot.standing else 1),
        "generator": json.dumps(configuration.to_mapping(snapshot.generator.config)),
        "class_names": json.dumps(list(snapshot.class_names)),
        "provenance": json.dumps(snapshot.provenance),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.generator.state_dict().items()}
    if snapshot.standing:
        levels = [(level.truncation, level.num_images, level.batch_size) for level in snapshot.standing]
        metadata[STANDING] = json.dumps([dict(zip(_LEVEL_KEYS, level, strict=True)) for level in levels])
        for index, level in enumerate(snapshot.standing):
            tensors |= {f"{STANDING}/{index}/{name}": tensor.contiguous() for name, tensor in level.tensors.items()}
    payload = serialize(tensors, metadata)
    write_atomically(path, lambda file: file.write(payload))


def read(path: str | Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no snapshot, of a newer version, or if tensors and configuration disagree.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such snapshot")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned: the library maps the file, and a map of a file that is later cut short kills the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({str(error)[:300]})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not a hamgan snapshot (its metadata has no format {FORMAT})")
    if metadata.get("version") not in {str(version) for version in range(1, VERSION + 1)}:
        version = reprlib.repr(metadata.get("version")).strip("'")
        raise ValueError(
            f"{path}: snapshot version {version}; this hamgan reads versions 1 to {VERSION}, a newer may read it"
        )
    try:
        fields = {key: json.loads(metadata[key]) for key in ("generator", "class_names", "provenance")}
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata are incomplete or damaged ({error})") from None
    kinds = {"generator": dict, "class_names": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(fields[key], kind):
            raise ValueError(f"{path}: its metadata '{key}' are damaged: a {kind.__name__} is expected")
    config = configuration.from_mapping(GeneratorConfig, fields["generator"], f"{path} (generator)")
    levels = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{STANDING}/")}
    generator = _fill(config, tensors, path)
    return Snapshot(
        generator=generator,
        standing=_standing(path, generator, metadata.get(STANDING, "[]"), levels),
        class_names=tuple(str(name) for name in fields["class_names"]),
        provenance=dict(fields["provenance"]),
    )


_LEVEL_KEYS = ("truncation", "num_images", "batch_size")


def _standing(
    path: Path, generator: Generator, text: str, tensors: dict[str, torch.Tensor]
) -> tuple[StandingStatistics, ...]:
    """Take standing statistics from a file, after checking that they are of this generator."""
    state, names = generator.state_dict(), running_names(generator)
    levels = []
    try:
        for index, entry in enumerate(json.loads(text)):
            truncation, num_images, batch_size = (entry[key] for key in _LEVEL_KEYS)
            check_truncation(truncation)
            stored = {name: tensors.pop(f"{STANDING}/{index}/{name}") for name in names}
            for name, tensor in stored.items():
                fits = (tensor.shape, tensor.dtype) == (state[name].shape, state[name].dtype)
                low = 0.0 if name.endswith("running_var") else float("-inf")
                if not fits or not tensor.isfinite().all() or (tensor < low).any():
                    raise ValueError(f"'{name}' of level {index} is not finite, negative or of another network")
            levels.append(
                StandingStatistics(
                    truncation=None if truncation is None else float(truncation),
                    num_images=int(num_images),
                    batch_size=int(batch_size),
                    tensors=stored,
                )
            )
        if tensors:
            raise ValueError(f"'{min(tensors)}' belongs to no level")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: its standing statistics are damaged ({error})") from None
    return tuple(levels)


def _skeleton(config: GeneratorConfig) -> Generator:
    """Build a generator that has shapes and no values.

    Raises:
        ValueError: If the configuration asks for tensors larger than can be.
    """
    try:
        with torch.device("meta"):
            return Generator(config)
    except (RuntimeError, TypeError) as error:  # TypeError: a size beyond 64 bits
        raise ValueError(
            f"the generator's configuration cannot be built ({str(error).splitlines()[0][:200]})"
        ) from None


def _check_shapes(path: Path, skeleton: Generator, tensors: dict[str, torch.Tensor]) -> None:
    expected = skeleton.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise ValueError(
                f"{path}: tensor '{name[:200]}' is {'missing' if name in expected else 'not in the network'}"
            )
        if (ours := expected[name]).shape != (theirs := tensors[name]).shape or ours.dtype != theirs.dtype:
            raise ValueError(
                f"{path}: tensor '{name}' is {theirs.dtype} {tuple(theirs.shape)}; its configuration asks for "
                f"{ours.dtype} {tuple(ours.shape)}"
            )


def _fill(config: GeneratorConfig, tensors: dict[str, torch.Tensor], path: Path) -> Generator:
    """Build the generator without memory of its own, check that the file's tensors fit, and give it those."""
    try:
        generator = _skeleton(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check_shapes(path, generator, tensors)
    generator.load_state_dict(tensors, assign=True)
    return generator.eval().requires_grad_(False)


def find(path: Path) -> Path:
    """Return the snapshot that a path means: the file itself, or a run folder's newest.

    Raises:
        FileNotFoundError: If there is none.
    """
    if not path.is_dir():
        return path
    snapshots = sorted(path.glob("snapshot-*.safetensors"))
    if not snapshots:
        raise FileNotFoundError(f"{path}: has no snapshot-*.safetensors; train longer, or name a snapshot file")
    return snapshots[-1]
