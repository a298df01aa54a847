"""Foreign weights: outputs equal the public implementations', and every size is read from the file."""

import pickle
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_arrays, relative_error

from hamgan.interop import biggan_pytorch, tf_hamgan
from hamgan.nn.hamburger import Hamburger

Find = Callable[[str], Path]


@pytest.mark.usefixtures("with_and_without_kernels")
@pytest.mark.parametrize("size", ["32", "128"])
def test_biggan_pytorch_draws_and_judges_the_same(reference: Find, size: str) -> None:
    folder = reference(f"biggan_pytorch_{size}/io.npz").parent
    io = load_arrays(folder / "io.npz")
    G = biggan_pytorch.load_generator(folder / "G.pth")
    D = biggan_pytorch.load_discriminator(folder / "D.pth")
    with torch.no_grad():
        assert relative_error(G(io["z"], io["labels"]), io["g_out"]) < 1e-5
        assert relative_error(D(io["images"], io["labels"]), io["d_logits"]) < 1e-5


@pytest.mark.usefixtures("with_and_without_kernels")
def test_the_official_hamgan_draws_and_judges_the_same(reference: Find) -> None:
    path = reference("tf_hamgan/tf_vars.npz")
    io = load_arrays(path.parent / "io.npz")
    y = io["labels"].long()
    G, D = tf_hamgan.load_generator(path), tf_hamgan.load_discriminator(path)
    with torch.no_grad():
        images = G(io["z"], y, io["g_init_bases"]).permute(0, 2, 3, 1)
        assert relative_error(images, io["g_out_nhwc"]) < 1e-4
        logits = D(io["images_nhwc"].permute(0, 3, 1, 2), y, io["d_init_bases"])
        assert relative_error(logits, io["d_logits"]) < 1e-4
    stored = tf_hamgan.load_generator(path, bases=io["g_init_bases"])
    with torch.no_grad():
        assert torch.equal(stored(io["z"], y).permute(0, 2, 3, 1), images)
    gates = [float(m.gate) for network in (G, D) for m in network.modules() if isinstance(m, Hamburger)]
    assert gates == pytest.approx([0.7, 0.7])


def test_a_checkpoint_prefix_gives_the_same_network(reference: Find) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is an optional extra that only reads its own checkpoints")
    from_npz = tf_hamgan.load_generator(reference("tf_hamgan/tf_vars.npz"))
    prefix = reference("tf_hamgan/model.ckpt-0.index").with_suffix("")
    from_checkpoint = tf_hamgan.load_generator(prefix)
    for name, tensor in from_npz.state_dict().items():
        assert torch.equal(tensor, from_checkpoint.state_dict()[name]), name


