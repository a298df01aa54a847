"""Memory of the C library: kept for steps that ask for the same again, given back when told to."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from hamgan.device import _c_function, keep_memory, release_memory

gnu = pytest.mark.skipif(_c_function("mallopt") is None, reason="the C library is not GNU's")


def faults(prepare: str) -> int:
    """Return how often a process was given a page in five rounds that take and free 20 blocks of 4 MB.

    The process begins with a setting of the C library that maps each block on its own: by default it is chance whether freed
    memory is kept. Twenty rounds come before: the heap still grows in the third, as what is small comes to lie between blocks.
    """
    code = f"""
        import resource
        import torch
        from hamgan.device import keep_memory
        {prepare}
        for step in range(25):
            blocks = [torch.empty(1 << 20).fill_(step) for _ in range(20)]
            del blocks
            if step == 19:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    command, environment = (
        [sys.executable, "-c", textwrap.dedent(code)],
        os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@gnu
def test_kept_memory_is_not_asked_for_again() -> None:
    assert faults("keep_memory(torch.device('cpu'))") < 200
    assert faults("") > 50_000  # of 102,400


@gnu
def test_released_memory_goes_back_to_the_system() -> None:
    code = """
        import torch
        from hamgan.device import keep_memory, release_memory

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        keep_memory(torch.device("cpu"))
        blocks = [torch.ones(1 << 18) for _ in range(200)]
        last = torch.ones(1 << 18)  # above the others: what is below it is free but no end of the heap
        del blocks
        before = resident()
        release_memory(torch.device("cpu"))
        print(before - resident())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 190 << 20


def test_memory_of_other_devices_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(_: str) -> None:
        raise AssertionError

    monkeypatch.setattr("hamgan.device._c_function", called)
    for device in ("cuda", "mps"):
        keep_memory(torch.device(device))
        release_memory(torch.device(device))
