"""Generates a video of a place: python sample.py configs/tiny.py --image photo.jpg --path "pan left 40; there and back"

See --help for everything; without an image, an embedded one is used.
"""

import sys

from spatia_jax.sampling.command import main

if __name__ == "__main__":
    sys.exit(main())
