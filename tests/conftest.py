"""Settings that every test shares."""

import os

import hypothesis
import matplotlib

# Sizes and steps for a machine in a hurry. An environment variable, so that notebook kernels inherit it.
os.environ.setdefault("COURSE_PROFILE", "ci")
# No windows. Not MPLBACKEND: the kernels would inherit it and lose their inline pictures.
matplotlib.use("Agg")

# The same examples in every run: a red test stays red until it is mended. No deadline: CI machines stall.
hypothesis.settings.register_profile("course", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("course")
