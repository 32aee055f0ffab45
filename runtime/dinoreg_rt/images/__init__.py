"""Images before features: intensity windows, body masks, grids and resampling."""
