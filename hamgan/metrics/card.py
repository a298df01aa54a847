"""The evaluation card: every number beside its uncertainty, and all that it depends on."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hamgan.checkpoint import write_atomically

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number.

    Attributes:
        value: As computed; a distance is clamped at 0.
        uncertainty: Of the kind that `uncertainty_is` names; None if there is none.
        uncertainty_is: "standard error (jackknife)", "deviation over splits", ...
        better: "lower", "higher" or "" where neither is.
        note: What to know when reading it.
    """

    value: float
    uncertainty: float | None = None
    uncertainty_is: str = ""
    better: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How one class is drawn; None where it could not be measured. `examples` are numbers of its first images."""

    label: int
    name: str
    num_images: int
    frechet: float | None
    accuracy: float | None
    examples: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Card:
    """The outcome of one evaluation.

    Attributes:
        numbers: By name; a name states sample count and extractor, e.g. fid50k_inception.
        warnings: One line each.
        classes: Worst first, by accuracy and then by distance; empty without labels.
        curve: "sizes" and "values" of the Frechet distance against the number of images; empty without.
        closest: Generated image, training image, and their distance in feature space, nearest first.
        depends_on: Extractor, reference, settings, provenance, versions, ...
    """

    numbers: dict[str, Number] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    classes: list[ClassRow] = field(default_factory=list)
    curve: dict[str, list[float]] = field(default_factory=dict)
    closest: list[tuple[int, int, float]] = field(default_factory=list)
    depends_on: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """Return a number's value by its full name, or by its first part if that is unambiguous ("fid50k").

        Raises:
            KeyError: If there is none or more than one.
        """
        found = [key for key in self.numbers if key == name or key.startswith(f"{name}_")]
        if name not in self.numbers and len(found) != 1:
            raise KeyError(f"{name}: the card has {', '.join(self.numbers)}")
        return self.numbers[name if name in self.numbers else found[0]].value

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON-able values; what is not finite becomes null."""
        return _plain({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Card":
        """Take back what `to_json` gave.

        Raises:
            ValueError: If it is no card of a schema known here.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(f"schema = {values.get('schema')!r}: expected {SCHEMA}, an evaluation card")
        numbers = {
            key: Number(**{**number, "value": math.nan if number["value"] is None else number["value"]})
            for key, number in values["numbers"].items()
        }
        return cls(
            numbers=numbers,
            warnings=values["warnings"],
            classes=[ClassRow(**{**row, "examples": tuple(row["examples"])}) for row in values["classes"]],
            curve=values["curve"],
            closest=[(i, j, distance) for i, j, distance in values["closest"]],
            depends_on=values["depends_on"],
        )

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write card.json and card.txt into a folder, each in one step; return both paths.

        Raises:
            OSError: If they cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"card.json": json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", "card.txt": self.table()}
        for name, text in texts.items():
            content = text.encode()
            write_atomically(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        return folder / "card.json", folder / "card.txt"

    def table(self, num_classes: int = 5) -> str:
        """Return the card as text.

        Args:
            num_classes: Classes to name, worst and best.
        """
        rows = [["number", "value", "+-", "uncertainty is", "better"]]
        for name, number in self.numbers.items():
            spread = "" if number.uncertainty is None else _digits(number.uncertainty)
            rows.append([name, _digits(number.value), spread, number.uncertainty_is, number.better])
        parts = [_columns(rows)]
        notes = [f"{name}: {number.note}" for name, number in self.numbers.items() if number.note]
        if notes:
            parts.append("\n".join(notes))
        if self.classes:
            parts.append(self._class_table(num_classes))
        if self.warnings:
            parts.append("\n".join(f"warning: {warning}" for warning in self.warnings))
        flat = _flatten(self.depends_on)
        parts.append("depends on\n" + _columns([[f"  {key}", value] for key, value in flat]))
        return "\n\n".join(parts) + "\n"

    def _class_table(self, count: int) -> str:
        rows = [["class", "name", "images", "frechet", "accuracy"]]
        worst = self.classes[:count]
        best = self.classes[max(count, len(self.classes) - count) :]
        for title, group in (("worst", worst), ("best", best)):
            if group:
                rows.append([title, "", "", "", ""])
            for row in group:
                values = [_digits(row.frechet), _digits(row.accuracy)]
                rows.append([f"  {row.label}", row.name, str(row.num_images), *values])
        return _columns(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in a card: expected plain values")


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            text = str(value)
            flat.append((f"{prefix}{key}", text if len(text) <= 90 else text[:87] + "..."))
    return flat


def _digits(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
