"""BigGAN and HamGAN written plainly, as the public PyTorch codes do it: the other side of `train_step` and `context_block`.

No fused resampling, no memory format, one power iteration in each forward of each layer, the shortcut of a generator block
at the high resolution, attention as plain products, a decomposition as its paper's code writes it. Modules have hamgan's
names, so that a state dict of ours loads and both sides compute the same function (tests/test_benchmarks.py).

Source: Brock et al. 2019; Geng et al. 2021; the structure of BigGAN-PyTorch, in our own words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamgan.models.arch import BlockPlan, discriminator_plan, generator_plan
from hamgan.models.discriminator import DiscriminatorConfig
from hamgan.models.generator import GeneratorConfig
from hamgan.nn.hamburger import HamburgerConfig
from hamgan.nn.spectral_norm import SpectralNormConfig


class PowerIteration(nn.Module):
    """W / sigma (or W / max(1, sigma)), sigma by one power iteration at each call."""

    def __init__(self, weight: Tensor, config: SpectralNormConfig) -> None:
        super().__init__()
        self.config = config
        length = weight.shape[0] if config.side == "output" else weight[0].numel()
        self.register_buffer("u", F.normalize(torch.randn(1, length), dim=1)[0])

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.view(weight.shape[0], -1)
        if self.config.side == "input":
            matrix = matrix.t()
        with torch.no_grad():
            v = F.normalize(torch.matmul(self.u[None], matrix), eps=self.config.eps)
            u = F.normalize(torch.matmul(v, matrix.t()), eps=self.config.eps)
            if self.training:
                self.u[:] = u[0]
        sigma = torch.squeeze(torch.matmul(torch.matmul(v, matrix.t()), u.t()))
        if self.config.mode == "inequality":
            sigma = torch.clamp(sigma, min=1.0)
        return weight / sigma


class Conv(nn.Conv2d):
    """A convolution with spectral norm."""

    def __init__(self, c_in: int, c_out: int, size: int, config: SpectralNormConfig, bias: bool = True) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2, bias=bias)
        self.spectral_norm = PowerIteration(self.weight, config)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.spectral_norm(self.weight), self.bias, padding=self.padding)


class Linear(nn.Linear):
    """A linear map with spectral norm."""

    def __init__(self, num_in: int, num_out: int, config: SpectralNormConfig, bias: bool = True) -> None:
        super().__init__(num_in, num_out, bias=bias)
        self.spectral_norm = PowerIteration(self.weight, config)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.spectral_norm(self.weight), self.bias)


class Embedding(nn.Embedding):
    """A table with spectral norm."""

    def __init__(self, num_classes: int, dim: int, config: SpectralNormConfig) -> None:
        super().__init__(num_classes, dim)
        self.spectral_norm = PowerIteration(self.weight, config)

    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, self.spectral_norm(self.weight))


class Statistics(nn.Module):
    """Batch norm without gain and bias."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, self.momentum, self.eps)


