"""The command behind sample.py: read and check, open the world, run clip by clip, write everything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from jaxtyping import Array

from spatia_jax.cameras import Cameras, check_path, parse_path
from spatia_jax.config import Experiment, load_experiment
from spatia_jax.errors import InputError, exit_status
from spatia_jax.io.atomic import atomic_write, recover_directory
from spatia_jax.io.manifest import sha256, write_manifest
from spatia_jax.io.progress import RolloutProgress
from spatia_jax.model import Model, Params
from spatia_jax.parallel import MeshConfig, check_mesh, make_mesh, param_shardings
from spatia_jax.plan import device_memory, nbytes, plan, require_fit
from spatia_jax.sampling import compiled
from spatia_jax.sampling import inputs as door
from spatia_jax.sampling.driver import Driver, decode_jointly
from spatia_jax.sampling.executables import Executables
from spatia_jax.sampling.outputs import KeptClip, keep_clip, load_clip, write_outputs
from spatia_jax.sampling.saved_world import load_world, save_world
from spatia_jax.sampling.texts import encode_texts
from spatia_jax.stages import project
from spatia_jax.state import Clip, ClipRequest, World
from spatia_jax.text import NEGATIVE_PROMPT
from spatia_jax.weights.bundle import check_weights, load_network, weights_folder
from spatia_jax.weights.record import weight_files, weight_hashes
from spatia_jax.world import new_world

DEFAULT_CLIPS = 4
DEFAULT_PATH = "pan right 35 and dolly in 0.5; there and back"


@dataclass(frozen=True)
class SampleArgs:
    """What to generate, from what, and where to.

    Attributes:
        image: the photo that the world starts from; the embedded one if nothing is given.
        depth: its depth (16-bit PNG in millimetres, or .npy in metres); estimated if not given.
        mask: what moves in it (an image, bright = moving; or .npy frames x height x width): it stays out of the map.
        sequence: a folder of posed frames to start from instead of a photo.
        cameras: a camera file or folder: w2c.txt, RealEstate10K, TUM, COLMAP, transforms.json, 7-Scenes.
        intrinsics: intrinsics.txt with normalised fx fy cx cy; found beside --cameras by itself.
        path: the camera path in words, e.g. "pan left 40; there and back".
        every: use every n-th camera of the file.
        fov: horizontal field of view of the photo in degrees, where no intrinsics are given; 65 if not said.
        prompt: a text, or one for each clip.
        prompts: a file with one prompt a line, one line a clip.
        negative_prompt: what guidance steers away from.
        clips: how many; by default as many as the camera file needs, or 4.
        weights: a folder of weights; those that come with the package by default.
        weights_dtype: in which the large networks, transformer and text encoder, are held; what they compute in is
            --transformer.dtype and --text-encoder.dtype.
        mesh: devices to spread the networks over; 1 everywhere = all on one.
        executables: a folder for compiled programs: those in it are loaded, the others compiled and kept in it.
        text_cache: a folder for encoded texts; with all in it, the text encoder is not loaded.
        output: a new or empty folder, or one to --resume.
        resume: go on where an interrupted run in --output stopped.
        from_world: a saved world to go on from, with another path or prompt.
        seed: the same seed gives the same video.
        experiment: any of its fields can be set.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    image: Path | None = None
    depth: Path | None = None
    mask: Path | None = None
    sequence: Path | None = None
    cameras: Path | None = None
    intrinsics: Path | None = None
    path: str | None = None
    every: int = 1
    fov: float | None = None
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    negative_prompt: str = NEGATIVE_PROMPT
    clips: int | None = None
    weights: Path | None = None
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshConfig = MeshConfig()
    executables: Path | None = None
    text_cache: Path | None = None
    output: Path = Path("outputs/sample")
    resume: bool = False
    from_world: Path | None = None
    seed: int = 20917


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status; bad input is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return exit_status(lambda: run(parse_args(argv)))
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from the last whole clip", file=sys.stderr)
        return 130


def parse_args(argv: list[str]) -> SampleArgs:
    """A config file, then options; InputError without the file."""
    if not argv or argv[0].startswith("-"):
        raise InputError('the first argument is a config file, e.g. sample.py configs/tiny.py --path "orbit 30"')
    default = SampleArgs(experiment=load_experiment(argv[0]))
    return tyro.cli(SampleArgs, default=default, args=argv[1:], prog=f"sample.py {argv[0]}")


def run(args: SampleArgs) -> None:
    """The whole job. Everything that can be wrong with the input is found before the first clip is begun."""
    if args.mesh.num_devices == 1:
        _run(args, None)
    else:
        network = args.experiment.transformer
        check_mesh(
            args.mesh.sizes,
            devices=jax.device_count(),
            heads=network.num_heads,
            sequence_parallel=network.sequence_parallel,
        )
        mesh = make_mesh(args.mesh)
        with jax.set_mesh(mesh):
            _run(args, mesh)


