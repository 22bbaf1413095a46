"""mien: train a face GAN that works, know how good it is, steer it."""

__version__ = "0.1.0"
