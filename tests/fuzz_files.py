"""Mutates presets, snapshots and checkpoints at random, and reads them the way that users' commands do.

Run: python tests/fuzz_files.py preset|snapshot|checkpoint|all [COUNT] [SEED]

Every case must end in a correct load or in one clear line: no other exception, no hang, no file outside its folder, and no more
memory than the file's size justifies. Half of the cases change bytes blindly; the others know the format and change what
is in it, with its checksum made right again, as a stranger would. Numbers that are wrong by themselves come from `NASTY`.
"""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image

from hamgan import checkpoint, snapshot
from hamgan.cli import main as hamgan
from hamgan.config import dump_toml
from hamgan.data.build import build
from hamgan.data.hdf5 import TrainingFile
from hamgan.models.generator import Generator
from hamgan.training.config import TrainConfig, load_config
from hamgan.training.run import Run, build_run, restore, state_of

SECONDS = 10
"""A case that takes longer hangs."""
MEMORY = 300e6
"""Bytes by which a case may raise the highest resident memory, beside 20 times its file's size."""
NASTY: list[Any] = [
    -1, 0, 1, 2**31, 2**62, 2**63, 10**40, -(2**63), 1e308, -0.5, float("inf"), float("nan"), "", "x" * 5000,
    "../../x", "/etc/passwd", "\0", True, None, [], [[]], {}, [1] * 1000, {"a": {"b": 1}},
]  # fmt: skip
TINY = """
duration = "2 steps"
batch_size = 4
device = "cpu"
precision = "fp32"
data.path = "{data}"
generator = {{ resolution = 32, channels = 2, num_classes = 3, z_dim = 8, embedding_dim = 4, {context} }}
discriminator = {{ resolution = 32, channels = 2, num_classes = 3, {context} }}
"""
CONTEXT = 'context = "ham", context_resolutions = [16], ham.rank = 2'


class Hang(BaseException):
    """A case took too long."""


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, insert, double or exchange parts of a file."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        a = rng.randrange(len(out) + 1) if rng.random() < 0.5 else rng.randrange(min(len(out), 600) + 1)
        b = min(len(out), a + rng.choice((1, 1, 4, 8, 64, 1000)))
        match rng.randrange(7):
            case 0:
                out[a:b] = bytes(byte ^ (1 << rng.randrange(8)) for byte in out[a:b])
            case 1:
                out[a:b] = rng.randbytes(b - a)
            case 2:
                out[a:b] = rng.choice((b"\xff", b"\0", b"9", b"[", b"\x7f")) * (b - a)
            case 3:
                del out[a : b if rng.random() < 0.7 else len(out)]
            case 4:
                out[a:a] = rng.randbytes(b - a)
            case 5:
                out[a:a] = out[a:b]
            case 6:
                out[a:a] = struct.pack("<Q", rng.choice((2**64 - 1, 2**63, 2**40, 2**32, len(out))))
    return bytes(out)


def change_value(value: Any, rng: random.Random) -> Any:
    """Replace, remove, add or exchange something somewhere within nested dicts and lists."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = rng.choice(list(copy))
        match rng.randrange(10):
            case 0:
                del copy[key]
            case 1:
                copy[rng.choice(("x", "__class__", key))] = rng.choice(NASTY)
            case 2:
                copy[key] = copy[rng.choice(list(copy))]
            case _:
                copy[key] = change_value(copy[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        copy_ = list(value)
        copy_[rng.randrange(len(copy_))] = change_value(rng.choice(copy_), rng)
        return copy_
    return rng.choice(NASTY)


def change_tensor(value: Any, rng: random.Random) -> Any:
    """Likewise for a checkpoint: tensors of other sizes, types, layouts, or that claim to be larger than their storage."""
    if isinstance(value, torch.Tensor) and rng.random() < 0.85:
        one = value.flatten()[:1].clone() if value.numel() else torch.zeros(1)
        other = (
            value.double(), value.flatten(), value[None], one.expand(2**40), one[0].expand(value.shape),
            value.to(torch.complex64), torch.empty(value.shape, device="meta"), torch.nn.Parameter(value.float()),
            value.float().to_sparse(), value.flatten()[:0], value.numel(),
            torch.full_like(value, float("nan")) if value.is_floating_point() else value + 1,
        )  # fmt: skip
        return rng.choice(other)
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        return {**value, key: change_tensor(value[key], rng)}
    return change_value(value, rng)


def toml_of(mapping: dict[str, Any]) -> str:
    """Write a mapping as TOML as far as it can be."""
    lines = []
    for key, value in mapping.items() if isinstance(mapping, dict) else [("x", mapping)]:
        text = json.dumps(value) if not isinstance(value, dict) else None
        if isinstance(value, dict):
            text = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items() if not isinstance(v, dict)) + "}"
        lines.append(f"{json.dumps(key)} = {text.replace('NaN', 'nan').replace('Infinity', 'inf') if text else text}")
    return "\n".join(lines)


class Evil:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


class Fuzz:
    """One kind of file: a whole one, how to change it, and how it is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "case"
        self.folder.mkdir()
        self.canary = root / "canary"
        rng = np.random.default_rng(0)
        for index in range(12):
            place = root / "source" / f"class{index % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{index}.png")
        build(root / "source", root / "data.h5", resolution=32, resize="none", workers=1)
        (root / "tiny.toml").write_text(TINY.format(data=root / "data.h5", context=CONTEXT))
        self.config: TrainConfig = load_config(root / "tiny.toml")
        self.prepare()

    def prepare(self) -> None:
        """Make the whole file."""

    def write(self, rng: random.Random) -> Path:
        """Write a case."""
        raise NotImplementedError

    def read(self, path: Path) -> None:
        """Read it as users' commands do; raises ValueError or OSError with one line."""
        raise NotImplementedError


