"""The rollout of one release: what it is to do, how it gets there step by step, and how that looks."""
