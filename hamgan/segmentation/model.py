"""The segmentor: a backbone, a head with a Hamburger, and for training an auxiliary head; with its configuration."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

from hamgan.nn.decomposition import BasesMode, Gradient
from hamgan.nn.efficientnet_lite import BATCH_NORM_EPS
from hamgan.nn.hamburger import HamburgerConfig
from hamgan.segmentation.efficientnet import EfficientNet, EfficientNetPlan
from hamgan.segmentation.hamburger import Hamburger, HamVersion
from hamgan.segmentation.heads import AuxiliaryHead, HamHead, LastInput, MultiLevelInput
from hamgan.segmentation.layers import BatchNorm, BilinearResize, GroupNorm, NormFactory
from hamgan.segmentation.resnet import EXPANSION, PUBLISHED_RESNETS, ResNet, ResNetPlan
from hamgan.segmentation.van import LAYER_SCALE, PUBLISHED_VANS, VAN, VANPlan

NUM_STAGES = 4
NUM_GROUPS = 32
"""Groups of the heads' group norms."""

BackboneName = Literal[
    "van_tiny", "van_small", "van_base", "van_large", "van_huge", "resnet101", "resnet101_voc", "efficientnet_lite0"
]
HeadName = Literal["light_ham", "ham_net", "ham_net_plus", "ham_net_voc"]


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """A segmentor's architecture. The defaults are Light-Ham VAN-Small's for ADE20K."""

    num_classes: int = 150
    """Number of classes, without the ignored label."""
    backbone: BackboneName = "van_small"
    """The backbone; resnet101_voc has a stem twice as wide and a multi-grid last stage; efficientnet_lite0 is a small one whose
    ImageNet weights need no download (`weights = "efficientnet_lite0"`)."""
    backbone_dims: tuple[int, ...] = ()
    """Channels of the four stages' outputs; empty: the backbone's published ones."""
    backbone_depths: tuple[int, ...] = ()
    """Blocks of the four stages; empty: the backbone's published ones."""
    backbone_strides: tuple[int, ...] = ()
    """Strides of the four stages; empty: the published 4,2,2,2 (VAN, EfficientNet), 1,2,1,1 (ResNet, after a stem of stride
    4). A ResNet's stages are dilated instead of strided; a VAN at output stride 8 has 4,2,1,1."""
    mlp_ratios: tuple[int, ...] = ()
    """Hidden channels of a VAN's MLPs over its channels, one a stage; empty: the published 8,8,4,4."""
    stem_channels: tuple[int, ...] = ()
    """Outputs of a ResNet's three stem convolutions; empty: the backbone's published ones."""
    drop_path: float = 0.1
    """Probability of leaving out the last VAN block's branches in training, growing from 0; published: Large 0.25, Huge 0.3."""
    layer_scale: float = LAYER_SCALE
    """Initial layer scale of a VAN's blocks: small for deep, long-trained ones (published), larger where training is short."""
    head: HeadName = "light_ham"
    """light_ham: stages 2 to 4, pointwise maps. ham_net: stage 4, 3x3 convolutions. ham_net_plus: the same and a concatenation
    with stage 4. ham_net_voc: ham_net with batch norm, as in the paper."""
    squeeze_channels: int = 256
    """Channels D that the Hamburger sees."""
    ham_channels: int = 0
    """Channels that are decomposed; 0: squeeze_channels."""
    channels: int = 256
    """Channels C that are classified."""
    ham: Literal["NMF", "VQ", "CD", "identity"] = "NMF"
    """The Hamburger's matrix decomposition; identity: no Hamburger."""
    ham_version: HamVersion = "V1"
    """V1: norm after the upper bread; V2: a cheese instead; V2+: V2 with two learnt scalars."""
    rank: int = 32
    """Number of bases R."""
    train_steps: int = 6
    """Steps K in training."""
    eval_steps: int = 7
    """Steps K in evaluation; the paper's code for PASCAL VOC takes 6."""
    gradient: Gradient = "unrolled"
    """unrolled: through all K steps (the ADE20K heads); one_step: through the last code update only (the paper's VOC code)."""
    bases: BasesMode = "random"
    """random: drawn anew at every training forward; online: stored, following what the steps find."""
    seed: int = 0
    """Of the stored bases that evaluation uses."""
    dropout: float = 0.1
    """Probability of dropping a channel before classification in training."""
    auxiliary: bool = False
    """Whether an auxiliary head reads stage 3 in training."""
    auxiliary_channels: int = 256
    """Channels that the auxiliary head classifies."""
    align_corners: bool = False
    """Whether bilinear resizing keeps corner pixels; true in the paper's VOC code."""
    batch_norm_momentum: float = 0.1
    """Weight of a new batch in the running statistics; 3e-4 in the paper's VOC code."""
    cross_replica: bool = True
    """Whether batch norm in training uses the statistics over all processes."""

    def __post_init__(self) -> None:
        for name in ("backbone_dims", "backbone_depths", "backbone_strides", "mlp_ratios"):
            _check_stages(name, getattr(self, name), NUM_STAGES)
        _check_stages("stem_channels", self.stem_channels, 3)
        for name in ("num_classes", "squeeze_channels", "channels", "rank", "auxiliary_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("ham_channels", "train_steps", "eval_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not self.layer_scale > 0:
            raise ValueError(f"layer_scale is {self.layer_scale}; it must be > 0")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum is {self.batch_norm_momentum}; it must be in (0, 1]")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be in [0, 2**63)")
        if not self.is_resnet and self.stem_channels:
            raise ValueError(
                f"stem_channels is {list(self.stem_channels)}; only a ResNet has a stem, not {self.backbone}"
            )
        if not self.is_van and self.mlp_ratios:
            raise ValueError(f"mlp_ratios is {list(self.mlp_ratios)}; only a VAN has MLPs, not {self.backbone}")
        if self.backbone == "efficientnet_lite0" and (self.backbone_dims or self.backbone_depths):
            raise ValueError("backbone_dims and backbone_depths must be empty; efficientnet_lite0 has one size only")
        self.backbone_plan()  # checks the strides
        if self.is_resnet and any(dim % EXPANSION for dim in self.backbone_dims):
            raise ValueError(
                f"backbone_dims is {list(self.backbone_dims)}; a ResNet's must be divisible by {EXPANSION}"
            )
        if self.head != "ham_net_voc":
            grouped = {"squeeze_channels": self.squeeze_channels, "channels": self.channels}
            grouped |= {"ham_channels": self.ham_channels} if self.ham_version != "V1" else {}
            grouped |= {"auxiliary_channels": self.auxiliary_channels} if self.auxiliary else {}
            for name, value in grouped.items():
                if value % NUM_GROUPS:
                    raise ValueError(f"{name} is {value}; it must be divisible by the {NUM_GROUPS} groups of its norm")

    @property
    def is_van(self) -> bool:
        """Whether the backbone is a VAN."""
        return self.backbone in PUBLISHED_VANS

    @property
    def is_resnet(self) -> bool:
        """Whether the backbone is a ResNet."""
        return self.backbone in PUBLISHED_RESNETS

    def backbone_plan(self) -> VANPlan | ResNetPlan | EfficientNetPlan:
        """Return the backbone's sizes: the published ones where this configuration leaves them open."""
        if self.backbone == "efficientnet_lite0":
            return EfficientNetPlan(strides=self.backbone_strides) if self.backbone_strides else EfficientNetPlan()
        plan: VANPlan | ResNetPlan
        if self.is_van:
            plan = PUBLISHED_VANS[self.backbone]
            return VANPlan(
                dims=self.backbone_dims or plan.dims,
                depths=self.backbone_depths or plan.depths,
                mlp_ratios=self.mlp_ratios or plan.mlp_ratios,
                strides=self.backbone_strides or plan.strides,
            )
        plan = PUBLISHED_RESNETS[self.backbone]
        return ResNetPlan(
            dims=self.backbone_dims or plan.dims,
            depths=self.backbone_depths or plan.depths,
            strides=self.backbone_strides or plan.strides,
            stem_channels=self.stem_channels or plan.stem_channels,
            multi_grid=plan.multi_grid,
        )


