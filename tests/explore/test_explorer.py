"""What the page draws, without a page: the images of `hamgan sample`, bit for bit."""

import base64
import builtins
import io
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hamgan import snapshot
from hamgan.cli import main
from hamgan.explore.explorer import NUM_FRAMES, Explorer, Point, Request, open_explorer
from hamgan.explore.figures import data_address, figure, note, way
from hamgan.sampling.codes import draw_with_codes
from hamgan.sampling.draw import draw_images, draw_latents, joined
from hamgan.sampling.interpolate import linear, spherical
from hamgan.sampling.latents import seeded_latents

CPU = torch.device("cpu")


@pytest.fixture
def explorer(explored_shot: Path) -> Explorer:
    return open_explorer(explored_shot, CPU)


def decoded(address: str) -> Tensor:
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("truncation", [None, 0.8])
def test_the_image_is_that_of_sample_alone_or_in_a_batch_of_64(
    explorer: Explorer, explored_shot: Path, tmp_path: Path, truncation: float | None
) -> None:
    options = [] if truncation is None else ["--truncation", str(truncation)]
    command = ["sample", str(explored_shot), "--classes", "dog & <fox>", *options]
    assert main([*command, "--seeds", "5", "--out", str(tmp_path / "alone")]) == 0
    assert main([*command, "--seeds", "0-63", "--out", str(tmp_path / "batch.npz")]) == 0
    (alone,) = (tmp_path / "alone").glob("*.png")
    with np.load(tmp_path / "batch.npz") as file:
        batch = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
    pins = (Point(seed=5, first=1), Point(seed=63, first=1))
    scene = explorer.draw(Request(point=Point(seed=5, first=1), truncation=truncation, pins=pins, codes=True))
    lonely = explorer.draw(Request(point=Point(seed=5, first=2, second=1, share=1.0), truncation=truncation))
    page = decoded(data_address(scene.image))
    assert torch.equal(page, torch.from_numpy(np.array(Image.open(alone))).permute(2, 0, 1))
    assert torch.equal(page, batch[5]) and torch.equal(lonely.image, batch[5])
    assert scene.way is not None and len(scene.way) == NUM_FRAMES
    assert torch.equal(scene.way[0], batch[5]) and torch.equal(scene.way[-1], batch[63])
    assert scene.pins[0] is not None and torch.equal(scene.pins[0], batch[5])
    assert scene.pins[1] is not None and torch.equal(scene.pins[1], batch[63])
    assert scene.warning == "" and not torch.equal(batch[5], batch[63])
    expected = alone.name if truncation is None else alone.name.replace(".png", "-truncation0.8.png")
    assert explorer.file_name(Point(seed=5, first=1), truncation) == expected


def test_mixtures_and_the_way_are_those_of_the_library(explorer: Explorer) -> None:
    G = explorer.shot.generator
    weights = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]])
    z = seeded_latents([3, 4], 16)
    a, b = Point(seed=3, first=0, second=2, share=0.25), Point(seed=4, first=1)
    request = Request(point=a, pins=(a, b), position=0.3, curve="linear")
    scene, round_way = explorer.draw(request), explorer.draw(Request(point=a, pins=(a, b), position=0.3))
    t = torch.tensor([0.3])
    mixed, straight, arc = (
        joined(G, draw_latents(G, latents, y))[0]
        for latents, y in (
            (z[:1], weights[:1]),
            (linear(z[:1], z[1:], t), linear(weights[:1], weights[1:], t)),
            (spherical(z[:1], z[1:], t), linear(weights[:1], weights[1:], t)),
        )
    )
    assert scene.between is not None and round_way.between is not None
    assert torch.equal(scene.image, mixed) and torch.equal(scene.between, straight)
    assert torch.equal(round_way.between, arc) and not torch.equal(arc, straight)
    assert not torch.equal(mixed, draw_images(G, [3], [0])[0])
    assert explorer.caption(a) == "75% cat, 25% bird, seed 3" and explorer.caption(b) == "dog & <fox>, seed 4"
    assert explorer.file_name(a, None) == "0000-cat-seed000003-25pc-of-0002.png"


