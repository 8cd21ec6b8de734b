"""LoRAs, of which only the packed layout is here."""