def _run(args: SampleArgs, mesh: Mesh | None) -> None:
    config = args.experiment
    _check_output(args)
    given = _read_inputs(args)
    weights = weights_folder(config.name, args.weights)
    model = Model(config)
    networks = [name for name in model.parts if name != "text_encoder"]
    check_weights(model, weights, networks)
    prompts = door.read_prompts(args.prompt or (() if args.prompts else given.default_prompt), args.prompts)
    _check_memory(args, model)
    suffix = config.prompt_suffix
    contexts = encode_texts(
        model, weights, [*(prompt + suffix for prompt in prompts), args.negative_prompt],
        mesh=mesh, dtype=args.weights_dtype, cache=args.text_cache,
    )  # fmt: skip
    params = {name: _load(args, model, weights, name, mesh) for name in networks}
    world = _starting_world(args, model, params, given)

    first = int(world.clip_index)
    cameras, clips, asked = _camera_path(args, given, world)
    prompts = door.fit_prompts(prompts, clips, print)
    warnings = _path_warnings(cameras, world)
    for warning in warnings:
        print(f"note: {warning}")
    history = world.history if first else None
    world = _claim_output(args, world, _fingerprint(args, weights, prompts, cameras, given))
    requests = _requests(contexts, args, prompts, cameras, given.moving, opening=first == 0)

    def keep(index: int, before: World, after: World, clip: Clip, seconds: dict[str, float]) -> None:
        keep_clip(args.output, index, before, clip, seconds)
        save_world(args.output / "world", after, config)

    kept_programs = Executables(args.executables, model, mesh) if args.executables else None
    with RolloutProgress(clips, config.sampler.steps, first_clip=int(world.clip_index) - first) as progress:
        world = Driver(model, kept_programs).run(
            params, world, requests, prompts, first=first, progress=progress, keep=keep
        )
    if not config.release_compatible:
        cameras = cameras[:asked]
    kept = [load_clip(args.output, first + k) for k in range(clips)]
    frames = np.concatenate([clip.frames for clip in kept])
    if config.joint_decode:
        frames = decode_jointly(model, params, kept, history)
    _finish(args, given, weights, world, kept, frames[: len(cameras)], cameras, prompts, warnings)


def _check_output(args: SampleArgs) -> None:
    """An output folder is new or empty, or the one of the run that is resumed: nothing is written over."""
    if args.resume and not (args.output / "job.json").is_file():
        raise InputError(f"--resume: {args.output} holds no interrupted run")
    if args.output.is_file():
        raise InputError(f"--output {args.output} is a file; give a folder")
    if not args.resume and args.output.is_dir() and any(args.output.iterdir()):
        raise InputError(
            f"--output {args.output} is not empty; choose another folder, or add --resume to go on with the run in it"
        )


def _check_memory(args: SampleArgs, model: Model) -> None:
    """Says what a large model needs of the device, and refuses one that cannot fit, before anything is loaded."""
    if nbytes(model.abstract_params()) < 2**30:
        return
    planned = plan(model.config, args.mesh, weights_dtype=args.weights_dtype)
    print(planned.table())
    require_fit(planned, device_memory())


def _read_inputs(args: SampleArgs) -> door.Inputs:
    if args.every < 1:
        raise InputError(f"--every is {args.every}; it must be at least 1")
    if args.clips is not None and args.clips < 1:
        raise InputError(f"--clips is {args.clips}; it must be at least 1")
    starts = [name for name in ("image", "sequence", "from_world") if getattr(args, name) is not None]
    if len(starts) > 1:
        raise InputError("give one of " + ", ".join(f"--{name.replace('_', '-')}" for name in starts) + ", not several")
    if args.from_world is not None:
        return door.continue_inputs(args)
    if args.sequence is not None:
        return door.sequence_inputs(args, print)
    return door.photo_inputs(args, print)


def _load(args: SampleArgs, model: Model, weights: Path, name: str, mesh: Mesh | None) -> Params:
    shardings = None if mesh is None else param_shardings(model.abstract_params()[name], mesh)
    return load_network(model, weights, name, shardings=shardings, dtype=args.weights_dtype)


def _starting_world(args: SampleArgs, model: Model, params: Params, given: door.Inputs) -> World:
    """The world that the first clip of this run is generated in."""
    template = jax.eval_shape(lambda: new_world(model, jax.random.key(0)))
    if args.from_world is not None:
        world = load_world(args.from_world, template, args.experiment)
        return dataclasses.replace(world, key=jax.random.key(args.seed))
    world = new_world(model, jax.random.key(args.seed))
    for view in given.views:
        depth = (
            compiled.estimate_view_depth(model, params, world, view.photo, view.camera)
            if view.depth is None
            else view.depth
        )
        world = compiled.observe(model, world, view.photo, depth, view.camera, view.moving)
    if not int(world.point_map.num_points):
        raise InputError("no point of the picture can be placed in space: the mask or the depth leaves nothing")
    return world


