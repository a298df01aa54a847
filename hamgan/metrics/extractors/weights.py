"""Weight files of the extractors: where they are, whether they are the right ones, and how to read them."""

import hashlib
import os
import pickle
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hamgan import dist

_BLOCK = 1 << 20  # bytes read at a time


def sha256_of(path: str | Path) -> str:
    """Return the hex SHA-256 digest of a file.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_weights(path: str | Path, expected_sha256: str | None) -> str:
    """Hash a weight file and compare.

    Args:
        path: The file.
        expected_sha256: Hex digest it must have; None accepts any.

    Returns:
        The file's digest.

    Raises:
        ValueError: If the file is missing or has another digest.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such weight file")
    digest = sha256_of(path)
    if expected_sha256 is not None and digest != expected_sha256:
        raise ValueError(
            f"{path}: SHA-256 is {digest[:16]}..., expected {expected_sha256[:16]}...: "
            "a damaged download or other weights"
        )
    return digest


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without running any code that the file may carry.

    Accepts a plain state dict, one under "state_dict", "model" or "teacher" (as training scripts save it), a
    safetensors file, or a TorchScript archive (as OpenAI published CLIP).

    Args:
        path: The file.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        ValueError: If the file is not such a file.
    """
    try:
        loaded = _load(path)
    except pickle.UnpicklingError:  # torch's text advises to run the file's code
        raise ValueError(
            f"{path}: not a readable weight file (no tensors, or objects that are more than data)"
        ) from None
    except Exception as error:  # zip, pickle, TorchScript and torch raise a dozen kinds over a damaged file
        reason = " ".join(str(error).split(".", 1)[0].split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a readable weight file ({reason})") from None
    for key in ("state_dict", "model", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ValueError(f"{path}: holds {type(loaded).__name__}, expected a state dict of tensors")
    return loaded


def _load(path: str | Path) -> object:
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated for running models; these files still exist
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def load_into(network: nn.Module, state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Load a state dict exactly; say in one line what does not fit.

    Args:
        network: Receives the tensors themselves (it may have been built on the meta device).
        state_dict: Names to tensors.
        path: Named in the error.

    Raises:
        ValueError: If a name is missing or superfluous, or a shape or kind differs.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state_dict and not name.endswith("num_batches_tracked")]
    extra = [name for name in state_dict if name not in own]
    if missing or extra:
        first = f"no {missing[0]!r}" if missing else f"unknown {extra[0]!r}"
        raise ValueError(
            f"{path}: not the weights of {type(network).__name__}: {first} "
            f"({len(missing)} names missing, {len(extra)} unknown)"
        )
    for name, tensor in state_dict.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, "
                f"{type(network).__name__} needs {tuple(own[name].shape)}"
            )
        if tensor.layout != torch.strided or tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{path}: {name} holds {tensor.dtype}, {tensor.layout}; expected {own[name].dtype}")
    full = {name: state_dict.get(name, torch.zeros((), dtype=torch.long)) for name in own}
    network.load_state_dict(full, assign=True)


def download(url: str, destination: Path, expected_sha256: str) -> Path:
    """Fetch a weight file once, with a progress bar; later calls find it.

    Args:
        url: Where it lies.
        destination: Where to keep it; parents are made.
        expected_sha256: Hex digest; a file that differs is discarded.

    Returns:
        The destination.

    Raises:
        ValueError: If the download fails or brings other bytes.
    """
    if destination.is_file():
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=destination.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=30) as response:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=destination.name, disable=not dist.is_main()) as bar:
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
        digest = sha256_of(partial)
        if digest != expected_sha256:
            raise ValueError(f"{url}: got SHA-256 {digest[:16]}..., expected {expected_sha256[:16]}...")
        os.replace(partial, destination)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ValueError(f"{url}: cannot download ({error}); fetch it elsewhere and give the file") from None
    finally:
        Path(partial).unlink(missing_ok=True)
    return destination


def cache_folder() -> Path:
    """Where downloaded weights are kept: $HAMGAN_CACHE, else $XDG_CACHE_HOME/hamgan, else ~/.cache/hamgan."""
    if own := os.environ.get("HAMGAN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hamgan"
