"""A sequence mapped frame by frame: track, make keyframes, adjust a window, close loops, and keep a point map.

Every step has fixed shapes and a bounded cost: a window of the last keyframes is adjusted for each new one. Old
keyframes that see the same place (co-visibility by depth and pose) are matched too. Every few keyframes all of them are
adjusted together, which closes such loops and slows the drift of the scale, and the points of those that moved are
moved with them.
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
    moving: np.ndarray | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> MappedSequence:
    """Maps frames [t, h, w, 3] uint8 in order.

    Args:
        intrinsics: normalised, of all frames.
        cameras: where the path is known roughly: the first window starts there, and later frames move as they do.
        depth: [t, rows, columns] given depth on the grid, 0 where unknown; it gives the scale.
        moving: [t, rows, columns] bool, where something is known to move: not matched, and not in the map.
    """
    run = _Run(config, frames, intrinsics, cameras, depth, moving)
    run.begin()
    for frame in range(run.num_first, len(frames)):
        run.step(frame)
        if frame % 25 == 0:
            say(f"frame {frame}: {int(run.graph.count)} keyframes, {len(run.loops)} loops")
    return run.finish()


class _Run:
    """The state of one `map_stream`: the only thing here that changes in place."""

    def __init__(
        self,
        config: StreamConfig,
        frames: np.ndarray,
        intrinsics: Array | np.ndarray,
        cameras: Cameras | None,
        depth: np.ndarray | None,
        moving: np.ndarray | None,
    ):
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
        self.static = np.ones((len(frames), *self.grid), bool) if moving is None else ~moving
        self.lens = Cameras(jnp.eye(3, 4), jnp.asarray(intrinsics)).pixel_intrinsics(*self.grid)
        self.intrinsics = jnp.asarray(intrinsics)
        capacity = min(config.keyframes, len(frames))
        self.graph = graphs.empty_graph(capacity, config.pairs, (height, width), self.grid)
        self.point_map = memory.empty(config.capacity)
        self.num_first = min(config.window, len(frames))
        self.anchor: dict[int, tuple[int, np.ndarray]] = {}  # frame -> (keyframe's frame, pose relative to it)
        self.loops: list[tuple[int, int]] = []
        self.since_closure = self.closures = 0
        self.inserted: set[int] = set()

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
        pairs = np.array([p for p in window_pairs(count, count) if p[1] - p[0] in config.offsets], np.int32)
        adjustment = dataclasses.replace(config.kernel(1.0), iterations=20, damping=1e-2)
        window = WindowConfig(config.matcher, adjustment, match_sigma_px=config.sigma_px)
        found = map_window(window, images, pairs, start, priors, jnp.asarray(self.static[:count]))
        variables = found.solution.variables
        for slot in range(count):
            pose = variables.poses.wxyz_xyz[slot]
            self.graph = steps.add(
                self.graph, slot, self.frames[slot], pose, variables.inverse_depth[slot], self.lens, given[slot],
                self.static[slot],
            )  # fmt: skip
        variance, _ = steps.depth_variance(found.matches, priors, variables, adjustment)
        self.graph = dataclasses.replace(self.graph, variance=self.graph.variance.at[:count].set(variance))
        matches = found.matches
        shape = (len(pairs), 2, *self.grid, 2)
        weights = matches.weights.reshape(shape) * config.sigma_px**2
        self.graph = steps.add_pairs(self.graph, jnp.asarray(pairs), matches.pixels.reshape(shape), weights)

    def step(self, frame: int) -> None:
        """One more frame: tracked, and if it moved far enough, a keyframe."""
        config = self.config
        if int(self.graph.count) == len(self.graph.frames):
            self._evict()
        slot = int(self.graph.count)
        image, static = jnp.asarray(self.frames[frame]), jnp.asarray(self.static[frame])
        pixels, weights, flow = steps.match_new(config, self.grid, self.graph, slot - 1, image, static)
        pose = steps.track(config, self.graph, slot - 1, self._guess(frame, slot), pixels, weights, self.lens)
        if float(flow) < config.keyframe_flow and frame != len(self.frames) - 1:
            last = jaxlie.SE3(self.graph.variables.poses.wxyz_xyz[slot - 1])
            relative = jaxlie.SE3(pose) @ last.inverse()
            self.anchor[frame] = (int(self.graph.frames[slot - 1]), np.asarray(relative.wxyz_xyz))
            return
        given = jnp.asarray(self.depth[frame])
        expected = steps.carried_depth(self.graph, slot - 1, pose, self.lens)
        inverse_depth = jnp.where(given > 0, 1 / jnp.where(given > 0, given, 1.0), expected)
        self.graph = steps.add(self.graph, frame, image, pose, inverse_depth, self.lens, given, static)
        self._adjust_window(slot)
        if config.loops:
            self._find_loops(slot)
        self.since_closure += 1
        if self.since_closure >= config.close_every:
            self._close()
        self._insert(slot - config.window)

    def _adjust_window(self, slot: int) -> None:
        """A new keyframe is matched with those before it from where its pose and depth say, twice, as both improve."""
        config = self.config
        pairs = jnp.asarray([(slot - offset, slot) for offset in config.offsets], jnp.int32)
        for _ in range(2):
            matches = steps.match_pairs(config.matcher, self.grid, self.graph, pairs)
            self.graph = steps.add_pairs(self.graph, pairs, *matches)
            self.graph = steps.adjust_window(config, self.graph, slot + 1 - config.window)

    def finish(self) -> MappedSequence:
        """All keyframes adjusted once more, the last points, and where all frames were."""
        self._close()
        for slot in range(int(self.graph.count)):
            self._insert(slot)
        found: dict[int, jaxlie.SE3] = {}
        for slot, frame in enumerate(np.asarray(self.graph.frames)):
            found[int(frame)] = jaxlie.SE3(self.graph.variables.poses.wxyz_xyz[slot])
        for frame in range(len(self.frames)):
            self._place(frame, found)
        poses = jnp.asarray(np.stack([found[frame].wxyz_xyz for frame in range(len(self.frames))]))
        cameras = Cameras.from_se3(jaxlie.SE3(poses), self.intrinsics)
        static = np.stack([steps.confirmed(self.config, self.graph, slot)[0] for slot in range(int(self.graph.count))])
        return MappedSequence(cameras, self.graph, self.point_map, static, self.loops, self.closures)

    def _place(self, frame: int, found: dict[int, jaxlie.SE3]) -> jaxlie.SE3:
        """Where a frame is: as its own keyframe says, or the one that it hangs on."""
        if frame not in found:
            holder, relative = self.anchor[frame]
            found[frame] = jaxlie.SE3(jnp.asarray(relative)) @ self._place(holder, found)
        return found[frame]

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
        """The most redundant keyframe leaves. Its frame and its points stay with the keyframe before it, and the
        keyframes on both sides are matched, so that the graph does not fall apart."""
        before = self.graph
        for slot in range(int(before.count) - self.config.window):
            self._insert(slot)
        self.graph = steps.evict(before, self.config.window)
        slot = int(np.flatnonzero(np.asarray(before.frames) != np.asarray(self.graph.frames))[0])
        gone, kept = int(before.frames[slot]), int(before.frames[slot - 1])
        poses = before.variables.poses.wxyz_xyz
        relative = jaxlie.SE3(poses[slot]) @ jaxlie.SE3(poses[slot - 1]).inverse()
        self.anchor[gone] = (kept, np.asarray(relative.wxyz_xyz))
        held = self.point_map.keyframes
        self.point_map = dataclasses.replace(self.point_map, keyframes=jnp.where(held == gone, kept, held))
        pair = jnp.array([[slot - 1, slot]], jnp.int32)
        matches = steps.match_pairs(self.config.matcher, self.grid, self.graph, pair)
        self.graph = steps.add_pairs(self.graph, pair, *matches)

    def _find_loops(self, slot: int) -> None:
        config = self.config
        last = slot - config.loop_gap
        if last < 0:
            return
        share = np.array(steps.overlap(self.graph, slot))
        share[last + 1 :] = 0
        held = np.asarray(self.graph.pairs)
        looped = np.abs(held[:, 1] - held[:, 0]) > max(config.offsets)
        share[np.bincount(held[looped, 0], minlength=len(share)) >= 2 * config.loops] = 0  # enough of them already
        chosen: list[int] = []
        while share.max() > config.loop_overlap and len(chosen) < config.loops:
            chosen.append(int(share.argmax()))
            share[max(chosen[-1] - 2, 0) : chosen[-1] + 3] = 0  # another one, not its neighbour
        if not chosen:
            return
        pairs = jnp.asarray([(c, slot) for c in chosen] + [(-1, -1)] * (config.loops - len(chosen)), jnp.int32)
        pixels, weights = steps.match_pairs(config.far_matcher, self.grid, self.graph, pairs)
        believed = np.asarray(weights.mean((1, 2, 3, 4))) > config.loop_share
        pairs = jnp.where(jnp.asarray(believed)[:, None], pairs, -1)
        self.graph = steps.add_pairs(self.graph, pairs, pixels, weights)
        numbers = np.asarray(self.graph.frames)
        found = [(int(numbers[slot]), int(numbers[c])) for c, yes in zip(chosen, believed, strict=False) if yes]
        self.loops += found

    def _close(self) -> None:
        """All keyframes adjusted together; points move with theirs."""
        before = self.graph
        count = min(-(-int(before.count) // 64) * 64, len(before.frames))  # in steps: few programs are compiled
        self.graph = steps.adjust_all(self.config, count, before)
        old, new = before.variables, self.graph.variables
        scale = jnp.median(old.inverse_depth.reshape(len(old.lens), -1), axis=1) / jnp.median(
            new.inverse_depth.reshape(len(old.lens), -1), axis=1
        )
        self.point_map = steps.move_points(self.point_map, before.frames, old.cameras(), new.cameras(), scale)
        self.since_closure = 0
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
