"""What `libdinoreg_host` calls for C and C++ programs: ``runtime/host/include/dinoreg_host.h``."""