class ConditionalNorm(nn.Module):
    """Class-conditional batch norm, from the shared embedding or from tables."""

    def __init__(self, channels: int, condition_dim: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.statistics = Statistics(channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.shared = config.conditioning == "shared"
        if self.shared:
            self.gain = Linear(condition_dim, channels, config.spectral_norm, bias=False)
            self.bias = Linear(condition_dim, channels, config.spectral_norm, bias=False)
        else:
            self.gain = nn.Embedding(condition_dim, channels)
            self.bias = nn.Embedding(condition_dim, channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gain = self.gain(c).view(len(x), -1, 1, 1)
        bias = self.bias(c).view(len(x), -1, 1, 1)
        return self.statistics(x) * ((1 + gain) if self.shared else gain) + bias


class Norm(nn.Module):
    """Batch norm with a gain and a bias."""

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.statistics = Statistics(channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.statistics(x) * self.gain[None, :, None, None] + self.bias[None, :, None, None]


class Attention(nn.Module):
    """Self-attention with pooled keys and values, as plain products."""

    def __init__(self, channels: int, config: SpectralNormConfig) -> None:
        super().__init__()
        self.channels = channels
        keys, values = max(channels // 8, 1), max(channels // 2, 1)
        self.theta = Conv(channels, keys, 1, config, bias=False)
        self.phi = Conv(channels, keys, 1, config, bias=False)
        self.g = Conv(channels, values, 1, config, bias=False)
        self.o = Conv(values, channels, 1, config, bias=False)
        self.gate = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        theta = self.theta(x).view(batch, -1, height * width)
        phi = F.max_pool2d(self.phi(x), 2).view(batch, -1, height * width // 4)
        g = F.max_pool2d(self.g(x), 2).view(batch, -1, height * width // 4)
        weights = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
        context = torch.bmm(g, weights.transpose(1, 2)).view(batch, -1, height, width)
        return self.gate * self.o(context) + x


class FusedAttention(Attention):
    """The same with torch's scaled_dot_product_attention."""

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        queries = self.theta(x).flatten(2).transpose(1, 2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2).transpose(1, 2)
        values = F.max_pool2d(self.g(x), 2).flatten(2).transpose(1, 2)
        context = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        return self.gate * self.o(context.transpose(1, 2).unflatten(2, x.shape[2:])) + x


class Burger(nn.Module):
    """The Hamburger V1 with NMF and the one-step gradient, as the paper's code writes it."""

    def __init__(
        self, channels: int, ham: HamburgerConfig, config: SpectralNormConfig, norm: ConditionalNorm | None
    ) -> None:
        super().__init__()
        if (ham.kind, ham.version, ham.layout, ham.gradient) != ("NMF", "V1", "spatial", "one_step"):
            raise ValueError("the reference step knows the NMF, V1, spatial, one-step Hamburger only")
        equality = SpectralNormConfig(mode="equality", side=config.side, eps=config.eps)
        self.ham = ham
        self.lower_bread = Conv(channels, channels, 1, equality, bias=False)
        self.upper_bread = Conv(channels, channels, 1, equality, bias=False)
        self.upper_bread_norm = norm
        self.gate = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        batch, channels, height, width = x.shape
        h = F.relu(self.lower_bread(x))
        with torch.autocast(x.device.type, enabled=False):
            columns = h.float().reshape(batch, channels, height * width)
            h = self.decompose(columns).view(batch, channels, height, width).to(h.dtype)
        h = self.upper_bread(h)
        if self.upper_bread_norm is not None:
            assert c is not None
            h = self.upper_bread_norm(h, c)
        return x + self.gate * h

    def decompose(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            bases = torch.rand(len(x), x.shape[1], self.ham.rank, device=x.device)
            if self.ham.normalize_bases:
                bases = F.normalize(bases, dim=1)
            coef = F.softmax(torch.bmm(x.transpose(1, 2), bases), dim=-1)
            for _ in range(self.ham.train_steps):
                coef = self.update_coef(x, bases, coef)
                numerator = torch.bmm(x, coef)
                denominator = bases.bmm(coef.transpose(1, 2).bmm(coef))
                bases = bases * numerator / (denominator + 1e-6)
        coef = self.update_coef(x, bases, coef)
        return torch.bmm(bases, coef.transpose(1, 2))

    def update_coef(self, x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
        numerator = torch.bmm(x.transpose(1, 2), bases)
        denominator = coef.bmm(bases.transpose(1, 2).bmm(bases))
        return coef * numerator / (denominator + 1e-6)


def context_of(
    plan: BlockPlan, config: GeneratorConfig | DiscriminatorConfig, norm: ConditionalNorm | None
) -> nn.Module:
    """Build a block's context block, or the identity."""
    if not plan.context or config.context == "none":
        return nn.Identity()
    if config.context == "attention":
        return Attention(plan.out_channels, config.spectral_norm)
    return Burger(plan.out_channels, config.ham, config.spectral_norm, norm)


class GBlock(nn.Module):
    """A generator's residual block."""

    def __init__(self, plan: BlockPlan, condition_dim: int, config: GeneratorConfig) -> None:
        super().__init__()
        spectral_norm = config.spectral_norm
        self.norm1 = ConditionalNorm(plan.in_channels, condition_dim, config)
        self.conv1 = Conv(plan.in_channels, plan.out_channels, 3, spectral_norm)
        self.norm2 = ConditionalNorm(plan.out_channels, condition_dim, config)
        self.conv2 = Conv(plan.out_channels, plan.out_channels, 3, spectral_norm)
        self.shortcut = Conv(plan.in_channels, plan.out_channels, 1, spectral_norm)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = F.relu(self.norm1(x, c), inplace=True)
        h = F.interpolate(h, scale_factor=2)
        x = F.interpolate(x, scale_factor=2)
        h = self.conv1(h)
        h = F.relu(self.norm2(h, c), inplace=True)
        h = self.conv2(h)
        return h + self.shortcut(x)


class Generator(nn.Module):
    """The generator."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        plan = generator_plan(
            config.resolution, config.channels, config.channel_multipliers, config.context_resolutions
        )
        shared = config.conditioning == "shared"
        self.num_chunks = len(plan) + 1 if config.hierarchical else 1
        chunk = config.z_dim // self.num_chunks
        condition_dim = config.num_classes
        if shared:
            condition_dim = config.embedding_dim + (chunk if config.hierarchical else 0)
        self.embedding = nn.Embedding(config.num_classes, config.embedding_dim) if shared else nn.Identity()
        self.linear = Linear(chunk, plan[0].in_channels * 16, config.spectral_norm)
        self.blocks = nn.ModuleList(GBlock(block, condition_dim, config) for block in plan)
        self.contexts = nn.ModuleList(
            context_of(block, config, ConditionalNorm(block.out_channels, condition_dim, config)) for block in plan
        )
        self.output_norm = Norm(plan[-1].out_channels, config)
        self.output_conv = Conv(plan[-1].out_channels, 3, 3, config.spectral_norm)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        c = self.embedding(y)
        chunks = torch.split(z, z.shape[1] // self.num_chunks, 1)
        conditions = [torch.cat([c, chunk], 1) for chunk in chunks[1:]] or [c] * len(self.blocks)
        h = self.linear(chunks[0]).view(len(z), -1, 4, 4)
        for block, context, condition in zip(self.blocks, self.contexts, conditions, strict=True):
            h = block(h, condition)
            h = h if isinstance(context, nn.Identity) else context(h, condition)
        return torch.tanh(self.output_conv(F.relu(self.output_norm(h), inplace=True)))


class DBlock(nn.Module):
    """A discriminator's residual block."""

    def __init__(self, plan: BlockPlan, hidden: int, preactivation: bool, config: SpectralNormConfig) -> None:
        super().__init__()
        self.preactivation, self.downsampling = preactivation, plan.resampling
        self.conv1 = Conv(plan.in_channels, hidden, 3, config)
        self.conv2 = Conv(hidden, plan.out_channels, 3, config)
        self.shortcut: nn.Module = nn.Identity()
        if plan.resampling or plan.in_channels != plan.out_channels:
            self.shortcut = Conv(plan.in_channels, plan.out_channels, 1, config)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(x) if self.preactivation else x
        h = self.conv2(F.relu(self.conv1(h), inplace=True))
        if self.downsampling:
            h = F.avg_pool2d(h, 2)
        if not self.preactivation:
            return h + self.shortcut(F.avg_pool2d(x, 2) if self.downsampling else x)
        x = self.shortcut(x)
        return h + (F.avg_pool2d(x, 2) if self.downsampling else x)


class Discriminator(nn.Module):
    """The projection discriminator."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        plan = discriminator_plan(
            config.resolution, config.channels, config.channel_multipliers, config.context_resolutions
        )
        self.blocks = nn.ModuleList(
            DBlock(block, block.out_channels if config.wide else block.in_channels, index > 0, config.spectral_norm)
            for index, block in enumerate(plan)
        )
        self.contexts = nn.ModuleList(context_of(block, config, None) for block in plan)
        self.linear = Linear(plan[-1].out_channels, 1, config.spectral_norm)
        self.embedding = Embedding(config.num_classes, plan[-1].out_channels, config.spectral_norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        for block, context in zip(self.blocks, self.contexts, strict=True):
            h = context(block(h))
        h = torch.sum(F.relu(h), [2, 3])
        return self.linear(h) + torch.sum(self.embedding(y) * h, 1, keepdim=True)
