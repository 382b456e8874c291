"""Furnishing a place: its surfaces, doors, windows and pictures, what moves in it, and the props around that.

Host code with NumPy's seeded generator, because it branches on every draw.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spatia_jax.data.procedural import textures
from spatia_jax.data.procedural.props import BOX, CYLINDER, ELLIPSOID, Prop

NUM_PRIMITIVES = 40
NUM_MATERIALS = 20
FIT = 0.0  # repeats per metre of a texture that is stretched once over a face


@dataclass
class Draft:
    """A scene while it is being furnished."""

    rng: np.random.Generator
    primitives: list[dict] = field(default_factory=list)
    atlas: list[np.ndarray] = field(default_factory=list)
    emission: list[float] = field(default_factory=list)
    occupied: list[tuple[float, float, float]] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    motions: list[str] = field(default_factory=list)
    instances: int = 0

    def material(self, texture: str, a, b, emission: float = 0.0) -> int:
        self.atlas.append(textures.bake(getattr(textures, texture), self.rng, a, b))
        self.emission.append(emission)
        return len(self.atlas) - 1

    def add(self, kind, centre, half, material, yaw=0.0, repeats=FIT, tint=1.0, instance=0, **motion):
        material = material if isinstance(material, tuple) else (material,) * 3
        self.primitives.append(
            dict(kind=kind, centre=centre, half=half, material=material, yaw=yaw, repeats=repeats)
            | dict(tint=np.broadcast_to(tint, 3), instance=instance, **motion)
        )

    def fits(self, num_primitives: int, num_materials: int) -> bool:
        return (
            len(self.primitives) + num_primitives <= NUM_PRIMITIVES and len(self.atlas) + num_materials <= NUM_MATERIALS
        )

    def free(self, x, z, radius) -> bool:
        return all(np.hypot(x - u, z - v) > radius + r for u, v, r in self.occupied)

    def color(self, jitter=0.07) -> tuple[str, np.ndarray]:
        name = str(self.rng.choice(list(textures.PALETTE)))
        return name, np.clip(np.array(textures.PALETTE[name]) + self.rng.uniform(-jitter, jitter, 3), 0.05, 1.0)


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def wall_pose(side: int, along: float, inset: float, size) -> tuple[float, float, float]:
    """x, z, yaw of something whose back is `inset` metres from wall 0..3, at `along` in [-1, 1] of that wall."""
    yaw = side * np.pi / 2
    width, depth = (size[0], size[1]) if side % 2 == 0 else (size[1], size[0])
    out = -(depth - inset)
    return np.cos(yaw) * along * width + np.sin(yaw) * out, -np.sin(yaw) * along * width + np.cos(yaw) * out, yaw


def furnish(draft: Draft, prop: Prop, size, height) -> bool:
    """Try to put one prop into the place; what does not fit after a few tries is left out."""
    rng = draft.rng
    scale = rng.uniform(0.85, 1.2) * np.array([rng.uniform(0.9, 1.15), 1.0, 1.0])
    scale[1] *= min(1.0, 0.9 * height / max(p.centre[1] + p.half[1] for p in prop.parts) / scale[1])
    width, depth = prop.footprint[0] * scale[0], prop.footprint[1] * scale[2]
    radius = max(min(width, depth), 0.75 * max(width, depth))
    roles = {part.role for part in prop.parts}
    if not draft.fits(len(prop.parts), len(roles)):
        return False
    for _ in range(12):
        if prop.wall:
            side = int(rng.integers(4))
            along = rng.uniform(-1, 1) * max(0.0, 1 - (width + 0.1) / size[side % 2])
            x, z, yaw = wall_pose(side, along, depth + 0.04, size)
        else:
            x, z = rng.uniform(-1, 1, 2) * np.maximum(np.array(size) - radius - 0.3, 0.1)
            yaw = rng.uniform(-np.pi, np.pi)
        if draft.free(x, z, radius):
            break
    else:
        return False
    name, main = draft.color()
    _, second = draft.color()
    texture = str(rng.choice(prop.textures))
    if texture == "leaves":
        name, main = "green", np.array([rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.68), rng.uniform(0.15, 0.3)])
    elif texture == "wood":
        name, main = "wooden", np.array([0.62, 0.42, 0.25]) * rng.uniform(0.6, 1.25)
    draw = {"main": texture, "second": str(rng.choice(["flat", "plaster", "wood"])), "front": prop.front}
    material = {
        role: draft.material(draw[role], *((second, main) if role == "second" else (main, second)))
        for role in sorted(roles)
    }
    draft.instances += 1
    repeats = rng.uniform(0.7, 1.3)
    for part in prop.parts:
        px, py, pz = np.array(part.centre) * scale
        centre = (x + np.cos(yaw) * px + np.sin(yaw) * pz, -py, z - np.sin(yaw) * px + np.cos(yaw) * pz)
        fit = part.role == "front" or (part.shape == ELLIPSOID and texture in ("checker", "stripes"))
        draft.add(
            part.shape,
            centre,
            np.array(part.half) * scale,
            material[part.role],
            yaw,
            FIT if fit else repeats,
            1.0,
            draft.instances,
        )
    draft.occupied.append((x, z, radius))
    draft.named.append(with_article(f"{name} {prop.noun}"))
    return True


def add_panels(draft: Draft, size, height) -> None:
    """Doors, windows and pictures: thin boxes on the walls, part of the place itself (instance 0)."""
    rng = draft.rng
    chosen = [("door", 0.45, 1.02)] + [
        ("window", rng.uniform(0.5, 1.0), rng.uniform(0.45, 0.65)) for _ in range(rng.integers(1, 3))
    ]
    chosen += [("picture", rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.45)) for _ in range(rng.integers(1, 4))]
    taken: list[tuple] = []
    for name, half_width, half_height in chosen:
        for _ in range(8):
            side, along = int(rng.integers(4)), rng.uniform(-0.8, 0.8)
            span = size[side % 2]
            if (
                all(s != side or abs(a - along) * span > w + half_width + 0.1 for s, a, w in taken)
                and abs(along) * span < span - half_width - 0.05
            ):
                break
        else:
            continue
        if not draft.fits(1, 1):
            return
        taken.append((side, along, half_width))
        middle = half_height if name == "door" else min(rng.uniform(1.4, 1.6), height - half_height - 0.1)
        x, z, yaw = wall_pose(side, along, 0.015, size)
        face = draft.material(name, draft.color()[1], draft.color()[1], emission=0.75 if name == "window" else 0.0)
        draft.add(BOX, (x, -middle, z), (half_width, half_height, 0.025), face, yaw)


def add_movers(draft: Draft, size, height) -> None:
    """None to three objects that slide, roll, circle or float, each on a patch of floor of its own."""
    rng = draft.rng
    for _ in range(rng.choice(4, p=[0.15, 0.4, 0.3, 0.15])):
        radius = rng.uniform(0.18, 0.34)
        amplitude = rng.uniform(0.35, 0.8)
        motion = str(rng.choice(["slides", "circles", "floats"]))
        room = radius + (amplitude if motion != "floats" else 0.0)
        if not draft.fits(1, 1):
            return
        for _ in range(12):
            x, z = rng.uniform(-1, 1, 2) * np.maximum(np.array(size) - room - 0.25, 0.05)
            if draft.free(x, z, room):
                break
        else:
            continue
        shape, noun = [(BOX, "box"), (ELLIPSOID, "sphere"), (CYLINDER, "cylinder")][rng.integers(3)]
        half = radius * np.array([1.0, 1.0 if shape == ELLIPSOID else rng.uniform(0.8, 1.5), 1.0])
        name, color = draft.color()
        skin = draft.material(
            str(rng.choice(["flat", "dots", "checker", "stripes", "plaid", "clouds"])), color, draft.color()[1]
        )
        heading, speed = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 0.95)
        forth, aside = (
            amplitude * np.array([np.cos(heading), 0, np.sin(heading)]),
            amplitude * np.array([-np.sin(heading), 0, np.cos(heading)]),
        )
        lift = rng.uniform(0.0, 0.9) if motion == "circles" else 0.0
        if motion == "floats":
            amplitude = min(amplitude, (height - 2 * half[1] - 0.2) / 2)
            lift, forth = amplitude + 0.1, np.array([0.0, amplitude, 0.0])
        says = {"slides": "slides back and forth", "circles": "moves in circles", "floats": "floats up and down"}[
            motion
        ]
        draft.instances += 1
        draft.add(
            shape, (x, -half[1] - lift - 0.01, z), half, skin, heading, rng.uniform(0.8, 1.6), 1.0, draft.instances,
            sin_amplitude=forth, cos_amplitude=aside if motion == "circles" else np.zeros(3),
            rate=speed / amplitude, phase=rng.uniform(-np.pi, np.pi),
        )  # fmt: skip
        draft.occupied.append((x, z, room))
        draft.motions.append(with_article(f"{name} {noun}") + " " + says)


_SURFACES = {
    "plaster": "plaster", "striped": "stripes", "brick": "brick", "tiled": "tiles", "wooden": "wood",
    "stone": "stone", "checkered": "checker", "marble": "marble", "patterned": "plaid", "dotted": "dots",
}  # fmt: skip
WALLS = ("plaster", "plaster", "striped", "brick", "tiled", "wooden", "patterned", "dotted")
FLOORS = ("wooden", "wooden", "tiled", "stone", "checkered", "marble")


def soften(a, b, contrast):
    """The second colour, drawn towards the first: large surfaces are calmer than objects."""
    return a * (1 - contrast) + np.asarray(b) * contrast


def surface(draft: Draft, choices, brightness) -> tuple[str, int]:
    name = str(draft.rng.choice(choices))
    base = np.array(textures.PALETTE[str(draft.rng.choice(list(textures.PALETTE)))])
    base = soften(np.array([0.74, 0.70, 0.64]), base, draft.rng.uniform(0.1, 0.75)) * brightness
    if name == "brick":
        base = np.array([0.62, 0.36, 0.27]) * draft.rng.uniform(0.75, 1.25)
    elif name == "wooden":
        base = np.array([0.60, 0.42, 0.27]) * draft.rng.uniform(0.7, 1.3)
    return name, draft.material(_SURFACES[name], base, soften(base, draft.color()[1], draft.rng.uniform(0.2, 0.55)))
