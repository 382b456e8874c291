"""Measurements against ground truth: python -m spatia_jax.evaluation closed-loop --help"""
