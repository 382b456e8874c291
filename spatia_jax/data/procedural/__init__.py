"""The procedural world: furnished, lit places with moving objects, rendered with exact depth, motion masks and captions."""

from spatia_jax.data.procedural.captions import VOCABULARY, caption
from spatia_jax.data.procedural.paths import KINDS, sample_path
from spatia_jax.data.procedural.render import Rendering, render
from spatia_jax.data.procedural.scene import Scene, clearance, sample_scene

__all__ = ["KINDS", "VOCABULARY", "Rendering", "Scene", "caption", "clearance", "render", "sample_path", "sample_scene"]
