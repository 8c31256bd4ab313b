"""Training targets, Hungarian matching and the loss."""
