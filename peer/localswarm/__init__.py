"""A whole swarm on this machine: `relayswarm up`, and the same show for `relayswarm simulate`.

process.py   one child process: its pipes, its log, its end
swarm.py     coordinator and peers as processes; their events as one stream
lines.py, table.py, display.py   what people and programs see of it
session.py   a run from config to report
"""
