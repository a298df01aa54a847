"""Saves are atomic and loads are safe."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from hamgan import checkpoint, snapshot
from hamgan.models.generator import Generator, GeneratorConfig

STATE = {"a": torch.arange(1000.0), "nested": {"step": 3, "name": "x", "list": [1, 2.5, None]}}


def test_a_save_comes_back_and_stays_readable_by_torch(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    for loaded in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert torch.equal(loaded["a"], STATE["a"]) and loaded["nested"] == STATE["nested"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(checkpoint.DamagedFileError, match=r"c\.pt"):
            checkpoint.load(path)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.DamagedFileError, match="truncated"):
            checkpoint.load(path)


def test_a_failing_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomically(path, fail)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from a file ran",))


def test_no_code_runs_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with (tmp_path / "plain.pt").open("wb") as file:
        pickle.dump({"a": Evil()}, file)
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(checkpoint.DamagedFileError, match=name):
            checkpoint.load_tensors(tmp_path / name)
    assert "code" not in capsys.readouterr().out


def test_an_archive_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "whole.pt", {"x": torch.zeros(1_000_000)})
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as old,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.load(tmp_path / "a.pt")["x"].numel() == 1_000_000  # torch would inflate it
    with pytest.raises(checkpoint.DamagedFileError, match="its entries are larger than the file"):
        checkpoint.load_tensors(tmp_path / "a.pt")


def test_a_snapshot_carries_its_configuration(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> None:
    torch.manual_seed(0)
    G = Generator(tiny_generator_config).eval()
    path = tmp_path / "snapshot-00000001.safetensors"
    snapshot.write(path, snapshot.Snapshot(generator=G, class_names=("a", "b", "ç"), provenance={"step": 1}))
    shot = snapshot.read(snapshot.find(tmp_path))
    assert shot.generator.config == tiny_generator_config
    assert shot.class_names == ("a", "b", "ç") and shot.provenance == {"step": 1}
    z, y = torch.randn(2, 16), torch.tensor([0, 2])
    assert torch.equal(shot.generator(z, y), G(z, y))


def test_bad_snapshots_are_refused_in_one_line(tmp_path: Path, tiny_generator_config: GeneratorConfig) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "s.safetensors"
    snapshot.write(path, snapshot.Snapshot(generator=Generator(tiny_generator_config)))
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    good = snapshot.safe_open(path, framework="pt").metadata()

    def rewritten(**changes: str) -> None:
        save_file(tensors, path, good | changes)

    cases = [
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "damaged or not a safetensors file"),
        (lambda: path.write_bytes(b"hello"), "damaged or not a safetensors file"),
        (lambda: rewritten(format="other"), "not a hamgan snapshot"),
        (lambda: rewritten(version="99"), "version 99"),
        (lambda: rewritten(generator="{"), "incomplete or damaged"),
        (lambda: rewritten(generator='{"chanels": 3}'), "unknown key 'chanels'"),
        (lambda: rewritten(generator=good["generator"].replace('"channels": 4', '"channels": 8')), "asks for"),
        (lambda: rewritten(generator='{"channels": 100000000}'), "cannot be built"),
    ]
    for damage, message in cases:
        damage()
        with pytest.raises(ValueError, match=message) as caught:
            snapshot.read(path)
        assert "\n" not in str(caught.value) and "s.safetensors" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"has no snapshot-"):
        snapshot.find(tmp_path)


def test_a_disk_that_takes_no_more_is_an_os_error_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from hamgan import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    checkpoint.save(Path(sys.argv[1]), {'a': torch.randn(1 << 20)})\n"
        "except OSError as error:\n"
        "    sys.exit(7 if error.errno and error.filename == sys.argv[1] else 8)\n"
    )
    # torch wraps what the disk says into a RuntimeError of its own.
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=120)
    assert done.returncode == 7
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]
