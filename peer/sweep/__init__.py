"""Many simulated runs at once: grids of settings and seeds, tuned rates, tables and a picture."""
