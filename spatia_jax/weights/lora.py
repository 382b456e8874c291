"""Released LoRA files <-> our `Lora`.

Keys read `pipe.dit.blocks.<i>.<layer>.lora_A(.default).weight` [rank, in] and `lora_B` [out, rank]; other keys are
ignored, as in the released loader. The update is B A, scale 1 (spec section 2.5).
"""

import re
from collections import defaultdict
from typing import Any

from spatia_jax.errors import InputError
from spatia_jax.models.lora import Lora, LowRank
from spatia_jax.models.transformer import TransformerConfig
from spatia_jax.weights.transformer import BLOCK_LINEARS

_KEY = re.compile(r"pipe\.dit\.blocks\.(\d+)\.(.+)\.lora_([AB])(?:\.default)?\.weight")


def lora_from_official(config: TransformerConfig, tensors: dict[str, Any]) -> Lora:
    """Our factors from a released file's tensors.

    Raises:
        InputError: no key is of a LoRA, a layer is unknown, or one does not cover all blocks.
    """
    ours = {official: path for path, official in BLOCK_LINEARS.items()}
    found: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _KEY.fullmatch(name):
            index, layer, factor = match.groups()
            if layer not in ours:
                raise InputError(f"LoRA file: {name!r} updates an unknown layer; known are {sorted(ours)}")
            found[ours[layer], factor][int(index)] = tensor
    if not found:
        raise InputError("LoRA file: no key reads 'pipe.dit.blocks.<i>.<layer>.lora_A.weight'; is this Spatia's LoRA?")

    def stacked(path: str, factor: str):
        blocks = found[path, factor]
        if set(blocks) != set(range(config.num_layers)):
            raise InputError(
                f"LoRA file: lora_{factor} of {path} covers {len(blocks)} blocks; the model has {config.num_layers}"
            )
        layers = [blocks[i].T for i in range(config.num_layers)]
        return layers[0].__array_namespace__().stack(layers)

    return {path: LowRank(stacked(path, "A"), stacked(path, "B")) for path in sorted({path for path, _ in found})}


def lora_to_official(lora: Lora) -> dict[str, Any]:
    """Tensors under the released keys, with `.default` as in Spatia's file."""
    tensors = {}
    for path, factors in lora.items():
        for factor, stacked in (("A", factors.down), ("B", factors.up)):
            for i, layer in enumerate(stacked):
                tensors[f"pipe.dit.blocks.{i}.{BLOCK_LINEARS[path]}.lora_{factor}.default.weight"] = layer.T
    return tensors
