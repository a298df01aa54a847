"""Pictures as HTML that holds their pixels: nothing is stored on the server, and what is shown is what is downloaded."""

import base64
import html
from collections.abc import Sequence

from torch import Tensor

from hamgan.sampling.png import encode_pngs

STYLE = """
.figures { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.figures figure { margin: 0; flex: 0 1 auto; min-width: 0; }
.figures img { display: block; image-rendering: pixelated; border-radius: 4px; max-width: 100%; height: auto;
  outline: 1px solid rgba(120, 113, 108, 0.25); }
.figures figcaption { font-size: 13px; line-height: 1.35; margin: 6px 0 0; overflow-wrap: anywhere; }
.figures .download { display: inline-block; margin-top: 8px; padding: 6px 14px; border-radius: 6px; font-size: 14px;
  white-space: nowrap; color: #fff; background: #b45309; text-decoration: none; }
.figures .download:hover, .figures .download:focus { background: #92400e; }
.way { display: grid; grid-template-columns: repeat(9, 1fr); gap: 4px; }
.way img { display: block; width: 100%; image-rendering: pixelated; border-radius: 3px; }
@media (max-width: 700px) {
  .figures { flex-wrap: nowrap; gap: 8px; }
  .figures figcaption { font-size: 12px; }
  .figures .download { margin-top: 4px; padding: 3px 8px; font-size: 12px; }
}
.hint, .note { font-size: 14px; margin: 0; }
.note { color: #9a3412; }
.dark .note { color: #fdba74; }
"""
"""Of all that is written here; no fonts or files from elsewhere."""


def data_address(image: Tensor) -> str:
    """Return uint8 (3, H, W) as the address of a PNG that holds it."""
    return f"data:image/png;base64,{base64.b64encode(next(encode_pngs(image[None]))).decode()}"


def figure(image: Tensor, caption: str, *, width: int, download: str = "") -> str:
    """Show an image.

    Args:
        image: uint8 (3, H, W), kept pixel for pixel; the browser enlarges it without smoothing.
        caption: Below it, plain text; also its description.
        width: On the page, pixels; less where there is no room.
        download: Name of the file that a button below saves the image as; empty: no button.
    """
    address, text = data_address(image), html.escape(caption)
    picture = f'<img src="{address}" alt="{text}" width="{width}" height="{width}">'
    button = ""
    if download:
        button = f'<a class="download" role="button" download="{html.escape(download)}" href="{address}">Download</a>'
    return f'<figure style="width:{width}px">{picture}<figcaption>{text}</figcaption>{button}</figure>'


def figures(parts: Sequence[str]) -> str:
    """Put figures side by side, in more lines where there is no room."""
    return f'<div class="figures">{"".join(parts)}</div>'


def way(images: Tensor) -> str:
    """Show the frames (n, 3, H, W) of a way in one line, as wide as the page."""
    last = len(images) - 1
    frames = "".join(
        f'<img src="{data_address(image)}" alt="{index / last:.0%} of the way">' for index, image in enumerate(images)
    )
    return f'<div class="way">{frames}</div>'


def hint(text: str) -> str:
    """Say what to do next."""
    return f'<p class="hint">{html.escape(text)}</p>'


def note(text: str) -> str:
    """Say what the user should know; empty text: nothing."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""
