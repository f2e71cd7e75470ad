"""Which backend, kernel and tile compute a problem: by closed formulas, by what was measured, by what failed before."""
