"""One file per data set format; `mask2former.data.open_dataset` chooses among them."""
