"""Files with networks: training's checkpoints, converted ones, and what every command reads of either.

- ``checkpoints.networks``   `load_networks`: configurations and weights of both networks, of a file of either kind
- ``checkpoints.trained``    `find_checkpoint` of a run's folder, `load_checkpoint`: all that a run goes on from
"""
