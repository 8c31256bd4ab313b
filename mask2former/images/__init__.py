"""Image -> tensor -> segmentation: preprocessing, post-processing and pictures."""
