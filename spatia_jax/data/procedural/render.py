"""Ray casting of procedural scenes: colour with exact depth, instances and motion masks.

Every primitive is a unit shape (cube, ball or cylinder) seen through an affine map, so one ray meets it in one interval
of its parameter. The same intervals give the first hit of a camera ray, and how much matter a shadow ray passes, which
makes shadows soft. All arrays run over rays; the loop over primitives skips empty slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatia_jax.cameras import Cameras
from spatia_jax.data.procedural import textures
from spatia_jax.data.procedural.props import BOX, CYLINDER, ELLIPSOID
from spatia_jax.data.procedural.scene import Scene

SHADOW_SOFTNESS = 0.12  # metres of matter that take away 63 % of the light
CONTACT_REACH = 0.18  # metres over which a near surface darkens its neighbour
EDGE_FRACTION = 10  # at most 1/10 of the pixels get extra samples; outlines of objects take 1/40 on average
EDGE_OFFSETS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rendering:
    """What v cameras see.

    Attributes:
      color: [v, h, w, 3] uint8.
      depth: [v, h, w] float32, z-depth in metres at the pixel centre; finite everywhere (the sky is a dome).
      instance: [v, h, w] int32, 0 for the place itself, 1.. for props and moving objects.
      moving: [v, h, w] bool, whether the surface belongs to something that moves.
    """

    color: Array
    depth: Array
    instance: Array
    moving: Array


class _Vector(NamedTuple):
    """Three components kept as separate arrays: long contiguous loops on a CPU, full lanes on a TPU."""

    x: Array
    y: Array
    z: Array

    def dot(self, other):
        return self.x * other.x + self.y * other.y + self.z * other.z

    def map(self, function, *others):
        return _Vector(*(function(*parts) for parts in zip(self, *others, strict=True)))


class _Frame(NamedTuple):
    """The primitives at one moment: where they are, and the map from the world into each one's unit shape."""

    kind: Array
    centre: Array
    cos: Array
    sin: Array
    half: Array

    @classmethod
    def at(cls, scene: Scene, time) -> _Frame:
        angle = (scene.rate * time + scene.phase)[:, None]
        centre = scene.centre + scene.sin_amplitude * jnp.sin(angle) + scene.cos_amplitude * jnp.cos(angle)
        return cls(scene.kind, centre, jnp.cos(scene.yaw), jnp.sin(scene.yaw), scene.half)

    def turn(self, index, vector: _Vector) -> _Vector:
        """A direction in the axes of primitive(s) `index`, still in metres."""
        cos, sin = self.cos[index], self.sin[index]
        return _Vector(cos * vector.x - sin * vector.z, vector.y, sin * vector.x + cos * vector.z)

    def into(self, index, point: _Vector) -> _Vector:
        """A point in the axes of primitive(s) `index`, relative to its centre, in metres."""
        return self.turn(index, point.map(jnp.subtract, _Vector(*jnp.moveaxis(self.centre[index], -1, 0))))

    def extent(self, index) -> _Vector:
        return _Vector(*jnp.moveaxis(self.half[index], -1, 0))


def _slab(origin, direction):
    inverse = 1.0 / jnp.where(jnp.abs(direction) < 1e-9, 1e-9, direction)
    middle, reach = -origin * inverse, jnp.abs(inverse)
    return middle - reach, middle + reach


def _round(a, b, c):
    """Roots of a t² + 2 b t + c as an interval, empty (enter > leave) where there are none."""
    a = jnp.maximum(a, 1e-12)
    discriminant = b * b - a * c
    root = jnp.sqrt(jnp.maximum(discriminant, 0.0))
    return (-b - root) / a, jnp.where(discriminant > 0, (-b + root) / a, -jnp.inf)


def _box(o: _Vector, d: _Vector):
    enters, leaves = zip(*(_slab(*axis) for axis in zip(o, d, strict=True)), strict=True)
    return jnp.maximum(jnp.maximum(*enters[:2]), enters[2]), jnp.minimum(jnp.minimum(*leaves[:2]), leaves[2])


def _ellipsoid(o: _Vector, d: _Vector):
    return _round(d.dot(d), o.dot(d), o.dot(o) - 1.0)