class Presets(Fuzz):
    def prepare(self) -> None:
        self.text = dump_toml(self.config)
        import tomllib

        self.mapping = tomllib.loads(self.text)

    def write(self, rng: random.Random) -> Path:
        path = self.folder / "case.toml"
        match rng.randrange(6):
            case 0 | 1:
                data = change_bytes(self.text.encode(), rng)
            case 2:
                data = rng.choice((
                    b"a = " + b"[" * 100_000, b"a." * 50_000 + b"b = 1", b"seed = " + b"9" * 10_000,
                    b"duration = '" + b"9" * 400 + b" steps'",
                    b'base = "case.toml"', b'base = "/dev/zero"', b'base = "."', b"base = 3", b"a = 1979-05-27",
                    b"\xff\xfe", b"seed = 0x" + b"f" * 300,
                    b"[generator]\n" * 2, b"data = 3", b'base = "\\u0000"',
                ))  # fmt: skip
            case _:
                data = toml_of(change_value(self.mapping, rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(data)
        return path

    def read(self, path: Path) -> None:
        err, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            code = hamgan(["train", str(path), "--dry-run", "--root", str(self.folder / "runs")])
        lines = err.getvalue().splitlines()
        if code == 2 and len(lines) == 1 and len(lines[0]) < 2000:
            raise ValueError(lines[0])
        assert code == 0 and not lines, f"exit code {code}: {err.getvalue()[:500]}"


class Snapshots(Fuzz):
    def prepare(self) -> None:
        torch.manual_seed(0)
        self.path = self.root / "whole.safetensors"
        generator = Generator(self.config.generator).eval()
        snapshot.write(
            self.path, snapshot.Snapshot(generator=generator, class_names=("a", "b", "c"), provenance={"step": 3})
        )
        self.data = self.path.read_bytes()

    def write(self, rng: random.Random) -> Path:
        path = self.folder / "case.safetensors"
        length = struct.unpack("<Q", self.data[:8])[0]
        header, rest = json.loads(self.data[8 : 8 + length]), self.data[8 + length :]
        if rng.random() < 0.4:
            path.write_bytes(change_bytes(self.data, rng))
            return path
        if rng.random() < 0.5:
            header = change_value(header, rng)
        else:
            meta = header["__metadata__"]
            key = rng.choice(list(meta))
            if key in ("generator", "class_names", "provenance") and rng.random() < 0.8:
                meta[key] = json.dumps(change_value(json.loads(meta[key]), rng))
            else:
                meta[key] = rng.choice(("[" * 100_000, "9" * 10_000, "{}", "", "null", '{"a":' * 9000))
            if rng.random() < 0.3:
                meta["standing_stats"] = rng.choice(
                    (
                        "[[[",
                        '[{"truncation": 1e999}]',
                        "[" * 50_000,
                        "[null]",
                        "3",
                        '[{"truncation": 0.5, "num_images": 1e999, "batch_size": 2}]',
                    )
                )
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
        return path

    def read(self, path: Path) -> None:
        with torch.no_grad():
            generator = snapshot.read(path).generator
            generator(torch.zeros(1, generator.config.z_dim), torch.zeros(1, dtype=torch.int64))


class Checkpoints(Fuzz):
    def prepare(self) -> None:
        self.run: Run = build_run(self.config, torch.device("cpu"), TrainingFile(self.root / "data.h5"))
        self._optimize()
        self.state = state_of(self.run)
        self.path = self.root / "whole.pt"
        checkpoint.save(self.path, self.state)
        self.data = self.path.read_bytes()

    def _optimize(self) -> None:
        for player in (self.run.G, self.run.D):
            for weight in player.network.parameters():
                weight.grad = torch.full_like(weight, 1e-3)
            player.optimizer.step()

    def write(self, rng: random.Random) -> Path:
        path = self.folder / "case.pt"
        match rng.randrange(10):
            case 0:
                path.write_bytes(change_bytes(self.data, rng))
            case 1 | 2:
                self._seal(path, change_bytes(self.data[: -checkpoint.FOOTER_LENGTH], rng))
            case 3:
                self._seal(path, self._archive(rng))
            case 4:
                evil = rng.choice(
                    (Evil(self.canary), {"G": Evil(self.canary)}, {"version": 2, "config": [Evil(self.canary)]})
                )
                if rng.random() < 0.5:
                    self._seal(path, pickle.dumps(evil, rng.randrange(2, 6)))
                else:
                    buffer = io.BytesIO()
                    torch.save(evil, buffer)
                    self._seal(path, buffer.getvalue())
            case 5:
                self._seal(
                    path,
                    rng.choice(
                        (self._laughs(), self._legacy(), b"", b"PK\x05\x06" + b"\0" * 18, pickle.dumps(bytearray(9)))
                    ),
                )
            case _:
                changed = self.state
                for _ in range(rng.choice((1, 1, 3))):
                    changed = change_tensor(changed, rng)
                checkpoint.save(path, changed)
        return path

    def _seal(self, path: Path, body: bytes) -> None:
        import hashlib

        path.write_bytes(body + checkpoint.FOOTER + hashlib.sha256(body).hexdigest().encode())

    def _archive(self, rng: random.Random) -> bytes:
        """Write the archive's entries anew, changed or compressed."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(buffer, "w", rng.choice((0, 8))) as new:
            names = old.namelist()
            victim = rng.choice([name for name in names if name.endswith("data.pkl")] * 3 + names)
            for name in names:
                data = old.read(name)
                if name == victim:
                    data = rng.choice(
                        (change_bytes(data, rng), b"\0" * 400_000_000 if rng.random() < 0.1 else b"", data * 2)
                    )
                new.writestr(name, data)
        return buffer.getvalue()

    def _laughs(self) -> bytes:
        """Return a state whose configuration holds itself two to the fortieth times."""
        laugh: list[Any] = ["ha"]
        for _ in range(40):
            laugh = [laugh, laugh]
        buffer = io.BytesIO()
        torch.save({**self.state, "config": {"seed": laugh, "generator": {"context_resolutions": laugh}}}, buffer)
        return buffer.getvalue()

    def _legacy(self) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.state, buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()

    def read(self, path: Path) -> None:
        restore(self.run, checkpoint.load(path))
        self._optimize()


KINDS: dict[str, Callable[[Path], Fuzz]] = {"preset": Presets, "snapshot": Snapshots, "checkpoint": Checkpoints}


def alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def main(kind: str, count: int = 1000, seed: int = 0, kinds: Mapping[str, Callable[[Path], Any]] = KINDS) -> int:
    """Try many cases; return the number of those that went wrong."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, alarm)
    loaded = refused = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fuzz = kinds[kind](root)
        around = sorted(root.iterdir())
        os.chdir(fuzz.folder)
        for case in range(count):
            print(f"\rcase {seed + case}", end="", file=sys.stderr, flush=True)  # the last word before a crash
            path = fuzz.write(random.Random(f"{kind}-{seed + case}"))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            signal.alarm(SECONDS)
            try:
                fuzz.read(path)
                loaded += 1
            except (ValueError, OSError) as error:
                refused += 1
                if len(str(error)) > 3000 or not str(error):
                    wrong.append(f"case {seed + case}: its message has {len(str(error))} letters")
            except BaseException:
                wrong.append(f"case {seed + case}: {traceback.format_exc(limit=-4)}")
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            if grown > MEMORY + 20 * path.stat().st_size:
                wrong.append(f"case {seed + case}: memory rose by {grown / 1e6:.0f} MB")
            path.unlink()
            if fuzz.canary.exists() or sorted(root.iterdir()) != around or list(fuzz.folder.iterdir()):
                wrong.append(f"case {seed + case}: it wrote a file")
                break
        os.chdir("/")
    print(f"\r{kind}: {count} cases, {loaded} loaded, {refused} refused, {len(wrong)} wrong")
    print(*wrong[:20], sep="\n")
    return len(wrong)


if __name__ == "__main__":
    chosen = KINDS if sys.argv[1] == "all" else [sys.argv[1]]
    sys.exit(sum(main(kind, *map(int, sys.argv[2:])) for kind in chosen) > 0)
