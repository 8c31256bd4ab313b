"""Files, the hub, and optional packages: what every other room reads and writes through."""
