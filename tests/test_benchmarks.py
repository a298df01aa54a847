"""The plain networks that benchmarks compare with compute what ours do; the runner and what they measure with work."""

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("context", ["none", "attention", "ham"])
def test_the_reference_networks_compute_the_same_function(
    context: str,
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    networks = importlib.import_module("reference.networks")
    torch.manual_seed(0)
    g_config = replace(tiny_generator_config, channels=8, context=context)
    d_config = replace(tiny_discriminator_config, channels=8, context=context)
    G, D = Generator(g_config), Discriminator(d_config)
    with torch.no_grad():
        for network in (G, D):
            for name, parameter in network.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.7)  # 0 at the start, which would hide the context
    plain_g, plain_d = networks.Generator(g_config), networks.Discriminator(d_config)
    plain_g.load_state_dict(G.state_dict(), strict=context != "ham")  # the plain block keeps no bases
    plain_d.load_state_dict(D.state_dict(), strict=context != "ham")
    z, y = torch.randn(6, g_config.z_dim), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(1)  # both draw a ham's bases from torch's generator: the same numbers from the same seed
    images = G(z, y)
    torch.manual_seed(1)
    plain_images = plain_g(z, y)
    torch.testing.assert_close(images, plain_images, rtol=1e-4, atol=1e-4)
    torch.manual_seed(2)
    logits = D(images.detach(), y)
    torch.manual_seed(2)
    torch.testing.assert_close(logits, plain_d(images.detach(), y), rtol=1e-4, atol=1e-4)


GOOD = '''"""Is all well?

More of it.
"""

import sys

QUICK = ["--few", "3"]

if __name__ == "__main__":
    print("plain text", sys.argv[1:])
    print("| side | ms |\\n|---|---|\\n| ours | 1.5 |")
'''
FAILING = '''"""Does it fail?"""
import sys

if __name__ == "__main__":
    print("so far so good")
    sys.exit("no such luck")
'''
HANGING = '''"""Does it end?"""
import subprocess, sys

if __name__ == "__main__":
    print("begun")
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
'''
SHARED = '"""No benchmark."""\nraise SystemExit("must not be run")\n'
BROKEN = '"""Is this Python?"""\nif __name__ == "__main__":\n    print(\n'


def _run_all(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def all_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], str]:
    """The runner on a folder of small benchmarks: what it said, and its report."""
    folder = tmp_path_factory.mktemp("benchmarks")
    texts = {"a_failing": FAILING, "b_hanging": HANGING, "c_broken": BROKEN, "shared": SHARED, "z_good": GOOD}
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    done = _run_all("--folder", str(folder), "--out", str(folder / "results.md"), "--limit", "3")
    return done, (folder / "results.md").read_text()


def test_the_runner_goes_on_after_failures_and_says_which(
    all_run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    done, report = all_run
    assert done.returncode == 1, done.stderr
    assert "4 of 4 benchmarks ran in" in report
    assert "3 failed: a_failing, b_hanging, c_broken." in report
    assert re.search(
        r"^\| \[a_failing\].* Does it fail\? \| \d+ \| \d+ \| failed \(exit code 1\) \|$", report, re.MULTILINE
    )
    assert re.search(r"^\| \[b_hanging\].* Does it end\? \| \d+ \| \d+ \| stopped after 3 s \|$", report, re.MULTILINE)
    assert re.search(r"^\| \[z_good\].* Is all well\? \| \d+ \| \d+ \| complete \|$", report, re.MULTILINE)
    assert "shared" not in report


def test_the_report_holds_the_machine_and_what_each_printed(
    all_run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    _, report = all_run
    for key in ("CPU", "cores", "instruction sets", "memory", "versions", "date"):
        assert re.search(rf"^\| {key} \| \S.* \|$", report, re.MULTILINE), key
    assert f"torch {torch.__version__.split('+')[0]}" in report
    assert "`python benchmarks/z_good.py --few 3`" in report
    assert "```text\nplain text ['--few', '3']\n```\n\n| side | ms |\n|---|---|\n| ours | 1.5 |\n" in report
    assert "```text\nso far so good\n```\n\n```text\nno such luck\n```" in report
    assert "```text\nbegun\n```" in report
    assert "SyntaxError" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such"], "no benchmark 'no_such'; there are"),
        (["--limit", "0"], "--limit is 0; it must be above 0 seconds"),
        (["--out", "/no/such/folder/results.md"], "there is no folder /no/such/folder"),
    ],
)
def test_the_runner_refuses_bad_arguments(arguments: list[str], message: str) -> None:
    done = _run_all(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_runner_finds_every_benchmark_with_its_question_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run_all = importlib.import_module("run_all")
    found = {one.path.stem: one for one in run_all.discover(BENCHMARKS)}
    assert {"train_step", "context_block", "growth", "sampling", "startup"} <= set(found)
    assert not {"run_all", "measure"} & set(found)
    assert [name for name, one in found.items() if not one.question.endswith(("?", ")"))] == []
    assert found["train_step"].arguments


def test_turns_are_medians_without_the_rounds_that_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = importlib.import_module("measure")
    order: list[str] = []
    durations = iter([9.0, 8.0, 1.0, 10.0, 5.0, 30.0, 2.0, 20.0])
    clock = 0.0

    def work(name: str) -> None:
        nonlocal clock
        order.append(name)
        clock += next(durations)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock)
    medians = measure.take_turns({"a": lambda: work("a"), "b": lambda: work("b")}, 3)
    assert order == ["a", "b"] * 4
    assert medians == {"a": 2.0, "b": 20.0}


def test_memory_is_what_a_call_holds_at_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measure = importlib.import_module("measure")
    file = tmp_path / "holds.py"
    file.write_text(
        f"import sys, torch\nsys.path.insert(0, {str(BENCHMARKS)!r})\nfrom measure import print_memory\n"
        "def work():\n    for _ in range(3):\n        torch.ones(int(sys.argv[1]) * 250_000)\n"
        "print_memory(work)\n"
    )
    added, highest = measure.memory_of(str(file), "100")
    assert 95 < added < 110  # one tensor of 100 MB at a time, not three
    assert highest > added
