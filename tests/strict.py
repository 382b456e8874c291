"""The type checker that `conftest.py` puts on every signature of the package."""

from beartype import BeartypeConf, beartype

# An int is welcome where a float is asked for, as Python's own typing rules have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
