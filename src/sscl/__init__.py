"""Self-supervised contrastive learning on H&E colon tiles."""

__version__ = "0.1.0"
