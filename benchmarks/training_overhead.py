"""What does watching a run cost, and for how long does saving stop it?

A preset's own networks, batch and cadence. Steps and what is done beside them are timed in one process, in turns, so that what
else the machine does hits all alike; medians. `of a step`: the time over that of as many steps as lie between two.

Logging is a row of statistics with its TensorBoard events; the health check is all that docs/training.md lists, with the
sentinel's verdict. Grids and the run's evaluation of itself make pictures and numbers that are wanted, and are listed apart.

A save's pause is what `events.jsonl` calls pause_s. Beside it stands a plain copy of the same tensors into host memory, and
how much longer steps take while the file is being written by its thread.

Run: python benchmarks/training_overhead.py [PRESET] [--rounds N] [--steps N] [--set=--section.key=value ...]
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import seconds

from hamgan import checkpoint
from hamgan.device import resolve_autocast, resolve_device
from hamgan.progress import Averages, Progress
from hamgan.training.config import TrainConfig, load_config
from hamgan.training.ema import update_ema
from hamgan.training.loop import open_data
from hamgan.training.observer import Observer
from hamgan.training.run import Run, build_run, state_of
from hamgan.training.run_folder import GanRunFolder
from hamgan.training.schedule import Schedule
from hamgan.training.step import d_phase, g_phase
from hamgan.training.stream import Stream

PRESET = Path(__file__).parents[1] / "configs" / "emoji32.toml"
QUICK = ["--rounds", "3"]
TARGET = 0.02


def stepper(run: Run, sums: Averages) -> tuple[Callable[[], None], Stream]:
    """Return the loop's step (real images, D, G, the average) and the stream that it reads."""
    config = run.config
    _, autocast = resolve_autocast(config.precision, run.device)
    phases = {"objective": config.objective, "augmentation": config.augment, "autocast": autocast}
    take_d, take_g = (partial(phase, run.G, run.D, **phases) for phase in (d_phase, g_phase))
    stream = Stream(run, *config.micro_batches(1))

    def step() -> None:
        for repeat in range(config.d_steps):
            real, y = stream.real(repeat)
            batches = stream.micro_batches("d", repeat, real, y)
            sums.add(take_d(batches, penalize=config.objective.penalizes(run.step * config.d_steps + repeat)))
        sums.add(take_g(stream.micro_batches("g", 0, real, y)))
        run.step += 1
        update_ema(run.G_ema, run.G.network, run.step, config.ema)

    return step, stream


def tensors_of(state: object) -> list[torch.Tensor]:
    """Return every tensor of a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def measure(config: TrainConfig, root: Path, rounds: int, steps: int) -> None:
    """Time steps and everything beside them, and print two tables."""
    device = resolve_device(config.device)
    data = open_data(config)
    run = build_run(config, device, data)
    folder = GanRunFolder(root / "00000-overhead", config)
    observer = Observer(folder, run, 10**9)
    due = Schedule(config, data.num_images, 10**9)
    sums, progress = Averages(), Progress(0, 10**9)
    step, stream = stepper(run, sums)
    works: dict[str, tuple[str, Callable[[], object]]] = {
        "logging": ("stats_every", lambda: observer.record(sums, progress)),
        "health check": ("health_every", observer.check),
        "grid": ("grid_every", observer.draw),
        "evaluation": ("eval_every", observer.judge),
    }
    for _ in range(3):
        step()
    for _, work in works.values():  # once, so that imports and first allocations are done
        work()
    times: dict[str, list[float]] = {name: [] for name in ("step", "step while saving", "copy", *works)}
    for _ in range(rounds):
        times["step"] += [seconds(step) for _ in range(steps)]
        for name, (_, work) in works.items():
            times[name].append(seconds(work))
        times["copy"].append(seconds(lambda: [tensor.clone() for tensor in tensors_of(state_of(run))]))
        observer.save()
        while observer.saving:
            times["step while saving"].append(seconds(step))
    stream.close()
    observer.close()
    progress.close()
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    one = medians["step"]

    print(f"a step: {one * 1e3:.1f} ms (median of {len(times['step'])}; {torch.get_num_threads()} threads)\n")
    print("| beside the steps | ms | every | of a step |\n|---|---|---|---|")
    shares = {}
    for name, (key, _) in works.items():
        every = due.steps(key)
        shares[name] = medians[name] / (every * one)
        print(f"| {name} | {medians[name] * 1e3:.1f} | {every} steps | {shares[name]:.2%} |")
    watched = shares["logging"] + shares["health check"]
    print(f"| **logging and health** | | | **{watched:.2%}** (target: at most {TARGET:.0%}) |\n")

    events = [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]
    saves = [event for event in events if event["event"] == "saved"]
    pause, write = (statistics.median(event[key] for event in saves) for key in ("pause_s", "write_s"))
    size = sum(tensor.nbytes for tensor in tensors_of(state_of(run))) / 1e6
    print("| a save | |\n|---|---|")
    print(f"| state | {size:.1f} MB |\n| plain copy of it into host memory | {medians['copy'] * 1e3:.1f} ms |")
    print(f"| pause of training | {pause * 1e3:.1f} ms, {pause / medians['copy']:.2f} times the copy |")
    print(f"| writing, in the background | {write * 1e3:.0f} ms |")
    print(f"| a step meanwhile, over a step | {medians.get('step while saving', one) / one:.2f} |")
    kept = pause + max(medians.get("step while saving", one) - one, 0) * len(times["step while saving"]) / len(saves)
    print(f"| all that a save costs, of the steps between two | {kept / (due.steps('checkpoint_every') * one):.2%} |")
    checkpoint.verify(sorted(folder.path.glob("checkpoint-*.pt"))[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", type=Path, default=PRESET)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="timed steps a round")
    parser.add_argument("--set", action="append", default=[], help="an override, as --set=--generator.channels=4")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        overrides = [f"--data.path={root}/data.h5", *options.set]
        measure(load_config(options.preset, overrides), Path(root), options.rounds, options.steps)


if __name__ == "__main__":
    main()
