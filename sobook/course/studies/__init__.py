"""Studies: grids of training runs, gathered into tables, figures and paired comparisons.

Start with `study`; `frozen` gives the trainer features instead of images, `baselines` other losses.
"""
