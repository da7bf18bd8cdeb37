"""Encoders and what stands on them: heads, weights, checkpoints, the classifier, features."""

from sscl.models.encoders import build_encoder as build_encoder
