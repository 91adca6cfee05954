"""A claim whose runs cost nothing. Not a test itself."""

from course_lib.claims import Arm, Claim


def fake(run, **changes):
    """A claim whose runs cost nothing."""
    fields = {
        "id": "fake",
        "lesson": "01",
        "source": "this course",
        "statement": "Up is more.",
        "setup": "none",
        "metric": "height",
        "metric_label": "height in m",
        "better": "up",
        "worse": "down",
        "arms": (Arm("down", "downwards", 1), Arm("up", "upwards", 10)),
        "run": run,
    }
    return Claim(**fields | changes)


def heights(arm, seed, scale):
    height = seed + arm.value + seed**2 * (arm.id == "up") / 100
    return {"height": scale * height, "seed": float(seed)}
