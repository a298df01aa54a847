"""What the main process does beside training: it writes statistics, looks at the run's health, draws, judges and saves.

Nothing here changes what a step computes. Methods that all processes must call say so; the others are the main process's.
"""

import copy
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hamgan import checkpoint, dist, model_card, snapshot
from hamgan.background import BackgroundWriter
from hamgan.device import release_memory
from hamgan.nn import kernel_library
from hamgan.progress import Averages, Progress
from hamgan.sampling.draw import draw_images
from hamgan.sampling.grid import make_grid, save_png
from hamgan.training import health, sentinel
from hamgan.training.config import parse_duration
from hamgan.training.judge import QuickEvaluation
from hamgan.training.run import Run, state_of
from hamgan.training.run_folder import GanRunFolder
from hamgan.training.sentinel import HEALTHY, Verdict

DIVERSITY_IMAGES = 24
"""Images a class whose pairwise distances the health check averages."""
DIVERSITY_CLASSES = 16
"""Classes that it looks at, at most."""
HAM_IMAGES = 16
HELD_OUT_IMAGES = 512
"""Held-out images that it shows to D, at most."""


class Observer:
    """Watches one run.

    Args:
        folder: The run folder, on the main process; None on the others.
        run: The run.
        total_steps: Where it ends.
    """

    def __init__(self, folder: GanRunFolder | None, run: Run, total_steps: int) -> None:
        self.folder, self.run, self.total_steps = folder, run, total_steps
        config = run.config
        self._saver = BackgroundWriter()
        self._last_row: dict[str, float] = {}
        self._failed: set[str] = set()
        self._quick: QuickEvaluation | None = None
        if folder and config.eval.extractor and run.step < total_steps:
            self._quick = QuickEvaluation(run.data, config.eval.extractor, config.eval.num_images, run.device)
        per_step = config.batch_size * config.d_steps
        self._grace = parse_duration("sentinel.grace", config.sentinel.grace).steps(per_step, run.data.num_images)

    def announce(self, precision: str, num_micro: int) -> None:
        """Say what is about to happen."""
        if (folder := self.folder) is None:
            return
        run, config, data = self.run, self.run.config, self.run.data
        num_g, num_d = (sum(p.numel() for p in player.network.parameters()) for player in (run.G, run.D))
        held = f" ({run.held_out.num_images} held out)" if run.held_out.num_images else ""
        processes = f" in {dist.world_size()} processes" if dist.world_size() > 1 else ""
        folder.say(
            f"{folder.path}: {data.num_images} images{held} of {data.resolution}x{data.resolution} in "
            f"{data.num_classes} classes; G {num_g:,} and D {num_d:,} parameters; batch {config.batch_size}; "
            f"{self.total_steps} steps on {run.device} in {precision}{processes}"
        )
        if (
            run.device.type == "cpu"
            and kernel_library.instructions() == "none"
            and platform.machine() in ("x86_64", "AMD64")
        ):
            folder.say(
                "hint: norms and matrix decompositions are torch's operations here; hamgan installed with a C compiler takes "
                "a tenth to a fifth less time for a step"
            )
        if num_micro > 1:
            folder.say(
                f"warning: gradients of {num_micro} micro-batches are added up; batch norm sees one micro-batch of "
                f"{config.batch_size // num_micro // dist.world_size()} images a process at a time"
            )
        folder.forget_after(run.step)
        if run.step:
            folder.say(f"going on from step {run.step}")
            folder.event(run.step, "resume", f"on {dist.world_size()} processes")
        else:
            folder.event(0, "start", f"on {dist.world_size()} processes")
            draw_real_grid(folder, run)

    def record(self, sums: Averages, progress: Progress) -> Verdict:
        """Write a row of statistics, the mean since the last row. Every process must call it.

        Returns:
            ruined, on every process, if a value is not finite; called before every save, so that no whole checkpoint is
            followed by a ruined one.
        """
        row = sums.take()
        if not row:
            return HEALTHY
        self._last_row = row
        if self.folder:
            more = {"nimg": float(self.run.nimg), "images_per_second": progress.rate()}
            self._record(row | more)
            progress.show(d=row["d_loss"], g=row["g_loss"])
        reasons = sentinel.not_finite(row)
        return Verdict(kind="ruined", reasons=reasons) if reasons else HEALTHY

    def check(self) -> Verdict:
        """Measure the run's health and let the sentinel judge it. Every process must call it, and gets the verdict."""
        run = self.run

        def measure() -> tuple[Verdict, sentinel.SentinelState]:
            row = self.health_row()
            self._record(row)
            gradients = {key: value for key, value in self._last_row.items() if key.endswith("_grad_norm")}
            verdict = sentinel.judge(
                run.sentinel, run.config.sentinel, run.step, row | gradients, in_grace=run.step < self._grace
            )
            if verdict.kind == "suspicious":
                self.warn("; ".join(verdict.reasons))
            return verdict, run.sentinel

        verdict, run.sentinel = dist.on_rank0(measure)
        return verdict

    def health_row(self) -> dict[str, float]:
        """Measure diversity, memorising, singular values and the hams' use; see `health`."""
        run = self.run
        seeds, classes = fixed_samples(run, DIVERSITY_IMAGES, DIVERSITY_CLASSES)
        fake = draw_images(run.G_ema, seeds, classes), torch.tensor(classes)
        shown = real_images(run, DIVERSITY_IMAGES, DIVERSITY_CLASSES)
        held_out = None
        if count := min(run.held_out.num_images, HELD_OUT_IMAGES):
            images = torch.from_numpy(run.held_out.read(range(count))).permute(0, 3, 1, 2)
            held_out = images, torch.from_numpy(run.held_out.labels[:count])
        G, D = run.G_ema, run.D.network
        z = torch.randn(HAM_IMAGES, G.config.z_dim, generator=torch.Generator().manual_seed(0)).to(run.device)
        y = (torch.arange(HAM_IMAGES) % run.data.num_classes).to(run.device)
        few = shown[0][:HAM_IMAGES], shown[1][:HAM_IMAGES]
        D.eval()
        row = {"nonfinite": health.count_nonfinite(run.G.network, run.D.network, run.G_ema)}
        row |= health.compare(D, run.device, fake, shown, held_out)
        row |= health.largest_sigmas(run.G.network, "G") | health.largest_sigmas(D, "D")
        row |= health.ham_statistics(G, lambda: G(z, y), "G")
        row |= health.ham_statistics(D, lambda: health.judge_images(D, *few, run.device), "D")
        D.train()
        return row

    def draw(self) -> Path | None:
        """Draw the fixed latents with the averaged generator."""
        if (folder := self.folder) is None:
            return None
        columns = self.run.config.log.grid_columns
        images = draw_images(self.run.G_ema, *fixed_samples(self.run, columns))
        path = folder.path / "samples" / f"{self.run.step:08d}.png"
        self._attempt("grid", lambda: save_png(path, make_grid(images, columns)))
        return path

    def judge(self) -> None:
        """Take the quick evaluation, and keep the snapshot if it is the best so far."""
        if (folder := self.folder) is None or (quick := self._quick) is None:
            return
        run = self.run
        value = quick(run.G_ema)
        release_memory(run.device)  # its maps were of other sizes than a step's
        self._attempt("metrics", lambda: folder.record_metrics(run.step, {quick.name: value}))
        if value < run.best:
            run.best = value
            self._attempt("best snapshot", lambda: self._write_best(folder))

    def _write_best(self, folder: GanRunFolder) -> None:
        model_card.write_snapshot(
            folder.best_path, self._present(self._provenance(folder), self.run.G_ema.state_dict())
        )

    def save(self, *, wait: bool = False) -> None:
        """Save a checkpoint and a snapshot: copied into the host's memory now, written to the disk in the background.

        Args:
            wait: Whether to come back only when all is on the disk.

        Raises:
            OSError: If `wait` and it cannot be written. Otherwise a failed save is said, and the next one tries again; files
                that were there before are not touched.
        """
        if (folder := self.folder) is None:
            return
        run, step = self.run, self.run.step
        began = time.monotonic()
        self._collect(wait=True)
        state = checkpoint.to_host(state_of(run))
        provenance = self._provenance(folder)
        keep = {"healthy_step": run.sentinel.healthy_step, "keep_healthy": run.config.sentinel.keep_healthy}
        pause = time.monotonic() - began

        def write() -> None:
            start = time.monotonic()
            shot = self._present(provenance, state["G_ema"])
            folder.save_snapshot(step, lambda path: model_card.write_snapshot(path, shot))
            folder.save_checkpoint(step, state, **keep)
            seconds = {"pause_s": round(pause, 4), "write_s": round(time.monotonic() - start, 4)}
            folder.event(step, "saved", f"checkpoint-{step:08d}.pt", **seconds)

        self._saver.submit(write)
        if wait:
            self._saver.wait()

    @property
    def saving(self) -> bool:
        """Whether a save is being written."""
        return self._saver.busy

    def _collect(self, *, wait: bool) -> None:
        """Say what a save in the background has failed with."""
        try:
            self._saver.wait() if wait else self._saver.poll()
        except OSError as error:
            self.warn(
                f"could not save ({_reason(error)}); earlier checkpoints are kept; training goes on", "save_failed"
            )

    def poll(self) -> None:
        """Say whether a save in the background has failed; costs nothing."""
        self._collect(wait=False)

    def finish(self, progress: Progress) -> None:
        """Judge, draw and save the end of a run. The checkpoint comes last: with it on the disk the run counts as finished."""
        self.judge()
        if (folder := self.folder) is None:
            return
        grid = self.draw()
        row = self.health_row()
        self._record(row)
        self.save(wait=True)
        folder.event(self.run.step, "finish", f"after {progress.seconds:.0f} s")
        folder.say(
            f"finished {self.run.step} steps in {progress.seconds:.0f} s; samples in {grid}; their pairwise distance within "
            f"a class is {row['diversity_ratio']:.2f} of the data's"
        )

    def newest_healthy(self) -> Path | None:
        """Return the newest whole checkpoint from before the last healthy check; None: begin again."""
        assert self.folder is not None
        self._collect(wait=True)
        return self.folder.newest_checkpoint(self.run.sentinel.healthy_step)

    def rolled_back(self, collapsed_at: int, reasons: str) -> None:
        """Say that the run was put back to an earlier step, forget what came after, and save it as it goes on."""
        self._last_row = {}
        if (folder := self.folder) is None:
            return
        state = self.run.sentinel
        factor = self.run.config.sentinel.lr_factor**state.rollbacks
        folder.forget_after(self.run.step)
        self.warn(
            f"rolled back from step {collapsed_at} (rollback {state.rollbacks}; learning rates times {factor:g}): {reasons}",
            "rollback",
        )
        self.save(wait=True)  # replaces what lies behind: a kill now goes on from here, with this rollback counted

    def say(self, message: str) -> None:
        """Print a line and keep it, on the main process."""
        if self.folder:
            self.folder.say(message)

    def warn(self, message: str, event: str = "warning") -> None:
        """Print a warning and keep it among the events, on the main process."""
        if folder := self.folder:
            self._attempt("log", lambda: folder.say(f"warning: step {self.run.step}: {message}", file=sys.stderr))
            self._attempt("events", lambda: folder.event(self.run.step, event, message))

    def note(self, event: str, reason: str) -> None:
        """Keep an event, on the main process."""
        if folder := self.folder:
            self._attempt("events", lambda: folder.event(self.run.step, event, reason))

    def close(self) -> None:
        """Wait for the save in progress and close the folder."""
        if self.folder:
            self._collect(wait=True)
            self.folder.close()

    def _record(self, row: dict[str, float]) -> None:
        if folder := self.folder:
            self._attempt("statistics", lambda: folder.record(self.run.step, row))

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        """Write something that training can do without; say once what could not be written, and again when it can."""
        try:
            write()
            self._failed.discard(what)
        except OSError as error:
            if what not in self._failed:
                print(f"warning: {what} not written ({_reason(error)}); training goes on", file=sys.stderr, flush=True)
            self._failed.add(what)

    def _provenance(self, folder: GanRunFolder) -> dict[str, Any]:
        run = self.run
        return {"run": folder.path.name, "step": run.step, "nimg": run.nimg, "data": run.data.fingerprint}

    def _present(self, provenance: dict[str, Any], weights: dict[str, Tensor]) -> snapshot.Snapshot:
        """Return a snapshot of given weights of the averaged generator; may be called while training changes its own."""
        generator = copy.deepcopy(self.run.G_ema).cpu()
        generator.load_state_dict(weights)
        return snapshot.Snapshot(generator=generator, class_names=self.run.data.class_names, provenance=provenance)


