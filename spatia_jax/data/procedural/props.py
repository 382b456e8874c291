"""Furniture of the procedural world, as data: every prop is a few primitives around a point on the floor."""

from __future__ import annotations

from dataclasses import dataclass

BOX, ELLIPSOID, CYLINDER = 1, 2, 3


@dataclass(frozen=True)
class Part:
    """One primitive of a prop.

    Attributes:
      shape: BOX, ELLIPSOID or CYLINDER.
      centre: x to the side, height above the floor, z towards the prop's front; metres.
      half: half extents along x, up, z; metres.
      role: which of the prop's materials covers it: "main", "second", "front" (stretched once over a face).
    """

    shape: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    role: str = "main"


@dataclass(frozen=True)
class Prop:
    """A kind of furniture: its noun, where it may stand, what it is made of.

    Attributes:
      noun: how captions call it.
      parts: primitives.
      textures: names (of functions in `textures`) that its main material may have.
      front: texture of its "front" parts.
      wall: stands with its back against a wall (else free in the room).
      outdoor: also found in courtyards.
    """

    noun: str
    parts: tuple[Part, ...]
    textures: tuple[str, ...]
    front: str = "crate"
    wall: bool = False
    outdoor: bool = False

    @property
    def footprint(self) -> tuple[float, float]:
        """Half extents along x and z that hold all parts."""
        width = max(abs(part.centre[0]) + part.half[0] for part in self.parts)
        depth = max(abs(part.centre[2]) + part.half[2] for part in self.parts)
        return width, depth


_WOODEN = ("wood", "flat", "plaster")
_FABRIC = ("plaid", "flat", "stripes", "clouds", "dots")
_MINERAL = ("marble", "stone", "brick", "tiles", "plaster")

