"""What a notebook touches: `show` (pictures), `verdict` (claims), `widgets`, `checks` (exercises), `style` (plots).

Nothing is imported here, so that `from course_lib.lab import show` costs only what `show` needs.
"""
