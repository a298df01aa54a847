"""From a report's content to the page: every text is escaped by the template engine, and the page forbids itself the rest.

Its content security policy allows the one script and the one style sheet that lie beside this file, by their checksums, and
images inside the page; a script smuggled in would not run, and nothing is ever loaded from elsewhere.
"""

import base64
import hashlib
import math
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hamgan import __version__
from hamgan.report.charts import Chart, direction
from hamgan.report.content import Content, Event
from hamgan.report.images import spread
from hamgan.report.series import Point, Series

MARKED_EVENTS = ("rollback", "warning", "save_failed", "resume")
"""Kinds that the charts show as vertical lines."""
MAX_MARKS = 200
MAX_METRIC_ROWS = 30
SECTIONS = (
    ("metrics", "Metrics"),
    ("losses", "The game"),
    ("health", "Health"),
    ("other", "Further statistics"),
)


def render(content: Content) -> bytes:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("hamgan.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": number, "size": size, "moment": moment, "day": day}
    script, style = _asset("page.js"), _asset("page.css")
    page = environment.get_template("page.html").render(
        content=content,
        version=__version__,
        script=Markup(script),
        style=Markup(style),
        policy=f"default-src 'none'; img-src data:; script-src {_checksum(script)}; style-src {_checksum(style)}; "
        "base-uri 'none'; form-action 'none'",
        sections=[
            (name, title, [(i, c) for i, c in enumerate(content.charts) if c.section == name])
            for name, title in SECTIONS
        ],
        tiles=tiles(content),
        ranges=[[value_range(series, content.max_points) for series in c.lines.values()] for c in content.charts],
        metric_table=metric_table(content),
        data=payload(content),
    )
    return page.encode("utf-8", "replace")


def _asset(name: str) -> str:
    return resources.files("hamgan.report").joinpath("page", name).read_text("utf-8")


def _checksum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def tiles(content: Content) -> list[tuple[str, str, str]]:
    """Return the figures at the top: label, value, remark."""
    found = []
    if content.step is not None:
        duration = dict(dict(content.config).get("", [])).get("duration", "")
        found.append(("step", f"{content.step:,}", f"of {duration.strip(chr(34))}" if duration else ""))
    if (images := _last(content, "nimg")) is not None:
        found.append(("real images shown", f"{images:,.0f}", ""))
    for name, series in list(content.metrics.items())[:2]:
        if (best := best_of(name, series, content.max_points)) is not None:
            found.append((f"best {name}", number(best[1]), f"at step {best[0]:,}; {direction(name)}"))
    if (ratio := _last(content, "diversity_ratio")) is not None:
        found.append(("diversity", number(ratio), "of the data's 1.0"))
    if (rate := _last(content, "images_per_second")) is not None:
        found.append(("images a second", number(rate), "at the last row"))
    for kind in ("rollback", "warning", "save_failed"):
        if count := content.events.counts.get(kind):
            found.append((kind.replace("_", " ") + ("s" if count > 1 else ""), f"{count:,}", "see the events"))
    return found


def _last(content: Content, key: str) -> float | None:
    return content.statistics[key].last if key in content.statistics else None


def best_of(name: str, series: Series, max_points: int) -> tuple[int, float] | None:
    """Return step and value of a metric's best, None where none is finite or which way is better is not known."""
    which = direction(name)
    points = [point for point in series.points(max_points) if point.low is not None and point.high is not None]
    if not which or not points:
        return None
    if which.startswith("lower"):
        best = min(points, key=lambda point: point.low or 0.0)
        return best.step, best.low or 0.0
    best = max(points, key=lambda point: point.high or 0.0)
    return best.step, best.high or 0.0


def metric_table(content: Content) -> dict[str, Any] | None:
    """Return head and rows of the metrics so far, thinned, the best rows always among them."""
    if not content.metrics:
        return None
    names = list(content.metrics)[:8]
    values = {name: {p.step: p for p in content.metrics[name].points(content.max_points)} for name in names}
    best = {name: best_of(name, content.metrics[name], content.max_points) for name in names}
    steps = sorted({step for column in values.values() for step in column})
    chosen = {steps[i] for i in spread(len(steps), MAX_METRIC_ROWS)} | {found[0] for found in best.values() if found}
    rows = []
    for step in sorted(chosen):
        cells = []
        for name in names:
            point, found = values[name].get(step), best[name]
            is_best = found is not None and found[0] == step
            shown = "" if point is None else number(found[1] if is_best and found else point.mean)
            cells.append((shown, is_best))
        rows.append((step, cells))
    return {"names": [(name, direction(name)) for name in names], "rows": rows, "num_rows": len(steps)}


def value_range(series: Series, max_points: int) -> tuple[str, str, str]:
    """Return a line's last, lowest and highest value as text."""
    points = series.points(max_points)
    low = min((point.low for point in points if point.low is not None), default=None)
    high = max((point.high for point in points if point.high is not None), default=None)
    return number(series.last), number(low), number(high)


def payload(content: Content) -> dict[str, Any]:
    """Return what the script draws."""
    marked = [event for event in content.events.rows if event.kind in MARKED_EVENTS and event.step is not None]
    return {
        "charts": [_chart(chart, content.max_points) for chart in content.charts],
        "marks": [_mark(event) for event in marked[-MAX_MARKS:]],
    }


def _mark(event: Event) -> dict[str, Any]:
    return {"step": event.step, "kind": event.kind, "reason": event.reason[:200]}


def _chart(chart: Chart, max_points: int) -> dict[str, Any]:
    best = None
    if chart.section == "metrics":
        ((name, series),) = chart.lines.items()
        best = best_of(name, series, max_points)
    return {
        "title": chart.title,
        "unit": chart.unit,
        "log": chart.log,
        "line": chart.line,
        "best": best and [best[0], _short(best[1])],
        "lines": [_line(name, series.points(max_points)) for name, series in chart.lines.items()],
    }


def _line(name: str, points: list[Point]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "name": name,
        "x": [point.step for point in points],
        "y": [_short(point.mean) for point in points],
        "bad": [[point.step, point.bad] for point in points if point.bad],
    }
    if any(point.low != point.high for point in points):  # one row a point otherwise
        line |= {"low": [_short(point.low) for point in points], "high": [_short(point.high) for point in points]}
    return line


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def number(value: float | None) -> str:
    """Return a number with four digits that matter; of one that is not finite, a mark."""
    if value is None or value != value:
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def size(num_bytes: int) -> str:
    """Return a size in a unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def moment(time: datetime | None) -> str:
    """Return date and time, to the minute."""
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M")


def day(seconds: float) -> str:
    """Return date and time of seconds since the epoch."""
    try:
        return moment(datetime.fromtimestamp(seconds))
    except (ValueError, OverflowError, OSError):
        return ""