def _cylinder(o: _Vector, d: _Vector):
    enter, leave = _round(d.x * d.x + d.z * d.z, o.x * d.x + o.z * d.z, o.x * o.x + o.z * o.z - 1.0)
    low, high = _slab(o.y, d.y)
    return jnp.maximum(enter, low), jnp.minimum(leave, high)


def _unit_ray(frame: _Frame, index, origin: _Vector, direction: _Vector):
    half = frame.extent(index)
    return frame.into(index, origin).map(jnp.divide, half), frame.turn(index, direction).map(jnp.divide, half)


def _for_each(frame: _Frame, visit, carry):
    """Fold visit(interval, index, carry) over the primitives in use, except the shell (slot 0)."""
    branches = [lambda index, carry: carry] + [partial(visit, shape) for shape in (_box, _ellipsoid, _cylinder)]
    return jax.lax.fori_loop(1, frame.kind.shape[0], lambda i, c: jax.lax.switch(frame.kind[i], branches, i, c), carry)


def _cast(frame: _Frame, origin: _Vector, direction: _Vector):
    """First hit of rays from one origin: (ray parameter, primitive index), each shaped like the rays."""

    def visit(interval, index, carry):
        nearest, winner = carry
        enter, leave = interval(*_unit_ray(frame, index, origin, direction))
        hit = (enter < leave) & (enter > 1e-3) & (enter < nearest)
        return jnp.where(hit, enter, nearest), jnp.where(hit, index, winner)

    _, far = _box(*_unit_ray(frame, 0, origin, direction))
    return _for_each(frame, visit, (far, jnp.zeros(far.shape, jnp.int32)))


def _occlusion(frame: _Frame, point: _Vector, winner, light: _Vector):
    """How much matter lies between points and the light (metres), and how close other primitives are (0..1)."""
    toward = light.map(jnp.subtract, point)
    distance = jnp.sqrt(toward.dot(toward))

    def visit(interval, index, carry):
        matter, contact = carry
        local, half = frame.into(index, point), frame.extent(index)
        ray = frame.turn(index, toward)
        enter, leave = interval(local.map(jnp.divide, half), ray.map(jnp.divide, half))
        overlap = jnp.maximum(jnp.minimum(leave, 1.0) - jnp.maximum(enter, 0.0), 0.0)
        gap = local.map(lambda p, h: jnp.maximum(jnp.abs(p) - h, 0.0), half)
        near = jnp.exp(-jnp.sqrt(gap.dot(gap)) / CONTACT_REACH)
        return matter + overlap * distance, jnp.maximum(contact, jnp.where(winner == index, 0.0, near))

    zero = jnp.zeros_like(distance)
    matter, contact = _for_each(frame, visit, (zero, zero))
    return matter, contact, toward.map(lambda part: part / distance), distance


class _Surface(NamedTuple):
    """Where rays hit: all that colour needs to know."""

    normal: _Vector
    face: Array
    u: Array
    v: Array
    texels: Array


def _surface(scene: Scene, frame: _Frame, winner, point: _Vector) -> _Surface:
    """Normal, face (0 x, 1 y, 2 z, 3 round) and texture coordinates (in repeats) of surface points."""
    local, half = frame.into(winner, point), frame.extent(winner)
    unit = local.map(jnp.divide, half)
    kind = frame.kind[winner]
    ax, ay, az = unit.map(jnp.abs)
    capped = (kind == CYLINDER) & (ay * ay > unit.x * unit.x + unit.z * unit.z)
    flat_face = jnp.where(ay >= jnp.maximum(ax, az), 1, jnp.where(ax >= az, 0, 2))
    face = jnp.where(capped, 1, jnp.where(kind == BOX, flat_face, 3))
    gradient = unit.map(jnp.divide, half)
    gradient = _Vector(
        jnp.where((face == 0) | (face == 3), gradient.x, 0.0),
        jnp.where((face == 1) | ((face == 3) & (kind == ELLIPSOID)), gradient.y, 0.0),
        jnp.where((face == 2) | (face == 3), gradient.z, 0.0),
    )
    length = jax.lax.rsqrt(jnp.maximum(gradient.dot(gradient), 1e-12)) * jnp.where(winner == 0, -1.0, 1.0)
    gradient = gradient.map(lambda part: part * length)
    cos, sin = frame.cos[winner], frame.sin[winner]
    normal = _Vector(cos * gradient.x + sin * gradient.z, gradient.y, cos * gradient.z - sin * gradient.x)

    around = jnp.arctan2(unit.x, unit.z) / (2 * jnp.pi)
    span_u = 2 * jnp.where(face == 0, half.z, jnp.where(face == 3, jnp.pi * half.x, half.x))
    span_v = 2 * jnp.where(face == 1, half.z, half.y)
    along_u = (
        jnp.where(face == 0, -jnp.sign(unit.x) * unit.z, jnp.where(face == 2, jnp.sign(unit.z) * unit.x, unit.x)) / 2
    )
    along_v = jnp.where(face == 1, unit.z, unit.y) / 2
    repeats = scene.repeats[winner]
    fit = repeats == 0.0
    count_u = jnp.where(fit, 1.0, jnp.where(face == 3, jnp.maximum(jnp.round(span_u * repeats), 1.0), span_u * repeats))
    count_v = jnp.where(fit, 1.0, span_v * repeats)
    u = jnp.where(face == 3, around, along_u) * count_u + jnp.where(fit, 0.5, 0.0)
    v = along_v * count_v + jnp.where(fit, 0.5, 0.0)
    texels = textures.SIZE * jnp.sqrt(count_u * count_v / (span_u * span_v))
    return _Surface(normal, face, u, v, texels)


