"""The process that runs a command: how it ends, what stops it, and what it computes on."""
