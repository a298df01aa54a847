"""Generator and discriminator: one family for BigGAN and for the official HamGAN, told apart by configuration."""
