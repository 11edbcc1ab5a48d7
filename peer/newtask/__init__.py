"""The folder that `relayswarm new` writes: a task of one's own, from a template that works."""
