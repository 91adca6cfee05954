"""The notebook front end.

| module            | content                                                             |
|-------------------|---------------------------------------------------------------------|
| `show`            | videos, images, optical flow, curves, bars                          |
| `pipeline_output` | what diffusers' pipelines return, as pixels                         |
| `claim_plot`      | a claim of the ledger with all its runs                             |
| `conv_animations` | a convolution's kernel at work                                      |
| `widgets`         | sliders in a live notebook, a row of examples elsewhere             |
| `style`           | the look of figures                                                 |
| `checks`          | the engine of the exercises                                         |
| `gallery`         | runs the notebooks without a browser                                |
| `offline_page`    | notebooks as HTML pages that load nothing                           |

Nothing is imported here: `from course_lib.lab import show` loads only what `show` needs.
"""
