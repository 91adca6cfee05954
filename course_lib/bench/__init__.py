"""Timings against other libraries: `make bench`, or `python -m course_lib.bench [NAME …]`.

A benchmark is a function without arguments that returns a list of `timing.BenchmarkRow`s. To add
one, write the function in a file of this package and list it in `registry.py`. It should take at
most 30 seconds on two cores; those that compile or train U-Nets take minutes.
"""
