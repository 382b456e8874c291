"""What goes wrong at the door."""


class InputError(ValueError):
    """Input that cannot be used: one line that says what was wrong, where, and what would be right."""
