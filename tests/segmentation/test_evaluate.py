"""The test protocol against its definition; cards, worst images and predictions; going on after a kill."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hamgan.device import resolve_autocast
from hamgan.segmentation import evaluate as evaluate_views
from hamgan.segmentation import testing
from hamgan.segmentation.augment import MEAN, STD, resize_image
from hamgan.segmentation.evaluate import TestConfig, predict, resize_matrix
from hamgan.segmentation.model import SegmentationConfig, Segmentor
from hamgan.segmentation.open_data import DataConfig, open_data
from hamgan.segmentation.testing import EvaluationPlan, card_text, evaluate, predict_files
from hamgan.segmentation.trained import Trained

_, FP32 = resolve_autocast("fp32", torch.device("cpu"))


@pytest.fixture
def segmentor(tiny_model: SegmentationConfig) -> Segmentor:
    """A network with weights large enough for its predictions to vary."""
    torch.manual_seed(0)
    model = Segmentor(tiny_model).eval()
    nn.init.normal_(model.head.classify.weight)
    return model


def image_of(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_multi_scale_is_the_mean_of_all_views_probabilities(segmentor: Segmentor) -> None:
    image = image_of(45, 70)
    test = TestConfig(scale=(256, 64), ratios=(0.5, 1.0, 1.75), flip=True, multiple=32)
    sizes = {0.5: (32, 50), 1.0: (64, 100), 1.75: (112, 174)}  # (32, 64), (64, 128), (128, 192) after rounding up
    total = torch.zeros(10, 45, 70, dtype=torch.float64)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]

    def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
        ours = resize_image(x[0], size[0], size[1])[None]
        exact = F.interpolate(x.double(), size, mode="bilinear", align_corners=False)
        assert (ours - exact).abs().max() <= 1  # whole levels
        return ours

    with torch.no_grad():
        for height, width in sizes.values():
            view = resized(pixels, (height, width))
            view = resized(view, tuple(-(-side // 32) * 32 for side in (height, width)))
            view = (view - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            for flip in (False, True):
                logits = segmentor(view.flip(3) if flip else view)
                logits = F.interpolate(logits, (45, 70), mode="bilinear", align_corners=False)
                total += (logits.flip(3) if flip else logits).double().softmax(1)[0]
    ours = predict(segmentor, image, test, FP32)
    assert ours.shape == (45, 70) and len(np.unique(ours)) > 2
    top = total.topk(2, dim=0).values
    sure = (top[0] - top[1] > 1e-4).numpy()
    assert sure.mean() > 0.99 and np.array_equal(ours[sure], total.argmax(0).numpy()[sure])


def test_a_mirrored_image_is_labelled_mirrored(segmentor: Segmentor) -> None:
    image = image_of(64, 96)
    test = TestConfig(scale=(), ratios=(1.0, 1.5), flip=True, multiple=1)
    labels, mirrored = (predict(segmentor, x, test, FP32) for x in (image, image[:, ::-1].copy()))
    assert np.mean(labels == mirrored[:, ::-1]) > 0.99


def peak_bytes(segmentor: Segmentor, image: np.ndarray, test: TestConfig) -> int:
    """Return the most bytes of tensors that were alive at once during a prediction, by the profiler's log of allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        predict(segmentor, image, test, FP32)
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    alive = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return int(alive.max())


def test_memory_does_not_grow_with_the_number_of_views(segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_views, "BAND_PIXELS", 1024)
    image = image_of(96, 128)
    sums = 4 * 10 * 96 * 128
    largest = 1.75
    peaks = {}
    for count in (1, 2, 6, 18):
        ratios = tuple(np.linspace(0.5, largest, count)) if count > 1 else (largest,)
        peaks[count] = peak_bytes(segmentor, image, TestConfig(scale=(128, 96), ratios=ratios, flip=count > 1))
    assert peaks[2] == peaks[6] == peaks[18]
    assert sums <= peaks[2] <= peaks[1] + 1.05 * sums  # besides the view there are the sums, once


def test_a_views_logits_are_never_whole_at_the_images_size(segmentor: Segmentor) -> None:
    """An image far larger than what the network sees of it: its 10 logits a pixel alone would be 160 MB."""
    peak = peak_bytes(segmentor, image_of(2000, 2000), TestConfig(scale=(64, 64)))
    assert peak < 2000 * 2000 * 4 * 4


