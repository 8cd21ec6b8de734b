"""LoRAs. The wheel has none for Qwen-Image; its packing functions are Flux's."""
