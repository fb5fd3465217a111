"""Rules over documents and what was read of a cluster: findings out. Pure."""
