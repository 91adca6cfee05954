"""One file per system, named after it: `ddpm.py`, `vdm.py`, `latent_diffusion.py`, `video_ldm.py`.

A file composes the packages below (`nn`, `diffusion`, `pipelines`) and reads from top to bottom
like its paper: network, noise schedule, training, and what only this paper has. A new paper is
one file here, one notebook, one recipe, one claim.
"""
