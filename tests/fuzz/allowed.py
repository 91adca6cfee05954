"""Accepted calls that no rule explains and that are right all the same, with the reason."""

from fnmatch import fnmatchcase

EMPTY_LAYER = "torch builds layers without channels; no video fits one, so none comes out wrong"

# (name, argument, mutation), each with wildcards: why the call is right
ALLOWED: dict[tuple[str, str, str], str] = {
    ("nn.*", "*channels", "zero"): EMPTY_LAYER,
    ("nn.*", "midplanes", "zero"): EMPTY_LAYER,
    ("nn.*", "cross_attention_dim", "zero"): EMPTY_LAYER,
    ("papers.*", "*channels", "zero"): EMPTY_LAYER,
    ("papers.*", "cross_attention_dim", "zero"): EMPTY_LAYER,
    ("nn.temporal.TemporalResBlock", "temb_channels", "None"): "no time embedding, as in diffusers",
    ("validation.to_uint8", "values", "*inside"): "its callers check the values",
}


_used: set[tuple[str, str, str]] = set()


def reason_of(name: str, argument: str, mutation: str) -> str:
    """The reason of the first entry that fits, or ""."""
    for patterns, reason in ALLOWED.items():
        if all(map(fnmatchcase, (name, argument, mutation), patterns)):
            _used.add(patterns)
            return reason
    return ""


def unused() -> list[tuple[str, str, str]]:
    """Entries that no call has needed so far."""
    return [patterns for patterns in ALLOWED if patterns not in _used]