def their_generator(*, shared: bool, hierarchical: bool, attention: bool, widths: list[int]) -> dict[str, torch.Tensor]:
    """A state dict with BigGAN-PyTorch's names, for sizes that the reference files do not have."""
    state: dict[str, torch.Tensor] = {}
    num_classes, shared_dim, chunk = 7, 12, 5
    condition = shared_dim + chunk if hierarchical else shared_dim

    def add(name: str, *shape: int, bias: bool = True, normalised: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(shape)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0])
        if normalised:
            state[f"{name}.u0"] = torch.randn(1, shape[0])
            state[f"{name}.sv0"] = torch.ones(1)

    def add_norm(name: str, channels: int) -> None:
        for part in ("gain", "bias"):
            if shared:
                add(f"{name}.{part}", channels, condition, bias=False)
            else:
                add(f"{name}.{part}", num_classes, channels, bias=False, normalised=False)
        state[f"{name}.stored_mean"], state[f"{name}.stored_var"] = torch.randn(channels), torch.rand(channels) + 0.5

    if shared:
        state["shared.weight"] = torch.randn(num_classes, shared_dim)
    add("linear", widths[0] * 16, chunk)
    for index, (a, b) in enumerate(pairwise(widths)):
        add(f"blocks.{index}.0.conv1", b, a, 3, 3)
        add(f"blocks.{index}.0.conv2", b, b, 3, 3)
        add(f"blocks.{index}.0.conv_sc", b, a, 1, 1)
        add_norm(f"blocks.{index}.0.bn1", a)
        add_norm(f"blocks.{index}.0.bn2", b)
        if attention and index == 1:
            for part, (o, i) in {"theta": (b // 8, b), "phi": (b // 8, b), "g": (b // 2, b), "o": (b, b // 2)}.items():
                add(f"blocks.{index}.1.{part}", o, i, 1, 1, bias=False)
            state[f"blocks.{index}.1.gamma"] = torch.tensor(0.3)
    state |= {
        f"output_layer.0.{n}": torch.rand(widths[-1]) + 0.5 for n in ("gain", "bias", "stored_mean", "stored_var")
    }
    add("output_layer.2", 3, widths[-1], 3, 3)
    return state


@pytest.mark.parametrize(
    ("shared", "hierarchical", "attention", "widths", "resolution", "z_dim"),
    [
        (True, True, True, [32, 32, 16, 8, 4], 64, 25),
        (True, False, False, [16, 16, 8, 16], 32, 5),
        (False, False, True, [32, 32, 16, 8, 4, 2], 128, 5),
    ],
)
def test_other_sizes_are_read_from_the_file(
    tmp_path: Path, shared: bool, hierarchical: bool, attention: bool, widths: list[int], resolution: int, z_dim: int
) -> None:
    torch.manual_seed(0)
    state = their_generator(shared=shared, hierarchical=hierarchical, attention=attention, widths=widths)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "G.pth")
    G = biggan_pytorch.load_generator(tmp_path / "G.pth")
    assert (G.config.resolution, G.config.z_dim, G.config.num_classes) == (resolution, z_dim, 7)
    assert G.config.hierarchical == hierarchical and (G.config.context == "attention") == attention
    with torch.no_grad():
        images = G(torch.randn(2, z_dim), torch.tensor([0, 6]))
    assert images.shape == (2, 3, resolution, resolution) and images.isfinite().all()
    if not shared:  # their tables hold gain - 1
        assert torch.equal(G.blocks[0].norm1.gain.weight, state["blocks.0.0.bn1.gain.weight"] + 1)


def renamed_variables(path: Path, tmp_path: Path, *, cheese: bool) -> Path:
    """The reference generator with a V2 Hamburger: a cheese and its norm, none after the upper bread."""
    with np.load(path) as file:
        arrays = dict(file)
    if cheese:
        rng = np.random.default_rng(0)
        for name in [n for n in arrays if "g_ops/upper_bread_bn" in n]:
            arrays[name.replace("upper_bread_bn", "cheese_bn")] = arrays.pop(name)
        prefix = "generator/g_ops/sn_cheese"
        arrays[f"{prefix}/weights"] = rng.normal(size=(1, 1, 16, 16)).astype(np.float32)
        arrays[f"{prefix}/{prefix}/weights/spectral_normalize/spectral_norm/spectral_norm_u"] = rng.normal(size=(16, 1))
    np.savez(tmp_path / "vars.npz", **arrays)
    return tmp_path / "vars.npz"


@pytest.mark.parametrize("ham", ["nmf", "cd", "vq"])
def test_v2_and_every_decomposition_load(reference: Find, tmp_path: Path, ham: str) -> None:
    path = renamed_variables(reference("tf_hamgan/tf_vars.npz"), tmp_path, cheese=True)
    G = tf_hamgan.load_generator(path, ham=ham, steps=4, rank=5)  # type: ignore[arg-type]
    config = G.config.ham
    assert (config.version, config.kind, config.eval_steps, config.rank, config.beta) == ("V2", ham.upper(), 4, 5, 0.01)
    with torch.no_grad():
        out = G(torch.randn(2, 128), torch.tensor([0, 9]))
    assert out.isfinite().all()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/hamgan-was-here"),))  # type: ignore[return-value]


def test_bad_files_are_refused_in_one_line(reference: Find, tmp_path: Path) -> None:
    good = reference("biggan_pytorch_32/G.pth")
    whole = good.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pth").write_bytes(b"no weights here")
    (tmp_path / "noise.npz").write_bytes(b"no arrays here")
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"w": Evil()}, file)
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY" + b"\0" * 40)
    cases = [
        (biggan_pytorch.load_generator, "cut.pth", "damaged"),
        (biggan_pytorch.load_generator, "noise.pth", "refused|damaged"),
        (biggan_pytorch.load_generator, "evil.pth", "refused"),
        (tf_hamgan.load_generator, "noise.npz", "damaged"),
        (tf_hamgan.load_generator, "evil.npz", "damaged"),
    ]
    for load, name, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("/tmp/hamgan-was-here").exists()
    with pytest.raises(FileNotFoundError):
        biggan_pytorch.load_generator(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="not a BigGAN-PyTorch generator"):
        biggan_pytorch.load_generator(reference("biggan_pytorch_32/D.pth"))
    state = torch.load(good, weights_only=True)
    del state["blocks.1.0.bn2.stored_var"]
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(ValueError, match=r"nothing for 'blocks\.1\.norm2\.statistics\.running_var'"):
        biggan_pytorch.load_generator(tmp_path / "hole.pth")


