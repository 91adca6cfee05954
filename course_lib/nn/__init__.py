"""Building blocks of video networks. Independent of diffusion and of any data."""
