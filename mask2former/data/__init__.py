"""Annotated images on disk, whatever their format, as one kind of data set."""
