"""The rollout of one release: its plan, its steps, and how its progress is shown."""
