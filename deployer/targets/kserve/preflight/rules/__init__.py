"""Rules that check a service against the facts about a cluster, and return findings. Pure."""
