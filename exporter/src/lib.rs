//! TorchScript archives and ML Commons packages.
