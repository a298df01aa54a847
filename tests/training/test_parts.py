"""Losses, augmentation, EMA, noise and one step of each network."""

import contextlib
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import relative_error
from torch import nn

from hamgan import config as configuration
from hamgan.device import Compile, check_compile, uses_cuda_graphs
from hamgan.models.discriminator import Discriminator, DiscriminatorConfig
from hamgan.models.generator import Generator, GeneratorConfig
from hamgan.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear, SpectralNorm, SpectralNormConfig
from hamgan.training.adam import Adam
from hamgan.training.augment import NUM_RANDOM, AugmentConfig, augment, flip
from hamgan.training.config import TrainConfig, load_config
from hamgan.training.ema import EmaConfig, MovingAverage, ema_decay
from hamgan.training.health import class_diversity, ham_statistics, largest_sigmas
from hamgan.training.losses import add_orthogonal_gradient, d_loss, g_loss, gradient_penalty
from hamgan.training.noise import NoiseSource
from hamgan.training.run import compiled
from hamgan.training.step import MicroBatch, Player, StepConfig, d_phase, g_phase

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[2] / "configs"


def test_losses_have_their_known_values() -> None:
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-3.0], [1.0]])
    assert float(d_loss("hinge", real, fake)) == pytest.approx((0 + 1) / 2 + (0 + 2) / 2)
    assert float(g_loss("hinge", fake, None)) == pytest.approx(1.0)
    softplus = torch.nn.functional.softplus
    assert torch.allclose(d_loss("non_saturating", real, fake), softplus(-real).mean() + softplus(fake).mean())
    assert torch.allclose(g_loss("non_saturating", fake, None), softplus(-fake).mean())
    assert torch.allclose(d_loss("relativistic", real, fake), softplus(fake - real).mean())
    assert torch.allclose(g_loss("relativistic", fake, real), softplus(real - fake).mean())


def test_the_gradient_penalty_is_the_squared_gradient_of_each_image() -> None:
    images = torch.randn(3, 3, 4, 4, requires_grad=True)
    scale = torch.tensor([1.0, 2.0, 3.0])
    logits = (images.flatten(1).sum(1) * scale)[:, None]
    assert torch.allclose(gradient_penalty(logits, images), scale.square() * 48)


def test_the_orthogonal_gradient_is_half_that_of_the_masked_gram() -> None:
    layer = nn.Linear(6, 4, bias=False)
    layer.weight.grad = torch.zeros_like(layer.weight)
    add_orthogonal_gradient(layer, 1e-2)
    weight = layer.weight.detach().clone().requires_grad_(True)
    ((weight @ weight.t()) * (1 - torch.eye(4))).square().sum().mul(0.5 * 1e-2).backward()
    assert torch.allclose(layer.weight.grad, weight.grad, atol=1e-7)


def test_translation_shifts_by_whole_pixels_and_fills_with_zero() -> None:
    images = torch.rand(6, 3, 16, 16) + 0.5
    config = AugmentConfig(kinds=("translation",), translation=0.125)
    shifts = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.999, 0.5])
    random = torch.rand(6, NUM_RANDOM)
    random[:, 3], random[:, 4] = shifts, shifts.flip(0)
    out = augment(images, random, config)
    for image, moved, numbers in zip(images, out, random, strict=True):
        down, right = ((numbers[3:5] * 5).floor().long() - 2).tolist()
        expected = torch.zeros_like(image)
        rows, columns = slice(max(down, 0), 16 + min(down, 0)), slice(max(right, 0), 16 + min(right, 0))
        from_rows, from_columns = slice(max(-down, 0), 16 - max(down, 0)), slice(max(-right, 0), 16 - max(right, 0))
        expected[:, rows, columns] = image[:, from_rows, from_columns]
        assert torch.equal(moved, expected)


def test_cutout_zeroes_a_square_and_color_keeps_the_shape_of_an_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(50, 3, 16, 16) + 0.5
    cut = augment(images, torch.rand(50, NUM_RANDOM), AugmentConfig(kinds=("cutout",), cutout=0.5))
    zeros = (cut == 0).all(1).sum((1, 2))
    assert zeros.max() == 64 and zeros.min() >= 16 and torch.equal(cut[cut != 0], images[cut != 0])
    middle = torch.full((1, NUM_RANDOM), 0.5)
    assert torch.allclose(augment(images[:1], middle, AugmentConfig(kinds=("color",))), images[:1], atol=1e-6)
    assert not torch.allclose(augment(images, torch.rand(50, NUM_RANDOM), AugmentConfig(kinds=("color",))), images)


