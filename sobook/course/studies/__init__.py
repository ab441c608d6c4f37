"""Studies: grids of training runs, gathered into tables, figures and paired comparisons."""
