"""python -m spatia_jax.data prepare SOURCE --layout LAYOUT --output DIR"""

import sys

from spatia_jax.training.prepare import main

if __name__ == "__main__":
    sys.exit(main())
