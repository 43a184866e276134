"""The samplers that every network can do."""

from models.samplers import JUMPING, SAMPLERS

PLAIN = [name for name in SAMPLERS if name not in JUMPING]
