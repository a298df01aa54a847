"""What a report says, gathered from a run's folder."""

import json
import re
import shlex
import time
import tomllib
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hamgan.report.charts import Chart, arrange
from hamgan.report.folder import Entry, RunReader, printable
from hamgan.report.images import MAX_CARD, Picture, Pictures, read_picture, read_pictures
from hamgan.report.series import MAX_BUCKETS, Series, number_of, read_series, step_of

MAX_EVENTS = 300
MAX_CARDS = 6
MAX_LOG = 200
"""Lines."""
MAX_VALUE = 2000
"""Longest text of a single value, characters."""
MAX_POINTS = 60_000
"""Points of all lines of all charts; about 2 MB."""
SILENT_S = 900
"""A run that has written nothing for so long is not called training any more, seconds."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A row of events.jsonl."""

    time: str
    step: int | None
    kind: str
    reason: str
    details: str


@dataclass(frozen=True, kw_only=True)
class Events:
    """What happened to a run."""

    rows: list[Event]
    """The newest, saves apart."""
    counts: dict[str, int]
    """Of all, by kind."""
    last: Event | None
    """Of any kind."""


@dataclass(frozen=True, kw_only=True)
class EvaluationCard:
    """What `hamgan eval` left in the run's folder."""

    name: str
    numbers: list[dict[str, Any]]
    warnings: list[str]
    picture: Picture | None


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that a report shows; what the folder lacks is empty."""

    name: str
    state: str
    """`training`, `finished`, `stopped` or `silent`."""
    written: datetime | None
    """When the run last wrote something."""
    made: datetime
    """When the folder was read."""
    step: int | None
    statistics: dict[str, Series]
    metrics: dict[str, Series]
    charts: list[Chart]
    max_points: int
    """That a line may have."""
    pictures: Pictures
    events: Events
    log: list[str]
    config: list[tuple[str, list[tuple[str, str]]]]
    """Sections, with their keys and values."""
    config_text: str
    """Of a configuration that is not TOML."""
    environment: list[tuple[str, str]]
    cards: list[EvaluationCard]
    notes: list[tuple[str, str]]
    """Model cards: name and text."""
    files: list[Entry]
    """Checkpoints and snapshots."""
    left_out: list[str]
    """What lay there and could not be shown, with the reason."""


def gather(run: RunReader) -> Content:
    """Read a run's folder."""
    statistics = read_series(run.rows("stats.jsonl"))
    metrics = read_series(run.rows("metrics.jsonl"))
    events = read_events(run)
    log = [printable(line) for line in run.tail("log.txt", MAX_LOG)]
    entries = run.files()
    config, config_text = read_config(run)
    charts = arrange(statistics, metrics)
    num_lines = sum(len(chart.lines) for chart in charts)
    written = max((e.modified for e in entries if e.name.endswith((".jsonl", ".txt", ".pt"))), default=None)
    return Content(
        name=run.name,
        state=_state(events, log, written),
        written=None if written is None else datetime.fromtimestamp(written).astimezone(),
        made=datetime.now().astimezone(),
        step=max((series.steps[1] for series in (statistics | metrics).values()), default=None),
        statistics=statistics,
        metrics=metrics,
        charts=charts,
        max_points=min(MAX_BUCKETS, max(MAX_POINTS // max(num_lines, 1), 50)),
        pictures=read_pictures(run),
        events=events,
        log=log,
        config=config,
        config_text=config_text,
        environment=read_environment(run),
        cards=read_cards(run),
        notes=read_notes(run, entries),
        files=[e for e in entries if e.name.endswith((".pt", ".safetensors"))],
        left_out=run.left_out,
    )


def read_events(run: RunReader) -> Events:
    """Read the newest events and count all."""
    rows: deque[Event] = deque(maxlen=MAX_EVENTS)
    counts: Counter[str] = Counter()
    last = None
    for row in run.rows("events.jsonl"):
        kind = _text(row.get("event", "event"))[:40]
        if kind not in counts and len(counts) >= 40:
            kind = "event"
        counts[kind] += 1
        known = ("time", "step", "event", "reason")
        last = Event(
            time=_text(row.get("time", ""))[:19].replace("T", " "),
            step=step_of(row),
            kind=kind,
            reason=_text(row.get("reason", "")),
            details=_text(", ".join(f"{key} = {_text(row[key])}" for key in row if key not in known)),
        )
        if kind != "saved":
            rows.append(last)
    return Events(rows=list(rows), counts=dict(counts), last=last)


def read_config(run: RunReader) -> tuple[list[tuple[str, list[tuple[str, str]]]], str]:
    """Return the configuration by sections, or its text where it is not TOML."""
    text = run.text("config.toml")
    if text is None:
        return [], ""
    try:
        mapping = tomllib.loads(text)
        return _sections(mapping), ""
    except (ValueError, RecursionError):  # ValueError: TOMLDecodeError, and integers of thousands of digits
        return [], printable(text)


def _sections(mapping: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (section, keys with their values) in the file's order."""
    sections = [("", [(_text(key), _value(v)) for key, v in mapping.items() if not isinstance(v, dict)])]
    for key, value in mapping.items():
        if isinstance(value, dict):
            for name, rows in _sections(value):
                sections.append((f"{_text(key)}.{name}".removesuffix("."), rows))
    return [(name, rows) for name, rows in sections if rows]


def read_environment(run: RunReader) -> list[tuple[str, str]]:
    """Return the environment's keys and values."""
    text = run.text("environment.json")
    if text is None:
        return []
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError):
        return [("environment.json", printable(text)[:MAX_VALUE])]
    if not isinstance(mapping, dict):
        return []
    rows = []
    for key, value in mapping.items():
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        shown = shlex.join(value) if key == "command" and words else ", ".join(value) if words else _value(value)
        rows.append((_text(key), _text(shown)))
    return rows


def read_cards(run: RunReader) -> list[EvaluationCard]:
    """Read the newest evaluations that were written into the run's folder."""
    cards = []
    for folder in [name for name in run.folders() if name.startswith("eval-")][-MAX_CARDS:]:
        try:
            card = json.loads(run.text("card.json", folder) or "")
            numbers = [
                {
                    "name": _text(name),
                    "value": number_of(number["value"]),
                    "uncertainty": number_of(number.get("uncertainty")),
                    "uncertainty_is": _text(number.get("uncertainty_is", "")),
                    "better": _text(number.get("better", "")),
                    "note": _text(number.get("note", "")),
                }
                for name, number in list(card["numbers"].items())[:100]
            ]
            warnings = [_text(line) for line in card.get("warnings", [])][:20]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            continue  # half written, or not a card
        picture = read_picture(run, "card.png", folder)
        if picture and len(picture.content) > MAX_CARD:
            picture = None
        cards.append(EvaluationCard(name=folder, numbers=numbers, warnings=warnings, picture=picture))
    return cards


def read_notes(run: RunReader, entries: list[Entry]) -> list[tuple[str, str]]:
    """Read the model cards: of the newest snapshot, and every other that is not a snapshot's."""
    names = [entry.name for entry in entries if entry.name.endswith(".md")]
    older = [name for name in names if name.startswith("snapshot-")][:-1]
    texts = [(printable(name), run.text(name)) for name in names if name not in older]
    return [(name, printable(text)) for name, text in texts[:MAX_CARDS] if text]


def _state(events: Events, log: list[str], written: float | None) -> str:
    if events.last and events.last.kind in ("finish", "stop"):
        return {"finish": "finished", "stop": "stopped"}[events.last.kind]
    if not events.last and log and re.search(r" finished (at step )?[0-9]", log[-1]):
        return "finished"
    return "training" if written and time.time() - written < SILENT_S else "silent"


def _value(value: Any) -> str:
    if isinstance(value, dict | list | bool | str) or value is None:
        try:
            return _text(json.dumps(value, ensure_ascii=False, default=str))
        except (ValueError, RecursionError):
            return "…"
    return _text(value)


def _text(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else str(value)
    except ValueError:  # an integer of thousands of digits
        text = "…"
    return printable(text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…")
