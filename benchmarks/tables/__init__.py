"""The papers' tables, run on the simulator with stacked peers and rates tuned for each cell."""
