"""The Python side of `libdinoreg_host`, see ``runtime/host/include/dinoreg_host.h``."""
