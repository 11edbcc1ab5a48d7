"""Swarms for the training loops of other libraries; each module needs the extra of its name."""
