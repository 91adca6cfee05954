"""Subsets of the subjects that several parts of the package use."""

# 12 animals, 4 vehicles and 8 coloured shapes: the classes of `recipes.pixel_ddpm`, in this order
SUBJECTS_24: tuple[str, ...] = (
    *("tiger", "lion", "owl", "octopus", "frog", "penguin"),
    *("elephant", "poodle", "pig", "butterfly", "giraffe", "flamingo"),
    *("rocket", "bus", "helicopter", "sailboat"),
    *("red heart", "pink heart", "blue star", "yellow star"),
    *("green circle", "purple circle", "orange square", "blue triangle"),
)
