"""Flux's LoRAs, of which the packing functions are of use elsewhere."""
