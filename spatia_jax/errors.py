"""What goes wrong at the door."""


class InputError(Exception):
    """Input that cannot be used: one line that says what was wrong, where, and what would be right."""
