"""What compare_peers.py measures kvtier beside, and how: one contender a file, and the workloads."""