@pytest.mark.parametrize("align_corners", [False, True])
def test_one_product_resizes_as_one_step_after_the_other(align_corners: bool) -> None:
    coarse = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = coarse[None]
    for size in ((40, 56), (33, 70)):
        expected = F.interpolate(expected, size, mode="bilinear", align_corners=align_corners)
    rows, columns = (
        resize_matrix(lengths, align_corners=align_corners).double() for lengths in ((5, 40, 33), (7, 56, 70))
    )
    torch.testing.assert_close(rows @ coarse @ columns.T, expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(resize_matrix((4, 4, 4), align_corners=align_corners), torch.eye(4))


def test_an_image_smaller_than_the_stride_is_refused(segmentor: Segmentor) -> None:
    with pytest.raises(ValueError, match="images are 20x64; no side may be smaller than the backbone's stride, 32"):
        predict(segmentor, image_of(20, 64), TestConfig(scale=(), multiple=1), FP32)
    assert predict(segmentor, image_of(20, 64), TestConfig(scale=(), multiple=32), FP32).shape == (20, 64)
    assert predict(segmentor, image_of(5, 7), TestConfig(), FP32).shape == (5, 7)


@pytest.fixture
def trained(segmentor: Segmentor, tmp_path: Path) -> Trained:
    return Trained(
        model=segmentor,
        class_names=tuple("abcdefghij"),
        palette=np.arange(30, dtype=np.uint8).reshape(10, 3),
        test=TestConfig(scale=(), multiple=32),
        data=None,
        path=tmp_path / "checkpoint.pt",
        step=1,
    )


def test_a_card_holds_scores_worst_images_and_predictions(trained: Trained, tmp_path: Path) -> None:
    data = open_data(DataConfig(kind="scenes", num_test=5), "test")
    plan = EvaluationPlan(
        split="test", test=trained.test, num_worst=2, save_predictions=True, device="cpu", precision="fp32"
    )
    out = tmp_path / "out"
    card = evaluate(trained, data, plan, out)
    assert json.loads((out / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["data"]["images"] == 5 and len(card["class_iou"]) == 10
    predicted = [np.array(Image.open(out / "predictions" / f"scene-test-{i:06d}.png")) for i in range(5)]
    right = sum(int((labels == data.read(i).labels).sum()) for i, labels in enumerate(predicted))
    assert card["pixel_accuracy"] == pytest.approx(100 * right / (5 * 96 * 96), abs=0.005)
    file = Image.open(out / "predictions" / "scene-test-000000.png")
    palette = file.getpalette()
    assert file.mode == "P" and palette is not None and palette[:30] == data.palette.ravel().tolist()
    worst = [one["miou"] for one in card["worst"]]
    assert len(worst) == 2 and worst == sorted(worst) and Image.open(out / "worst.png").size[0] > 900
    assert f"mIoU {card['miou']:.2f}" in card_text(card).splitlines()[0]
    assert not list(out.glob(".unfinished*"))


def test_a_killed_evaluation_goes_on(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(DataConfig(kind="scenes", num_test=6), "test")
    plan = EvaluationPlan(split="test", test=trained.test, num_worst=3, device="cpu", precision="fp32")
    whole = evaluate(trained, data, plan, tmp_path / "whole")
    monkeypatch.setattr(testing, "SAVE_SECONDS", 0.0)
    read = type(data).read
    monkeypatch.setattr(type(data), "read", lambda self, i: exit_now() if i == 4 else read(self, i))
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, data, plan, tmp_path / "killed")
    seen: list[int] = []
    monkeypatch.setattr(type(data), "read", lambda self, i: seen.append(i) or read(self, i))
    resumed = evaluate(trained, data, plan, tmp_path / "killed")
    assert seen[:2] == [4, 5]
    timeless = {"seconds_per_image": 0}
    assert whole | timeless == resumed | timeless
    # What was found by another protocol is not taken up.
    assert evaluate(trained, data, replace(plan, test=replace(plan.test, flip=True)), tmp_path / "killed") != whole


def exit_now() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_images": 0}, "num_images is 0; it must be at least 1"),
        ({"num_images": -3}, "num_images is -3; it must be at least 1"),
        ({"num_worst": -1}, "num_worst is -1; it must be at least 0"),
        ({"num_workers": -1}, "num_workers is -1; it must be at least 0"),
    ],
)
def test_impossible_plans_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationPlan(split="test", test=TestConfig(), **given)  # type: ignore[arg-type]


def test_predictions_are_not_written_over_each_other(trained: Trained, tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("a.png", "a.jpg", "below/a.png")]
    (tmp_path / "below").mkdir()
    for path in images:
        Image.fromarray(image_of(40, 50)).save(path)
    settings = {"test": trained.test, "device": "cpu", "precision": "fp32"}
    for pair in ([images[0], images[1]], [images[0], images[2]], [tmp_path]):
        with pytest.raises(ValueError, match="its mask would be written over that of"):
            predict_files(trained, pair, tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    assert predict_files(trained, [images[0], images[0]], tmp_path / "out", **settings) == 2  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a-mask.png", "a-overlay.png"}
