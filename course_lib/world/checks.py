"""Argument checks."""


def require(is_valid: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not is_valid:
        raise ValueError(message)
