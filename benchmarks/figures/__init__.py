"""Figures of the RelaySGD paper, and one that it leaves out, made with the product's own parts."""
