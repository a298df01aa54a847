"""A model card beside each snapshot: what the weights are, what they were trained on, how good they are, how to sample."""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hamgan import __version__, snapshot
from hamgan import config as configuration
from hamgan.checkpoint import write_atomically
from hamgan.data.hdf5 import TrainingFile
from hamgan.models.generator import Generator

LICENCES: tuple[tuple[str, str], ...] = (
    ("fluent-emoji", "MIT (Microsoft's Fluent Emoji)"),
    ("ILSVRC2012", "ImageNet's terms of access: non-commercial research and education only"),
    ("cifar", "none stated by its authors (Krizhevsky 2009); cite it"),
    ("train_32x32", "SVHN: non-commercial use only (Netzer et al. 2011)"),
)
"""Licences of well-known sources, by the beginning of the name that a training file was built from."""

LICENCE_SUFFIX = ".licence.txt"
"""A text of this name beside a training file states the licence of its images, first of all."""

Rows = list[tuple[str, str]]


def path_of(snapshot_path: Path) -> Path:
    """Return where the card of a snapshot lies: beside it, with the suffix .md."""
    return snapshot_path.with_suffix(".md")


def write_snapshot(path: Path, shot: snapshot.Snapshot) -> None:
    """Write a snapshot and its card, each in one step; errors as `snapshot.write` and `write`."""
    snapshot.write(path, shot)
    write(path)


def write_imported(path: Path, generator: Generator, source: Path) -> str:
    """Write a generator that came from elsewhere, with its card; return a line that says what it is.

    Raises:
        OSError: If it cannot be written; what was there stays.
    """
    write_snapshot(path, snapshot.Snapshot(generator=generator, provenance={"imported_from": source.name}))
    config = generator.config
    return (
        f"{path}: {config.resolution}x{config.resolution}, {config.num_classes} classes, context {config.context}, "
        f"{sum(p.numel() for p in generator.parameters()):,} parameters"
    )


def write(snapshot_path: Path) -> Path:
    """Write the card of a snapshot, in one step, from the snapshot and what lies beside it.

    That is the run's configuration (`config.toml`), its metrics (`metrics.jsonl`), evaluations of this snapshot
    (`eval-<snapshot>-*`), and the training file that the configuration names. What is not there is left out or named as
    unknown.

    Args:
        snapshot_path: The snapshot.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: If there is no such snapshot.
        ValueError: If it is damaged.
        OSError: If the card cannot be written.
    """
    shot = snapshot.read(snapshot_path)
    folder = snapshot_path.parent
    config = _run_config(folder) if shot.provenance.get("run") == folder.resolve().name else {}
    data = _data(config, shot.provenance)
    parts = [
        _front_matter(shot, data),
        _headline(snapshot_path, shot),
        _sampling(snapshot_path, shot),
        _section("Data", _table(data)),
        _section("Training", _table(_training(config, shot.provenance))),
        _section("Metrics", _metrics(folder, snapshot_path, shot.provenance)),
        _section("Configuration", _configuration(config, shot)),
    ]
    card = path_of(snapshot_path)
    text = "\n".join(parts)
    write_atomically(card, lambda file: file.write(text.encode()))
    return card


def _run_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.toml"
    try:
        return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}  # the run itself will say so; a card is no reason to stop


def _front_matter(shot: snapshot.Snapshot, data: Rows) -> str:
    """Return what model hubs read."""
    config = shot.generator.config
    facts = dict(data)
    licence = facts.get("licence", "")
    lines = ["---", "library_name: hamgan", "pipeline_tag: unconditional-image-generation"]
    lines += ["tags: [gan, class-conditional, biggan" + (", hamburger]" if config.context == "ham" else "]")]
    lines += (
        [f"license: {'mit' if licence.startswith('MIT') else 'other'}  # of the training images: {licence}"]
        if licence
        else []
    )
    return "\n".join([*lines, "---", ""])


