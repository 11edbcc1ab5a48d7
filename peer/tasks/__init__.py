"""The built-in tasks. The contract that they fulfil is `relayswarm.task`."""