PROPS = (
    Prop(
        "table",
        (
            Part(BOX, (0, 0.72, 0), (0.70, 0.03, 0.42)),
            Part(BOX, (-0.58, 0.345, 0), (0.04, 0.345, 0.34)),
            Part(BOX, (0.58, 0.345, 0), (0.04, 0.345, 0.34)),
            Part(CYLINDER, (0.2, 0.86, 0.05), (0.09, 0.11, 0.09), "second"),
        ),
        _WOODEN,
        outdoor=True,
    ),
    Prop(
        "round table",
        (
            Part(CYLINDER, (0, 0.70, 0), (0.52, 0.03, 0.52)),
            Part(CYLINDER, (0, 0.34, 0), (0.07, 0.33, 0.07), "second"),
            Part(CYLINDER, (0, 0.02, 0), (0.28, 0.02, 0.28), "second"),
            Part(ELLIPSOID, (-0.1, 0.84, 0.1), (0.13, 0.11, 0.13), "second"),
        ),
        (*_WOODEN, "marble"),
        outdoor=True,
    ),
    Prop("cabinet", (Part(BOX, (0, 0.5, 0), (0.55, 0.5, 0.24), "front"),), _WOODEN, "drawers", wall=True),
    Prop("wardrobe", (Part(BOX, (0, 1.0, 0), (0.6, 1.0, 0.28), "front"),), _WOODEN, "door", wall=True),
    Prop("bookshelf", (Part(BOX, (0, 0.95, 0), (0.65, 0.95, 0.17), "front"),), _WOODEN, "books", wall=True),
    Prop(
        "sofa",
        (
            Part(BOX, (0, 0.22, 0), (0.95, 0.22, 0.42)),
            Part(BOX, (0, 0.5, -0.31), (0.95, 0.4, 0.11)),
            Part(BOX, (-0.86, 0.4, 0), (0.10, 0.26, 0.42)),
            Part(BOX, (0.86, 0.4, 0), (0.10, 0.26, 0.42)),
            Part(BOX, (0.4, 0.55, -0.12), (0.22, 0.16, 0.07), "second"),
        ),
        _FABRIC,
        wall=True,
    ),
    Prop(
        "bed",
        (
            Part(BOX, (0, 0.16, 0), (0.80, 0.16, 1.0), "second"),
            Part(BOX, (0, 0.42, 0.03), (0.76, 0.11, 0.95)),
            Part(BOX, (0, 0.55, -0.96), (0.80, 0.55, 0.05), "second"),
            Part(ELLIPSOID, (0, 0.56, -0.66), (0.5, 0.11, 0.2), "second"),
        ),
        _FABRIC,
        wall=True,
    ),
    Prop("crate", (Part(BOX, (0, 0.3, 0), (0.3, 0.3, 0.3), "front"),), _WOODEN, "crate", outdoor=True),
    Prop(
        "stack of crates",
        (Part(BOX, (0, 0.35, 0), (0.35, 0.35, 0.35), "front"), Part(BOX, (0.05, 0.93, 0), (0.24, 0.23, 0.24), "front")),
        _WOODEN,
        "crate",
        wall=True,
        outdoor=True,
    ),
    Prop(
        "lamp",
        (
            Part(CYLINDER, (0, 0.02, 0), (0.16, 0.02, 0.16), "second"),
            Part(CYLINDER, (0, 0.7, 0), (0.03, 0.7, 0.03), "second"),
            Part(CYLINDER, (0, 1.45, 0), (0.21, 0.15, 0.21)),
        ),
        ("flat", "stripes"),
        wall=True,
    ),
    Prop(
        "plant",
        (
            Part(CYLINDER, (0, 0.2, 0), (0.18, 0.2, 0.18), "second"),
            Part(ELLIPSOID, (0, 0.75, 0), (0.32, 0.42, 0.32)),
            Part(ELLIPSOID, (0.12, 1.15, 0.05), (0.2, 0.25, 0.2)),
        ),
        ("leaves",),
        wall=True,
        outdoor=True,
    ),
    Prop(
        "tree",
        (
            Part(CYLINDER, (0, 0.8, 0), (0.1, 0.8, 0.1), "second"),
            Part(ELLIPSOID, (0, 2.1, 0), (0.75, 0.8, 0.75)),
            Part(ELLIPSOID, (0.35, 1.7, 0.3), (0.45, 0.4, 0.45)),
        ),
        ("leaves",),
        outdoor=True,
    ),
    Prop(
        "chair",
        (
            Part(BOX, (0, 0.44, 0), (0.24, 0.04, 0.24)),
            Part(BOX, (0, 0.75, -0.21), (0.24, 0.28, 0.03)),
            Part(BOX, (0, 0.2, 0), (0.2, 0.2, 0.18), "second"),
        ),
        (*_WOODEN, *_FABRIC),
        outdoor=True,
    ),
    Prop(
        "column",
        (
            Part(CYLINDER, (0, 1.05, 0), (0.2, 1.05, 0.2)),
            Part(BOX, (0, 0.1, 0), (0.28, 0.1, 0.28), "second"),
            Part(BOX, (0, 2.16, 0), (0.28, 0.06, 0.28), "second"),
        ),
        _MINERAL,
        outdoor=True,
    ),
    Prop(
        "statue",
        (
            Part(BOX, (0, 0.4, 0), (0.26, 0.4, 0.26), "second"),
            Part(CYLINDER, (0, 0.98, 0), (0.13, 0.2, 0.13)),
            Part(ELLIPSOID, (0, 1.36, 0), (0.23, 0.26, 0.23)),
        ),
        _MINERAL,
        outdoor=True,
    ),
    Prop(
        "bench",
        (
            Part(BOX, (0, 0.42, 0), (0.75, 0.05, 0.22)),
            Part(BOX, (-0.5, 0.18, 0), (0.08, 0.19, 0.19), "second"),
            Part(BOX, (0.5, 0.18, 0), (0.08, 0.19, 0.19), "second"),
        ),
        ("wood", "stone", "marble"),
        wall=True,
        outdoor=True,
    ),
    Prop("ball", (Part(ELLIPSOID, (0, 0.28, 0), (0.28, 0.28, 0.28)),), (*_FABRIC, "checker"), outdoor=True),
)
