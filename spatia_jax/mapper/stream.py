"""A sequence mapped frame by frame: track, make keyframes, adjust a window, close loops, and keep a point map.

Every step has fixed shapes and a fixed cost: a window of the last keyframes is adjusted for each new one, older ones
stay. Old keyframes that see the same place (co-visibility by depth and pose) are matched too; when such a loop is found
all keyframes are adjusted together, and the points of those that moved are moved with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import jaxlie
import numpy as np
from jaxtyping import Array, Float

from spatia_jax import memory
from spatia_jax.cameras.camera import Cameras
from spatia_jax.errors import InputError
from spatia_jax.mapper import keyframes as graphs
from spatia_jax.mapper import stream_steps as steps
from spatia_jax.mapper.keyframes import KeyframeGraph
from spatia_jax.mapper.problem import Priors, Variables
from spatia_jax.mapper.stream_steps import StreamConfig
from spatia_jax.mapper.window import WindowConfig, map_window, window_pairs
from spatia_jax.memory.point_map import PointMap


@dataclass(frozen=True)
class MappedSequence:
    """What a sequence became.

    Attributes:
        cameras: Cameras [t] of all frames.
        graph: keyframes, their depth and matches.
        point_map: points by keyframe.
        static: [k, rows, columns] bool, pixels of the keyframes whose depth their neighbours confirm.
        loops: (frame, earlier frame) of each loop that was believed.
        closures: how often all keyframes were adjusted.
    """

    cameras: Cameras
    graph: KeyframeGraph
    point_map: PointMap
    static: np.ndarray
    loops: list[tuple[int, int]]
    closures: int


def map_stream(
    config: StreamConfig,
    frames: np.ndarray,
    intrinsics: Float[Array | np.ndarray, " 4"],
    *,
    cameras: Cameras | None = None,
    depth: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> MappedSequence:
    """Maps frames [t, h, w, 3] uint8 in order.

    Args:
        intrinsics: normalised, of all frames.
        cameras: where the path is known roughly: the first window starts there, and later frames move as they do.
        depth: [t, rows, columns] given depth on the grid, 0 where unknown; it gives the scale.
    """
    run = _Run(config, frames, intrinsics, cameras, depth)
    run.begin()
    for frame in range(run.num_first, len(frames)):
        run.step(frame)
        if frame % 25 == 0:
            say(f"frame {frame}: {int(run.graph.count)} keyframes, {len(run.loops)} loops")
    return run.finish()


class _Run:
    """The state of one `map_stream`: the only thing here that changes in place."""

    def __init__(self, config, frames, intrinsics, cameras, depth):
        height, width = frames.shape[1:3]
        step = height // config.rows
        if height % config.rows or width % step:
            raise InputError(
                f"frames of {width}x{height} on {config.rows} rows: expected a height that is a multiple of the rows, "
                "and a width that is one of the cells' side"
            )
        self.config, self.frames, self.cameras = config, frames, cameras
        self.grid = (config.rows, width // step)
        self.depth = np.zeros((len(frames), *self.grid), np.float32) if depth is None else depth
        self.lens = Cameras(jnp.eye(3, 4), jnp.asarray(intrinsics)).pixel_intrinsics(*self.grid)
        self.intrinsics = jnp.asarray(intrinsics)
        capacity = min(config.keyframes, len(frames))
        self.graph = graphs.empty_graph(capacity, config.pairs, (height, width), self.grid)
        self.point_map = memory.empty(config.capacity)
        self.num_first = min(config.window, len(frames))
        self.anchor: dict[int, tuple[int, np.ndarray]] = {}  # frame -> (keyframe's frame, pose relative to it)
        self.loops: list[tuple[int, int]] = []
        self.new_loops = self.since_closure = self.closures = 0
        self.inserted: set[int] = set()
        self.poses: dict[int, np.ndarray] = {}  # of keyframes that were evicted

    def begin(self) -> None:
        """The first window, all at once."""
        count, config = self.num_first, self.config
        given = self.depth[:count]
        start_cameras = Cameras(
            jnp.broadcast_to(jnp.eye(3, 4), (count, 3, 4)), jnp.broadcast_to(self.intrinsics, (count, 4))
        )
        if self.cameras is not None:
            start_cameras = self.cameras[:count]
        start = Variables.start(start_cameras, jnp.asarray(1 / np.where(given > 0, given, 2.0)))
        priors = Priors.none(start, 1).with_depth(
            jnp.where(given > 0, given, 2.0), jnp.where(given > 0, config.sensor_sigma, 1.0)
        )
        images = jnp.asarray(self.frames[:count], jnp.float32) / 255
        pairs = window_pairs(count, config.radius)
        window = WindowConfig(config.matcher, dataclasses.replace(config.adjustment, iterations=20))
        found = map_window(window, images, pairs, start, priors)
        variables = found.solution.variables
        for slot in range(count):
            pose = variables.poses.wxyz_xyz[slot]
            self.graph = steps.add(
                self.graph, slot, self.frames[slot], pose, variables.inverse_depth[slot], self.lens, given[slot]
            )
        matches = found.matches
        shape = (len(pairs), 2, *self.grid, 2)
        weights = matches.weights.reshape(shape) * config.match_sigma_px**2
        self.graph = graphs.add_pairs(self.graph, jnp.asarray(pairs), matches.pixels.reshape(shape), weights)

    def step(self, frame: int) -> None:
        """One more frame: tracked, and if it moved far enough, a keyframe."""
        config = self.config
        if int(self.graph.count) == len(self.graph.frames):
            self._evict()
        slot = int(self.graph.count)
        before = jnp.arange(slot - config.radius, slot)
        image = jnp.asarray(self.frames[frame])
        pixels, weights, flow = steps.match_new(config, self.grid, self.graph.images[before], image)
        pose = steps.track(
            config, self.graph, slot - 1, self._guess(frame, slot), pixels[-1, 0], weights[-1, 0], self.lens
        )
        if float(flow) < config.keyframe_flow and frame != len(self.frames) - 1:
            last = jaxlie.SE3(self.graph.variables.poses.wxyz_xyz[slot - 1])
            relative = jaxlie.SE3(pose) @ last.inverse()
            self.anchor[frame] = (int(self.graph.frames[slot - 1]), np.asarray(relative.wxyz_xyz))
            return
        given = jnp.asarray(self.depth[frame])
        expected = steps.carried_depth(self.graph, slot - 1, pose, self.lens)
        inverse_depth = jnp.where(given > 0, 1 / jnp.where(given > 0, given, 1.0), expected)
        self.graph = steps.add(self.graph, frame, image, pose, inverse_depth, self.lens, given)
        pairs = jnp.stack([before, jnp.full(config.radius, slot)], axis=1)
        self.graph = graphs.add_pairs(self.graph, pairs, pixels, weights)
        self.graph = steps.adjust_window(config, self.graph, slot + 1 - config.window)
        if config.loops:
            self._find_loops(slot)
        self.since_closure += 1
        if self.new_loops and self.since_closure >= config.close_every:
            self._close()
        self._insert(slot - config.window)

    def finish(self) -> MappedSequence:
        """All keyframes adjusted once more, the last points, and where all frames were."""
        self._close()
        for slot in range(int(self.graph.count)):
            self._insert(slot)
        for slot, frame in enumerate(np.asarray(self.graph.frames)):
            if frame >= 0:
                self.poses[int(frame)] = np.asarray(self.graph.variables.poses.wxyz_xyz[slot])
        for frame, (keyframe, relative) in self.anchor.items():
            pose = jaxlie.SE3(jnp.asarray(relative)) @ jaxlie.SE3(jnp.asarray(self.poses[keyframe]))
            self.poses[frame] = np.asarray(pose.wxyz_xyz)
        poses = jnp.asarray(np.stack([self.poses[frame] for frame in range(len(self.frames))]))
        cameras = Cameras.from_se3(jaxlie.SE3(poses), self.intrinsics)
        static = np.stack([steps.confirmed(self.config, self.graph, slot)[0] for slot in range(int(self.graph.count))])
        return MappedSequence(cameras, self.graph, self.point_map, static, self.loops, self.closures)

    def _guess(self, frame: int, slot: int) -> Array:
        """Where a new frame should be: as the given path moves, or on at the same speed."""
        poses = self.graph.variables.poses.wxyz_xyz
        last = jaxlie.SE3(poses[slot - 1])
        if self.cameras is not None:
            path = self.cameras.as_se3().wxyz_xyz
            moved = jaxlie.SE3(path[frame]) @ jaxlie.SE3(path[int(self.graph.frames[slot - 1])]).inverse()
        else:
            moved = last @ jaxlie.SE3(poses[slot - 2]).inverse()
        return (moved @ last).wxyz_xyz

    def _evict(self) -> None:
        before = set(np.asarray(self.graph.frames).tolist())
        poses = {
            int(f): np.asarray(p) for f, p in zip(self.graph.frames, self.graph.variables.poses.wxyz_xyz, strict=True)
        }
        for slot in range(int(self.graph.count) - self.config.window):
            self._insert(slot)
        self.graph = steps.evict(self.graph, self.config.window)
        for frame in before - set(np.asarray(self.graph.frames).tolist()):
            self.poses[frame] = poses[frame]

    def _find_loops(self, slot: int) -> None:
        config = self.config
        last = slot - config.loop_gap
        if last < 0:
            return
        share = np.array(steps.overlap(self.graph, slot))
        share[last + 1 :] = 0
        chosen: list[int] = []
        while share.max() > config.loop_overlap and len(chosen) < config.loops:
            chosen.append(int(share.argmax()))
            share[max(chosen[-1] - 2, 0) : chosen[-1] + 3] = 0  # another one, not its neighbour
        if not chosen:
            return
        pairs = jnp.asarray([(c, slot) for c in chosen] + [(-1, -1)] * (config.loops - len(chosen)), jnp.int32)
        pixels, weights = steps.match_loops(config, self.grid, self.graph, pairs)
        believed = np.asarray(weights.mean((1, 2, 3, 4))) > config.loop_share
        pairs = jnp.where(jnp.asarray(believed)[:, None], pairs, -1)
        self.graph = graphs.add_pairs(self.graph, pairs, pixels, weights)
        numbers = np.asarray(self.graph.frames)
        found = [(int(numbers[slot]), int(numbers[c])) for c, yes in zip(chosen, believed, strict=False) if yes]
        self.loops += found
        self.new_loops += len(found)

    def _close(self) -> None:
        """All keyframes adjusted together; points move with theirs."""
        before = self.graph
        self.graph = steps.adjust_all(self.config, before)
        old, new = before.variables, self.graph.variables
        scale = jnp.median(old.inverse_depth.reshape(len(old.lens), -1), axis=1) / jnp.median(
            new.inverse_depth.reshape(len(old.lens), -1), axis=1
        )
        self.point_map = steps.move_points(self.point_map, before.frames, old.cameras(), new.cameras(), scale)
        self.new_loops = self.since_closure = 0
        self.closures += 1

    def _insert(self, slot: int) -> None:
        """Points of a keyframe, once."""
        if slot < 0 or slot >= int(self.graph.count):
            return
        frame = int(self.graph.frames[slot])
        if frame in self.inserted:
            return
        self.inserted.add(frame)
        self.point_map = steps.insert_points(self.config, self.grid, self.point_map, self.graph, slot)
