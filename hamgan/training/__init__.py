"""Training: losses, augmentation, EMA, one D phase and one G phase, and the loop."""