def test_codes_tint_the_image_and_one_pin_makes_no_way(explorer: Explorer) -> None:
    point = Point(seed=2)
    pale = explorer.draw(Request(point=point, codes=True, strength=0.0))
    full = explorer.draw(Request(point=point, codes=True, strength=1.0, pins=(None, point)))
    assert pale.codes is not None and full.codes is not None and not torch.equal(pale.codes, full.codes)
    assert full.codes.shape == (3, 128, 128)
    grey = pale.codes.float()
    assert (grey - grey.mean(0, keepdim=True)).abs().max() < 1  # no colour at strength 0
    images, found = draw_with_codes(explorer.shot.generator, seeded_latents([2], 16), torch.tensor([0]))
    assert torch.equal(images[0], full.image) and explorer.num_hams == len(found) == 1
    assert full.way is None and full.between is None and full.pins[0] is None and full.pins[1] is not None


def test_a_truncation_without_standing_statistics_warns(explorer: Explorer) -> None:
    assert "hamgan recalibrate" in explorer.draw(Request(point=Point(seed=0), truncation=0.3)).warning


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("seed is -1", lambda: Point(seed=-1)),
        ("seed is", lambda: Point(seed=2**60)),
        ("share is 1.5", lambda: Point(seed=0, share=1.5)),
        ("position is nan", lambda: Request(point=Point(seed=0), position=float("nan"))),
        ("strength is 2", lambda: Request(point=Point(seed=0), strength=2)),
        ("curve is 'cubic'", lambda: Request(point=Point(seed=0), curve="cubic")),  # type: ignore[arg-type]
        ("classes are 3 and 0", lambda: Request(point=Point(seed=0, first=3))),
        ("truncation is 0.001", lambda: Request(point=Point(seed=0), truncation=0.001)),
        ("ham is 1", lambda: Request(point=Point(seed=0), codes=True, ham=1)),
    ],
)
def test_what_is_not_allowed_is_said(explorer: Explorer, message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer.draw(make())


def test_strangers_names_stay_text(explorer: Explorer) -> None:
    point = Point(seed=0, first=1)
    text = figure(torch.zeros(3, 2, 2, dtype=torch.uint8), explorer.caption(point), width=8, download='a".png')
    assert "<fox>" not in text and "dog &amp; &lt;fox&gt;" in text and 'a".png' not in text
    assert note("") == "" and "&lt;b&gt;" in note("<b>")
    assert way(torch.zeros(3, 3, 2, 2, dtype=torch.uint8)).count("data:image/png") == 3


def test_a_missing_gradio_names_the_extra(
    explored_shot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "gradio":
            raise ImportError("No module named 'gradio'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # put back afterwards
    assert main(["explore", str(explored_shot)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'hamgan[explore]'" in error


def test_bad_arguments_get_one_line(
    explored_shot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hamgan.explore.server.require_gradio", lambda: None)
    (tmp_path / "broken.safetensors").write_bytes(b"no snapshot")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ([str(explored_shot), "--port", "70000"], "--port is 70000"),
            ([str(explored_shot), "--port", port], "--port 0 for any"),
            ([str(explored_shot), "--host", "192.0.2.1", "--port", "0"], "--host 192.0.2.1"),
            ([str(tmp_path)], "has no snapshot"),
            ([str(tmp_path / "none.safetensors")], "none.safetensors"),
            ([str(tmp_path / "broken.safetensors")], "broken.safetensors"),
        ):
            assert main(["explore", *arguments]) == 2, arguments
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and words in error, error


def test_a_network_without_a_ham_has_no_codes(explored_shot: Path) -> None:
    from dataclasses import replace

    from hamgan.models.generator import Generator

    config = replace(snapshot.read(explored_shot).generator.config, context="none")
    plain = Explorer(snapshot.Snapshot(generator=Generator(config).eval().requires_grad_(False)), "plain", CPU)
    assert plain.num_hams == 0 and plain.class_names == ["class 0", "class 1", "class 2"]
    with pytest.raises(ValueError, match="no Hamburger"):
        plain.draw(Request(point=Point(seed=0), codes=True))