def _bilinear(atlas, material, level, u, v):
    """Bilinear sample of one mip level: three arrays in [0, 1]."""
    size = textures.SIZE >> level
    start = material * atlas.shape[1] + 4 * (textures.SIZE**2 - size * size) // 3
    x, y = u * size - 0.5, v * size - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    fx, fy = x - left, y - top
    left, top = left.astype(jnp.int32), top.astype(jnp.int32)
    columns = (left & (size - 1), (left + 1) & (size - 1))
    rows = (start + (top & (size - 1)) * size, start + ((top + 1) & (size - 1)) * size)
    weights = (((1 - fx) * (1 - fy), fx * (1 - fy)), ((1 - fx) * fy, fx * fy))
    color = _Vector(0.0, 0.0, 0.0)
    for row, row_weights in zip(rows, weights, strict=True):
        for column, weight in zip(columns, row_weights, strict=True):
            texel = jnp.take(atlas.reshape(-1), row + column, mode="clip")
            channels = _Vector(texel & 255, (texel >> 8) & 255, texel >> 16)
            color = color.map(lambda total, part, w=weight: total + w / 255.0 * part.astype(jnp.float32), channels)
    return color


def _texture(scene: Scene, winner, surface: _Surface, footprint) -> tuple[_Vector, Array]:
    """Trilinear texture colour of surface points whose pixel covers `footprint` metres, and their emission."""
    side, top, bottom = jnp.moveaxis(scene.material[winner], -1, 0)
    upward = jnp.where(winner == 0, -surface.normal.y, surface.normal.y) < 0
    material = jnp.where(surface.face == 1, jnp.where(upward, top, bottom), side)
    lod = jnp.clip(jnp.log2(jnp.maximum(footprint * surface.texels, 1e-6)), 0.0, 5.99)
    level = jnp.floor(lod).astype(jnp.int32)
    fine = _bilinear(scene.atlas, material, level, surface.u, surface.v)
    coarse = _bilinear(scene.atlas, material, level + 1, surface.u, surface.v)
    color = fine.map(lambda a, b: a + (lod - level) * (b - a), coarse)
    tint = _Vector(*jnp.moveaxis(scene.tint[winner], -1, 0))
    return color.map(jnp.multiply, tint), scene.emission[material]


