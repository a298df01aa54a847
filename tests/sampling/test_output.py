"""What is written: grids, folders and archives that survive a kill, videos, sheets."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hamgan.models.generator import Generator
from hamgan.sampling.directions import chosen_directions
from hamgan.sampling.draw import draw_images
from hamgan.sampling.grid import GAP
from hamgan.sampling.interpolate import frames_of, walks
from hamgan.sampling.output import Drawer, select, write_directions, write_loop, write_samples, write_walks
from hamgan.sampling.sheet import Row, draw_sheet, side_by_side
from hamgan.sampling.store import SampleList, write_folder, write_npz
from hamgan.sampling.video import write_video

NAMES = ("cat", "../dog", "bird")


@pytest.fixture
def drawer(G: Generator) -> Drawer:
    return Drawer(G=G, class_names=NAMES, title="step 1")


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)


def test_every_form_holds_the_same_images(drawer: Drawer, G: Generator, tmp_path: Path) -> None:
    chosen = select(drawer, seeds="3-4,9", classes="cat,2", truncation=0.9)
    expected = draw_images(G, [3, 4, 9] * 2, [0, 0, 0, 2, 2, 2], 0.9)
    write_samples([drawer], chosen, tmp_path / "deep" / "grid.png")
    grid = pixels(tmp_path / "deep" / "grid.png")
    assert grid.shape == (3, 2 * 32 + GAP, 3 * 32 + 2 * GAP)
    assert torch.equal(grid[:, 34:66, 68:100], expected[5])
    write_samples([drawer], chosen, tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["arr_0"].dtype == np.uint8 and file["labels"].dtype == file["seeds"].dtype == np.int64
        assert np.array_equal(file["arr_0"], expected.permute(0, 2, 3, 1))
        assert file["labels"].tolist() == [0, 0, 0, 2, 2, 2] and file["seeds"].tolist() == [3, 4, 9] * 2
    assert not (tmp_path / "s.npz.partial").exists()
    everything = select(drawer, seeds="4", classes="all", truncation=0.9)
    write_samples([drawer], everything, tmp_path / "folder")
    written = sorted(path.name for path in (tmp_path / "folder").glob("*.png"))
    assert written == ["0000-cat-seed000004.png", "0001-_dog-seed000004.png", "0002-bird-seed000004.png"]
    assert torch.equal(pixels(tmp_path / "folder" / written[2]), expected[4])


def test_a_number_of_images_takes_the_classes_in_turn(drawer: Drawer) -> None:
    chosen = select(drawer, seeds="0", classes="all", num_images=7)
    assert list(chosen.samples.seeds) == list(range(7)) and list(chosen.samples.labels) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="--num-images is 0"):
        select(drawer, seeds="0", classes="all", num_images=0)


class Stumbling(torch.nn.Module):
    """A generator that is killed at some forward pass, and counts them."""

    def __init__(self, G: Generator, at: int) -> None:
        super().__init__()
        self.network, self.config, self.at, self.calls = G, G.config, at, 0

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.network(z, y)


def contents(out: Path) -> dict[str, bytes]:
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {path.name: path.read_bytes() for path in files if path.suffix == ".png"} or {"": out.read_bytes()}


@pytest.mark.parametrize(("write", "name"), [(write_folder, "folder"), (write_npz, "s.npz")])
def test_a_killed_run_goes_on_and_ends_the_same(
    G: Generator, tmp_path: Path, write: Callable[..., int], name: str
) -> None:
    samples = SampleList(seeds=list(range(70)), labels=[i % 3 for i in range(70)], class_names=NAMES)
    (tmp_path / "whole").mkdir()
    assert write(Stumbling(G, 0), samples, tmp_path / "whole" / name, progress=False) == 0
    killed = Stumbling(G, 4)
    with pytest.raises(KeyboardInterrupt):
        write(killed, samples, tmp_path / name, progress=False)
    assert not (tmp_path / name).is_file()
    second = Stumbling(G, 0)
    kept = write(second, samples, tmp_path / name, progress=False)
    assert 0 < kept <= 48 and second.calls == -(-(70 - kept) // 16)
    assert contents(tmp_path / name) == contents(tmp_path / "whole" / name)


def test_a_png_without_its_end_is_drawn_again(G: Generator, tmp_path: Path) -> None:
    samples = SampleList(seeds=[0, 1], labels=[0, 1])
    write_folder(G, samples, tmp_path, progress=False)
    before = contents(tmp_path)
    (tmp_path / samples.file_name(1)).write_bytes(before[samples.file_name(1)][:-20])
    (tmp_path / samples.file_name(0)).write_bytes(b"")
    assert write_folder(G, samples, tmp_path, progress=False) == 0 and contents(tmp_path) == before


def test_other_images_are_not_mixed_in(G: Generator, tmp_path: Path) -> None:
    first = SampleList(seeds=[0], labels=[0])
    write_folder(G, first, tmp_path / "a", progress=False)
    more = SampleList(seeds=[0, 1], labels=[0, 2])
    assert write_folder(G, more, tmp_path / "a", progress=False) == 1
    for other in (SampleList(seeds=[0], labels=[0], truncation=0.5), SampleList(seeds=[0], labels=[0], z_scale=0.5)):
        with pytest.raises(ValueError, match=r"images of .* lie there"):
            write_folder(G, other, tmp_path / "a", progress=False)
    with torch.no_grad():
        G.output_conv.weight[0] += 1
    with pytest.raises(ValueError, match="images of generator"):
        write_folder(G, first, tmp_path / "a", progress=False)
    (tmp_path / "a" / "samples.json").unlink()
    with pytest.raises(ValueError, match=r"no samples\.json"):
        write_folder(G, first, tmp_path / "a", progress=False)


def test_what_a_file_cannot_hold_is_said(drawer: Drawer, tmp_path: Path) -> None:
    chosen = select(drawer, seeds="0", classes="all")
    with pytest.raises(ValueError, match=r"allowed are a \.png"):
        write_samples([drawer], chosen, tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="several snapshots"):
        write_samples([drawer, drawer], chosen, tmp_path / "folder")
    with pytest.raises(ValueError, match="at most 4096"):
        write_samples([drawer], select(drawer, seeds="0-1999", classes="all"), tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"--steps is 4"):
        write_directions(drawer, chosen_directions(drawer.G, "0"), chosen, tmp_path / "x.png", num_steps=4)


def test_snapshots_side_by_side_share_seeds_and_are_named(drawer: Drawer, G: Generator, tmp_path: Path) -> None:
    chosen = select(drawer, seeds="0-3", classes="all")
    write_samples([drawer, drawer], chosen, tmp_path / "two.png", zoom=1)
    picture = pixels(tmp_path / "two.png")
    images = draw_images(G, [0], [0])
    found = picture.unfold(1, 32, 1).unfold(2, 32, 1)  # every place where the first image might be
    same = (found == images[0][:, None, None]).flatten(3).all(3).all(0)
    assert int(same.sum()) == 2


def test_a_sheet_lays_rows_and_marks_out() -> None:
    image = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    sheet = draw_sheet([Row(images=image, marked=frozenset({1}))], zoom=3)
    assert sheet.size == (2 * 27 - 3 + 24, 24 + 24)
    assert sheet.getpixel((12, 12)) == (128,) * 3 and sheet.getpixel((12 + 27 - 1, 20)) == (225, 29, 72)
    labelled = draw_sheet([Row(images=image, label="ürgendwas 漢字")], columns={1: "a long name"}, title="T", zoom=3)
    assert labelled.width > sheet.width and labelled.height > sheet.height
    assert side_by_side([sheet, sheet], widest=2 * sheet.width).size == (2 * sheet.width, sheet.height)
    assert side_by_side([sheet, sheet], widest=sheet.width).size == (sheet.width, 2 * sheet.height)


def test_walks_become_pictures_folders_and_videos(drawer: Drawer, G: Generator, tmp_path: Path) -> None:
    rows = walks([0, 1], [0, 1], z_dim=16, num_classes=3, frames=3)
    for name in ("w.png", "w.gif", "frames"):
        write_walks(drawer, rows, tmp_path / name, zoom=1)
    with Image.open(tmp_path / "w.gif") as video:
        assert video.n_frames == 4 and video.size == (32, 66) and video.info["loop"] == 0
    frames = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert len(frames) == 8 and frames[0] == "000-000000.png"
    assert torch.equal(pixels(tmp_path / "frames" / "001-000003.png"), draw_images(G, [1], [1])[0])
    together = list(frames_of(G, rows))
    assert len(together) == 4 and torch.equal(torch.stack(together, 1)[0], rows[0].draw(G))
    write_loop(drawer, select(drawer, seeds="0-1", classes="cat"), tmp_path / "l.gif", frames_per_second=3)
    with Image.open(tmp_path / "l.gif") as video:
        assert video.n_frames == 6
    with pytest.raises(ValueError, match=r"--fps is 0"):
        write_walks(drawer, rows, tmp_path / "w.gif", frames_per_second=0)


def test_an_mp4_holds_every_frame_and_odd_sides_are_filled(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    levels = [0, 80, 160, 240]
    frames = (torch.full((3, 33, 35), level, dtype=torch.uint8) for level in levels)
    write_video(tmp_path / "v.mp4", frames, frames_per_second=10)
    reader: Iterator[object] = ffmpeg.read_frames(str(tmp_path / "v.mp4"))
    meta = next(reader)
    assert meta["size"] == (36, 34) and meta["fps"] == 10  # type: ignore[index]
    shown = [np.frombuffer(frame, np.uint8).reshape(34, 36, 3)[:33, :35].mean() for frame in reader]  # type: ignore[call-overload]
    assert len(shown) == 4 and np.allclose(shown, levels, atol=4)
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "v.mp4", iter(()))


def test_without_ffmpeg_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"pip install 'hamgan\[video\]'"):
        write_video(tmp_path / "v.mp4", iter([torch.zeros(3, 8, 8, dtype=torch.uint8)]))
    assert list(tmp_path.iterdir()) == []


def test_equal_frames_of_a_gif_are_equal(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "v.gif", iter([image, 255 - image, image]), frames_per_second=5)
    with Image.open(io.BytesIO((tmp_path / "v.gif").read_bytes())) as video:
        shown = []
        for frame in range(3):
            video.seek(frame)
            shown.append(np.asarray(video.convert("RGB")))
    assert np.array_equal(shown[0], shown[2]) and not np.array_equal(shown[0], shown[1])


def test_directions_keep_the_image_itself_in_the_middle(drawer: Drawer, G: Generator, tmp_path: Path) -> None:
    chosen = select(drawer, seeds="5", classes="bird")
    out = tmp_path / "d.png"
    write_directions(drawer, chosen_directions(G, "all"), chosen, out, num_directions=1, num_steps=3, zoom=1)
    found = pixels(out).unfold(1, 32, 1).unfold(2, 32, 1)
    same = (found == draw_images(G, [5], [2])[0][:, None, None]).flatten(3).all(3).all(0)
    assert int(same.sum()) == 4  # one of each layer's strip
