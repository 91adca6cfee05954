"""One file per system, named after it: `ddpm.py`, `latent_diffusion.py`, …

A file here composes the rooms below (`nn`, `diffusion`, `world`, `metrics`, `training`) and reads from top to bottom
like its paper. A new paper is one file here, one notebook, one recipe, one claim.
"""
