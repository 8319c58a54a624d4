//! Data sets, losses, schedules, optimizer, checkpoints and the training loop.
