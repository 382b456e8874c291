"""What XLA itself says about the denoising step, without a single array."""

from __future__ import annotations

import jax

from spatia_jax.config import Experiment
from spatia_jax.errors import InputError
from spatia_jax.model import Model
from spatia_jax.parallel import MeshConfig, make_mesh, param_shardings, replicated
from spatia_jax.plan.plan import WeightsDtype, abstract_weights, clip_arrays
from spatia_jax.sampling import compiled


def compile_step(config: Experiment, mesh: MeshConfig, weights_dtype: WeightsDtype) -> int:
    """Bytes that one denoising step of the opening clip makes on each device here, results included.

    It is compiled at full size for the backend here, whose attention counts: on CPU that keeps the weights of all pairs
    of tokens, which a GPU in bfloat16 never does.

    Raises:
        InputError: the mesh is not that of the devices here, or this backend does not say.
    """
    model, devices = Model(config), make_mesh(mesh, jax.devices())
    params = abstract_weights(model, weights_dtype)
    arrays = clip_arrays(model, params, opening=True)
    params = {name: params[name] for name in ("transformer", "lora") if name in params}

    def place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    given = jax.tree.map(lambda leaf: place(leaf, replicated(devices)), (arrays.conditions, arrays.state, arrays.row))
    placed = jax.tree.map(place, params, param_shardings(params, devices))
    step = compiled.denoising_step.lower(model, placed, *given).compile()  # type: ignore[attr-defined]
    usage = step.memory_analysis()
    if usage is None:
        raise InputError(f"--compile: the {jax.default_backend()} backend does not say what a program needs")
    return usage.temp_size_in_bytes + usage.output_size_in_bytes
