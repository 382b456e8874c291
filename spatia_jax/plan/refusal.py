"""What to change so that a run fits, found by planning the changed runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from spatia_jax.errors import InputError
from spatia_jax.plan.plan import Plan, Setting, plan, size

_MOST_DEVICES = 8  # that are proposed: one host


def require_fit(planned: Plan, limit: int) -> None:
    """Nothing, if `planned` needs no more than `limit` bytes on each device.

    Raises:
        InputError: it needs more; one line that says what is needed, what is there, which changes would help, and what
            is needed after each of them.
    """
    if planned.peak.bytes <= limit:
        return
    steps = ways_out(planned, limit)
    last = steps[-1][1] if steps else planned
    help = "; ".join(f"{option}: {size(after.peak.bytes)}" for option, after in steps)
    end = "which fits" if last.peak.bytes <= limit else f"which is still too much; in {_largest(last)}"
    raise InputError(
        f"{planned.setting.config.name} needs {size(planned.peak.bytes)} on each device, but there are {size(limit)}; "
        f"in {_largest(planned)}. "
        + (f"One after another, these would bring it down: {help}, {end}" if steps else "No option makes it smaller")
    )


def ways_out(planned: Plan, limit: int) -> list[tuple[str, Plan]]:
    """Changes one after another until the run fits or none is left: (option, the plan with it and all before it).

    First come those that leave the video as it is, but for rounding. What takes less than a twentieth off what is too
    much is left out.
    """
    taken: list[tuple[str, Plan]] = []
    for change in _CHANGES:
        while planned.peak.bytes > limit and (changed := change(planned.setting)) is not None:
            option, setting = changed
            after = plan(setting.config, setting.mesh, weights_dtype=setting.weights_dtype, platform=setting.platform)
            if _excess(after, limit) > 0.95 * _excess(planned, limit):
                break
            planned = after
            taken.append((option, after))
    return taken


def _excess(planned: Plan, limit: int) -> int:
    return sum(max(0, stage.bytes - limit) for stage in planned.stages)


def _largest(planned: Plan) -> str:
    stage = planned.peak
    first = stage.made.buffers[0] if stage.made.buffers else None
    made = f", of which {size(first.bytes)} are {first.name}" if first else ""
    return f"'{stage.name}' it holds {size(stage.held)} and makes {size(stage.made.bytes)}{made}"


_Change = Callable[[Setting], tuple[str, Setting] | None]


def _edit(setting: Setting, part: str, **fields: Any) -> tuple[str, Setting] | None:
    """Fields of one part of the experiment changed, as the command line does it; None where the result is no config."""
    options = " ".join(f"--{part}.{name.replace('_', '-')} {_value(value)}" for name, value in fields.items())
    try:
        edited = dataclasses.replace(getattr(setting.config, part), **fields)
        return options, dataclasses.replace(setting, config=dataclasses.replace(setting.config, **{part: edited}))
    except InputError:
        return None


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _smaller_weights(setting: Setting) -> tuple[str, Setting] | None:
    if setting.weights_dtype == "bfloat16":
        return None
    return "--weights-dtype bfloat16", dataclasses.replace(setting, weights_dtype="bfloat16")


def _smaller_activations(setting: Setting) -> tuple[str, Setting] | None:
    if setting.config.transformer.dtype == "bfloat16":
        return None
    return _edit(setting, "transformer", dtype="bfloat16")


def _streaming(setting: Setting) -> tuple[str, Setting] | None:
    if setting.config.autoencoder.streaming:
        return None
    edited = _edit(setting, "autoencoder", streaming=True)
    return edited and ("--autoencoder.streaming", edited[1])


def _tiles(setting: Setting) -> tuple[str, Setting] | None:
    autoencoder, clip = setting.config.autoencoder, setting.config.clip
    if not autoencoder.streaming or autoencoder.tile is not None:
        return None
    sides = (clip.height, clip.width)
    return _edit(setting, "autoencoder", tile=tuple(-(-side // autoencoder.space_factor // 4) for side in sides))


def _more_devices(setting: Setting) -> tuple[str, Setting] | None:
    mesh = dataclasses.replace(setting.mesh, fsdp=2 * setting.mesh.fsdp)
    if mesh.num_devices > _MOST_DEVICES:
        return None
    return f"--mesh.fsdp {mesh.fsdp}", dataclasses.replace(setting, mesh=mesh)


def _fewer_points(setting: Setting) -> tuple[str, Setting] | None:
    return _edit(setting, "memory", capacity=setting.config.memory.capacity // 2)


def _fewer_frames(setting: Setting) -> tuple[str, Setting] | None:
    clip, time = setting.config.clip, setting.config.autoencoder.time_factor
    opening = 1 + (clip.opening_frames - 1) // (2 * time) * time
    new = clip.new_frames // (2 * time) * time
    return _edit(setting, "clip", opening_frames=max(opening, clip.history_frames), new_frames=new)


_CHANGES: tuple[_Change, ...] = (
    _smaller_weights, _smaller_activations, _streaming, _tiles, _more_devices, _fewer_points, _fewer_frames,
)  # fmt: skip