def _headline(path: Path, shot: snapshot.Snapshot) -> str:
    config, ham = shot.generator.config, shot.generator.config.ham
    step = shot.provenance.get("step")
    title = f"{shot.provenance.get('run', path.stem)}{f', step {step:,}' if isinstance(step, int) else ''}"
    places = ", ".join(f"{side}x{side}" for side in config.context_resolutions)
    context = {
        "ham": f"Hamburger blocks ({ham.kind}, {ham.version}, rank {ham.rank}, {ham.eval_steps} steps) at {places}",
        "attention": f"self-attention at {places}",
        "none": "no global context",
    }[config.context]
    num = sum(p.numel() for p in shot.generator.parameters())
    text = (
        f"A generator of {config.resolution}x{config.resolution} images in {config.num_classes} classes, with {context}; "
        f"{num:,} parameters. Written by [hamgan](https://arxiv.org/abs/2109.04553) {__version__}: `{path.name}`."
    )
    names = list(shot.class_names)
    listed = (
        f"\n\nClasses: {', '.join(names[:40])}{f', ... ({len(names)} in all)' if len(names) > 40 else ''}."
        if names
        else ""
    )
    return f"# {title}\n\n{text}{listed}\n"


def _sampling(path: Path, shot: snapshot.Snapshot) -> str:
    y = min(1, shot.generator.config.num_classes - 1)
    name = shot.class_names[y] if y < len(shot.class_names) else str(y)
    quoted = name if name.replace("-", "").replace("_", "").isalnum() else repr(name)
    side = shot.generator.config.resolution
    levels = ", ".join(level.label for level in shot.standing)
    standing = (
        f"Batch norm has standing statistics for the truncations {levels}; `--truncation` uses them."
        if levels
        else "For truncation, measure batch norm's statistics first: "
        f"`hamgan recalibrate {path.name} --truncations 0.1..1.0`."
    )
    return _section(
        "How to sample",
        f"```sh\nhamgan sample {path.name} --seeds 0-63 --classes {quoted} --out grid.png\n```\n\n"
        f'```python\nimport hamgan\nG = hamgan.load("{path.name}")\n'
        f"images = hamgan.draw(G, seeds=[0, 1], classes=[{y}, {y}])   # uint8 (2, 3, {side}, {side})\n```\n\n{standing}",
    )


def _data(config: dict[str, Any], provenance: dict[str, Any]) -> Rows:
    """Describe the training file, as far as it is there and still the one that was trained on."""
    rows: Rows = []
    if "imported_from" in provenance:
        return [("imported from", f"`{provenance['imported_from']}`"), ("licence", "that of the imported weights")]
    path = Path(str(config.get("data", {}).get("path", "")))
    trained_on = provenance.get("data")
    if path.name and path.is_file():
        try:
            with TrainingFile(path) as file:
                if trained_on in (None, file.fingerprint):
                    rows = _described(file)
        except (ValueError, OSError):
            rows = []
    elif path.name:
        rows = [("file", f"`{path}`, not at hand when this card was written")]
    if trained_on is not None:
        rows.append(("fingerprint", f"`{trained_on}`"))
    return rows


def _described(file: TrainingFile) -> Rows:
    rows = [
        ("file", f"`{file.path}`"),
        ("images", f"{file.num_images:,} of {file.resolution}x{file.resolution} in {file.num_classes} classes"),
    ]
    source = ""
    if file.header is not None:
        source = file.header.source
        rows += [("source", f"`{source}`"), ("resized with", file.header.resize)]
    return [*rows, ("licence", _licence(file.path, source))]


def _licence(path: Path, source: str) -> str:
    stated = path.with_name(path.stem + LICENCE_SUFFIX)
    if stated.is_file():
        return " ".join(stated.read_text("utf-8", errors="replace").split())[:500]
    known = next((text for start, text in LICENCES if source.lower().startswith(start.lower())), None)
    return known or f"not recorded; state it in `{stated.name}` beside the training file, then `hamgan card`"


