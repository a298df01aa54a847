"""Frames to a moving picture: GIF by Pillow, MP4 by ffmpeg; one frame in memory at a time."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hamgan.checkpoint import write_atomically
from hamgan.sampling.grid import as_picture

SUFFIXES = (".gif", ".mp4")


def write_video(path: Path, frames: Iterable[Tensor], *, frames_per_second: int = 24) -> None:
    """Write frames, atomically; its folder is made.

    Args:
        path: `.gif` (256 colours, goes round for ever) or `.mp4` (H.264).
        frames: uint8 (3, H, W), all of one size.
        frames_per_second: 1 to 100; a GIF counts in hundredths of a second and takes the nearest.

    Raises:
        ValueError: If there is no frame, the suffix or the rate is not allowed, or ffmpeg is not installed.
        OSError: If it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: a video is a {' or a '.join(SUFFIXES)}")
    if not 1 <= frames_per_second <= 100:
        raise ValueError(f"--fps is {frames_per_second}; it must be in 1..100")
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        _write_gif(path, chain([first], stream), frames_per_second)
    else:
        _write_mp4(path, first, chain([first], stream), frames_per_second)


def _write_gif(path: Path, frames: Iterator[Tensor], rate: int) -> None:
    def palettes() -> Iterator[Image.Image]:
        # A palette a frame, without dithering: equal frames stay equal, and flat surfaces stay flat.
        for frame in frames:
            yield as_picture(frame).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)

    pictures = palettes()
    first = next(pictures)
    duration = max(round(100 / rate), 1) * 10
    write_atomically(
        path,
        lambda file: first.save(
            file, format="GIF", save_all=True, append_images=pictures, duration=duration, loop=0, disposal=1
        ),
    )


def _write_mp4(path: Path, first: Tensor, frames: Iterator[Tensor], rate: int) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ValueError(
            f"{path}: an mp4 needs ffmpeg: pip install 'hamgan[video]'; or write a .gif, which needs nothing"
        ) from None
    # Colour is stored for 2x2 pixels at once, so that odd sides get a white line.
    pad = (0, first.shape[2] % 2, 0, first.shape[1] % 2)
    height, width = first.shape[1] + pad[3], first.shape[2] + pad[1]
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".mp4", dir=path.parent)
    os.close(handle)
    try:
        writer = imageio_ffmpeg.write_frames(
            temporary,
            (width, height),
            fps=rate,
            codec="libx264",
            macro_block_size=2,
            output_params=["-crf", "16", "-preset", "slow"],
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            pixels = F.pad(frame, pad, value=255) if any(pad) else frame
            writer.send(pixels.permute(1, 2, 0).contiguous().numpy())
        writer.close()
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
