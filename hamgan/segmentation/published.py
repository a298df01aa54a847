"""The published systems: their configurations and the figures that were printed for them.

Source: Geng et al. 2021, tables 5 to 7; Guo et al. 2022, table 8; the public code's README and its counter.
"""

from dataclasses import dataclass, replace

from hamgan.segmentation.model import SegmentationConfig

LIGHT_HAM = SegmentationConfig()
HAM_NET = SegmentationConfig(
    backbone="resnet101", head="ham_net", squeeze_channels=512, channels=512, rank=64, auxiliary=True
)
VOC_HAM_NET = SegmentationConfig(
    num_classes=21,
    backbone="resnet101_voc",
    head="ham_net_voc",
    squeeze_channels=512,
    channels=256,
    ham_version="V2",
    rank=64,
    eval_steps=6,
    gradient="one_step",
    align_corners=True,
    batch_norm_momentum=3e-4,
)


@dataclass(frozen=True, kw_only=True)
class PublishedSystem:
    """A system and its figures."""

    config: SegmentationConfig
    """Architecture; classes as in the figures."""
    parameters: int
    """Learnt numbers, those of the auxiliary head included."""
    giga_multiply_adds: str
    """At 512x512 in evaluation with 7 steps of the ham, in units of 1e9, with the digits that are known."""


PUBLISHED: dict[str, PublishedSystem] = {
    "Light-Ham VAN-Tiny": PublishedSystem(
        config=replace(LIGHT_HAM, backbone="van_tiny", rank=16), parameters=4_208_630, giga_multiply_adds="6.4691"
    ),
    "Light-Ham VAN-Tiny, D=480, C=512": PublishedSystem(
        config=replace(LIGHT_HAM, backbone="van_tiny", squeeze_channels=480, channels=512, rank=64),
        parameters=4_866_134,
        giga_multiply_adds="11.2787",
    ),
    "Light-Ham VAN-Small": PublishedSystem(config=LIGHT_HAM, parameters=13_831_510, giga_multiply_adds="15.845351424"),
    "Light-Ham VAN-Small, D=C=512": PublishedSystem(
        config=replace(LIGHT_HAM, squeeze_channels=512, channels=512, rank=64),
        parameters=14_707_286,
        giga_multiply_adds="21.3572",
    ),
    "Light-Ham VAN-Base": PublishedSystem(
        config=replace(LIGHT_HAM, backbone="van_base", squeeze_channels=512, channels=512, rank=64),
        parameters=27_423_958,
        giga_multiply_adds="34.427076608",
    ),
    "Light-Ham VAN-Large": PublishedSystem(
        config=replace(LIGHT_HAM, backbone="van_large", squeeze_channels=512, channels=512, rank=64, drop_path=0.25),
        parameters=45_611_094,
        giga_multiply_adds="55.002300416",
    ),
    "Light-Ham VAN-Huge": PublishedSystem(
        config=replace(LIGHT_HAM, backbone="van_huge", squeeze_channels=512, channels=512, rank=64, drop_path=0.3),
        parameters=61_128_662,
        giga_multiply_adds="71.841054720",
    ),
    "HamNet ResNet-101": PublishedSystem(config=HAM_NET, parameters=57_319_052, giga_multiply_adds="232.2533"),
    "HamNet+ ResNet-101": PublishedSystem(
        config=replace(HAM_NET, head="ham_net_plus"), parameters=69_116_556, giga_multiply_adds="280.5737"
    ),
    "HamNet VOC, V1": PublishedSystem(
        config=replace(VOC_HAM_NET, ham_version="V1"), parameters=53_773_525, giga_multiply_adds="232.83"
    ),
    "HamNet VOC, V2": PublishedSystem(config=VOC_HAM_NET, parameters=54_035_669, giga_multiply_adds="233.90"),
    "HamNet VOC, V2+": PublishedSystem(
        config=replace(VOC_HAM_NET, ham_version="V2+"), parameters=54_035_671, giga_multiply_adds="233.91"
    ),
}


def published_rank(config: SegmentationConfig) -> int:
    """Return the published number of bases of a system: no weight tells it, so it goes by backbone, head and widths.

    Systems that were not published have 64, as most that were.
    """
    keys = ("backbone", "backbone_dims", "backbone_depths", "head", "squeeze_channels", "channels")
    for system in PUBLISHED.values():
        if all(getattr(system.config, key) == getattr(config, key) for key in keys):
            return system.config.rank
    return 64
