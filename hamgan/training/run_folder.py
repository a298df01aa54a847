"""The folder of a GAN's run: what every run folder has, and snapshots."""

from collections.abc import Callable
from pathlib import Path

from hamgan import run_folder
from hamgan.training.config import FREE_KEYS, TrainConfig


def fixed_differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """List the keys, with both values, that differ though a run cannot change them on its way."""
    return run_folder.fixed_differences(old, new, FREE_KEYS)


def read_config(path: Path) -> TrainConfig:
    """Read the configuration of a run folder; errors as in `hamgan.run_folder.read_config`."""
    return run_folder.read_config(path, TrainConfig)


def choose(root: Path, preset: str, config: TrainConfig) -> Path:
    """Return the newest run of a preset whose fixed keys are the same, or the next number where there is none."""
    return run_folder.choose(root, preset, config, FREE_KEYS)


def snapshots(path: Path) -> list[Path]:
    """Return a run's snapshots, oldest first."""
    return sorted(path.glob("snapshot-*.safetensors"))


class GanRunFolder(run_folder.RunFolder[TrainConfig]):
    """A GAN's run folder, open for writing on rank 0; arguments and errors as in `hamgan.run_folder.RunFolder`."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        super().__init__(
            path, config, free_keys=FREE_KEYS, keep_checkpoints=config.log.keep_checkpoints, pictures="samples"
        )

    @property
    def best_path(self) -> Path:
        """Where the snapshot with the lowest quick evaluation lies."""
        return self.path / "best.safetensors"

    def save_snapshot(self, step: int, write: Callable[[Path], object]) -> None:
        """Let `write` put a snapshot at a path, then remove all but the newest `keep_snapshots`, and later ones.

        Model cards lie beside snapshots and go with them.
        """
        written = self.path / f"snapshot-{step:08d}.safetensors"
        write(written)
        before = snapshots(self.path)
        run_folder.prune(before, written, self.config.log.keep_snapshots)
        for path in before:
            if not path.is_file():
                path.with_suffix(".md").unlink(missing_ok=True)