def test_augmentation_is_differentiable_and_per_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    random = torch.rand(3, NUM_RANDOM)
    config = AugmentConfig(kinds=("color", "translation", "cutout"))
    assert torch.autograd.gradcheck(lambda x: augment(x, random.double(), config), images)
    alone = augment(images[1:2], random[1:2], config)
    assert torch.allclose(alone, augment(images, random, config)[1:2])
    assert torch.equal(flip(images, torch.tensor([0.2, 0.8, 0.2]))[:2], torch.stack([images[0].flip(2), images[1]]))


def test_ema_follows_weights_and_statistics_and_copies_what_has_no_mean() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(
        resolution=32, channels=2, num_classes=2, z_dim=8, context="ham", context_resolutions=(16,)
    )
    network, average = Generator(config), Generator(config)
    before = copy.deepcopy(average.state_dict())
    MovingAverage(average, network, EmaConfig(decay=0.9, start_step=100, ramp_up=False)).update(101)
    after, source = average.state_dict(), network.state_dict()
    for name in after:
        copied = name.endswith(("spectral_norm.u", "_ham.bases"))
        expected = source[name] if copied else before[name].lerp(source[name], 0.1)
        assert torch.allclose(after[name], expected, atol=1e-7), name
    MovingAverage(average, network, EmaConfig(decay=0.9, start_step=100)).update(100)
    assert all(torch.equal(a, b) for a, b in zip(average.state_dict().values(), source.values(), strict=True))
    assert ema_decay(1, EmaConfig(decay=0.9999)) == pytest.approx(2 / 11)
    assert ema_decay(10**6, EmaConfig(decay=0.9999)) == 0.9999


def test_noise_depends_on_seed_step_phase_and_place_alone() -> None:
    source = NoiseSource(seed=3, z_dim=5, num_classes=4, batch_size=8, device=CPU)
    whole = source.draw(7, "d", 0, 0, 8)
    half = source.draw(7, "d", 0, 4, 8)
    assert torch.equal(whole.z[4:], half.z) and torch.equal(whole.y[4:], half.y)
    assert torch.equal(whole.augment_real[4:], half.augment_real)
    others = [source.draw(8, "d", 0, 0, 8), source.draw(7, "g", 0, 0, 8), source.draw(7, "d", 1, 0, 8)]
    others.append(NoiseSource(seed=4, z_dim=5, num_classes=4, batch_size=8, device=CPU).draw(7, "d", 0, 0, 8))
    assert all(not torch.equal(whole.z, other.z) for other in others)
    for keys in ("keys_g", "keys_d_fake", "keys_d_real"):
        assert torch.equal(getattr(whole, keys)[4:], getattr(half, keys))
        assert all(not torch.equal(getattr(whole, keys), getattr(other, keys)) for other in others)


def players(g: GeneratorConfig, d: DiscriminatorConfig) -> tuple[Player, Player]:
    torch.manual_seed(0)
    nets = Generator(g), Discriminator(d)
    made = [
        Player(network=n, call=n, optimizer=torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.0, 0.9))) for n in nets
    ]
    return made[0], made[1]


def micro_batches(g: GeneratorConfig, *, count: int, size: int) -> list[MicroBatch]:
    total = count * size
    source = NoiseSource(seed=0, z_dim=g.z_dim, num_classes=g.num_classes, batch_size=total, device=CPU)
    real = torch.rand(total, 3, g.resolution, g.resolution, generator=torch.Generator().manual_seed(5)) * 2 - 1
    y = torch.arange(total) % g.num_classes
    cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
    return [MicroBatch(real=real[c], y=y[c], noise=source.draw(0, "d", 0, c.start, c.stop)) for c in cuts]


