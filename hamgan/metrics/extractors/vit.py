"""Vision transformers of DINOv2 and CLIP, with the names of their public checkpoints."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 224  # pixels
_HEAD_WIDTH = 64  # of every published DINOv2 and CLIP transformer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // _HEAD_WIDTH
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attend(self.qkv(x), self.heads))


def _attend(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _SwiGlu(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _DinoBlock(nn.Module):
    def __init__(self, dim: int, swiglu: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim)
        self.ls1 = _LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _SwiGlu(dim) if swiglu else _Mlp(dim)
        self.ls2 = _LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """DINOv2's backbone; its feature is the normalised class token.

    Args:
        dim: Width.
        depth: Number of blocks.
        patch: Side of a patch, pixels.
        grid: Patches along a side that the stored position embedding was made for.
        num_registers: Register tokens; 0 in the first release.
        swiglu: Whether the MLP is gated (the giant model's is).

    Source: Oquab et al. 2023; Darcet et al. 2023 for the registers.
    """

    num_classes = None

    def __init__(
        self, *, dim: int, depth: int, patch: int, grid: int, num_registers: int = 0, swiglu: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.patch, self.grid = dim, patch, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, dim)) if num_registers else None
        self.patch_embed = _PatchEmbed(dim, patch)
        self.blocks = nn.ModuleList(_DinoBlock(dim, swiglu) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @classmethod
    def from_shapes(cls, state_dict: dict[str, Tensor]) -> "DinoV2":
        """Build the variant that a checkpoint's shapes describe."""
        embed = state_dict["patch_embed.proj.weight"]
        _check_width(embed.shape[0])
        registers = state_dict.get("register_tokens")
        return cls(
            dim=embed.shape[0],
            depth=_count(state_dict, r"blocks\.(\d+)\."),
            patch=embed.shape[-1],
            grid=math.isqrt(state_dict["pos_embed"].shape[1] - 1),
            num_registers=0 if registers is None else registers.shape[1],
            swiglu="blocks.0.mlp.w12.weight" in state_dict,
        )

    @property
    def variant(self) -> str:
        """Published name: dinov2_vitl14, dinov2_vitb14_reg, ..."""
        size = {384: "s", 768: "b", 1024: "l", 1536: "g"}.get(self.dim, str(self.dim))
        return f"dinov2_vit{size}{self.patch}" + ("" if self.register_tokens is None else "_reg")

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Map (B, 3, H, W), sides multiples of the patch, to the class token (B, dim)."""
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        x = x + self._positions(rows, columns)
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0], None

    def _positions(self, rows: int, columns: int) -> Tensor:
        if rows == columns == self.grid:
            return self.pos_embed
        patches = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.register_tokens is None:
            # The release scales by (n + 0.1) / grid rather than to n: features differ without it.
            scale = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
            patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        else:
            patches = F.interpolate(patches, size=(rows, columns), mode="bicubic", antialias=True)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], 1)


class _ClipAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // _HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(_attend(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.heads))


class _ClipMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, 4 * dim)
        self.c_proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))  # OpenAI's quick GELU


class _ClipBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = _ClipAttention(dim)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = _ClipMlp(dim)
        self.ln_2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _ClipTransformer(nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_ClipBlock(dim) for _ in range(depth)))


class ClipVisual(nn.Module):
    """CLIP's image tower (the transformers); its feature is the projected class token, not normalised.

    Args:
        dim: Width of the projection.
        width: Width of the transformer.
        depth: Number of blocks.
        patch: Side of a patch, pixels.
        grid: Patches along a side.

    Source: Radford et al. 2021.
    """

    num_classes = None

    def __init__(self, *, dim: int, width: int, depth: int, patch: int, grid: int) -> None:
        super().__init__()
        self.dim, self.width, self.patch, self.grid = dim, width, patch, grid
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid * grid + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, dim))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _ClipTransformer(width, depth)
        self.ln_post = nn.LayerNorm(width)

    @classmethod
    def from_shapes(cls, state_dict: dict[str, Tensor]) -> "ClipVisual":
        """Build the variant that the image tower's shapes describe."""
        width, dim = state_dict["proj"].shape
        _check_width(width)
        return cls(
            dim=dim,
            width=width,
            depth=_count(state_dict, r"transformer\.resblocks\.(\d+)\."),
            patch=state_dict["conv1.weight"].shape[-1],
            grid=math.isqrt(state_dict["positional_embedding"].shape[0] - 1),
        )

    @property
    def variant(self) -> str:
        """Published name: clip_vitb32, clip_vitl14, ..."""
        size = {768: "b", 1024: "l"}.get(self.width, str(self.width))
        return f"clip_vit{size}{self.patch}"

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Map (B, 3, grid * patch, grid * patch) to the embedding (B, dim)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer.resblocks(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj, None


def preprocess(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], side: int = _SIDE) -> Tensor:
    """uint8 (B, 3, H, W) to (B, 3, side, side): antialiased bicubic, clipped, normalised per channel."""
    x = images.float()
    x = F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    shape = (1, 3, 1, 1)
    centre, spread = (torch.tensor(v, device=x.device).view(shape) for v in (mean, std))
    return (x / 255 - centre) / spread


def visual_part(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the image tower out of a whole CLIP checkpoint; leave an image tower as it is."""
    if not any(name.startswith("visual.") for name in state_dict):
        return state_dict
    return {n.removeprefix("visual."): t for n, t in state_dict.items() if n.startswith("visual.")}


def _check_width(width: int) -> None:
    if width % _HEAD_WIDTH:
        raise ValueError(f"a transformer of width {width}: expected a multiple of {_HEAD_WIDTH}")


def _count(state_dict: dict[str, Tensor], pattern: str) -> int:
    return len({m[1] for n in state_dict if (m := re.match(pattern, n))})
