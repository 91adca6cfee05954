"""What turns prompts and given frames into images and videos, shared by every system of `papers`.

| file              | content                                                                     |
|-------------------|-----------------------------------------------------------------------------|
| `text_encoder`    | prompts to text embeddings; warns of words that these do not hold            |
| `latents`         | images and videos to latents and back                                        |
| `unet_adapter`    | any video U-Net as a model of `diffusion`, its inputs; temporal guidance     |
| `frame_condition` | given frames: prefix, key frames, none; longer videos, frame interpolation   |
| `batch`           | prompts, negatives, generators: checked, and expanded to one row per video   |
| `text_to_video`   | `TextToVideoPipeline`, with the arguments of diffusers' pipelines            |
"""
