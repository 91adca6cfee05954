"""Claims of the papers as experiments: arms, seeds, paired effects with intervals, verdicts.

    make claims                                # all, three seeds or more (7 hours on two cores)
    python -m course_lib.claims order-blind    # one
    load_ledger()["order-blind"].verdict       # the result that ships with the course

There is one file per lesson, each with a tuple `CLAIMS`. `ledger` runs and records them, `common`
holds what several of them share, and `dependencies` decides which finished runs still count.
"""

from course_lib.claims import convolution, diffusion, inflation, latents, metrics, motion_words, vdm
from course_lib.claims.ledger import (
    Arm,
    Claim,
    Record,
    add_record,
    load_ledger,
    paired_verdict,
    run_claim,
    save_ledger,
)

MODULES = (convolution, diffusion, inflation, latents, metrics, motion_words, vdm)
CLAIMS: dict[str, Claim] = {claim.id: claim for module in MODULES for claim in module.CLAIMS}

__all__ = [
    "CLAIMS",
    "MODULES",
    "Arm",
    "Claim",
    "Record",
    "add_record",
    "load_ledger",
    "paired_verdict",
    "run_claim",
    "save_ledger",
]
