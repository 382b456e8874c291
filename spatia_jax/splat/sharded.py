"""Rendering over devices: views split among them, or the point map, or both.

With a split map each device chooses the K nearest of its own points; the lists then go around a ring of devices, each
merging what comes by into its own. The K nearest of all are among the K nearest of the parts, and order is by (depth,
index in the whole map), so the picture is that of the whole map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.splat.fragments import rasterize
from spatia_jax.splat.projection import SplatConfig, disc_radius2, project
from spatia_jax.splat.render import Projection, render


def render_sharded(
    positions: Float[Array, "n 3"],
    features: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
    mesh: Mesh,
    *,
    views: str | None = None,
    points: str | None = None,
    height: int,
    width: int,
    config: SplatConfig,
) -> Projection:
    """`render` over the devices of a mesh.

    Args:
        views: mesh axis that the views are split over; their number has to divide.
        points: mesh axis that the point map is split over; its length has to divide.

    Raises:
        InputError: something does not divide.
    """
    for name, axis, count in (("views", views, len(cameras)), ("points", points, positions.shape[0])):
        if axis is not None and count % mesh.shape[axis]:
            raise InputError(f"{count} {name} cannot be split over the {mesh.shape[axis]} devices of mesh axis {axis}")
    each: Callable[..., Projection] = partial(render, height=height, width=width, config=config)
    if points is not None:
        each = partial(_render_part, axis=points, height=height, width=width, config=config)
    cloud, path = PartitionSpec(points), PartitionSpec(views)
    run = jax.shard_map(each, mesh=mesh, in_specs=(cloud, cloud, cloud, path), out_specs=path, check_vma=False)
    return run(positions, features, valid, cameras)


def render_in_parts(
    positions: Float[Array, "n 3"],
    features: Float[Array, "n c"],
    valid: Bool[Array, " n"],
    cameras: Cameras,
    *,
    height: int,
    width: int,
    config: SplatConfig,
) -> Projection:
    """`render`, for use under jit: every device of the mesh in use (`jax.set_mesh`) renders its share of the views.

    The kernel that renders is one device's: XLA could not cut it. Without a mesh this is `render`.
    """
    each = partial(render, height=height, width=width, config=config)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.manual_axes:
        return each(positions, features, valid, cameras)
    count, everywhere, parts = len(cameras), PartitionSpec(), PartitionSpec(mesh.axis_names)
    shares = cameras[jnp.minimum(jnp.arange(-(-count // mesh.size) * mesh.size), count - 1)]
    specs = (everywhere, everywhere, everywhere, parts)
    run = jax.shard_map(each, in_specs=specs, out_specs=parts, check_vma=False)
    return jax.tree.map(lambda leaf: leaf[:count], run(positions, features, valid, shares))


def _render_part(
    positions, features, valid, cameras: Cameras, *, axis: str, height: int, width: int, config: SplatConfig
) -> Projection:
    """The whole map's picture, on a device that holds a part of it."""
    devices, first = lax.axis_size(axis), lax.axis_index(axis) * positions.shape[0]
    ring = [(i, (i + 1) % devices) for i in range(devices)]

    @jax.checkpoint
    def one_view(camera: Cameras) -> Projection:
        ndc = project(positions, camera, height, width, config)
        radius2 = disc_radius2(ndc[:, 2], camera, height, width, config)
        fragments = rasterize(ndc, valid, height, width, config, radius2)
        hit, at = fragments.indices >= 0, jnp.maximum(fragments.indices, 0)
        own = (
            jnp.where(hit, fragments.depth, jnp.inf), jnp.where(hit, first + at, jnp.iinfo(jnp.int32).max),
            fragments.alpha, jnp.where(hit[..., None], features[at], 0),
        )  # fmt: skip

        def merge(_, lists):
            best, passing = lists
            passing = jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, ring), passing)
            return _nearest(best, passing, config.points_per_pixel), passing

        best, _ = lax.fori_loop(0, devices - 1, merge, (own, own))
        return _blend(*best)

    return lax.map(one_view, cameras)


def _nearest(a, b, k: int):
    """The k first of two lists per pixel: (depth, index, alpha, features), each [h, w, k, ...]."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=2), a, b)
    place = lax.broadcasted_iota(jnp.int32, both[0].shape, 2)
    depth = lax.stop_gradient(both[0])
    order = lax.sort((depth, both[1], place), dimension=2, num_keys=2)[2][..., :k]
    return tuple(
        jnp.take_along_axis(leaf, order.reshape(*order.shape, *(1,) * (leaf.ndim - 3)), axis=2) for leaf in both
    )


def _blend(depth, index, alpha, features) -> Projection:
    passed = jnp.cumprod(1.0 - alpha, axis=-1)
    before = jnp.concatenate([jnp.ones_like(alpha[..., :1]), passed[..., :-1]], axis=-1)
    color = ((alpha * before)[..., None] * features).sum(axis=2)
    nearest = jnp.where(jnp.isfinite(depth[..., 0]), depth[..., 0], 0.0)
    return Projection(color, 1.0 - passed[..., -1], nearest)
