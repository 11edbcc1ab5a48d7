"""A program's own training loop as a peer: `relayswarm.Swarm` is its public face."""
