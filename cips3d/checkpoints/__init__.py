"""Files with networks: training's checkpoints, converted ones, and what every command reads of either."""
