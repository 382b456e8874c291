"""Whole denoising loops of the official pipeline: transformer, control, guidance, solver and given frames together."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spatia_jax import diffusion
from spatia_jax.models.transformer import VideoTransformer
from spatia_jax.models.transformer_layers import TransformerConfig
from spatia_jax.weights.transformer import from_official

OFFICIAL_SOLVERS = {"uni_pc": "unipc", "euler": "euler"}


@pytest.fixture(scope="module")
def arrays(golden_dir):
    return np.load(golden_dir / "denoise.npz")


@pytest.fixture(scope="module")
def network(golden_dir):
    """The golden transformer as (graphdef, params)."""
    sizes = json.loads((golden_dir / "dit_config.json").read_text())
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim", "freq_dim", "eps")
    config = TransformerConfig(
        **{name: sizes["dit"][name] for name in names},
        patch_size=tuple(sizes["dit"]["patch_size"]),
        control_layers=tuple(sizes["vace"]["vace_layers"]),
        control_in_dim=sizes["vace"]["vace_in_dim"],
    )
    params = from_official(
        config, load_file(golden_dir / "dit.safetensors"), load_file(golden_dir / "vace.safetensors")
    )
    return nnx.graphdef(nnx.eval_shape(lambda: VideoTransformer(config, rngs=nnx.Rngs(0)))), params


def channels_last(array):
    return jnp.moveaxis(jnp.asarray(array, jnp.float32), 1, -1)


@pytest.mark.parametrize("kind", ["first", "history"])
def test_golden_denoising_loops(arrays, network, kind):
    """Every "<kind>_<official solver>_<steps>" of the file, from the same starting latents."""
    latents = channels_last(arrays[f"{kind}_latents"])
    num_references = int(arrays["num_ref_frames"]) if kind == "history" else 0
    num_clean = num_references + int(arrays["num_history_latents"]) if kind == "history" else 1
    run = jax.jit(denoising_loop(arrays, network, num_references, num_clean))
    errors = {}
    for key in arrays:
        name, _, steps = key.removeprefix(f"{kind}_").rpartition("_")
        if key.startswith(kind) and name in OFFICIAL_SOLVERS:
            config = diffusion.SamplerConfig(OFFICIAL_SOLVERS[name], int(steps), float(arrays["shift"]))
            actual = run(network[1], latents, diffusion.make_plan(config))[:, num_references:]
            expected = channels_last(arrays[key])
            errors[key] = float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))
    assert errors
    assert max(errors.values()) <= 1e-4, errors


def denoising_loop(arrays, network, num_references, num_clean):
    """(params, latents holding the clean frames, plan) -> denoised latents."""

    def run(params, latents, plan):
        transformer = nnx.merge(network[0], params)
        is_clean = jnp.arange(latents.shape[1]) < num_clean
        control = channels_last(arrays["vace_context"])

        def predict(context):
            def denoise(latents, timestep):
                timesteps = jnp.broadcast_to(diffusion.frame_timesteps(timestep, is_clean), latents.shape[:2])
                return transformer(latents, timesteps, context, control=control, num_references=num_references)

            return denoise

        positive, negative = (predict(jnp.asarray(arrays[name])) for name in ("context", "negative_context"))
        denoise = diffusion.guided(positive, negative, float(arrays["cfg_scale"]))
        return diffusion.sample(denoise, latents, plan, clean=latents, is_clean=is_clean)

    return run
