"""What a run needs of each device's memory, counted before anything is loaded (docs/plan.md)."""

from spatia_jax.plan.plan import Plan, Row, Setting, Stage, device_memory, nbytes, plan
from spatia_jax.plan.refusal import require_fit

__all__ = ["Plan", "Row", "Setting", "Stage", "device_memory", "nbytes", "plan", "require_fit"]
