"""DINOv2 and CLIP on small random checkpoints with the public names, against timm and torch-fidelity."""

import warnings

import pytest
import torch

from hamgan.metrics.extractors import load_extractor, vit


def randomise(network: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in network.state_dict().items()}


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_equals_timm(tmp_path, images, registers):
    timm = pytest.importorskip("timm.models.vision_transformer")
    theirs = timm.VisionTransformer(
        img_size=224, patch_size=14, embed_dim=128, depth=3, num_heads=2, init_values=1e-5, num_classes=0,
        reg_tokens=registers, no_embed_class=registers > 0, global_pool="token",
    ).eval()  # fmt: skip
    state = randomise(theirs)
    theirs.load_state_dict(state)
    public = {n.replace("reg_token", "register_tokens"): t for n, t in state.items()}
    if registers:  # the release keeps a position for the class token, timm has it folded in
        position = torch.zeros(1, 1, 128)
        public["pos_embed"] = torch.cat([position, public["pos_embed"]], 1)
    public["mask_token"] = torch.zeros(1, 128)
    torch.save(public, tmp_path / "dino.pth")
    extractor = load_extractor("dinov2", weights=tmp_path / "dino.pth")
    got = extractor(images)
    with torch.no_grad():
        expected = theirs(extractor.preprocess(images))
    torch.testing.assert_close(got.pool, expected, rtol=1e-4, atol=1e-5)
    assert got.logits is None
    assert extractor.name == "dinov2_vit12814" + ("_reg" if registers else "")


def test_dinov2_interpolates_positions_as_the_release_does(images):
    network = vit.DinoV2(dim=64, depth=1, patch=14, grid=37)
    network.load_state_dict(randomise(network))
    grid = network.pos_embed[:, 1:].reshape(1, 37, 37, 64).permute(0, 3, 1, 2)
    scale = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    assert expected.shape[2:] == (16, 16)
    positions = network._positions(16, 16)
    torch.testing.assert_close(positions[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 256, 64))
    assert torch.equal(positions[:, :1], network.pos_embed[:, :1])


def test_dinov2_giant_is_gated(tmp_path, images):
    network = vit.DinoV2(dim=64, depth=1, patch=14, grid=16, swiglu=True)
    torch.save(randomise(network), tmp_path / "giant.pth")
    assert load_extractor("dinov2", weights=tmp_path / "giant.pth")(images).pool.shape == (2, 64)


def test_clip_equals_torch_fidelity(tmp_path, images):
    oracle = pytest.importorskip("torch_fidelity.feature_extractor_clip")
    theirs = oracle.VisionTransformer(input_resolution=64, patch_size=16, width=128, layers=3, heads=2, output_dim=32)
    state = randomise(theirs)
    theirs.load_state_dict(state)
    public = {f"visual.{n}": t.half() for n, t in state.items()} | {"text_projection": torch.zeros(4, 32)}
    theirs.load_state_dict({n: t.half().float() for n, t in state.items()})
    torch.save(public, tmp_path / "clip.pth")
    extractor = load_extractor("clip", weights=tmp_path / "clip.pth")
    got = extractor(images)
    with torch.no_grad():
        expected = theirs(extractor.preprocess(images))
    assert extractor.protocol == "bicubic64"
    assert got.pool.dtype == torch.float32
    torch.testing.assert_close(got.pool, expected, rtol=1e-4, atol=1e-5)


def test_clip_reads_openais_torchscript_archive(tmp_path, images):
    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = vit.ClipVisual(dim=32, width=128, depth=1, patch=16, grid=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x)[0]

    whole = Whole().eval()
    whole.load_state_dict(randomise(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; the published files are traces
        torch.jit.trace(whole, torch.zeros(1, 3, 64, 64)).save(str(tmp_path / "clip.pt"))
    extractor = load_extractor("clip", weights=tmp_path / "clip.pt")
    with torch.no_grad():
        expected = whole(extractor.preprocess(images))
    torch.testing.assert_close(extractor(images).pool, expected)


def test_bad_checkpoints(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a DINOv2 backbone"):
        load_extractor("dinov2", weights=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a CLIP image transformer"):
        load_extractor("clip", weights=tmp_path / "other.pth")
    with pytest.raises(ValueError, match="needs a local weight file"):
        load_extractor("clip")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds list"):
        load_extractor("dinov2", weights=tmp_path / "list.pth")
