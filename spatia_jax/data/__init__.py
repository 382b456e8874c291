"""Data: the procedural world, its files, and what the generator is shown of a sequence."""

from spatia_jax.data.sequences import Together, open_sequences, sequence_batches

__all__ = ["Together", "open_sequences", "sequence_batches"]
