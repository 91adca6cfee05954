"""Side-by-side timings against peers: `make bench`, or `python -m course_lib.bench [--out FILE] [NAME …]`.

A benchmark is a function without arguments that returns `timing.Row`s in at most 30 seconds on two cores; only
`sampling`, which compiles, takes minutes. A new one is a function in a file here and a line in `registry.py`.
"""