def _shade(scene: Scene, frame: _Frame, origin: _Vector, direction: _Vector, depth, winner, pixel: Array):
    """Colour in [0, 1] of rays that end at `depth`, and a key that changes where a geometric edge is."""
    point = origin.map(lambda o, d: o + depth * d, direction)
    surface = jax.lax.optimization_barrier(_surface(scene, frame, winner, point))
    length = jnp.sqrt(direction.dot(direction))
    facing = jnp.abs(surface.normal.dot(direction)) / length
    albedo, emission = _texture(scene, winner, surface, depth * length * pixel / jnp.sqrt(jnp.maximum(facing, 0.08)))

    light = _Vector(*scene.light)
    matter, contact, toward, distance = _occlusion(frame, point, winner, light)
    lambert = jnp.maximum(surface.normal.dot(toward), 0.0) * jnp.exp(-matter / SHADOW_SOFTNESS)
    lambert = lambert / (1.0 + (distance / scene.reach) ** 2)
    local, half = frame.into(0, point), frame.extent(0)
    open_air = jnp.ones_like(contact)
    for position, extent, normal in zip(local, half, surface.normal, strict=True):
        corner = jnp.exp((jnp.abs(position) - extent) / (2 * CONTACT_REACH))
        open_air = open_air * (1.0 - 0.35 * corner * (1.0 - jnp.abs(normal)))
    sky_light = (1.0 - 0.12 * surface.normal.y) * open_air * (1.0 - 0.45 * contact)
    channels = []
    for part, ambient, lamp in zip(albedo, scene.ambient, scene.light_color, strict=True):
        lit = part * (ambient * sky_light + lamp * lambert * (1.0 - 0.3 * contact))
        lit = part * emission + lit * (1.0 - emission)
        channels.append(jnp.minimum(lit, 0.7) + 0.3 * jnp.tanh(jnp.maximum(lit - 0.7, 0.0) / 0.3))
    return jnp.stack(channels, -1), winner * 8 + surface.face * 2 + (surface.normal.dot(direction) > 0)


def _view(scene: Scene, camera: Cameras, time, height: int, width: int):
    frame = _Frame.at(scene, time)
    rotation, translation = camera.cam_from_world[:, :3], camera.cam_from_world[:, 3]
    fx, fy, cx, cy = camera.intrinsics
    origin = _Vector(*(-(rotation * translation[:, None]).sum(0)))

    def sample(columns, rows):
        x, y = ((columns + 0.5) / width - cx) / fx, ((rows + 0.5) / height - cy) / fy
        direction = _Vector(*(rotation[0, k] * x + rotation[1, k] * y + rotation[2, k] for k in range(3)))
        depth, winner = _cast(frame, origin, direction)
        color, key = _shade(scene, frame, origin, direction, depth, winner, 1.0 / (fx * width))
        # Without the barrier XLA fuses the shading into each of its consumers and computes it several times.
        return jax.lax.optimization_barrier((color, key, depth, winner))

    rows, columns = jnp.divmod(jnp.arange(height * width), width)
    color, key, depth, winner = sample(columns.astype(jnp.float32), rows.astype(jnp.float32))
    key = key.reshape(height, width)
    across = jnp.pad(key[:, 1:] != key[:, :-1], ((0, 0), (1, 1)))
    down = jnp.pad(key[1:] != key[:-1], ((1, 1), (0, 0)))
    edge = (across[:, 1:] | across[:, :-1] | down[1:] | down[:-1]).reshape(-1)
    capacity = max(height * width // EDGE_FRACTION, 1)
    chosen = jnp.nonzero(edge, size=capacity, fill_value=0)[0]
    dx, dy = jnp.array(EDGE_OFFSETS, jnp.float32).T[..., None]
    finer = sample((chosen % width + dx).reshape(-1), (chosen // width + dy).reshape(-1))[0]
    finer = finer.reshape(len(EDGE_OFFSETS), capacity, 3).mean(0)
    # Pixels fetch their finer colour: on a CPU a gather is several times faster here than the scatter it replaces.
    order = jnp.cumsum(edge) - 1
    color = jnp.where((edge & (order < capacity))[:, None], finer[jnp.clip(order, 0, capacity - 1)], color)
    image = jnp.round(255.0 * jnp.clip(color, 0.0, 1.0)).astype(jnp.uint8)
    return Rendering(
        image.reshape(height, width, 3),
        depth.reshape(height, width),
        scene.instance[winner].reshape(height, width),
        scene.moves[winner].reshape(height, width),
    )


@partial(jax.jit, static_argnames=("height", "width"))
def render(scene: Scene, cameras: Cameras, times: Float[Array, " v"], height: int, width: int) -> Rendering:
    """See the scene through v cameras, each at its own time.

    Arguments:
      scene: from `sample_scene`.
      cameras: [v] views inside the scene.
      times: [v] seconds; moving objects are where they are at that time.
      height, width: pixels, static.

    Returns:
      Colour (edges smoothed with extra samples, textures band-limited to the pixel), and the exact depth, instance and
      motion mask of the ray through each pixel centre.
    """
    return jax.lax.map(lambda view: _view(scene, view[0], view[1], height, width), (cameras, times))
