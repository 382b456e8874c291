"""Training: one loop for every network, with the objectives that it is given."""

from spatia_jax.training.loop import FitConfig, fit
from spatia_jax.training.state import OptimizerConfig, TrainState

__all__ = ["FitConfig", "OptimizerConfig", "TrainState", "fit"]