def _training(config: dict[str, Any], provenance: dict[str, Any]) -> Rows:
    rows: Rows = []
    if isinstance(step := provenance.get("step"), int):
        rows.append(("steps of G", f"{step:,}{' of ' + str(config['duration']) if 'duration' in config else ''}"))
    if isinstance(nimg := provenance.get("nimg"), int):
        rows.append(("real images shown to D", f"{nimg:,}"))
    section = {key: config.get(key, {}) for key in ("objective", "augment", "ema", "g_optimizer", "d_optimizer")}
    wanted: tuple[tuple[str, Any], ...] = (
        ("batch size", config.get("batch_size")),
        ("loss", section["objective"].get("loss")),
        ("augmentation", ", ".join(section["augment"].get("kinds", ())) or None),
        ("learning rates of G and D", _pair(section["g_optimizer"].get("lr"), section["d_optimizer"].get("lr"))),
        ("decay of the averaged weights", section["ema"].get("decay")),
        ("seed", config.get("seed")),
    )
    rows += [(key, str(value)) for key, value in wanted if value is not None]
    return rows


def _pair(first: Any, second: Any) -> str | None:
    return None if first is None or second is None else f"{first:g}, {second:g}"


def _metrics(folder: Path, path: Path, provenance: dict[str, Any]) -> str:
    step = provenance.get("step")
    rows = _quick(folder / "metrics.jsonl", step) if isinstance(step, int) else []
    for card in sorted(folder.glob(f"eval-{path.stem}-*/card.json")):
        rows += _evaluated(card)
    if not rows:
        return f"None yet: `hamgan eval {path.name}` measures it and `hamgan card` writes this again."
    note = "Only numbers of one extractor, protocol, reference and count may be compared; `fd` and `kd` are not FID and KID."
    body = "\n".join(f"| {name} | {value} | {how} |" for name, value, how in rows)
    return f"| number | value | measured |\n|---|---|---|\n{body}\n\n{note}"


def _quick(file: Path, step: int) -> list[tuple[str, str, str]]:
    """Return the run's own measurements of itself, the last ones up to a step."""
    found: dict[str, tuple[int, float]] = {}
    for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
            if int(row["step"]) <= step:
                found |= {key: (int(row["step"]), float(value)) for key, value in row.items() if key != "step"}
        except (ValueError, KeyError, TypeError):
            continue  # a torn last line of a killed run
    return [(f"`{key}`", f"{value:.4g}", f"by the run itself, at step {at:,}") for key, (at, value) in found.items()]


def _evaluated(card: Path) -> list[tuple[str, str, str]]:
    """Return the numbers of an evaluation; none where its card is damaged or of another time."""
    try:
        values = json.loads(card.read_text("utf-8"))
        provenance = values["depends_on"]["provenance"]
        truncation = provenance.get("truncation", "none")
        how = f"truncation {truncation}, batch norm with {provenance.get('batch norm', 'unknown')}"
        return [(f"`{name}`", _number(number), how) for name, number in values["numbers"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _number(number: dict[str, Any]) -> str:
    spread = number.get("uncertainty")
    value = "not finite" if number["value"] is None else f"{number['value']:.4g}"
    return value if spread is None else f"{value} +- {spread:.2g}"


def _configuration(config: dict[str, Any], shot: snapshot.Snapshot) -> str:
    lines = _toml(config or {"generator": configuration.to_mapping(shot.generator.config)})
    return "<details><summary>everything</summary>\n\n```toml\n" + "\n".join(lines) + "\n```\n\n</details>"


def _toml(mapping: dict[str, Any], prefix: str = "") -> Iterable[str]:
    lines = [f"{key} = {json.dumps(value)}" for key, value in mapping.items() if not isinstance(value, dict)]
    for key, value in mapping.items():
        if isinstance(value, dict):
            lines += ["", f"[{prefix}{key}]", *_toml(value, f"{prefix}{key}.")]
    return lines


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n"


def _table(rows: Rows) -> str:
    if not rows:
        return "Not known."
    body = [f"| {key} | {value.replace('|', '/')} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *body])
