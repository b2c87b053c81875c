"""The feeds of the control plane, and the greenlets that refresh them."""
