"""Training: one loop for every network, with the objectives that it is given."""

from spatia_jax.training.batches import Batches
from spatia_jax.training.loop import Watch, fit
from spatia_jax.training.options import FitConfig, OptimizerConfig
from spatia_jax.training.state import TrainState

__all__ = ["Batches", "FitConfig", "OptimizerConfig", "TrainState", "Watch", "fit"]
