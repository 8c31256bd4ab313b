"""Files, the hub, and optional packages: what all other modules read and write through."""
