"""A furnished room or courtyard as a pytree of fixed-size arrays, and how one is drawn from a seed.

World axes are OpenCV's: x right, y down, z forward, metres. The floor is y = 0, so height h is y = -h, and a level
camera that looks along +z has the identity rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spatia_jax.data.procedural.captions import encode
from spatia_jax.data.procedural.furnishing import (
    FIT,
    FLOORS,
    NUM_MATERIALS,
    NUM_PRIMITIVES,
    WALLS,
    Draft,
    add_movers,
    add_panels,
    furnish,
    soften,
    surface,
    wall_pose,
    with_article,
)
from spatia_jax.data.procedural.props import BOX, CYLINDER, ELLIPSOID, PROPS

SKY_DISTANCE = 15.0


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
      light: [3] position of the light; light_color, ambient: [3].
      reach: [] metres over which the light falls to half.
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


def clearance(scene: Scene, points: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, " k"]:
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


def inside_moving(
    scene: Scene, points: Float[np.ndarray, "k 3"], times: Float[np.ndarray, " k"], margin: float = 0.0
) -> Bool[np.ndarray, " k"]:
    """Which points lie in a moving object, each at its own time (seconds); `margin` metres make the objects larger."""
    inside = np.zeros(len(points), bool)
    for i in np.flatnonzero(np.asarray(scene.moves) & (np.asarray(scene.kind) > 0)):
        angle = (float(scene.rate[i]) * times + float(scene.phase[i]))[:, None]
        centre = scene.centre[i] + scene.sin_amplitude[i] * np.sin(angle) + scene.cos_amplitude[i] * np.cos(angle)
        x, y, z = np.moveaxis(points - np.asarray(centre), -1, 0)
        cos, sin = float(np.cos(scene.yaw[i])), float(np.sin(scene.yaw[i]))
        local = np.stack([cos * x - sin * z, y, sin * x + cos * z], -1) / (np.asarray(scene.half[i]) + margin)
        around = {
            BOX: np.abs(local).max(-1),
            ELLIPSOID: np.linalg.norm(local, axis=-1),
            CYLINDER: np.maximum(np.linalg.norm(local[:, ::2], axis=-1), np.abs(local[:, 1])),
        }
        inside |= around[int(scene.kind[i])] <= 1
    return inside


def _room(draft: Draft):
    rng = draft.rng
    size, height = rng.uniform(2.0, 3.8, 2), rng.uniform(2.6, 3.2)
    wall, wall_material = surface(draft, WALLS, rng.uniform(0.85, 1.2))
    floor, floor_material = surface(draft, FLOORS, rng.uniform(0.65, 1.0))
    ceiling = draft.material("plaster", np.full(3, rng.uniform(0.8, 0.95)), np.full(3, 0.7))
    draft.add(
        BOX,
        (0, -height / 2, 0),
        (size[0], height / 2, size[1]),
        (wall_material, ceiling, floor_material),
        repeats=rng.uniform(0.45, 0.8),
    )
    add_panels(draft, size, height)
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
        light_color=warm * rng.uniform(0.75, 1.1),
        ambient=np.array([0.95, 1.0, 1.06]) * rng.uniform(0.42, 0.62),
        reach=rng.uniform(3.0, 5.0),
    )
    return "room", wall, floor, size, height, light


def _courtyard(draft: Draft):
    rng = draft.rng
    size, height = rng.uniform(3.2, 5.5, 2), rng.uniform(2.0, 3.2)
    dusk = rng.random()
    zenith = soften(np.array([0.30, 0.52, 0.88]), (0.45, 0.42, 0.62), dusk**3)
    dome = draft.material(
        "sky", zenith, soften(np.array([0.82, 0.90, 0.97]), (0.98, 0.80, 0.62), dusk**2), emission=1.0
    )
    top = draft.material("flat", zenith, zenith, emission=1.0)
    floor, floor_material = surface(draft, ("stone", "stone", "tiled", "brick", "wooden"), rng.uniform(0.7, 1.0))
    wall, wall_material = surface(
        draft, ("brick", "brick", "stone", "plaster", "wooden", "tiled"), rng.uniform(0.8, 1.15)
    )
    far = SKY_DISTANCE
    draft.add(BOX, (0, 0.5 - far / 2, 0), (far, far / 2, far), (dome, top, floor_material), repeats=FIT)
    draft.add(
        BOX, (0, 0.5, 0), (*(size[:1] + 0.1), 0.5, *(size[1:] + 0.1)), floor_material, repeats=rng.uniform(0.35, 0.6)
    )
    repeats = rng.uniform(0.4, 0.7)
    for side in range(4):
        x, z, yaw = wall_pose(side, 0.0, -0.15, size)
        draft.add(
            BOX, (x, -height / 2, z), (size[side % 2] + 0.3, height / 2 + 0.01, 0.15), wall_material, yaw, repeats
        )
    for _ in range(rng.integers(1, 4)):
        side, tall = int(rng.integers(4)), rng.uniform(4.0, 8.0)
        x, z, yaw = wall_pose(side, rng.uniform(-1, 1), -rng.uniform(2.5, 5.0), size)
        face = draft.material("facade", draft.color()[1], draft.color()[1])
        draft.add(BOX, (x, -tall / 2, z), (rng.uniform(1.5, 3.0), tall / 2, 1.2), face, yaw)
    if rng.random() < 0.8:
        add_panels(draft, size, height)
    angle, rise = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.3)
    light = dict(
        light=40.0 * np.array([np.cos(angle), -np.tan(rise), np.sin(angle)]),
        light_color=soften(np.array([0.95, 0.92, 0.84]), (1.0, 0.72, 0.48), dusk**2) * rng.uniform(0.75, 0.95),
        ambient=np.array([0.92, 1.0, 1.1]) * rng.uniform(0.52, 0.68),
        reach=1e6,
    )
    return "courtyard", wall, floor, size, height, light


def _name(place: str, named: list[str]) -> str:
    """What people call a room with this furniture."""
    for noun, called in (("bed", "bedroom"), ("sofa", "living room"), ("bookshelf", "library")):
        if place == "room" and any(prop.endswith(" " + noun) for prop in named):
            return called
    return place


def _caption(draft: Draft, place: str, wall: str, floor: str) -> str:
    count = int(draft.rng.integers(2, 5))
    named = draft.named[:count]
    text = f"{with_article(_name(place, named))} with {wall} walls and {with_article(floor)} floor"
    if named:
        text += " , " + (" , ".join(named[:-1]) + " and " if len(named) > 1 else "") + named[-1]
    if draft.motions:
        text += " , while " + " and ".join(draft.motions[:2])
    return text


def _freeze(draft: Draft, light: dict, caption: str) -> Scene:
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
    draft = Draft(np.random.default_rng(seed))
    rng = draft.rng
    place, wall, floor, size, height, light = _courtyard(draft) if rng.random() < 0.3 else _room(draft)
    add_movers(draft, size, height)
    suited = [prop for prop in PROPS if (prop.outdoor if place == "courtyard" else prop.noun != "tree")]
    wanted = int(rng.integers(3, 7))
    for index in rng.permutation(len(suited)):
        if wanted > 0 and furnish(draft, suited[index], size, height):
            wanted -= 1
    return _freeze(draft, light, _caption(draft, place, wall, floor))
