"""Trains one network of an experiment: python train.py configs/tiny.py --part autoencoder --output runs/tiny

The parts build on each other: autoencoder, depth, stage1, stage2. Each resumes from its last checkpoint.
"""

import sys

from spatia_jax.training.command import main

if __name__ == "__main__":
    sys.exit(main())
