"""The sentinel: rules that tell a collapse from a rough patch, applied to every health check.

Acted upon at once: a number that is not finite, in the statistics, the weights or the optimisers. Suspicious, and acted upon
after `patience` checks in a row:

- samples of a class hardly differ (after `grace`), or differ much less than they once did: mode collapse;
- the discriminator's features are the same for every image: it is dead, and the generator learns nothing from it;
- the largest singular value of a network outgrows its recent median: the sign that comes before BigGAN's collapse;
- the mean norm of a gradient does.

Growth is measured against the median of the last healthy checks, so that a slow rise passes and a jump does not.

Source: Brock et al. 2019, section 4.2 and appendix F, for the singular values.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from statistics import median
from typing import Any, Literal

from hamgan.training.config import SentinelConfig

HISTORY = 5
"""Healthy checks that growth is measured against."""
MIN_HISTORY = 2
WATCHED_GROWTH = {
    "G/sigma_max": "max_sigma_growth",
    "D/sigma_max": "max_sigma_growth",
    "g_grad_norm": "max_gradient_growth",
    "d_grad_norm": "max_gradient_growth",
}


@dataclass(kw_only=True)
class SentinelState:
    """What the sentinel remembers; saved with every checkpoint."""

    healthy_step: int = 0
    """The last step whose check, and every one before it since the last rollback, gave no reason."""
    suspicious: int = 0
    """Suspicious checks in a row."""
    rollbacks: int = 0
    """How often the run was rolled back."""
    best_diversity: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)
    """Values of the last healthy checks."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "SentinelState":
        """Read what `to_mapping` returned.

        Raises:
            TypeError: If a value is missing, unknown or of another type.
        """
        state = cls(**mapping)
        for name, value in cls().to_mapping().items():
            if name not in mapping or type(getattr(state, name)) is not type(value):
                raise TypeError(f"sentinel.{name}")
        for key, values in state.history.items():
            if type(values) is not list or not all(type(value) is float for value in values):
                raise TypeError(f"sentinel.history.{key}"[:80])
        return state

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a check came to."""

    kind: Literal["healthy", "suspicious", "collapsed", "ruined"]
    """suspicious: not to be acted upon yet; ruined: collapsed, and there is no going on, as numbers are not finite."""
    reasons: tuple[str, ...] = ()


HEALTHY = Verdict(kind="healthy")


def not_finite(row: Mapping[str, float]) -> tuple[str, ...]:
    """Name the values of a row that are not finite."""
    return tuple(f"{key} is {value}" for key, value in row.items() if not isfinite(value))


def judge(
    state: SentinelState, config: SentinelConfig, step: int, row: Mapping[str, float], *, in_grace: bool
) -> Verdict:
    """Apply the rules to one health check, and remember it.

    Args:
        state: Updated in place.
        config: The limits.
        step: Of the check.
        row: `diversity_ratio`, `d_feature_spread`, `G/sigma_max`, `D/sigma_max`, `g_grad_norm`, `d_grad_norm` and
            `nonfinite`; what is absent is not judged.
        in_grace: Whether diversity is not judged yet.

    Returns:
        collapsed or ruined: to be acted upon now.
    """
    if config.action == "off":
        return HEALTHY
    if reasons := not_finite(row):
        return Verdict(kind="ruined", reasons=reasons)
    if row.get("nonfinite", 0):
        return Verdict(kind="ruined", reasons=(f"{row['nonfinite']:.0f} numbers of the weights are not finite",))
    reasons = () if in_grace else _diversity_reasons(state, config, row)
    reasons += _dead_reasons(config, row) + _growth_reasons(state, config, row)
    if reasons:
        state.suspicious += 1
        if state.suspicious < config.patience:
            return Verdict(kind="suspicious", reasons=reasons)
        state.suspicious = 0
        return Verdict(kind="collapsed", reasons=reasons)
    state.suspicious = 0
    state.healthy_step = step
    state.best_diversity = max(state.best_diversity, 0.0 if in_grace else row.get("diversity_ratio", 0.0))
    for key in WATCHED_GROWTH:
        if key in row:
            state.history[key] = [*state.history.get(key, []), row[key]][-HISTORY:]
    return HEALTHY


def _diversity_reasons(state: SentinelState, config: SentinelConfig, row: Mapping[str, float]) -> tuple[str, ...]:
    ratio = row.get("diversity_ratio")
    if ratio is None:
        return ()
    if ratio < config.min_diversity:
        return (f"samples of a class differ by {ratio:.2f} of what real images do, below {config.min_diversity}",)
    if ratio < config.min_kept_diversity * state.best_diversity:
        return (f"diversity {ratio:.2f} is below {config.min_kept_diversity} of its best, {state.best_diversity:.2f}",)
    return ()


def _dead_reasons(config: SentinelConfig, row: Mapping[str, float]) -> tuple[str, ...]:
    spread = row.get("d_feature_spread")
    if spread is None or spread >= config.min_feature_spread:
        return ()
    return (f"D tells no image from another: its features spread by {spread:.2g}, below {config.min_feature_spread:g}",)


def _growth_reasons(state: SentinelState, config: SentinelConfig, row: Mapping[str, float]) -> tuple[str, ...]:
    reasons = []
    for key, limit_name in WATCHED_GROWTH.items():
        past, limit = state.history.get(key, []), getattr(config, limit_name)
        if key in row and len(past) >= MIN_HISTORY and row[key] > limit * median(past):
            reasons.append(f"{key} is {row[key]:.3g}, over {limit:g} times its recent {median(past):.3g}")
    return tuple(reasons)
