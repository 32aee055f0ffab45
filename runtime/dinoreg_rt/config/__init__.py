"""The parameters of a registration, their presets and the files that hold them."""