def test_attention_in_every_block_of_a_small_discriminator_loads(reference: Find, tmp_path: Path) -> None:
    """BigGAN-PyTorch puts attention into all four blocks at 32x32 where it is asked for at 16."""
    state = torch.load(reference("biggan_pytorch_32/D.pth"), weights_only=True)
    for index in range(4):
        for part, (o, i) in {"theta": (4, 32), "phi": (4, 32), "g": (16, 32), "o": (32, 16)}.items():
            state[f"blocks.{index}.1.{part}.weight"] = torch.randn(o, i, 1, 1)
            state[f"blocks.{index}.1.{part}.u0"] = torch.randn(1, o)
        state[f"blocks.{index}.1.gamma"] = torch.tensor(0.5)
    torch.save(state, tmp_path / "D.pth")
    D = biggan_pytorch.load_discriminator(tmp_path / "D.pth")
    assert [hasattr(context, "gate") for context in D.contexts] == [True] * 4
    with torch.no_grad():
        assert D(torch.randn(2, 3, 32, 32), torch.tensor([0, 1])).isfinite().all()


def test_odd_files_name_themselves(reference: Find, tmp_path: Path) -> None:
    state = torch.load(reference("biggan_pytorch_32/G.pth"), weights_only=True)

    def refused(changes: dict[str, torch.Tensor | None], message: str) -> None:
        changed = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
        torch.save(changed, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=message) as caught:
            biggan_pytorch.load_generator(tmp_path / "odd.pth")
        assert str(tmp_path / "odd.pth") in str(caught.value)

    refused({"linear.weight": torch.randn(7)}, "odd.pth")
    refused({"blocks.0.0.conv1.u0": None}, r"nothing for 'blocks\.0\.conv1\.spectral_norm\.u'")
    refused({"linear.bias": torch.full((512,), float("nan"))}, r"'linear\.bias' holds values that are not finite")
    path = reference("tf_hamgan/tf_vars.npz")
    with np.load(path) as file:
        arrays = {f"{name}:0": file[name] for name in file.files}
    np.savez(tmp_path / "colon.npz", **arrays)
    assert tf_hamgan.load_generator(tmp_path / "colon.npz").config.num_classes == 10
    del arrays["generator/g_ops/sigma_ratio:0"]
    np.savez(tmp_path / "hole.npz", **arrays)
    with pytest.raises(ValueError, match=r"hole\.npz: unexpected names or shapes"):
        tf_hamgan.load_generator(tmp_path / "hole.npz")