def _reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


def fixed_samples(run: Run, columns: int, max_classes: int | None = None) -> tuple[list[int], list[int]]:
    """Return seeds and classes of the grid: a row a class, the same seeds in each."""
    num_classes = min(run.data.num_classes, max_classes or run.config.log.grid_classes)
    classes = [row * run.data.num_classes // num_classes for row in range(num_classes)]
    return list(range(columns)) * num_classes, [y for y in classes for _ in range(columns)]


def real_images(run: Run, columns: int, max_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return up to `columns` shown images of each class of the grid, uint8 (N, 3, H, W), and their classes."""
    labels = torch.from_numpy(run.shown.labels)
    _, classes = fixed_samples(run, 1, max_classes)
    indices = torch.cat([torch.nonzero(labels == y).flatten()[:columns] for y in classes])
    images = torch.from_numpy(run.shown.read(indices.numpy())).permute(0, 3, 1, 2)
    return images, labels[indices]


def draw_real_grid(folder: GanRunFolder, run: Run) -> None:
    """Draw real images, a row a class as in the other grids, white where a class has fewer than a row."""
    columns = run.config.log.grid_columns
    images, labels = real_images(run, columns)
    rows = []
    for y in labels.unique_consecutive():
        row = images[labels == y]
        rows += [row, row.new_full((columns - len(row), *row.shape[1:]), 255)]
    save_png(folder.path / "samples" / "real.png", make_grid(torch.cat(rows), columns))
