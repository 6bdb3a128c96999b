"""aggregate: evaluated cells -> tables, figures, paired comparisons."""