def _camera_path(args: SampleArgs, given: door.Inputs, world: World) -> tuple[Cameras, int, int]:
    """Cameras of whole clips, the number of clips, and how many frames the video shall have."""
    config = args.experiment
    continuing = int(world.clip_index) > 0
    if given.cameras is not None:
        return door.fit_length(given.cameras[:: args.every], config, args.clips, continuing=continuing, say=print)
    clips = args.clips or DEFAULT_CLIPS
    frames = clips * config.clip.new_frames if continuing else config.clip.frames_of(clips)
    start = world.history_cameras[-1]
    seen = project(Model(config), world, start[None])
    depth = (
        float(np.median(np.asarray(seen.depth)[np.asarray(seen.depth) > 0])) if bool((seen.depth > 0).any()) else 1.0
    )
    # A continuing path begins one step after where the camera already is.
    path = parse_path(given.path or DEFAULT_PATH, start, frames + continuing, depth)[int(continuing) :]
    return path, clips, frames


def _path_warnings(cameras: Cameras, world: World) -> list[str]:
    report = check_path(cameras, np.asarray(world.point_map.positions), np.asarray(world.point_map.valid))
    return list(report.warnings)


def _requests(
    contexts: dict[str, Array],
    args: SampleArgs,
    prompts: list[str],
    cameras: Cameras,
    moving: np.ndarray,
    *,
    opening: bool,
) -> list[ClipRequest]:
    """One request for each clip."""
    clip = args.experiment.clip
    parts = door.split_path(cameras, clip, opening=opening)
    masks = door.split_masks(moving, cameras, clip, opening=opening)
    return [
        ClipRequest(part, contexts[prompt + args.experiment.prompt_suffix], contexts[args.negative_prompt], mask)
        for part, prompt, mask in zip(parts, prompts, masks, strict=True)
    ]


def _fingerprint(args: SampleArgs, weights: Path, prompts: list[str], cameras: Cameras, given: door.Inputs) -> str:
    """A hash of all that decides a run's bits; a run is resumed only by an equal one."""
    parts = {
        "config": dataclasses.asdict(args.experiment),
        "seed": args.seed,
        "prompts": prompts,
        "negative_prompt": args.negative_prompt,
        "files": {name: sha256(file) for name, file in given.files.items()},
        "weights": weight_hashes(weights),
        "weights_dtype": args.weights_dtype,
        "cameras": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(cameras)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _claim_output(args: SampleArgs, world: World, fingerprint: str) -> World:
    """Marks the output folder as this job's; when resuming, returns the world after its last whole clip."""
    job = args.output / "job.json"
    if args.resume:
        if json.loads(job.read_text(encoding="utf-8")).get("fingerprint") != fingerprint:
            raise InputError(
                f"--resume: the run in {args.output} was started with other inputs, options or weights; repeat its "
                "command with --resume added, or choose another --output"
            )
        recover_directory(args.output / "world")
        if (args.output / "world").is_dir():
            return load_world(args.output / "world", world, args.experiment)
        return world
    with atomic_write(job) as temporary:
        temporary.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    return world


def _finish(
    args: SampleArgs,
    given: door.Inputs,
    weights: Path,
    world: World,
    clips: list[KeptClip],
    frames: np.ndarray,
    cameras: Cameras,
    prompts: list[str],
    warnings: list[str],
) -> None:
    folder, config = args.output, args.experiment
    score = write_outputs(
        folder,
        title=f"spatia_jax: {given.title}",
        clips=clips,
        frames=frames,
        prompts=prompts,
        cameras=cameras,
        world=world,
        fps=config.clip.fps,
        photo=given.views[-1].photo if given.views else None,
        warnings=warnings,
        settings=_settings(args),
    )
    write_manifest(
        folder / "manifest.json",
        config=config,
        seed=args.seed,
        inputs=given.files,
        weights=weight_files(weights),
        outputs={name: folder / name for name in ("video.mp4", "point_map.ply")},
    )
    if score is not None:
        print(f"the path returns to its first view: PSNR {score.psnr:.2f} dB, SSIM {score.ssim:.3f}")
    for name in ("video.mp4", "report.html", "point_map.ply", "world", "manifest.json"):
        print(f"{name:14} {folder / name}")


def _settings(args: SampleArgs) -> dict[str, str]:
    """What the report says about how the video was made."""
    config = args.experiment
    return {
        "config": config.name,
        "seed": str(args.seed),
        "camera path": str(args.cameras.name) if args.cameras else (args.path or DEFAULT_PATH),
        "sampler": f"{config.sampler.solver}, {config.sampler.steps} steps, shift {config.sampler.shift:g}",
        "guidance": f"{config.guidance:g}",
        "references": str(config.clip.references),
        "voxel": f"{config.memory.voxel_size:g} m",
        "splat radius": f"{config.splat.radius:g} NDC, {config.splat.points_per_pixel} points a pixel",
    }
