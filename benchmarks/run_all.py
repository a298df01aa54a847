"""Run every benchmark with its short settings, one after the other, and write a report.

A benchmark is a Python file of this folder that can be run. Its short settings are the arguments in its `QUICK`, a list of
strings at the top level, if it has one; `--full` leaves them out. Each runs as a process with a time limit; a failure is
reported and the next one begins. The report is written anew after each, so that a run that is cut short leaves what it has.

Run: python benchmarks/run_all.py [NAME ...] [--out FILE] [--limit SECONDS] [--full]
"""

import argparse
import ast
import contextlib
import itertools
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LIMIT = 420.0
"""Seconds a benchmark may take."""
MAIN = 'if __name__ == "__main__":'
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "sve", "i8mm", "bf16"),
)
"""Those that matter here, as Linux names them."""
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "h5py", "pillow", "simplejpeg")
LAST_LINES = 12
"""Of what a failed benchmark says, in the report."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A file that can be run."""

    path: Path
    question: str
    """The first paragraph of its docstring."""
    arguments: tuple[str, ...]
    """Its short settings."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one benchmark gave."""

    benchmark: Benchmark
    seconds: float
    cpu_seconds: float
    """Of it and everything that it started, user and system."""
    output: str
    """What it printed, complete or not."""
    failure: str
    """Why there is no complete output; empty if there is."""
    errors: str
    """The last lines that a failed one wrote to stderr."""


def discover(folder: Path) -> list[Benchmark]:
    """Return the benchmarks of a folder, by name."""
    own = Path(__file__).name
    return [read(path) for path in sorted(folder.glob("*.py")) if path.name != own and MAIN in path.read_text("utf-8")]


def read(path: Path) -> Benchmark:
    """Read a benchmark's question and short settings, without running it; a file with an error in it has neither."""
    question, arguments = "", ()
    with contextlib.suppress(SyntaxError, ValueError):  # it will say so itself when it runs
        module = ast.parse(path.read_text("utf-8"))
        question = " ".join((ast.get_docstring(module) or "").split("\n\n")[0].split())
        for node in module.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["QUICK"]:
                arguments = tuple(ast.literal_eval(node.value))
    return Benchmark(path=path, question=question, arguments=arguments)


def run(benchmark: Benchmark, limit: float, *, full: bool = False) -> Outcome:
    """Run one benchmark and everything that it starts, for so many seconds at most."""
    command = [sys.executable, str(benchmark.path), *(() if full else benchmark.arguments)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # so that one that is stopped has printed what it knew
    start, cpu = time.perf_counter(), _cpu_seconds()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # a group of its own: its children end with it
    )
    failure = ""
    try:
        output, errors = process.communicate(timeout=limit)
        if process.returncode:
            failure = f"failed (exit code {process.returncode})"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        failure = f"stopped after {limit:g} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Outcome(
        benchmark=benchmark,
        seconds=time.perf_counter() - start,
        cpu_seconds=_cpu_seconds() - cpu,
        output=output.strip("\n"),
        failure=failure,
        errors="\n".join(errors.splitlines()[-LAST_LINES:]) if failure else "",
    )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe_machine() -> dict[str, str]:
    """Return what the numbers depend on."""
    from importlib import metadata

    import torch

    import hamgan

    info = _read_text("/proc/cpuinfo")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = fields.get("flags", fields.get("Features", "")).split()
    memory = [int(line.split()[1]) / 1e6 for line in _read_text("/proc/meminfo").splitlines() if "MemTotal" in line]
    versions = [f"hamgan {hamgan.__version__}{_commit()}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "CPU": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{cores}; torch takes {torch.get_num_threads()} threads",
        "instruction sets": ", ".join(name for name in INSTRUCTION_SETS if name in flags) or "unknown",
        "torch's kernels": torch.backends.cpu.get_cpu_capability(),
        "memory": f"{memory[0]:.1f} GB" if memory else "unknown",
        "GPU": gpu,
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "versions": ", ".join(versions),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
    }


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not Linux
        return ""


def _commit() -> str:
    try:
        command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" ({done.stdout.strip()})"


def report(machine: dict[str, str], outcomes: Sequence[Outcome], num_benchmarks: int) -> str:
    """Return the report, Markdown."""
    total = sum(outcome.seconds for outcome in outcomes)
    failed = [outcome.benchmark.path.stem for outcome in outcomes if outcome.failure]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios are of one run; absolute times are this machine's.",
        "",
    ]
    lines += ["| machine | |", "|---|---|", *(f"| {key} | {value} |" for key, value in machine.items()), ""]
    lines += [f"{len(outcomes)} of {num_benchmarks} benchmarks ran in {total / 60:.1f} minutes; {len(failed)} failed"]
    lines[-1] += f": {', '.join(failed)}." if failed else "."
    lines += ["", "| benchmark | question | seconds | of CPU | |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        one = outcome.benchmark
        name = f"[{one.path.stem}](#{one.path.stem})"
        times = f"{outcome.seconds:.0f} | {outcome.cpu_seconds:.0f}"
        lines.append(f"| {name} | {one.question} | {times} | {outcome.failure or 'complete'} |")
    for outcome in outcomes:
        one = outcome.benchmark
        command = " ".join(["python", f"benchmarks/{one.path.name}", *one.arguments])
        lines += ["", f"## {one.path.stem}", "", one.question, "", f"`{command}`: {outcome.seconds:.0f} s", ""]
        if outcome.failure:
            lines += [f"**{outcome.failure}**", ""]
        lines += as_markdown(outcome.output)
        if outcome.errors:
            lines += ["", "```text", *outcome.errors.splitlines(), "```"]
    return "\n".join(lines) + "\n"


def as_markdown(output: str) -> list[str]:
    """Return what a benchmark printed: tables and headings as they are, everything else as it stood, in blocks."""
    lines: list[str] = []
    blocks = itertools.groupby(output.splitlines(), key=lambda line: line.startswith(("|", "### ")) or None)
    for is_markdown, group in blocks:
        block = list(group)
        if is_markdown:
            lines += ["", *block, ""]
        elif any(line.strip() for line in block):
            lines += ["```text", *"\n".join(block).strip("\n").splitlines(), "```"]
    return lines


def main() -> int:
    """Run and report; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of files without .py (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER / "results.md")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds a benchmark may take (default: {LIMIT:g})")
    parser.add_argument("--full", action="store_true", help="without the short settings")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the benchmarks are")
    options = parser.parse_args()
    benchmarks = {one.path.stem: one for one in discover(options.folder)}
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"no benchmark '{unknown[0]}'; there are {', '.join(benchmarks) or 'none'}")
    if not options.limit > 0:
        parser.error(f"--limit is {options.limit:g}; it must be above 0 seconds")
    if not options.out.parent.is_dir():
        parser.error(f"--out is {options.out}; there is no folder {options.out.parent}")
    chosen = [benchmarks[name] for name in options.names] or list(benchmarks.values())
    machine = describe_machine()
    outcomes: list[Outcome] = []
    for one in chosen:
        print(f"{one.path.stem:24} ", end="", flush=True)
        outcomes.append(run(one, options.limit, full=options.full))
        last = outcomes[-1]
        print(f"{last.seconds:6.1f} s, {last.cpu_seconds:6.1f} s of CPU  {last.failure}".rstrip(), flush=True)
        options.out.write_text(report(machine, outcomes, len(chosen)), encoding="utf-8")
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    print(f"{options.out}: {len(outcomes)} benchmarks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
