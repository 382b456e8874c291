"""The procedural world: furnished, lit places with moving objects; colour, exact depth, motion masks and captions."""

from spatia_jax.data.procedural.captions import VOCABULARY, caption
from spatia_jax.data.procedural.paths import KINDS, sample_path
from spatia_jax.data.procedural.records import HELD_OUT, ProceduralConfig, ProceduralSource, make_record
from spatia_jax.data.procedural.render import Rendering, render
from spatia_jax.data.procedural.scene import Scene, clearance, inside_moving, sample_scene

__all__ = [
    "HELD_OUT",
    "KINDS",
    "VOCABULARY",
    "ProceduralConfig",
    "ProceduralSource",
    "Rendering",
    "Scene",
    "caption",
    "clearance",
    "inside_moving",
    "make_record",
    "render",
    "sample_path",
    "sample_scene",
]
