"""The embedded emoji as objects to be segmented: which kind of thing each shows, and whether it is for training or testing."""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "test", "fit", "validation"]
"""train and test part all emoji, fit and validation part those of train: recipes are chosen with the latter two."""
Classes = Literal["kinds", "groups"]

TEST_SHARE = 5
"""One family in so many is for testing; of the others, one in so many for validation."""

_JOINER, _PICTURE_STYLE = 0x200D, 0xFE0F
_GENDERS = (0x2640, 0x2642)
_PERSONS = (0x1F468, 0x1F469, 0x1F9D1)  # man, woman, adult
_SAME_PICTURE = {0x1F63A: 0x1F431}  # the smiling cat is the cat


def _codes(text: str) -> frozenset[int]:
    """Read code points and ranges of them, such as `1f600-1f644 2639`."""
    ranges = [part.partition("-") for part in text.split()]
    return frozenset(code for a, _, b in ranges for code in range(int(a, 16), int(b or a, 16) + 1))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of thing: the emoji of a group whose first code point is listed (none: all of the group) and not excepted."""

    group: str
    codes: frozenset[int] = frozenset()
    excepted: frozenset[int] = frozenset()


_HANDS = _codes(
    "1f446-1f450 1f485 1f4aa 1f590 1f595 1f596 1f64c 1f64f 1f90c 1f90f 1f918-1f91f 1f932 1f933 1faf0-1faf8 261d 270a-270d"
)
_PARTS_OF_BODIES = _codes("1f440-1f445 1f463-1f465 1f5e3 1f9b4-1f9b7 1f9bb 1f9be 1f9bf 1f9e0 1fac0 1fac1 1fae6")

KINDS = {
    "button": Kind(
        group="symbols",
        codes=_codes(
            "23 2a 30-39 1f170 1f171 1f17e 1f17f 1f18e 1f191-1f19a 1f201 1f202 1f21a 1f22f 1f232-1f23a 1f3a6 1f3e7 1f4f3 1f4f4 "
            "1f4f6 1f500-1f504 1f51f-1f524 1f52f 1f53c 1f53d 1f549 1f54e 1f6ae 1f6b0 1f6b9-1f6bc 1f6be 1f6c2-1f6c5 1f6d0 1f6dc "
            "1faaf 2139 2194-2199 21a9 21aa 23cf 23e9-23ef 23f8-23fa 25b6 25c0 2626 262a 262e 262f 2638 2640 2642 2648-2653 "
            "267f 269b 26a7 26ce 2705 271d 2721 2733 2734 2747 274e 27a1 2934 2935 2b05-2b07"
        ),
    ),
    "clock": Kind(group="travel-and-places", codes=_codes("1f550-1f567 231a 23f0-23f2")),
    "face": Kind(
        group="smileys-and-emotion",
        codes=_codes("1f600-1f637 1f641-1f644 1f910-1f92f 1f970-1f97a 1f9d0 1fae0-1fae8 2639 263a"),
        excepted=_codes("1f608 1f916 1f921"),
    ),
    "flag": Kind(group="flags"),
    "hand": Kind(group="people-and-body", codes=_HANDS),
    "heart": Kind(
        group="smileys-and-emotion", codes=_codes("1f493-1f49e 1f5a4 1f90d 1f90e 1f9e1 1fa75-1fa77 2763 2764")
    ),
    "person": Kind(group="people-and-body", excepted=_HANDS | _PARTS_OF_BODIES),
    "plant": Kind(
        group="animals-and-nature",
        codes=_codes("1f331-1f335 1f337-1f33c 1f33e-1f343 1f490 1f940 1fab4 1fab7 1fabb 2618"),
    ),
    "vehicle": Kind(
        group="travel-and-places",
        codes=_codes(
            "1f3cd 1f3ce 1f680-1f688 1f68a-1f68e 1f690-1f6a4 1f6b2 1f6e5 1f6e9-1f6ec 1f6f3-1f6f6 1f6f8 1f6fa 1f6fb "
            "1f9bc 1f9bd 26f4 26f5 2708"
        ),
    ),
}
"""Nine kinds that can be told by their looks, an unseen member too.

The rest of the archive (tools, clothes, food, animals, buildings, weather, ...) occurs in no scene: its groups are by use, and
whether an unseen thing is an object or an activity is not to be seen, or its members share too little for a net that trains
for minutes. How near unseen members are to seen ones differs: a clock shows another hour, a plant is another plant.
"""


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One picture of the archive."""

    member: str
    """Its name in the archive, group/code-points.webp."""
    kind: str
    """The class that it shows."""

    @property
    def family(self) -> tuple[int, ...]:
        """Code points without gender and style: pictures that differ in these alone are one family."""
        return _family(_code_points(self.member))

    @property
    def splits(self) -> tuple[Split, ...]:
        """What it is for: by its family's name alone, so that no family is in both train and test, or fit and validation."""
        digest = hashlib.sha256(repr(self.family).encode()).digest()
        if digest[0] % TEST_SHARE == 0:
            return ("test",)
        return ("train", "validation" if digest[1] % TEST_SHARE == 0 else "fit")


def _code_points(member: str) -> list[int]:
    return [int(code, 16) for code in member.split("/")[-1].removesuffix(".webp").split("-")]


def _family(codes: list[int]) -> tuple[int, ...]:
    plain = [code for code in codes if code not in (_JOINER, _PICTURE_STYLE, *_GENDERS)]
    return tuple(_PERSONS[0] if code in _PERSONS else _SAME_PICTURE.get(code, code) for code in plain)


def list_emoji(classes: Classes, split: Split) -> list[Emoji]:
    """List the pictures of a split, by name.

    Args:
        classes: kinds: the nine of `KINDS`; groups: the archive's nine groups.
        split: train or test, or one of the parts of train, fit and validation.
    """
    found = [Emoji(member=member, kind=kind) for member in _members() if (kind := _class_of(member, classes))]
    return [emoji for emoji in found if split in emoji.splits]


def class_names(classes: Classes) -> tuple[str, ...]:
    """Return the classes' names, background first."""
    if classes == "kinds":
        return ("background", *KINDS)
    return ("background", *sorted({member.split("/")[0] for member in _members()}))


def _class_of(member: str, classes: Classes) -> str | None:
    group = member.split("/")[0]
    if classes == "groups":
        return group
    code = _code_points(member)[0]
    for name, kind in KINDS.items():
        if group == kind.group and code not in kind.excepted and (code in kind.codes or not kind.codes):
            return name
    return None


@cache
def _archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(files("hamgan").joinpath("data/emoji/fluent-emoji-128.zip").read_bytes()))


@cache
def _members() -> tuple[str, ...]:
    return tuple(sorted(name for name in _archive().namelist() if name.endswith(".webp")))


def read_emoji(emoji: Emoji) -> NDArray[np.uint8]:
    """Return a picture, (128, 128, 4): RGB and alpha."""
    return np.array(Image.open(io.BytesIO(_archive().read(emoji.member))).convert("RGBA"))