def test_power_iterations_are_taken_once_an_optimiser_step_where_so_wanted(
    tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> None:
    """The D phase of two micro-batches advances G by none and D by one; the G phase likewise the other way round."""
    G, D = players(tiny_generator_config, tiny_discriminator_config)
    batches = micro_batches(tiny_generator_config, count=2, size=4)
    options = {
        "objective": StepConfig(power_iterations="step"),
        "augmentation": AugmentConfig(),
        "autocast": contextlib.nullcontext,
    }

    def advanced(player: Player) -> dict[str, torch.Tensor]:
        twin = copy.deepcopy(player.network).train()
        for module in twin.modules():
            if isinstance(module, SNConv2d | SNLinear | SNEmbedding):
                module.spectral_norm(module.weight)
        return {name: u for name, u in twin.state_dict().items() if name.endswith(".u")}

    def agree(player: Player, expected: dict[str, torch.Tensor]) -> bool:
        state = player.network.state_dict()
        return all(torch.allclose(state[name], u, atol=1e-6) for name, u in expected.items())

    before = {name: u.clone() for name, u in G.network.state_dict().items() if name.endswith(".u")}
    expected = advanced(D)
    d_phase(G, D, batches, penalize=False, **options)  # type: ignore[arg-type]
    assert agree(G, before) and agree(D, expected)
    expected_g = advanced(G)
    g_phase(G, D, batches, **options)  # type: ignore[arg-type]
    assert agree(G, expected_g) and agree(D, expected)
    assert not agree(G, before)
    assert not any(module.held for module in G.network.modules() if isinstance(module, SpectralNorm))


def test_held_vectors_give_their_own_sigma() -> None:
    torch.manual_seed(0)
    layer = SNLinear(6, 5, spectral_norm=SpectralNormConfig()).train()
    layer.spectral_norm.held = True
    u = layer.spectral_norm.u.clone()
    normalised = layer.spectral_norm(layer.weight)
    assert torch.allclose(layer.weight / normalised, torch.linalg.vector_norm(layer.weight.t() @ u).expand(5, 6))
    assert torch.equal(u, layer.spectral_norm.u)


@pytest.mark.parametrize("loss", ["hinge", "non_saturating", "relativistic"])
def test_each_phase_moves_its_own_network_alone(
    tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig, loss: str
) -> None:
    G, D = players(tiny_generator_config, tiny_discriminator_config)
    batches = micro_batches(tiny_generator_config, count=1, size=6)
    options = {
        "objective": StepConfig(loss=loss, r1_gamma=1.0, r2_gamma=1.0, d_orthogonal=1e-4, g_orthogonal=1e-4),  # type: ignore[arg-type]
        "augmentation": AugmentConfig(kinds=("color", "translation")),
        "autocast": contextlib.nullcontext,
    }
    g0, d0 = ([p.detach().clone() for p in player.network.parameters()] for player in (G, D))
    stats = d_phase(G, D, batches, penalize=True, **options)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(g0, G.network.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(d0, D.network.parameters(), strict=True))
    assert float(stats["d_penalty"]) > 0 and all(torch.isfinite(v) for v in stats.values())
    d1 = [p.detach().clone() for p in D.network.parameters()]
    stats = g_phase(G, D, batches, **options)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(d1, D.network.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(g0, G.network.parameters(), strict=True))
    assert float(stats["g_grad_norm"]) > 0


def test_accumulation_adds_up_to_the_whole_batch(
    tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> None:
    """With nothing that couples samples (batch norm fixed, u fixed), two micro-batches give one batch's gradient."""
    gradients = []
    for count, size in ((1, 8), (2, 4)):
        G, D = players(tiny_generator_config, tiny_discriminator_config)
        G.network.eval()
        D.network.eval()
        d_phase(
            G,
            D,
            micro_batches(tiny_generator_config, count=count, size=size),
            objective=StepConfig(),
            augmentation=AugmentConfig(kinds=("translation",)),
            autocast=contextlib.nullcontext,
            penalize=False,
        )
        gradients.append(torch.cat([p.grad.flatten() for p in D.network.parameters() if p.grad is not None]))
    assert relative_error(gradients[1], gradients[0]) < 1e-4


def test_bfloat16_autocast_keeps_the_islands_and_stays_close(
    tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> None:
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        G, D = players(tiny_generator_config, tiny_discriminator_config)

        def autocast(dtype: torch.dtype = dtype) -> contextlib.AbstractContextManager[object]:
            return torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16)

        stats = d_phase(
            G,
            D,
            micro_batches(tiny_generator_config, count=1, size=8),
            objective=StepConfig(),
            augmentation=AugmentConfig(),
            autocast=autocast,
            penalize=False,
        )
        assert all(p.dtype == torch.float32 for p in D.network.parameters())
        assert all(b.dtype == torch.float32 for b in G.network.buffers())
        assert stats["d_loss"].dtype == torch.float32
        results.append(float(stats["d_loss"]))
    assert results[1] == pytest.approx(results[0], rel=0.05) and results[1] != results[0]


def test_the_first_of_several_gradients_leaves_the_memory_of_cuda_graphs(
    tiny_generator_config: GeneratorConfig,
    tiny_discriminator_config: DiscriminatorConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    for replays, count, kept in ((False, 3, False), (True, 1, False), (True, 3, True)):
        marks.clear()
        G, D = (
            replace(player, replays=replays) for player in players(tiny_generator_config, tiny_discriminator_config)
        )
        weight, given = next(D.network.parameters()), []  # type: ignore[var-annotated]
        weight.register_post_accumulate_grad_hook(lambda p, given=given: given.append(p.grad))
        d_phase(
            G,
            D,
            micro_batches(tiny_generator_config, count=count, size=2),
            penalize=False,
            objective=StepConfig(),
            augmentation=AugmentConfig(),
            autocast=contextlib.nullcontext,
        )
        assert len(given) == count and len(marks) == replays * count
        assert (given[0] is not weight.grad) == kept and given[-1] is weight.grad


@pytest.mark.parametrize(
    ("mode", "device", "refused"),
    [
        (False, "cpu", False),
        (True, "cpu", False),
        ("max-autotune", "cpu", False),
        ("reduce-overhead", "cpu", True),
        ("reduce-overhead", "cuda", False),
    ],
)
def test_cuda_graphs_are_refused_where_there_are_none(mode: Compile, device: str, refused: bool) -> None:
    refusal = pytest.raises(ValueError, match=r"compile is 'reduce-overhead' on the device cpu; .* set it to true")
    with refusal if refused else contextlib.nullcontext():
        check_compile(mode, torch.device(device))
    assert uses_cuda_graphs(mode, torch.device(device)) == (mode == "reduce-overhead" and device == "cuda")
    config = load_config(CONFIGS / "emoji32.toml", [f"--compile={str(mode).lower()}"])
    assert config.compile == mode
    assert configuration.from_mapping(TrainConfig, configuration.to_mapping(config), "test") == config


def test_a_mode_of_compilation_that_there_is_not_is_named() -> None:
    with pytest.raises(
        ValueError, match="'compile' is 'reduce'; allowed are false, true, reduce-overhead, max-autotune"
    ):
        load_config(CONFIGS / "emoji32.toml", ["--compile=reduce"])
    assert load_config(CONFIGS / "emoji32.toml", ["--compile"]).compile is True


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "count"), [(True, 1), ("reduce-overhead", 2)])
def test_compiled_networks_take_the_same_step(
    mode: Compile, count: int, tiny_generator_config: GeneratorConfig, tiny_discriminator_config: DiscriminatorConfig
) -> None:
    """In the mode of CUDA graphs too, which a CPU compiles without recording any, with its marks and copies."""
    losses = []
    for compiles in (False, True):
        G, D = players(tiny_generator_config, tiny_discriminator_config)
        if compiles:
            replays = mode == "reduce-overhead"
            G, D = (replace(player, call=compiled(player.network, mode), replays=replays) for player in (G, D))
        options = {"objective": StepConfig(), "augmentation": AugmentConfig(), "autocast": contextlib.nullcontext}
        for player in (G, D):
            player.network.eval()  # bases are then the stored ones, not drawn by another generator
        batches = micro_batches(tiny_generator_config, count=count, size=4)
        stats = d_phase(G, D, batches, penalize=False, **options)  # type: ignore[arg-type]
        stats |= g_phase(G, D, batches, **options)  # type: ignore[arg-type]
        losses.append([float(stats[key]) for key in ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_health_tells_collapse_from_diversity(tiny_generator_config: GeneratorConfig) -> None:
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    labels = torch.tensor([0] * 4 + [1] * 4)
    same = images[:1].expand(8, -1, -1, -1)
    assert class_diversity(same, labels) == 0.0 and class_diversity(images, labels) > 50
    pair = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 10.0)]).to(torch.uint8)
    assert class_diversity(pair, torch.tensor([0, 0])) == pytest.approx(10.0)
    assert class_diversity(pair, torch.tensor([0, 1])) == 0.0
    G = Generator(tiny_generator_config).eval()
    sigmas = largest_sigmas(G, "G")
    assert len(sigmas) == 4 and all(name.startswith("G/sigma/") for name in sigmas if name != "G/sigma_max")
    assert sigmas["G/sigma_max"] == max(sigmas.values()) == pytest.approx(1.0)  # orthogonal from the start
    found = ham_statistics(G, lambda: G(torch.randn(2, 16), torch.tensor([0, 1])), "G")
    kinds = ("gate", "reconstruction_error", "dead_bases", "effective_rank")
    assert set(found) == {f"G/contexts.1/{kind}" for kind in kinds}
    assert 0 < float(found["G/contexts.1/reconstruction_error"]) < 1


def test_adam_is_torchs_through_saving_loading_and_missing_gradients() -> None:
    torch.manual_seed(0)
    shapes = (3, 4), (5,), (2, 3, 3, 3)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.0, 0.9), "eps": 1e-6, "fused": True}
    adam, plain = Adam(ours, **settings), torch.optim.Adam(theirs, **settings)
    for step in range(8):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        if step == 4:
            ours[1].grad = theirs[1].grad = None
        if step == 6:
            adam.load_state_dict(copy.deepcopy(adam.state_dict()))
        for optimizer in (adam, plain):
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)), step
    for one, other in zip(adam.state_dict()["state"].values(), plain.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
