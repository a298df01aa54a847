"""Signals: the first is remembered, its echo is no second one, a later one acts at once."""

import signal

import pytest

from hamgan import progress
from hamgan.progress import SignalWatch


def test_an_echo_is_not_a_second_signal_and_a_later_one_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    # A shell has its background jobs ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = SignalWatch()
    try:
        assert watch.received is None
        signal.raise_signal(signal.SIGTERM)
        now += progress.SAME_SECONDS / 2
        signal.raise_signal(signal.SIGINT)
        assert watch.received == signal.SIGTERM
        now += progress.SAME_SECONDS
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        watch.close()
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
