"""A trained generator in one safetensors file: weights, its configuration and where it came from. No pickle.

The metadata are texts: `format`, `version`, `generator` (the configuration as JSON), `class_names` (a JSON list) and
`provenance` (a JSON object: preset, step, nimg, data set, source of imported weights).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from hamgan import config as configuration
from hamgan.checkpoint import write_atomically
from hamgan.models.generator import Generator, GeneratorConfig

FORMAT = "hamgan-snapshot"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a snapshot file holds."""

    generator: Generator
    """In evaluation mode, on the CPU."""
    class_names: tuple[str, ...] = ()
    """Name of each class; empty where unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Plain values that say where the weights came from."""


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
        "version": str(VERSION),
        "generator": json.dumps(configuration.to_mapping(snapshot.generator.config)),
        "class_names": json.dumps(list(snapshot.class_names)),
        "provenance": json.dumps(snapshot.provenance),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.generator.state_dict().items()}
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
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: a safetensors file, but not a hamgan snapshot (its metadata has no format {FORMAT})")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path}: snapshot version {metadata.get('version')}; this hamgan reads version {VERSION}")
    try:
        fields = {key: json.loads(metadata[key]) for key in ("generator", "class_names", "provenance")}
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its metadata are incomplete or damaged ({error})") from None
    kinds = {"generator": dict, "class_names": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(fields[key], kind):
            raise ValueError(f"{path}: its metadata '{key}' are damaged: a {kind.__name__} is expected")
    config = configuration.from_mapping(GeneratorConfig, fields["generator"], f"{path} (generator)")
    return Snapshot(
        generator=_fill(config, tensors, path),
        class_names=tuple(str(name) for name in fields["class_names"]),
        provenance=dict(fields["provenance"]),
    )


def _skeleton(config: GeneratorConfig) -> Generator:
    """Build a generator that has shapes and no values.

    Raises:
        ValueError: If the configuration asks for tensors larger than can be.
    """
    try:
        with torch.device("meta"):
            return Generator(config)
    except RuntimeError as error:
        raise ValueError(f"the generator's configuration cannot be built ({str(error).splitlines()[0]})") from None


def _check_shapes(path: Path, skeleton: Generator, tensors: dict[str, torch.Tensor]) -> None:
    expected = skeleton.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise ValueError(f"{path}: tensor '{name}' is {'missing' if name in expected else 'not in the network'}")
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


def write_imported(path: Path, generator: Generator, source: Path) -> str:
    """Write a generator that came from elsewhere; return a line that says what it is.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    write(path, Snapshot(generator=generator, provenance={"imported_from": source.name}))
    config = generator.config
    return (
        f"{path}: {config.resolution}x{config.resolution}, {config.num_classes} classes, context {config.context}, "
        f"{sum(p.numel() for p in generator.parameters()):,} parameters"
    )
