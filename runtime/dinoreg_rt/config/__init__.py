"""The parameters of a registration, their presets and TOML files."""
