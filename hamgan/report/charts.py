"""Which statistics are drawn together, under which name, with which unit."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hamgan.report.series import Series

Section = Literal["losses", "health", "metrics", "other"]
MAX_LINES = 8
"""Lines that one chart can hold apart."""
MAX_OTHER = 24
"""Charts of statistics that this version does not know."""
BIGGER_IS_BETTER = ("is", "inception_score", "precision", "recall", "density", "coverage", "class_accuracy")
SMALLER_IS_BETTER = ("fid", "fd", "kid", "kd", "intra_fid", "intra_fd")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over steps in one frame."""

    section: Section
    title: str
    unit: str
    """What the vertical axis counts."""
    note: str = ""
    """What to look for."""
    patterns: tuple[str, ...] = ()
    """Keys that belong here, as file name patterns."""
    strip: tuple[str, str] = ("", "")
    """What precedes and follows a line's name in its key."""
    log: bool = False
    """Whether the axis is logarithmic, where all values are positive."""
    line: float | None = None
    """A horizontal line to compare with."""
    lines: dict[str, Series] = field(default_factory=dict)
    """By name."""
    omitted: int = 0
    """Lines of smaller values that are not drawn."""


CHARTS = (
    Chart(
        section="losses",
        title="Losses",
        unit="loss",
        note="Neither need fall: the two play against each other. Running away is the sign of trouble.",
        patterns=("d_loss", "g_loss"),
    ),
    Chart(
        section="losses",
        title="Logits",
        unit="mean of D's output",
        note="What D says of real and of generated images; a gap that keeps growing is a D that wins.",
        patterns=("real_logits", "fake_logits"),
    ),
    Chart(
        section="losses",
        title="D's accuracy",
        unit="share judged rightly",
        note="Training images, generated images and, where measured, real images held out. Held-out falling behind the "
        "training images is memorisation.",
        patterns=("d_accuracy_real", "d_accuracy_fake", "d_accuracy_held_out"),
        strip=("d_accuracy_", ""),
        line=0.5,
    ),
    Chart(
        section="losses",
        title="D's gap to held-out images",
        unit="difference",
        note="What D gives training images over real images held out; 0 is no memorisation.",
        patterns=("d_gap_held_out",),
        line=0.0,
    ),
    Chart(
        section="losses",
        title="Gradient norms",
        unit="Euclidean norm",
        patterns=("d_grad_norm", "g_grad_norm"),
        strip=("", "_grad_norm"),
        log=True,
    ),
    Chart(section="losses", title="Gradient penalty", unit="penalty", patterns=("d_penalty",)),
    Chart(
        section="losses",
        title="Learning rates",
        unit="Adam's step",
        patterns=("g_lr", "d_lr", "lr", "learning_rate"),
        log=True,
    ),
    Chart(section="losses", title="Speed", unit="images a second", patterns=("images_per_second",)),
    Chart(
        section="health",
        title="Diversity within a class",
        unit="ratio to the data's",
        note="Mean distance of two samples of a class, over that of real images, in pixels and in D's features; 1 is the "
        "data's own, a fall towards 0 is collapse.",
        patterns=("diversity_ratio", "feature_diversity_ratio"),
        line=1.0,
    ),
    Chart(
        section="health",
        title="What D tells apart",
        unit="ratio",
        note="Mean distance of two images of a class in D's features, over the features' size; 0 is a dead discriminator.",
        patterns=("d_feature_spread",),
    ),
    Chart(
        section="health",
        title="Largest singular values, G",
        unit="singular value",
        note="Of the weights before normalisation. BigGAN saw them explode when training collapsed.",
        patterns=("G/sigma_max", "G/sigma/*"),
        strip=("G/sigma/", ""),
    ),
    Chart(
        section="health",
        title="Largest singular values, D",
        unit="singular value",
        patterns=("D/sigma_max", "D/sigma/*"),
        strip=("D/sigma/", ""),
    ),
    Chart(
        section="health",
        title="Gates",
        unit="factor",
        note="What the context block's output is multiplied by; 0 leaves it out.",
        patterns=("*/gate",),
        strip=("", "/gate"),
        line=0.0,
    ),
    Chart(
        section="health",
        title="Ham: reconstruction error",
        unit="relative, Frobenius",
        note="What the factorisation leaves unexplained of what it is given.",
        patterns=("*/reconstruction_error",),
        strip=("", "/reconstruction_error"),
    ),
    Chart(
        section="health",
        title="Ham: dead bases",
        unit="share",
        note="Columns of the dictionary that nothing uses.",
        patterns=("*/dead_bases",),
        strip=("", "/dead_bases"),
    ),
    Chart(
        section="health",
        title="Ham: effective rank",
        unit="bases",
        note="How many bases carry the reconstruction.",
        patterns=("*/effective_rank",),
        strip=("", "/effective_rank"),
    ),
    Chart(section="health", title="Values that are not finite", unit="number", patterns=("nonfinite", "*/nonfinite")),
)
SILENT = ("nimg", "d_penalty")
"""Not drawn: a multiple of the step, and a penalty that never was."""


def arrange(statistics: Mapping[str, Series], metrics: Mapping[str, Series]) -> list[Chart]:
    """Return the charts that there is something to draw in.

    Args:
        statistics: Of stats.jsonl.
        metrics: Of metrics.jsonl, a chart each.
    """
    left = {key: series for key, series in statistics.items() if key not in metrics}
    charts = [
        Chart(section="metrics", title=key, unit=direction(key) or "value", lines={key: series})
        for key, series in list(metrics.items())[:MAX_OTHER]
    ]
    for chart in CHARTS:
        keys = [key for pattern in chart.patterns for key in left if fnmatch.fnmatchcase(key, pattern)]
        lines = {_name(key, chart.strip): left.pop(key) for key in keys if _is_drawn(key, left[key])}
        if lines:
            charts.append(_filled(chart, lines))
    others = [(key, series) for key, series in left.items() if key not in SILENT]
    charts += [Chart(section="other", title=key, unit="value", lines={key: s}) for key, s in others[:MAX_OTHER]]
    return charts


def _is_drawn(key: str, series: Series) -> bool:
    return key not in SILENT or any(point.high or point.bad for point in series.points())


def _filled(chart: Chart, lines: dict[str, Series]) -> Chart:
    """Give a chart its lines: those with the largest values, where there are more than can be held apart."""
    if len(lines) > MAX_LINES:
        peaks = {
            name: max((p.high for p in s.points() if p.high is not None), default=0.0) for name, s in lines.items()
        }
        kept = sorted(lines, key=lambda name: -peaks[name])[:MAX_LINES]
    else:
        kept = list(lines)
    return replace(chart, lines={name: lines[name] for name in kept}, omitted=len(lines) - len(kept))


def _name(key: str, strip: tuple[str, str]) -> str:
    return key.removeprefix(strip[0]).removesuffix(strip[1]) or key


def direction(metric: str) -> str:
    """Return `lower is better`, `higher is better`, or nothing for a metric that is not known."""
    for names, text in ((SMALLER_IS_BETTER, "lower is better"), (BIGGER_IS_BETTER, "higher is better")):
        if re.match(rf"({'|'.join(names)})(\d|_|$)", metric):
            return text
    return ""
