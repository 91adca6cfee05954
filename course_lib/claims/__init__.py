"""Every paper's headline claim as an experiment: seeds, effect, interval, and an honest verdict.

    make claims                                     # all of them, three seeds or more (seven hours on two cores)
    python -m course_lib.claims order-blind         # one
    load_ledger()["order-blind"].verdict            # what the course found

One file per lesson's experiments (`convolution.py` …), each with a tuple `CLAIMS`; `ledger.py` runs and records them.
"""

from course_lib.claims import convolution, diffusion, inflation, latents, metrics, motion_words, vdm
from course_lib.claims.ledger import (
    Claim,
    Record,
    judge,
    load_ledger,
    mean_interval,
    run_claim,
    save_ledger,
)

_ROOMS = (convolution, diffusion, inflation, latents, metrics, motion_words, vdm)
CLAIMS: dict[str, Claim] = {claim.id: claim for room in _ROOMS for claim in room.CLAIMS}

__all__ = [
    "CLAIMS",
    "Claim",
    "Record",
    "judge",
    "load_ledger",
    "mean_interval",
    "run_claim",
    "save_ledger",
]
