"""What a video network is built from. Knows no diffusion and no data."""
