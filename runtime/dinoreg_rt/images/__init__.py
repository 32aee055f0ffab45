"""Images before feature extraction: intensity windows, body masks, grids and resampling."""
