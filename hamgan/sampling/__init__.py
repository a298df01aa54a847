"""Drawing from a generator that is handed in: latents by seed, images, grids."""
