"""Approximate light cones from six parameters, the physics of each term in a module of its own."""

from skatr_sk.simulator.simulated import SimulatedLightcones, make_lightcones

__all__ = ["SimulatedLightcones", "make_lightcones"]
