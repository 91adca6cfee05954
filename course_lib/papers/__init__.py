"""One file per system, named after it: `vdm.py`, `make_a_video.py`, `imagen_video.py`, …

A file here composes the rooms below (`nn`, `diffusion`, `world`, `metrics`, `training`) and reads from top to bottom
like its paper. The first one comes with lesson 03. A new paper is one file here, one notebook, one recipe, one claim.
"""