def _check_stages(name: str, values: tuple[int, ...], length: int) -> None:
    if values and (len(values) != length or min(values) < 1):
        raise ValueError(
            f"{name} is {list(values)}; it must be {length} positive numbers, or empty for the published ones"
        )


class Logits(NamedTuple):
    """What the losses in training are taken of; at the images' size."""

    main: Tensor
    """(B, num_classes, H, W)."""
    auxiliary: Tensor | None
    """(B, num_classes, H, W); None without an auxiliary head."""


class Segmentor(nn.Module):
    """Images to the logits of their pixels' classes.

    Args:
        config: The architecture.

    Source: Geng et al. 2021, section 4.2; Guo et al. 2022, section 4.3.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        batch_norm = partial(BatchNorm, momentum=config.batch_norm_momentum, cross_replica=config.cross_replica)
        plan = config.backbone_plan()
        self.backbone: VAN | ResNet | EfficientNet
        if isinstance(plan, EfficientNetPlan):
            self.backbone = EfficientNet(plan, norm=partial(batch_norm, eps=BATCH_NORM_EPS))
        elif isinstance(plan, VANPlan):
            self.backbone = VAN(plan, drop_path=config.drop_path, norm=batch_norm, layer_scale=config.layer_scale)
        else:
            self.backbone = ResNet(plan, norm=batch_norm)
        head_norm = batch_norm if config.head == "ham_net_voc" else partial(GroupNorm, NUM_GROUPS)
        light = config.head == "light_ham"
        self.gather: nn.Module = MultiLevelInput(align_corners=config.align_corners) if light else LastInput()
        self.head = HamHead(
            sum(plan.dims[1:]) if light else plan.dims[-1],
            squeeze_channels=config.squeeze_channels,
            channels=config.channels,
            num_classes=config.num_classes,
            kernel_size=1 if light else 3,
            hamburger=_build_hamburger(config, head_norm),
            concatenate=config.head == "ham_net_plus",
            dropout=config.dropout,
            norm=head_norm,
        )
        self.auxiliary_head = None
        if config.auxiliary:
            self.auxiliary_head = AuxiliaryHead(
                plan.dims[-2],
                channels=config.auxiliary_channels,
                num_classes=config.num_classes,
                dropout=config.dropout,
                norm=head_norm,
            )
        self.resize = BilinearResize(align_corners=config.align_corners)

    def forward(self, images: Tensor, bases: Tensor | None = None) -> Tensor:
        """Classify every pixel.

        Args:
            images: Normalised by the data's mean and deviation, (B, 3, H, W); sides of at least the backbone's stride.
            bases: Initial bases of the Hamburger, (B, D, R) or (1, D, R); None: drawn in training, stored in evaluation.

        Returns:
            Logits, (B, num_classes, H, W).

        Raises:
            ValueError: If images have another number of channels or are smaller than the stride.
        """
        return self.resize(self.coarse_logits(images, bases), images.shape[2:])

    def coarse_logits(self, images: Tensor, bases: Tensor | None = None) -> Tensor:
        """Return the head's logits, (B, num_classes, h, w), before they are resized; arguments and errors as in `forward`."""
        return self.head(self.gather(self.features(images)), bases)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's four maps, (B, C_s, H_s, W_s), finest first; errors as in `forward`."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}; (B, 3, H, W) is expected")
        if min(images.shape[2:]) < self.backbone.stride:
            raise ValueError(
                f"images are {images.shape[2]}x{images.shape[3]}; no side may be smaller than the backbone's stride, "
                f"{self.backbone.stride}"
            )
        return self.backbone(images)

    def forward_train(self, images: Tensor, bases: Tensor | None = None) -> Logits:
        """Return the logits of the head and of the auxiliary head, if there is one; arguments and errors as in `forward`."""
        maps = self.features(images)
        size = images.shape[2:]
        main = self.resize(self.head(self.gather(maps), bases), size)
        auxiliary = None if self.auxiliary_head is None else self.resize(self.auxiliary_head(maps), size)
        return Logits(main, auxiliary)


def _build_hamburger(config: SegmentationConfig, norm: NormFactory) -> Hamburger | None:
    if config.ham == "identity":
        return None
    ham = HamburgerConfig(
        kind=config.ham,
        rank=config.rank,
        latent_channels=config.ham_channels,
        train_steps=config.train_steps,
        eval_steps=config.eval_steps,
        gradient=config.gradient,
        bases=config.bases,
        seed=config.seed,
    )
    return Hamburger(config.squeeze_channels, ham, version=config.ham_version, norm=norm)
