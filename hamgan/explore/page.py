"""The page: Gradio's controls on the left, an explorer's pictures on the right. Only wiring; needs the extra `explore`."""

import random
from typing import Any

import gradio as gr

from hamgan.explore.explorer import MAX_SEED, Explorer, Point, Request
from hamgan.explore.figures import figure, figures, hint, note, way

TITLE = "hamgan explore"
LARGE, SMALL = 256, 136
"""Width of a picture on the page, pixels."""
TRUNCATIONS = (0.1, 2.0)
"""Ends of the slider: above, nearly no component of a latent is ever drawn again."""
NEW_SEED_BELOW = 1_000_000
THEME = gr.themes.Default(
    primary_hue="amber",
    neutral_hue="stone",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
"""Fonts of the machine: none is fetched."""
STYLE = """
.gradio-container { width: 100%; min-width: 0; max-width: 1180px !important; margin: 0 auto; overflow: clip !important; }
footer { display: none !important; }
@media (max-width: 700px) {
  #pictures { order: -1; position: sticky; top: 0; z-index: 50; background: var(--body-background-fill);
    gap: 4px; padding-bottom: 8px; border-bottom: 1px solid var(--border-color-primary); }
}
"""
"""On a narrow page the pictures come first and stay in sight while the controls below them are moved."""


def build_page(explorer: Explorer) -> Any:
    """Lay the page out and join every control to what it changes.

    Args:
        explorer: What draws.

    Returns:
        A `gradio.Blocks`.
    """
    names = [(name, y) for y, name in enumerate(explorer.class_names)]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        side = explorer.config.resolution
        gr.Markdown(f"## {TITLE}\n`{explorer.title}`\n\n{len(names)} classes, {side} x {side} pixels")
        pin_a, pin_b = gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Group():
                    first = gr.Dropdown(names, value=0, label="Class", elem_id="first")
                    second = gr.Dropdown(names, value=min(1, len(names) - 1), label="Mixed with", elem_id="second")
                    share = gr.Slider(0, 1, 0, step=0.01, label="Share of the second class", elem_id="share")
                seed = gr.Number(0, precision=0, label="Seed", elem_id="seed")
                with gr.Row():
                    back = gr.Button("Previous", size="sm", elem_id="previous", min_width=80)
                    on = gr.Button("Next", size="sm", elem_id="next", min_width=80)
                    anew = gr.Button("Random", size="sm", elem_id="random", min_width=80)
                with gr.Group():
                    truncated = gr.Checkbox(False, label="Truncate, in all pictures", elem_id="truncated")
                    low, high = TRUNCATIONS
                    truncation = gr.Slider(low, high, 0.8, step=0.05, label="Truncation", elem_id="truncation")
                with gr.Group(visible=explorer.num_hams > 0):
                    codes = gr.Checkbox(False, label="Show what the ham sees", elem_id="codes")
                    strength = gr.Slider(0, 1, 0.75, step=0.05, label="Strength of its colours", elem_id="strength")
                    ham = gr.Dropdown(
                        [(f"ham {number}", number) for number in range(max(explorer.num_hams, 1))],
                        value=0,
                        label="Ham",
                        elem_id="ham",
                        visible=explorer.num_hams > 1,
                    )
                with gr.Row():
                    keep_a = gr.Button("Pin as A", size="sm", elem_id="pin-a", min_width=100)
                    keep_b = gr.Button("Pin as B", size="sm", elem_id="pin-b", min_width=100)
                with gr.Group():
                    position = gr.Slider(0, 1, 0.5, step=0.01, label="From A to B", elem_id="position")
                    curve = gr.Radio(["spherical", "linear"], value="spherical", label="Path", elem_id="curve")
            with gr.Column(scale=3, min_width=300, elem_id="pictures"):
                told = gr.HTML(elem_id="note")
                shown = gr.HTML(elem_id="image")
                pinned = gr.HTML(elem_id="pins")
                walked = gr.HTML(elem_id="way")
        point = [seed, first, second, share]
        controls = [*point, truncated, truncation, codes, strength, ham, position, curve]
        pictures = [told, shown, pinned, walked]

        def render(*values: Any) -> list[Any]:
            return render_page(explorer, *values)

        # Without Gradio's queue: its stream of results may end just as another move is answered, and the answer is lost.
        # One listener for all: while a picture is drawn the newest move waits, and pictures arrive in the moves' order.
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        drawing = {"fn": render, "inputs": [*controls, pin_a, pin_b], "outputs": pictures, **quick}
        gr.on([page.load, *(control.change for control in controls)], trigger_mode="always_last", **drawing)
        back.click(lambda value: max(int(value or 0) - 1, 0), [seed], [seed], **quick)
        on.click(lambda value: min(int(value or 0) + 1, MAX_SEED), [seed], [seed], **quick)
        anew.click(lambda: random.randrange(NEW_SEED_BELOW), [], [seed], **quick)
        for button, pin in ((keep_a, pin_a), (keep_b, pin_b)):
            button.click(pin_point, [*point, pin], [pin], **quick).then(**drawing)
    return page


def point_of(seed: Any, first: int, second: int, share: float) -> Point:
    """Read the controls of an image.

    Raises:
        ValueError: If the seed is missing or out of range.
    """
    if seed is None:
        raise ValueError(f"seed is empty; it must be in 0..{MAX_SEED}")
    return Point(seed=int(seed), first=first, second=second, share=float(share))


def pin_point(seed: Any, first: int, second: int, share: float, before: Point | None) -> Point | None:
    """Return the point to keep; what was kept before where the controls hold none."""
    try:
        return point_of(seed, first, second, share)
    except ValueError:
        return before


def render_page(
    explorer: Explorer,
    seed: Any,
    first: int,
    second: int,
    share: float,
    truncated: bool,
    truncation: float,
    codes: bool,
    strength: float,
    ham: int,
    position: float,
    curve: Any,
    pin_a: Point | None,
    pin_b: Point | None,
) -> list[Any]:
    """Draw the page's pictures from its controls' values.

    Returns:
        HTML of the note, the image, the pins and the way; after a value that is not allowed the note alone is new.
    """
    level = float(truncation) if truncated else None
    try:
        request = Request(
            point=point_of(seed, first, second, share),
            truncation=level,
            pins=(pin_a, pin_b),
            position=position,
            curve=curve,
            codes=codes,
            ham=ham,
            strength=strength,
        )
        scene = explorer.draw(request)
    except ValueError as error:
        return [note(str(error)), gr.skip(), gr.skip(), gr.skip()]
    name = explorer.file_name(request.point, level)
    main = [figure(scene.image, explorer.caption(request.point), width=LARGE, download=name)]
    if scene.codes is not None:
        main.append(figure(scene.codes, "its codes as soft segments", width=LARGE, download=f"codes-{name}"))
    ends = [
        figure(image, f"{letter}: {explorer.caption(pin)}", width=SMALL)
        for letter, image, pin in zip("AB", scene.pins, request.pins, strict=True)
        if image is not None and pin is not None
    ]
    if scene.between is None or scene.way is None:
        missing = "images A and B" if not ends else "the other image"
        return [note(scene.warning), figures(main), figures(ends), hint(f"Pin {missing} to see the way between.")]
    between = figure(
        scene.between, f"{position:.0%} of the way", width=SMALL, download=f"between-{position * 100:.0f}.png"
    )
    ends.insert(1, between)
    return [note(scene.warning), figures(main), figures(ends), way(scene.way)]
