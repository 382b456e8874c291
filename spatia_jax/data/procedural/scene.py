"""A furnished room or courtyard as a pytree of fixed-size arrays, and how one is drawn from a seed.

World axes are OpenCV's: x right, y down, z forward, metres; the floor is y = 0, so height h is y = -h, and a level camera
that looks along +z has the identity rotation. Scenes are drawn on the host with NumPy's seeded generator (cheap, branching
code); everything after that is JAX.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spatia_jax.data.procedural import textures
from spatia_jax.data.procedural.captions import encode
from spatia_jax.data.procedural.props import BOX, CYLINDER, ELLIPSOID, PROPS, Prop

NUM_PRIMITIVES = 40
NUM_MATERIALS = 20
SKY_DISTANCE = 15.0
FIT = 0.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """Geometry, surfaces, motion, light and words of one place. n = NUM_PRIMITIVES, m = NUM_MATERIALS.

    Primitive 0 is the shell, seen from inside (the room, or the dome of the sky). A moving primitive's centre at time t
    (seconds) is `centre + sin_amplitude * sin(rate * t + phase) + cos_amplitude * cos(rate * t + phase)`.

    Attributes:
      kind: [n] int32, 0 empty slot, 1 box, 2 ellipsoid, 3 upright elliptic cylinder.
      centre: [n, 3] metres.
      yaw: [n] radians about the vertical axis.
      half: [n, 3] half extents along the primitive's own x, y, z.
      material: [n, 3] int32, rows of the atlas for the sides, the top, the bottom.
      tint: [n, 3] factor on the texture's colour.
      repeats: [n] texture repeats per metre; 0 stretches the texture once over a face.
      instance: [n] int32, 0 for what belongs to the place itself, 1.. for props and moving objects.
      sin_amplitude, cos_amplitude: [n, 3] metres; rate: [n] radians per second; phase: [n] radians.
      atlas: [m, texels] uint32, mip pyramids of `textures.bake`.
      emission: [m] 0 lit by the scene, 1 shines by itself (sky, window panes).
      light: [3] position of the light; light_color: [3]; ambient: [3]; reach: [] metres over which the light falls to half.
      words: [w] int32, the caption (`captions.encode`).
    """

    kind: Array
    centre: Array
    yaw: Array
    half: Array
    material: Array
    tint: Array
    repeats: Array
    instance: Array
    sin_amplitude: Array
    cos_amplitude: Array
    rate: Array
    phase: Array
    atlas: Array
    emission: Array
    light: Array
    light_color: Array
    ambient: Array
    reach: Array
    words: Array

    @property
    def moves(self):
        """[n] bool, which primitives ever move."""
        return (abs(self.sin_amplitude) + abs(self.cos_amplitude)).sum(-1) > 0


def clearance(scene: Scene, points: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k"]:
    """Distance in metres from points to the nearest surface, wherever moving objects may go; negative inside of one.

    Primitives count as their bounding boxes, so the distance is a lower bound.
    """
    reach = np.abs(scene.sin_amplitude) + np.abs(scene.cos_amplitude)
    cos, sin = np.cos(scene.yaw), np.sin(scene.yaw)
    offset = np.asarray(points)[:, None] - np.asarray(scene.centre)
    x, y, z = np.moveaxis(offset, -1, 0)
    local = np.stack([cos * x - sin * z, y, sin * x + cos * z], -1)
    spread = np.where(np.asarray(scene.moves)[:, None], np.linalg.norm(reach, axis=-1, keepdims=True), 0.0)
    outside = np.abs(local) - (np.asarray(scene.half) + spread)
    distance = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)
    distance[:, 0] *= -1
    return np.where(np.asarray(scene.kind) > 0, distance, np.inf).min(-1).astype(np.float32)


@dataclass
class _Draft:
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


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _wall_pose(side: int, along: float, inset: float, size) -> tuple[float, float, float]:
    """x, z, yaw of something whose back is `inset` metres from wall 0..3, at `along` in [-1, 1] of that wall."""
    yaw = side * np.pi / 2
    width, depth = (size[0], size[1]) if side % 2 == 0 else (size[1], size[0])
    out = -(depth - inset)
    return np.cos(yaw) * along * width + np.sin(yaw) * out, -np.sin(yaw) * along * width + np.cos(yaw) * out, yaw


def _furnish(draft: _Draft, prop: Prop, size, height) -> bool:
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
            x, z, yaw = _wall_pose(side, along, depth + 0.04, size)
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
    draft.named.append(_article(f"{name} {prop.noun}"))
    return True


def _panels(draft: _Draft, size, height) -> None:
    """Doors, windows and pictures: thin boxes on the walls, part of the place itself (instance 0)."""
    rng = draft.rng
    chosen = [("door", 0.45, 1.02)] + [
        ("window", rng.uniform(0.5, 1.0), rng.uniform(0.45, 0.65)) for _ in range(rng.integers(1, 3))
    ]
    chosen += [("picture", rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.45)) for _ in range(rng.integers(1, 4))]
    taken = []
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
        x, z, yaw = _wall_pose(side, along, 0.015, size)
        face = draft.material(name, draft.color()[1], draft.color()[1], emission=0.75 if name == "window" else 0.0)
        draft.add(BOX, (x, -middle, z), (half_width, half_height, 0.025), face, yaw)


def _movers(draft: _Draft, size, height) -> None:
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
        surface = draft.material(
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
            shape, (x, -half[1] - lift - 0.01, z), half, surface, heading, rng.uniform(0.8, 1.6), 1.0, draft.instances,
            sin_amplitude=forth, cos_amplitude=aside if motion == "circles" else np.zeros(3),
            rate=speed / amplitude, phase=rng.uniform(-np.pi, np.pi),
        )  # fmt: skip
        draft.occupied.append((x, z, room))
        draft.motions.append(_article(f"{name} {noun}") + " " + says)


_SURFACES = {
    "plaster": "plaster", "striped": "stripes", "brick": "brick", "tiled": "tiles", "wooden": "wood",
    "stone": "stone", "checkered": "checker", "marble": "marble", "patterned": "plaid", "dotted": "dots",
}  # fmt: skip
_WALLS = ("plaster", "plaster", "striped", "brick", "tiled", "wooden", "patterned", "dotted")
_FLOORS = ("wooden", "wooden", "tiled", "stone", "checkered", "marble")


def _soften(a, b, contrast):
    """The second colour, drawn towards the first: large surfaces are calmer than objects."""
    return a * (1 - contrast) + np.asarray(b) * contrast


def _surface(draft: _Draft, choices, brightness) -> tuple[str, int]:
    name = str(draft.rng.choice(choices))
    base = np.array(textures.PALETTE[str(draft.rng.choice(list(textures.PALETTE)))])
    base = _soften(np.array([0.74, 0.70, 0.64]), base, draft.rng.uniform(0.1, 0.75)) * brightness
    if name == "brick":
        base = np.array([0.62, 0.36, 0.27]) * draft.rng.uniform(0.75, 1.25)
    elif name == "wooden":
        base = np.array([0.60, 0.42, 0.27]) * draft.rng.uniform(0.7, 1.3)
    return name, draft.material(_SURFACES[name], base, _soften(base, draft.color()[1], draft.rng.uniform(0.2, 0.55)))


def _room(draft: _Draft):
    rng = draft.rng
    size, height = rng.uniform(2.0, 3.8, 2), rng.uniform(2.6, 3.2)
    wall, wall_material = _surface(draft, _WALLS, rng.uniform(0.85, 1.2))
    floor, floor_material = _surface(draft, _FLOORS, rng.uniform(0.65, 1.0))
    ceiling = draft.material("plaster", np.full(3, rng.uniform(0.8, 0.95)), np.full(3, 0.7))
    draft.add(
        BOX,
        (0, -height / 2, 0),
        (size[0], height / 2, size[1]),
        (wall_material, ceiling, floor_material),
        repeats=rng.uniform(0.45, 0.8),
    )
    _panels(draft, size, height)
    if rng.random() < 0.5:
        rug = draft.material(
            str(rng.choice(["plaid", "stripes", "dots", "clouds"])), draft.color()[1], draft.color()[1]
        )
        x, z = rng.uniform(-0.5, 0.5, 2)
        draft.add(
            BOX,
            (x, -0.01, z),
            (rng.uniform(0.8, 1.3), 0.01, rng.uniform(0.6, 1.0)),
            rug,
            rng.uniform(-0.3, 0.3),
            repeats=0.7,
        )
    warm = np.array([1.0, rng.uniform(0.88, 1.0), rng.uniform(0.72, 1.0)])
    light = dict(
        light=np.array([*(rng.uniform(-0.6, 0.6, 2) * size), 0.0])[[0, 2, 1]] + [0, 0.35 - height, 0],
        light_color=warm * rng.uniform(0.75, 1.1), ambient=np.array([0.95, 1.0, 1.06]) * rng.uniform(0.42, 0.62), reach=rng.uniform(3.0, 5.0),
    )  # fmt: skip
    return "room", wall, floor, size, height, light


def _courtyard(draft: _Draft):
    rng = draft.rng
    size, height = rng.uniform(3.2, 5.5, 2), rng.uniform(2.0, 3.2)
    dusk = rng.random()
    zenith = _soften(np.array([0.30, 0.52, 0.88]), (0.45, 0.42, 0.62), dusk**3)
    dome = draft.material(
        "sky", zenith, _soften(np.array([0.82, 0.90, 0.97]), (0.98, 0.80, 0.62), dusk**2), emission=1.0
    )
    top = draft.material("flat", zenith, zenith, emission=1.0)
    floor, floor_material = _surface(draft, ("stone", "stone", "tiled", "brick", "wooden"), rng.uniform(0.7, 1.0))
    wall, wall_material = _surface(
        draft, ("brick", "brick", "stone", "plaster", "wooden", "tiled"), rng.uniform(0.8, 1.15)
    )
    far = SKY_DISTANCE
    draft.add(BOX, (0, 0.5 - far / 2, 0), (far, far / 2, far), (dome, top, floor_material), repeats=FIT)
    draft.add(
        BOX, (0, 0.5, 0), (*(size[:1] + 0.1), 0.5, *(size[1:] + 0.1)), floor_material, repeats=rng.uniform(0.35, 0.6)
    )
    repeats = rng.uniform(0.4, 0.7)
    for side in range(4):
        x, z, yaw = _wall_pose(side, 0.0, -0.15, size)
        draft.add(
            BOX, (x, -height / 2, z), (size[side % 2] + 0.3, height / 2 + 0.01, 0.15), wall_material, yaw, repeats
        )
    for _ in range(rng.integers(1, 4)):
        side, tall = int(rng.integers(4)), rng.uniform(4.0, 8.0)
        x, z, yaw = _wall_pose(side, rng.uniform(-1, 1), -rng.uniform(2.5, 5.0), size)
        face = draft.material("facade", draft.color()[1], draft.color()[1])
        draft.add(BOX, (x, -tall / 2, z), (rng.uniform(1.5, 3.0), tall / 2, 1.2), face, yaw)
    if rng.random() < 0.8:
        _panels(draft, size, height)
    angle, rise = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.3)
    light = dict(
        light=40.0 * np.array([np.cos(angle), -np.tan(rise), np.sin(angle)]),
        light_color=_soften(np.array([0.95, 0.92, 0.84]), (1.0, 0.72, 0.48), dusk**2) * rng.uniform(0.75, 0.95),
        ambient=np.array([0.92, 1.0, 1.1]) * rng.uniform(0.52, 0.68), reach=1e6,
    )  # fmt: skip
    return "courtyard", wall, floor, size, height, light


def _name(place: str, named: list[str]) -> str:
    """What people call a room with this furniture."""
    for noun, called in (("bed", "bedroom"), ("sofa", "living room"), ("bookshelf", "library")):
        if place == "room" and any(prop.endswith(" " + noun) for prop in named):
            return called
    return place


def _caption(draft: _Draft, place: str, wall: str, floor: str) -> str:
    count = int(draft.rng.integers(2, 5))
    named = draft.named[:count]
    text = f"{_article(_name(place, named))} with {wall} walls and {_article(floor)} floor"
    if named:
        text += " , " + (" , ".join(named[:-1]) + " and " if len(named) > 1 else "") + named[-1]
    if draft.motions:
        text += " , while " + " and ".join(draft.motions[:2])
    return text


def _freeze(draft: _Draft, light: dict, caption: str) -> Scene:
    empty = dict(
        kind=0,
        centre=np.zeros(3),
        half=np.ones(3),
        material=(0, 0, 0),
        yaw=0.0,
        repeats=1.0,
        tint=np.ones(3),
        instance=0,
    )
    still = dict(sin_amplitude=np.zeros(3), cos_amplitude=np.zeros(3), rate=0.0, phase=0.0)
    rows = [still | row for row in draft.primitives] + [still | empty] * (NUM_PRIMITIVES - len(draft.primitives))
    integers = ("kind", "material", "instance")
    columns = {
        name: jnp.asarray(np.array([row[name] for row in rows]), jnp.int32 if name in integers else jnp.float32)
        for name in empty | still
    }
    spare = NUM_MATERIALS - len(draft.atlas)
    return Scene(
        **columns,
        atlas=jnp.asarray(np.stack(draft.atlas + [draft.atlas[0]] * spare)),
        emission=jnp.asarray(np.array(draft.emission + [0.0] * spare), jnp.float32),
        words=jnp.asarray(encode(caption)),
        **{name: jnp.asarray(value, jnp.float32) for name, value in light.items()},
    )


def sample_scene(seed: int) -> Scene:
    """A room or courtyard, furnished and lit; the same seed always gives the same place."""
    draft = _Draft(np.random.default_rng(seed))
    rng = draft.rng
    place, wall, floor, size, height, light = _courtyard(draft) if rng.random() < 0.3 else _room(draft)
    _movers(draft, size, height)
    suited = [prop for prop in PROPS if prop.outdoor or place == "room"]
    wanted = int(rng.integers(3, 7))
    for index in rng.permutation(len(suited)):
        wanted -= suited[index].noun != "tree" and _furnish(draft, suited[index], size, height) or 0
        if wanted <= 0:
            break
    return _freeze(draft, light, _caption(draft, place, wall, floor))
